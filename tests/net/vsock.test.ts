/** vsock between a Debian guest and programs of the host, through the sockets that Firecracker has. */

import { afterAll, describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { createServer, connect as netConnect, type Server, type Socket } from "node:net";
import { join } from "node:path";
import { finishRuns, type Started, TEST_LIMIT, temporaryDirectory } from "../guests/sparkler.ts";
import { compile, startGuest } from "./guest.ts";

const dir = temporaryDirectory();
const servers: Server[] = [];
afterAll(() => {
  for (const server of servers) server.close();
  dir.remove();
  finishRuns();
});

/** Connections at once, and MiB that all of them carry each way together. */
const CONNECTIONS = 100;
const MIB_IN_ALL = Number(process.env.SPARKLER_VSOCK_MIB ?? 16);
const BYTES = Math.floor((MIB_IN_ALL * 2 ** 20) / CONNECTIONS);

const program = compile("vsock", dir.path);
if (program === undefined) console.log("skip: vsock in a guest: no C compiler");

let machines = 0;

async function start(script: string): Promise<{ machine: Started; uds: string }> {
  const uds = join(dir.path, `v${machines++}.sock`);
  const machine = await startGuest({
    dir: dir.path,
    config: { vsock: { guest_cid: 3, uds_path: uds } },
    script,
    add: [{ host: program!, guest: "/bin/vsock" }],
  });
  return { machine, uds };
}

function listen(path: string, serve: (socket: Socket) => void): Promise<void> {
  const server = createServer({ allowHalfOpen: true }, serve);
  servers.push(server);
  return new Promise((resolve) => server.listen(path, resolve));
}

/** Connects to a port of the guest and returns the socket after the answer, with the answer. */
async function connectGuest(uds: string, port: number): Promise<{ socket: Socket; answer: string }> {
  const socket = netConnect({ path: uds, allowHalfOpen: true });
  socket.on("error", () => {});
  socket.write(`CONNECT ${port}\n`);
  const answer = await new Promise<string>((resolve) => {
    socket.once("data", (data) => resolve(data.toString()));
    socket.once("end", () => resolve(""));
  });
  socket.pause();
  return { socket, answer };
}

function digest(bytes: Uint8Array): string {
  return new Bun.CryptoHasher("sha256").update(bytes).digest("hex");
}

/** Sends `bytes`, ends sending, and returns all that comes until the other end does the same. */
async function exchange(socket: Socket, bytes: Uint8Array): Promise<Buffer> {
  const chunks: Buffer[] = [];
  const ended = new Promise<void>((resolve) => {
    socket.once("end", resolve);
    socket.once("close", resolve);
  });
  socket.on("data", (chunk) => chunks.push(Buffer.from(chunk)));
  socket.resume();
  socket.end(bytes);
  await ended;
  return Buffer.concat(chunks);
}

describe.skipIf(program === undefined)("vsock", () => {
  test(
    "host programs reach the guest's: many connections at once, half-closed, every byte back",
    async () => {
      const { machine, uds } = await start("vsock echo 5000");
      await machine.expect("listening");
      const refused = await connectGuest(uds, 4999);
      expect(refused.answer).toBe("");
      const opened = await Promise.all(Array.from({ length: CONNECTIONS }, () => connectGuest(uds, 5000)));
      expect(new Set(opened.map(({ answer }) => answer)).size).toBe(CONNECTIONS);
      for (const { answer } of opened) expect(answer).toMatch(/^OK 1073741\d{3}\n$/);
      const results = await Promise.all(
        opened.map(async ({ socket }, i) => {
          const bytes = crypto.getRandomValues(new Uint8Array(Math.min(BYTES, 65536)));
          const all = Buffer.alloc(BYTES, bytes);
          all[0] = i;
          return digest(await exchange(socket, all)) === digest(all);
        }),
      );
      expect(results).toEqual(Array(CONNECTIONS).fill(true));
      expect(existsSync(uds)).toBe(true);
      machine.child.kill("SIGTERM");
      await machine.result();
      expect(existsSync(uds)).toBe(false);
    },
    3 * TEST_LIMIT,
  );

  test(
    "the guest's programs reach the host's, are refused where there is none, and a slow one slows nobody else",
    async () => {
      const { machine, uds } = await start(
        `vsock connect 60; (vsock read 61; echo slow over) & vsock send 52 ${CONNECTIONS} ${BYTES}; wait`,
      );
      let slowSent = 0;
      await listen(`${uds}_52`, (socket) => socket.pipe(socket));
      await listen(`${uds}_61`, (socket) => {
        // Far more than buffers hold: this end waits until the guest's program reads.
        const bytes = Buffer.alloc(2 ** 20);
        socket.on("error", () => {});
        socket.write(bytes, () => {
          slowSent = bytes.length;
          socket.end();
        });
      });
      await machine.expect("Connection reset by peer");
      await machine.expect("connected");
      expect(slowSent).toBe(0);
      const { stdout, stderr } = await machine.result();
      expect(stdout.toString()).toContain(`${CONNECTIONS} of ${CONNECTIONS} good`);
      expect(stdout.toString()).toContain(`read ${2 ** 20}`);
      expect(stderr).toBe("");
    },
    3 * TEST_LIMIT,
  );
});
