/** The transport: what arrives in pieces, too fast, too large or not at all. */

import { afterAll, afterEach, beforeEach, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { HttpRequest } from "./request.ts";
import { HttpServer } from "./server.ts";

const MAX_BODY = 51_200;
const dir = mkdtempSync(join(tmpdir(), "sparkler-http-"));
afterAll(() => rmSync(dir, { recursive: true }));
const path = join(dir, "socket");

let server: HttpServer;
/** Paths of the requests in the order in which they began and ended. */
let events: string[] = [];
let answer: (request: HttpRequest) => string = ({ path: target }) => target;

beforeEach(() => {
  events = [];
  answer = ({ path: target }) => target;
  server = new HttpServer({
    path,
    maxBody: MAX_BODY,
    async handle(request) {
      events.push(`+${request.path}`);
      if (request.path.startsWith("/slow")) await Bun.sleep(20);
      events.push(`-${request.path}`);
      return { status: 200, body: JSON.stringify(answer(request)) };
    },
  });
});

afterEach(() => server.close());

/** A connection of which everything is under control. */
async function connect() {
  let received = "";
  let ended = false;
  let wake = () => {};
  const socket = await Bun.connect({
    unix: path,
    socket: {
      data(_, bytes) {
        received += bytes.toString("latin1");
        wake();
      },
      close() {
        ended = true;
        wake();
      },
    },
  });
  const until = async (done: () => boolean) => {
    const end = performance.now() + 5000;
    while (!done()) {
      if (performance.now() > end) throw new Error(`waited in vain; received: ${received}`);
      await Promise.race([
        new Promise<void>((resolve) => {
          wake = resolve;
        }),
        Bun.sleep(50),
      ]);
    }
    return received;
  };
  return {
    socket,
    send: (text: string | Uint8Array) => socket.write(text),
    /** Waits for `count` whole answers and returns their bodies. */
    async answers(count: number): Promise<string[]> {
      await until(() => received.split("\r\n\r\n").length > count && complete(received, count));
      return bodies(received);
    },
    closed: () => until(() => ended),
    text: () => received,
  };
}

function complete(text: string, count: number): boolean {
  return bodies(text).length >= count;
}

function bodies(text: string): string[] {
  const found: string[] = [];
  for (let rest = text; ; ) {
    const head = rest.indexOf("\r\n\r\n");
    const length = /Content-Length: (\d+)/.exec(rest.slice(0, head))?.[1];
    if (head < 0 || length === undefined || rest.length < head + 4 + Number(length)) return found;
    found.push(rest.slice(head + 4, head + 4 + Number(length)));
    rest = rest.slice(head + 4 + Number(length));
  }
}

const get = (target: string) => `GET ${target} HTTP/1.1\r\nHost: localhost\r\n\r\n`;
const put = (target: string, body: string) =>
  `PUT ${target} HTTP/1.1\r\nContent-Length: ${body.length}\r\n\r\n${body}`;

describe("requests", () => {
  test("an answer is Firecracker's to the byte", async () => {
    const client = await connect();
    client.send(get("/x"));
    await client.answers(1);
    expect(client.text()).toBe(
      "HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n" +
        'Content-Type: application/json\r\nContent-Length: 4\r\n\r\n"/x"',
    );
  });

  test("pipelined requests are answered in their order, one after the other", async () => {
    const client = await connect();
    client.send(get("/slow/1") + put("/2", "{}") + get("/slow/3") + get("/4"));
    expect(await client.answers(4)).toEqual(['"/slow/1"', '"/2"', '"/slow/3"', '"/4"']);
    expect(events).toEqual(["+/slow/1", "-/slow/1", "+/2", "-/2", "+/slow/3", "-/slow/3", "+/4", "-/4"]);
  });

  test("those of several clients are not handled at the same time", async () => {
    const clients = await Promise.all(Array.from({ length: 64 }, () => connect()));
    for (const [i, client] of clients.entries()) client.send(get(i % 8 === 0 ? `/slow/${i}` : `/${i}`));
    await Promise.all(clients.map((client) => client.answers(1)));
    expect(events.length).toBe(128);
    for (let i = 0; i < events.length; i += 2) expect(events[i + 1]).toBe(events[i]!.replace("+", "-"));
    for (const client of clients) client.socket.end();
  });

  test("a request that comes byte by byte, and one in two writes", async () => {
    answer = ({ body }) => Buffer.from(body).toString();
    const client = await connect();
    for (const byte of put("/x", "0123456789")) {
      client.send(byte);
      await Bun.sleep(0);
    }
    expect(await client.answers(1)).toEqual(['"0123456789"']);
    client.send(put("/x", "abcdef").slice(0, -3));
    await Bun.sleep(10);
    client.send("def");
    expect((await client.answers(2))[1]).toBe('"abcdef"');
  });

  test("a body waits for permission if the client asks for it", async () => {
    answer = ({ body }) => Buffer.from(body).toString();
    const client = await connect();
    client.send("PUT /x HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    const end = performance.now() + 2000;
    while (client.text() === "" && performance.now() < end) await Bun.sleep(1);
    expect(client.text()).toBe("HTTP/1.1 100 \r\n\r\n");
    client.send("hi");
    while (!client.text().endsWith('"hi"') && performance.now() < end) await Bun.sleep(1);
    expect(client.text()).toEndWith('"hi"');
  });

  test("a client that shuts its side down still gets its answers", async () => {
    const client = Bun.spawn(
      [
        "bash",
        "-c",
        `printf 'GET /slow/1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n' | "$0" -e '
        const s = require("net").connect({ path: process.argv[1], allowHalfOpen: true });
        s.on("data", (d) => process.stdout.write(d));
        s.on("end", () => process.exit());
        process.stdin.on("data", (d) => s.write(d));
        process.stdin.on("end", () => s.end());
      ' "$1"`,
        process.execPath,
        path,
      ],
      { stdout: "pipe", env: { ...process.env, BUN_BE_BUN: "1" } },
    );
    expect(bodies(await new Response(client.stdout).text())).toEqual(['"/slow/1"', '"/2"']);
  });

  test("Connection: close and HTTP/1.0 end the connection after the answer", async () => {
    for (const text of ["GET /x HTTP/1.0\r\n\r\n", "GET /x HTTP/1.1\r\nConnection: Close\r\n\r\n"]) {
      const client = await connect();
      client.send(text);
      expect(await client.closed()).toContain("Connection: close\r\n");
      expect(bodies(client.text())).toEqual(['"/x"']);
    }
    const kept = await connect();
    kept.send("GET /1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    await kept.answers(1);
    kept.send(get("/2"));
    expect(await kept.answers(2)).toEqual(['"/1"', '"/2"']);
  });

  test("targets with scheme and host, and line breaks between requests", async () => {
    const client = await connect();
    client.send(
      `GET http://localhost/a HTTP/1.1\r\n\r\n\r\n${get("/b")}GET http://localhost HTTP/1.1\r\n\r\n`,
    );
    expect(await client.answers(3)).toEqual(['"/a"', '"/b"', '"/"']);
  });
});

describe("limits", () => {
  test("a body of the largest size is taken, a larger one refused as Firecracker does, to the byte", async () => {
    answer = ({ body }) => String(body.length);
    const client = await connect();
    client.send(put("/x", "x".repeat(MAX_BODY)));
    expect(await client.answers(1)).toEqual([`"${MAX_BODY}"`]);
    client.send("PUT /x HTTP/1.1\r\nContent-Length: 51201\r\n\r\nsome body");
    const refusal = (await client.answers(2))[1]!;
    expect(refusal).toBe(
      '{ "error": "Request payload with size 51201 is larger than the limit of 51200 allowed by server.\n' +
        'All previous unanswered requests will be dropped." }',
    );
    expect(client.text()).toEndWith(
      "HTTP/1.1 400 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n" +
        `Content-Type: application/json\r\nContent-Length: ${refusal.length}\r\n\r\n${refusal}`,
    );
    // The connection goes on behind the body, however it arrives.
    client.send("x".repeat(30_000));
    client.send("x".repeat(51_201 - 9 - 30_000) + put("/y", "abc"));
    expect((await client.answers(3))[2]).toBe('"3"');
    expect(events).toEqual(["+/x", "-/x", "+/y", "-/y"]);
    client.send("PUT /x HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 51201\r\n\r\n");
    expect(await client.closed()).toContain("Connection: close\r\n");
    expect(bodies(client.text())[3]).toBe(refusal);
  });

  test("a large body is read to its end", async () => {
    const large = "x".repeat(2_000_000);
    const curl = Bun.spawn(
      [
        "curl",
        "-s",
        "-o",
        "-",
        "-w",
        " %{http_code}",
        "-H",
        "Expect:",
        "--unix-socket",
        path,
        "-X",
        "PUT",
      ].concat("http://l/x", "--data-binary", "@-"),
      { stdin: new TextEncoder().encode(large), stdout: "pipe" },
    );
    expect(await new Response(curl.stdout).text()).toBe(
      '{ "error": "Request payload with size 2000000 is larger than the limit of 51200 allowed by server.\n' +
        'All previous unanswered requests will be dropped." } 400',
    );
    expect(events).toEqual([]);
  });

  test.each([
    ["hello world\r\n\r\n", "Invalid HTTP Method: Unsupported HTTP method."],
    ["GET /\r\n\r\n", "Invalid HTTP Version: Unsupported HTTP version."],
    ["GET / HTTP/2.0\r\n\r\n", "Invalid HTTP Version: Unsupported HTTP version."],
    ["GET / HTTP/1.1 x\r\n\r\n", "Invalid HTTP Version: Unsupported HTTP version."],
    ["GET x HTTP/1.1\r\n\r\n", "Invalid URI: Give a path that begins with `/`."],
    ["GET / HTTP/1.1\r\nno colon\r\n\r\n", "Invalid header."],
    ["GET / HTTP/1.1\r\n: x\r\n\r\n", "Invalid header."],
    ["GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 'Invalid header. Content-Length: "-1"'],
    ["GET / HTTP/1.1\r\nContent-Length: 1e3\r\n\r\n", 'Invalid header. Content-Length: "1e3"'],
    [
      "GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
      'Invalid header. Content-Length: "2"',
    ],
    ["PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "Unsupported header Transfer-Encoding."],
  ])("%j is refused and the connection closed", async (text, message) => {
    const client = await connect();
    client.send(text.slice(0, 100));
    client.send(text.slice(100));
    const received = await client.closed();
    expect(received).toStartWith("HTTP/1.1 400 \r\n");
    const refusal = `{ "error": "${JSON.stringify(message).slice(1, -1)}`;
    expect(bodies(received)[0]).toStartWith(refusal);
    expect(bodies(received)[0]).toEndWith('\nAll previous unanswered requests will be dropped." }');
    expect(events).toEqual([]);
  });

  test("a head without end is refused", async () => {
    for (const text of [`GET /${"x".repeat(20_000)} HTTP/1.1\r\n\r\n`, "x".repeat(20_000)]) {
      const client = await connect();
      client.send(text);
      expect(await client.closed()).toContain("Invalid request. Its head is longer than 16384 bytes.");
    }
  });

  test("more clients than there is room for are told so", async () => {
    const clients = await Promise.all(Array.from({ length: 256 }, () => connect()));
    const extra = await connect();
    expect(bodies(await extra.closed())).toEqual(['{ "error": "Too many open connections" }']);
    clients[0]!.socket.end();
    await clients[0]!.closed();
    await Bun.sleep(20);
    const next = await connect();
    next.send(get("/x"));
    expect(await next.answers(1)).toEqual(['"/x"']);
    for (const client of clients) client.socket.end();
  });
});

describe("clients that misbehave", () => {
  test("one that vanishes in the middle of a request, or before its answer, harms nobody", async () => {
    for (let i = 0; i < 50; i++) {
      const client = await connect();
      client.send(i % 2 === 0 ? put("/x", "0123456789").slice(0, 20 + i) : get("/slow/x"));
      await Bun.sleep(0);
      client.socket.terminate();
    }
    const client = await connect();
    client.send(get("/y"));
    expect(await client.answers(1)).toEqual(['"/y"']);
  });

  test("many that come and go leave nothing behind", async () => {
    const descriptors = () => readdirSync("/proc/self/fd").length;
    const before = descriptors();
    const growth = async (clients: number) => {
      const start = process.memoryUsage().rss;
      for (let i = 0; i < clients; i++) {
        const client = await connect();
        client.send(get("/x"));
        await client.answers(1);
        client.socket.end();
        await client.closed();
      }
      events.length = 0;
      return process.memoryUsage().rss - start;
    };
    await growth(500);
    expect(await growth(2000)).toBeLessThan(32 * 2 ** 20);
    // The server learns of a closed connection at its next turn.
    for (const end = performance.now() + 5000; descriptors() > before + 2 && performance.now() < end; ) {
      await Bun.sleep(5);
    }
    expect(descriptors()).toBeLessThanOrEqual(before + 2);
  });

  test("one that sends requests and reads no answers does not make the monitor grow", async () => {
    const big = "x".repeat(40_000);
    answer = () => big;
    const child = Bun.spawn(
      [
        process.execPath,
        "-e",
        `const s = require("net").connect(process.argv[1]); s.pause();
         const text = "GET /x HTTP/1.1\\r\\n\\r\\n".repeat(20000); s.write(text); s.write(text);`,
        path,
      ],
      { stdout: "ignore" },
    );
    const before = process.memoryUsage().rss;
    for (let last = -1; last !== events.length; ) {
      last = events.length;
      await Bun.sleep(150);
    }
    expect(events.length).toBeGreaterThan(0);
    expect(events.length).toBeLessThan(200);
    expect(process.memoryUsage().rss - before).toBeLessThan(32 * 2 ** 20);
    const client = await connect();
    client.send(get("/y"));
    expect(bodies(client.text()).length + (await client.answers(1)).length).toBeGreaterThan(0);
    child.kill();
    await child.exited;
  });

  test("10,000 requests in a row on one connection, without growth", async () => {
    const client = await connect();
    let open = 0;
    const before = process.memoryUsage().rss;
    for (let i = 0; i < 10_000; i += 100) {
      client.send(get("/x").repeat(100));
      open += 100;
      while (events.length < 2 * open) await Bun.sleep(0);
      events.length = 0;
      open = 0;
    }
    expect(process.memoryUsage().rss - before).toBeLessThan(48 * 2 ** 20);
    client.socket.end();
  });
});

test("the socket is there only while the server answers", () => {
  expect(existsSync(path)).toBe(true);
  expect(() => new HttpServer({ path, maxBody: 1, handle: () => ({ status: 204 }) })).toThrow(
    `Failed to open the API socket at: ${path}. Check that it is not already used.`,
  );
  server.close();
  expect(existsSync(path)).toBe(false);
});
