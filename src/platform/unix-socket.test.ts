import { afterAll, expect, test } from "bun:test";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { SystemError } from "./errno.ts";
import { closeFile, readSome, removeFile, writeSome } from "./files.ts";
import { readVector, writeVector } from "./iovec.ts";
import {
  acceptUnix,
  connectUnix,
  hasHungUp,
  listenUnix,
  MAX_SOCKET_PATH,
  shutdownSocket,
  socketPair,
} from "./unix-socket.ts";

const dir = mkdtempSync(join(tmpdir(), "sparkler-socket-"));
afterAll(() => rmSync(dir, { recursive: true }));

function code(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    if (error instanceof SystemError) return error.code;
    throw error;
  }
  return "nothing thrown";
}

test("a listener takes connections, and says when there are none", () => {
  const path = join(dir, "listener");
  const listener = listenUnix(path);
  expect(acceptUnix(listener)).toBeUndefined();
  const client = connectUnix(path);
  if (client === "busy") throw new Error("busy");
  const server = acceptUnix(listener)!;
  writeSome(client, Uint8Array.of(1, 2, 3));
  const bytes = new Uint8Array(8);
  expect(readSome(server, bytes)).toBe(3);
  expect(readSome(server, bytes)).toBeUndefined();
  expect(code(() => listenUnix(path))).toBe("EADDRINUSE");
  for (const fd of [client, server, listener]) closeFile(fd);
  expect(code(() => connectUnix(path))).toBe("ECONNREFUSED");
  removeFile(path);
  removeFile(path);
  expect(existsSync(path)).toBe(false);
  expect(code(() => connectUnix(path))).toBe("ENOENT");
});

test("a path that an address cannot hold is refused, the longest one works", () => {
  const long = join(dir, "x".repeat(MAX_SOCKET_PATH - dir.length - 1));
  expect(long.length).toBe(MAX_SOCKET_PATH);
  closeFile(listenUnix(long));
  expect(code(() => listenUnix(`${long}x`))).toBe("ENAMETOOLONG");
  for (const use of [connectUnix, listenUnix]) expect(() => use("a\0b")).toThrow(RangeError);
});

test("a full queue of connections is told apart from no listener", () => {
  const path = join(dir, "full");
  const listener = listenUnix(path);
  const clients: number[] = [];
  for (let i = 0; i < 1000; i++) {
    const fd = connectUnix(path);
    if (fd === "busy") break;
    clients.push(fd);
  }
  expect(clients.length).toBeGreaterThan(100);
  expect(connectUnix(path)).toBe("busy");
  for (const fd of [...clients, listener]) closeFile(fd);
});

test("one end closed or half-closed", () => {
  const [a, b] = socketPair();
  const bytes = new Uint8Array(4);
  shutdownSocket(a, "write");
  expect([readSome(b, bytes), hasHungUp(b)]).toEqual([0, false]);
  expect(writeSome(b, Uint8Array.of(1))).toBe(1);
  closeFile(a);
  expect(hasHungUp(b)).toBe(true);
  expect(code(() => writeSome(b, Uint8Array.of(1)))).toBe("EPIPE");
  closeFile(b);
});

test("many buffers at once, of shared memory too, in order", () => {
  const [a, b] = socketPair();
  const shared = new Uint8Array(new SharedArrayBuffer(4096));
  const parts = Array.from({ length: 200 }, (_, i) => shared.subarray(7 * i, 7 * i + 1 + (i % 7)).fill(i));
  const total = parts.reduce((sum, part) => sum + part.length, 0);
  expect(writeVector(a, parts)).toBe(total);
  const into = new Uint8Array(new SharedArrayBuffer(2 * total));
  const views = [into.subarray(0, 3), into.subarray(3, 4), into.subarray(10)];
  expect(readVector(b, views)).toBe(total);
  const expected = Buffer.concat(parts);
  expect(Buffer.concat([into.subarray(0, 4), into.subarray(10, 10 + total - 4)]).equals(expected)).toBe(true);
  expect(into.subarray(4, 10).every((byte) => byte === 0)).toBe(true);
  expect(readVector(b, views)).toBeUndefined();
  let sent = 0;
  const chunk = new Uint8Array(65536);
  for (;;) {
    const count = writeVector(a, [chunk]);
    if (count === undefined) break;
    sent += count;
  }
  expect(sent).toBeGreaterThan(0);
  closeFile(b);
  expect(code(() => writeVector(a, [chunk]))).toBe("EPIPE");
  expect(code(() => readVector(-1, [chunk]))).toBe("EBADF");
  // More buffers than one call takes: the rest is left.
  const [c, d] = socketPair();
  expect(writeVector(c, Array(2000).fill(Uint8Array.of(1)))).toBe(1024);
  for (const fd of [a, c, d]) closeFile(fd);
});
