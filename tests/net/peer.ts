/**
 * A program of the host's that guests talk to over TCP. Prints "ready", then a line for what it has seen.
 *   peer.ts serve FILE PORT       sends FILE to each who connects
 *   peer.ts http FILE PORT        answers each request with FILE
 *   peer.ts take FILE PORT        compares what each sends with FILE; prints "same" or "different N" (bytes that came)
 *   peer.ts count PORT            prints "BYTES MS" of what the first sends, from its first byte to its end
 *   peer.ts pour PORT             sends to each who connects for as long as it reads
 *   peer.ts number HOST PORT N    sends N datagrams, each with its number (le32); prints "sent"
 *   peer.ts fetch HOST PORT       greets until something comes, and prints that
 */

import { createSocket } from "node:dgram";
import { readFileSync } from "node:fs";
import { connect, createServer, type Socket } from "node:net";

const [command = "", ...rest] = process.argv.slice(2);
const say = (line: string) => void process.stdout.write(`${line}\n`);

function listen(port: string | undefined, serve: (socket: Socket) => void): void {
  createServer({ allowHalfOpen: true }, (socket) => {
    socket.on("error", () => {});
    serve(socket);
  }).listen(Number(port), () => say("ready"));
}

/** The guest's program may not listen yet, so it is tried again while nothing comes. */
function fetchFrom(host: string, port: number, tries: number): void {
  let bytes = 0;
  // passt before 2024 completes a handshake with the guest only when the one who connects says something.
  const socket = connect(port, host, () => socket.write("hello\n"));
  socket.on("error", () => {});
  socket.on("data", (chunk) => {
    bytes += chunk.length;
    process.stdout.write(chunk);
  });
  socket.on("close", () => {
    if (bytes === 0 && tries > 0) setTimeout(() => fetchFrom(host, port, tries - 1), 100);
  });
}

switch (command) {
  case "serve": {
    const content = readFileSync(rest[0]!);
    listen(rest[1], (socket) => socket.end(content));
    break;
  }
  case "http": {
    const content = readFileSync(rest[0]!);
    listen(rest[1], (socket) => {
      socket.once("data", () => {
        socket.write(`HTTP/1.0 200 OK\r\nContent-Length: ${content.length}\r\n\r\n`);
        socket.end(content);
      });
    });
    break;
  }
  case "take": {
    const content = readFileSync(rest[0]!);
    listen(rest[1], (socket) => {
      const chunks: Buffer[] = [];
      socket.on("data", (chunk) => chunks.push(Buffer.from(chunk)));
      socket.on("end", () => {
        const all = Buffer.concat(chunks);
        say(all.equals(content) ? "same" : `different ${all.length}`);
        socket.end();
      });
    });
    break;
  }
  case "count":
    listen(rest[0], (socket) => {
      let bytes = 0;
      let start = 0;
      socket.on("data", (chunk) => {
        if (bytes === 0) start = performance.now();
        bytes += chunk.length;
      });
      socket.on("end", () => {
        say(`${bytes} ${performance.now() - start}`);
        socket.end();
      });
    });
    break;
  case "pour":
    listen(rest[0], (socket) => {
      const chunk = Buffer.alloc(65536, "sparkler");
      const more = () => {
        while (socket.write(chunk));
      };
      socket.on("drain", more);
      more();
    });
    break;
  case "number": {
    const [host = "", port = "", count = ""] = rest;
    say("ready");
    const socket = createSocket("udp4");
    const number = Buffer.alloc(64);
    const send = (i: number) => {
      if (i === Number(count)) {
        socket.close();
        say("sent");
        return;
      }
      number.writeUInt32LE(i);
      socket.send(number, Number(port), host, () => send(i + 1));
    };
    send(0);
    break;
  }
  case "fetch": {
    say("ready");
    fetchFrom(rest[0]!, Number(rest[1]), 50);
    break;
  }
  default:
    throw new Error(`unknown command ${command}`);
}
