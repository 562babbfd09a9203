import { afterEach, beforeEach, expect, test } from "bun:test";
import { NET_HEADER_BYTES } from "../devices/virtio/net/link.ts";
import { VIRTIO_NET_F_GUEST_CSUM } from "../devices/virtio/net/net.ts";
import { Epoll } from "../platform/epoll.ts";
import { closeFile, readSome, writeAll } from "../platform/files.ts";
import { socketPair } from "../platform/unix-socket.ts";
import { StreamLink } from "./stream-link.ts";

const HEADER = new Uint8Array(NET_HEADER_BYTES);
const MAX_FRAME = 65553;

let epoll: Epoll;
let link: StreamLink;
let ours: number;
let program: number;
let calls: string[];
const into = new Uint8Array(NET_HEADER_BYTES + MAX_FRAME);

beforeEach(() => {
  epoll = new Epoll();
  [ours, program] = socketPair();
  link = new StreamLink(epoll, ours);
  calls = [];
  start(VIRTIO_NET_F_GUEST_CSUM);
});

afterEach(() => {
  link.stop();
  epoll.close();
  for (const fd of [ours, program]) {
    try {
      closeFile(fd);
    } catch {
      // The test has closed it.
    }
  }
});

function start(accepted: bigint): void {
  link.start(accepted, {
    onReadable: () => calls.push("readable"),
    onWritable: () => calls.push("writable"),
  });
}

function framed(frame: Uint8Array): Buffer {
  const length = Buffer.alloc(4);
  length.writeUInt32BE(frame.length);
  return Buffer.concat([length, frame]);
}

const bytes = (count: number, seed: number) =>
  Uint8Array.from({ length: count }, (_, i) => (i * 5 + seed) & 0xff);

/** The next frame that the link has, without its header. */
function next(): Buffer | undefined {
  const count = link.receive(into);
  return count === undefined ? undefined : Buffer.from(into.subarray(NET_HEADER_BYTES, count));
}

test("frames come out as they went in, however the stream is cut", () => {
  const frames = Array.from({ length: 40 }, (_, i) => bytes(14 + i * 97, i));
  const stream = Buffer.concat(frames.map(framed));
  const got: Buffer[] = [];
  for (let at = 0, step = 1; at < stream.length; at += step, step = 1 + ((step * 7) % 5000)) {
    writeAll(program, stream.subarray(at, at + step));
    for (let frame = next(); frame !== undefined; frame = next()) got.push(frame);
  }
  expect(got.map((frame, i) => frame.equals(Buffer.from(frames[i]!)))).toEqual(frames.map(() => true));
});

test("the header says that the checksum is right, if the driver understands that", () => {
  writeAll(program, framed(bytes(60, 1)));
  into.fill(0xff);
  link.receive(into);
  expect([...into.subarray(0, NET_HEADER_BYTES)]).toEqual([2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
  start(0n);
  writeAll(program, framed(bytes(60, 1)));
  link.receive(into);
  expect(into[0]).toBe(0);
});

test("the longest frame passes; a longer one, and the end of the stream, break the link", () => {
  const longest = bytes(MAX_FRAME, 3);
  writeAll(program, framed(longest));
  expect(next()!.equals(Buffer.from(longest))).toBe(true);
  // An empty one is nothing.
  writeAll(program, Buffer.concat([framed(new Uint8Array(0)), framed(bytes(20, 1))]));
  expect(next()!.length).toBe(20);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(MAX_FRAME + 1);
  writeAll(program, length);
  expect(() => next()).toThrow("sent a frame of 65554 bytes");
  closeFile(program);
  const [a, b] = socketPair();
  closeFile(b);
  const other = new StreamLink(epoll, a);
  expect(() => other.receive(into)).toThrow("has ended");
  expect(() => other.send(HEADER, [bytes(20, 1)], 20)).toThrow();
  closeFile(a);
});

test("a full socket refuses whole frames, and a frame that went in half is finished before the next", () => {
  epoll.wait(0);
  calls.length = 0;
  const frames: Buffer[] = [];
  for (let i = 0; ; i++) {
    const frame = bytes(60_000, i);
    const parts = [frame.subarray(0, 14), frame.subarray(14)];
    if (!link.send(HEADER, parts, frame.length)) break;
    frames.push(framed(frame));
  }
  expect(frames.length).toBeGreaterThan(1);
  const received: Buffer[] = [];
  const chunk = new Uint8Array(1 << 20);
  const drain = () => {
    for (let count = readSome(program, chunk); count !== undefined; count = readSome(program, chunk)) {
      received.push(Buffer.from(chunk.subarray(0, count)));
    }
  };
  drain();
  // The rest of the last frame goes by itself, without a further frame.
  epoll.wait(0);
  expect(calls).toContain("writable");
  const last = bytes(100, 9);
  expect(link.send(HEADER, [last], 100)).toBe(true);
  drain();
  expect(Buffer.concat(received).equals(Buffer.concat([...frames, framed(last)]))).toBe(true);
});
