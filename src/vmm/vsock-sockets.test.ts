import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { HostStream } from "../devices/virtio/vsock/host-sockets.ts";
import { Epoll } from "../platform/epoll.ts";
import { closeFile, readSome, writeSome } from "../platform/files.ts";
import { acceptUnix, connectUnix, listenUnix, shutdownSocket } from "../platform/unix-socket.ts";
import { ManualTimers } from "../ratelimit/testing/manual-timers.ts";
import { VsockSockets } from "./vsock-sockets.ts";

const dir = mkdtempSync(join(tmpdir(), "sparkler-vsock-"));
afterAll(() => rmSync(dir, { recursive: true }));

const epoll = new Epoll();
const udsPath = join(dir, "v");
const listenFd = listenUnix(udsPath);
const logs: string[] = [];
const sockets = new VsockSockets(epoll, new ManualTimers(), {
  listenFd,
  udsPath,
  log: (message) => void logs.push(message),
});

function connect(path: string): number {
  const fd = connectUnix(path);
  if (fd === "busy") throw new Error("busy");
  return fd;
}

/** Notes the calls that a stream makes. */
function watched(stream: HostStream): string[] {
  const calls: string[] = [];
  stream.watch({
    onReadable: () => calls.push("readable"),
    onWritable: () => calls.push("writable"),
    onHangUp: () => calls.push("hang-up"),
  });
  return calls;
}

function turn(calls: string[]): string[] {
  calls.length = 0;
  epoll.wait(0);
  return [...calls];
}

test("host programs are taken while the guest's driver listens, with what they have sent", () => {
  const early = connect(udsPath);
  writeSome(early, Uint8Array.of(1, 2, 3));
  epoll.wait(0);
  const taken: HostStream[] = [];
  sockets.listen((stream) => taken.push(stream));
  epoll.wait(0);
  expect(taken.length).toBe(1);
  const stream = taken[0]!;
  const calls = watched(stream);
  expect(turn(calls)).toEqual(["writable", "readable"]);
  const bytes = new Uint8Array(8);
  expect(stream.read([bytes.subarray(0, 2)])).toBe(2);
  // Edges only: nothing new has come.
  expect(turn(calls)).toEqual([]);
  expect(stream.read([bytes])).toBe(1);
  expect(stream.read([bytes])).toBeUndefined();
  writeSome(early, Uint8Array.of(4));
  expect(turn(calls)).toContain("readable");
  shutdownSocket(early, "write");
  expect(turn(calls)).toContain("readable");
  expect([stream.read([bytes]), stream.read([bytes]), stream.hungUp]).toEqual([1, 0, false]);
  closeFile(early);
  expect(turn(calls)).toContain("hang-up");
  expect(stream.hungUp).toBe(true);
  expect(() => stream.write([bytes])).toThrow();
  stream.close();
  stream.close();
  sockets.stopListening();
  const late = connect(udsPath);
  epoll.wait(0);
  expect(taken.length).toBe(1);
  closeFile(late);
});

test("the guest's connections reach the program at the path with the port, or nobody", () => {
  expect(sockets.connect(52)).toBeUndefined();
  const listener = listenUnix(`${udsPath}_52`);
  const stream = sockets.connect(52);
  if (stream === undefined || stream === "busy") throw new Error(`connect gave ${stream}`);
  const program = acceptUnix(listener)!;
  const calls = watched(stream);
  turn(calls);
  const chunk = new Uint8Array(4096);
  let sent = 0;
  for (let count = stream.write([chunk]); count > 0; count = stream.write([chunk])) sent += count;
  expect(sent).toBeGreaterThan(4096);
  expect(turn(calls)).toEqual([]);
  let received = 0;
  const into = new Uint8Array(65536);
  for (let count = readSome(program, into); count !== undefined; count = readSome(program, into))
    received += count;
  expect(received).toBe(sent);
  expect(turn(calls)).toContain("writable");
  stream.shutdownWrite();
  expect(readSome(program, into)).toBe(0);
  stream.shutdownRead();
  expect(() => writeSome(program, chunk)).toThrow();
  stream.close();
  closeFile(program);
  closeFile(listener);
  expect(sockets.connect(52)).toBeUndefined();
  expect(logs).toEqual([]);
  const clash = new VsockSockets(epoll, new ManualTimers(), {
    listenFd,
    udsPath: join(dir, "x".repeat(200)),
    log: (message) => void logs.push(message),
  });
  expect(clash.connect(1)).toBeUndefined();
  expect(logs).toEqual(["vsock: cannot connect to the host's port 1: File name too long (os error 36)"]);
});
