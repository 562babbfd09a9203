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
const CHUNK_BYTES = 65536;
/** ms for a guest: what a busy host needs for the usual amount, and as much for each further 64 MiB. */
const LIMIT = TEST_LIMIT * Math.max(1, MIB_IN_ALL / 64);
/** As many as Firecracker has. */
const MAX_CONNECTIONS = 1023;

const program = compile("vsock", dir.path);
if (program === undefined) console.log("skip: vsock in a guest: no C compiler");

let machines = 0;

async function start(
  script: string,
  prefix: readonly string[] = [],
): Promise<{ machine: Started; uds: string }> {
  const uds = join(dir.path, `v${machines++}.sock`);
  const machine = await startGuest({
    dir: dir.path,
    config: { vsock: { guest_cid: 3, uds_path: uds } },
    script,
    add: [{ host: program!, guest: "/bin/vsock" }],
    prefix,
    limit: LIMIT,
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
    socket.once("close", () => resolve(""));
  });
  socket.pause();
  return { socket, answer };
}

/** Sends BYTES, each chunk with its place and `which` in it, ends sending, and compares with what comes back. */
async function echoed(socket: Socket, which: number): Promise<boolean> {
  const random = crypto.getRandomValues(new Uint8Array(CHUNK_BYTES));
  const sent = new Bun.CryptoHasher("sha256");
  const got = new Bun.CryptoHasher("sha256");
  const over = new Promise<void>((resolve) => {
    socket.once("end", resolve);
    socket.once("close", resolve);
  });
  socket.on("data", (chunk) => void got.update(chunk));
  socket.resume();
  for (let at = 0; at < BYTES && !socket.destroyed; at += CHUNK_BYTES) {
    const chunk = Buffer.from(random.subarray(0, Math.min(CHUNK_BYTES, BYTES - at)));
    chunk.writeUInt8(which, 0);
    if (chunk.length >= 9) chunk.writeDoubleLE(at, 1);
    sent.update(chunk);
    if (!socket.write(chunk)) {
      await Promise.race([new Promise<void>((resolve) => socket.once("drain", resolve)), over]);
    }
  }
  socket.end();
  await over;
  return sent.digest("hex") === got.digest("hex");
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
      const results = await Promise.all(opened.map(({ socket }, i) => echoed(socket, i)));
      expect(results).toEqual(Array(CONNECTIONS).fill(true));
      expect(existsSync(uds)).toBe(true);
      machine.child.kill("SIGTERM");
      await machine.result();
      expect(existsSync(uds)).toBe(false);
    },
    LIMIT + TEST_LIMIT,
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
    LIMIT + TEST_LIMIT,
  );

  test(
    "a host program that does not read stops its guest program and no other, and hears the end when that is killed",
    async () => {
      const { machine, uds } = await start(
        `vsock send 53 1 100000000 & vsock send 52 10 100000; killall -9 vsock; echo killed; vsock read 54`,
      );
      let stuck: Socket | undefined;
      let last: Socket | undefined;
      await listen(`${uds}_52`, (socket) => socket.pipe(socket));
      await listen(`${uds}_53`, (socket) => {
        socket.on("error", () => {});
        socket.pause();
        stuck = socket;
      });
      await listen(`${uds}_54`, (socket) => {
        last = socket;
      });
      await machine.expect("10 of 10 good\r\n");
      await machine.expect("killed\r\n");
      await machine.expect("connected\r\n");
      let got = 0;
      stuck!.on("data", (chunk) => {
        got += chunk.length;
      });
      const over = new Promise<void>((resolve) => {
        stuck!.once("end", resolve);
        stuck!.once("close", resolve);
      });
      stuck!.resume();
      await over;
      expect(got).toBeGreaterThan(0);
      expect(got).toBeLessThan(100_000_000);
      last!.end();
      await machine.expect("read 0\r\n");
      expect((await machine.result()).stderr).toBe("");
    },
    2 * TEST_LIMIT,
  );

  test(
    `${MAX_CONNECTIONS} connections at once and no more, with the descriptors that a shell allows`,
    async () => {
      const { machine, uds } = await start(`vsock fill 52 ${MAX_CONNECTIONS + 1}`, [
        ...["sh", "-c", 'ulimit -S -n 1024; exec "$@"', "sh"],
      ]);
      const sockets: Socket[] = [];
      await listen(`${uds}_52`, (socket) => {
        sockets.push(socket);
        socket.pipe(socket);
      });
      await machine.expect(`${MAX_CONNECTIONS} open: Connection reset by peer\r\n`);
      await machine.expect(`${MAX_CONNECTIONS} good\r\n`);
      expect(sockets).toHaveLength(MAX_CONNECTIONS);
      // Neither does a program of the host get one.
      expect((await connectGuest(uds, 5000)).answer).toBe("");
      sockets.at(-1)!.end();
      await machine.expect("the host has ended the last\r\n");
      await machine.expect("once more: connected\r\n");
      expect((await machine.result()).stderr).toContain("connection limit reached");
    },
    2 * TEST_LIMIT,
  );
});
