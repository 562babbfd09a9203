import { expect, test } from "bun:test";
import { ByteRing, ringBytes } from "./ring.ts";

function ring(capacity: number): ByteRing {
  return new ByteRing(new SharedArrayBuffer(ringBytes(capacity)), 0, capacity);
}

test("bytes come out in the order they went in, across the wrap", () => {
  const r = ring(8);
  let next = 0;
  let expected = 0;
  for (let round = 0; round < 50; round++) {
    const chunk = Uint8Array.from({ length: 1 + (round % 7) }, () => next++ & 0xff);
    expect(r.pushAll(chunk)).toBe(chunk.length);
    const got: number[] = [];
    if (round % 2 === 0) r.drain((bytes) => got.push(...bytes));
    else for (let byte = r.pop(); byte >= 0; byte = r.pop()) got.push(byte);
    expect(got).toEqual(Array.from(got, () => expected++ & 0xff));
    expect(got.length).toBe(chunk.length);
  }
});

test("a full ring refuses, and an empty one says so", () => {
  const r = ring(4);
  expect(r.pop()).toBe(-1);
  expect(r.pushAll(Uint8Array.of(1, 2, 3, 4, 5))).toBe(4);
  expect(r.free).toBe(0);
  expect(r.push(9)).toBe("full");
  r.clear();
  expect(r.length).toBe(0);
  expect(r.pop()).toBe(-1);
});

test("only the byte after which the reader may sleep asks for a wake-up", () => {
  const r = ring(8);
  expect(r.push(1)).toBe("wake");
  expect(r.push(2)).toBe("queued");
  r.drain(() => {});
  expect(r.push(3)).toBe("wake");
});

test("a piece stays in the ring if the sink throws", () => {
  const r = ring(8);
  r.pushAll(Uint8Array.of(1, 2));
  expect(() =>
    r.drain(() => {
      throw new Error("sink");
    }),
  ).toThrow("sink");
  expect(r.length).toBe(2);
});

test("indices wrap at 2^32", () => {
  const shared = new SharedArrayBuffer(ringBytes(8));
  new Int32Array(shared).fill(-2, 0, 1);
  new Int32Array(shared).fill(-2, 16, 17);
  const r = new ByteRing(shared, 0, 8);
  r.pushAll(Uint8Array.of(1, 2, 3, 4));
  expect(r.length).toBe(4);
  expect([r.pop(), r.pop(), r.pop(), r.pop(), r.pop()]).toEqual([1, 2, 3, 4, -1]);
});

test("a capacity that is not a power of two is refused", () => {
  expect(() => ring(12)).toThrow("power of two");
});
