import { afterAll, describe, expect, test } from "bun:test";
import { addressOf } from "../platform/memory.ts";
import {
  GuestMemory,
  GuestMemoryError,
  MMIO_GAP_END,
  MMIO_GAP_START,
  MMIO64_GAP_END,
  MMIO64_GAP_START,
  memoryRegions,
  WINDOW_STRIDE,
} from "./guest-memory.ts";
import { sparseMemory } from "./testing/sparse-memory.ts";

const GIB = 2 ** 30;
const PAGE = 4096;
/** Not a multiple of the stride, so that the last windows are short. */
const HIGH_BYTES = 5 * GIB + 3 * PAGE;
const END = MMIO_GAP_END + HIGH_BYTES;

const sparse = sparseMemory(HIGH_BYTES, PAGE);
const { layout } = sparse;
const { high } = layout;
const memory = new GuestMemory(layout);
afterAll(() => sparse.close());

describe("regions", () => {
  test.each([
    [1, [[0, 1]]],
    [3 * GIB, [[0, 3 * GIB]]],
    [
      3 * GIB + 1,
      [
        [0, 3 * GIB],
        [4 * GIB, 1],
      ],
    ],
    [
      255 * GIB,
      [
        [0, 3 * GIB],
        [4 * GIB, 252 * GIB],
      ],
    ],
    [
      300 * GIB,
      [
        [0, 3 * GIB],
        [4 * GIB, 252 * GIB],
        [512 * GIB, 45 * GIB],
      ],
    ],
  ])("%d bytes lie around the gaps, as in Firecracker", (size, expected) => {
    expect(memoryRegions(size).map(({ gpa, size }) => [gpa, size])).toEqual(expected);
  });

  test("RAM above the gap without a place for it is refused", () => {
    const { high: _, ...without } = layout;
    expect(() => new GuestMemory(without)).toThrow(RangeError);
    expect(new GuestMemory({ ...without, size: MMIO_GAP_START }).end).toBe(MMIO_GAP_START);
  });
});

describe("RAM above the MMIO gap", () => {
  test("every address is the mapping's byte at its distance from 4 GiB, through whatever window", () => {
    for (let gpa = MMIO_GAP_END; gpa < END; gpa += GIB / 4) {
      for (const at of [gpa - 4, gpa, gpa + 12]) {
        if (at < MMIO_GAP_END) continue;
        expect(addressOf(memory.slice(at, 8))).toBe(high + at - MMIO_GAP_END);
      }
    }
    expect(addressOf(memory.slice(END - 1, 1))).toBe(high + HIGH_BYTES - 1);
  });

  test("values written at any boundary of windows are read back, of each width, also by another object", () => {
    const other = new GuestMemory({ ...layout });
    for (let boundary = MMIO_GAP_END; boundary <= END; boundary += WINDOW_STRIDE) {
      for (const gpa of [boundary - 9, boundary - 8, boundary - 5, boundary - 1, boundary]) {
        if (!memory.contains(gpa, 8)) continue;
        const value = BigInt(gpa) * 0x1_0001n;
        memory.writeU64(gpa, value);
        expect(other.readU64(gpa)).toBe(value);
        expect(other.readU32(gpa + 4)).toBe(Number(value >> 32n));
        expect(other.readU16(gpa + 2)).toBe(Number((value >> 16n) & 0xffffn));
        expect(other.readU8(gpa + 1)).toBe(Number((value >> 8n) & 0xffn));
        memory.writeU8(gpa, 1);
        memory.writeU16(gpa + 1, 2);
        memory.writeU32(gpa + 3, 3);
        memory.write(gpa + 7, Uint8Array.of(4));
        expect([...other.slice(gpa, 8)]).toEqual([1, 2, 0, 3, 0, 0, 0, 4]);
      }
    }
  });

  test("up to the stride of the windows is seen in one piece, wherever it starts; more in several", () => {
    for (let gpa = MMIO_GAP_END; gpa + WINDOW_STRIDE <= END; gpa += GIB / 4 + 1) {
      expect(memory.window(gpa, WINDOW_STRIDE)).toBeDefined();
    }
    const start = MMIO_GAP_END + GIB - PAGE;
    const length = 3 * GIB;
    expect(memory.window(start, length)).toBeUndefined();
    const pieces = memory.pieces(start, length);
    expect(pieces.length).toBeGreaterThan(1);
    let next = start;
    for (const { gpa, size } of pieces) {
      expect(gpa).toBe(next);
      expect(addressOf(memory.slice(gpa, size))).toBe(high + gpa - MMIO_GAP_END);
      next += size;
    }
    expect(next).toBe(start + length);
    expect(memory.pieces(0, MMIO_GAP_START)).toEqual([{ gpa: 0, size: MMIO_GAP_START }]);
  });

  test.each([
    [MMIO_GAP_START - 1, 2],
    [MMIO_GAP_START, 1],
    [MMIO_GAP_END - 1, 1],
    [MMIO_GAP_END - 1, 2],
    [END - 1, 2],
    [END, 1],
    [MMIO64_GAP_START, 1],
    [MMIO64_GAP_END, 1],
    [2 ** 52, 1],
    [2 ** 64, 1],
    [-1, 1],
    [0, -1],
    [MMIO_GAP_END, -1],
    [0, 2 ** 40],
    [MMIO_GAP_END, 2 ** 40],
    [Number.NaN, 1],
  ])("%d, %d bytes, is no RAM", (gpa, length) => {
    expect(memory.contains(gpa, length)).toBe(false);
    expect(memory.window(gpa, length)).toBeUndefined();
    expect(() => memory.slice(gpa, length)).toThrow(GuestMemoryError);
    expect(() => memory.pieces(gpa, length)).toThrow(GuestMemoryError);
  });
});

test("RAM on both sides of the 64-bit MMIO gap lies together in the mapping", () => {
  const bytes = MMIO64_GAP_START - MMIO_GAP_END + 2 * GIB;
  const { layout, close } = sparseMemory(bytes);
  const large = new GuestMemory(layout);
  expect(addressOf(large.slice(MMIO64_GAP_START - 8, 8))).toBe(layout.high + bytes - 2 * GIB - 8);
  expect(addressOf(large.slice(MMIO64_GAP_END, 8))).toBe(layout.high + bytes - 2 * GIB);
  expect(addressOf(large.slice(large.end - 8, 8))).toBe(layout.high + bytes - 8);
  for (const [gpa, length] of [
    [MMIO64_GAP_START - 8, 9],
    [MMIO64_GAP_START, 1],
    [MMIO64_GAP_END - 1, 2],
    [large.end, 1],
  ] as const) {
    expect(() => large.slice(gpa, length)).toThrow(GuestMemoryError);
  }
  close();
});

test("writes are reported, by whatever way they are made", () => {
  const reported: [number, number][] = [];
  memory.setWriteHook((gpa, length) => reported.push([gpa, length]));
  memory.writeU32(16, 1);
  memory.write(MMIO_GAP_END, Uint8Array.of(1, 2, 3));
  expect(() =>
    memory.fill(MMIO_GAP_END + GIB, 5, () => {
      throw new Error("on purpose");
    }),
  ).toThrow("on purpose");
  memory.reportWritten(1, 2);
  expect(reported).toEqual([
    [16, 4],
    [MMIO_GAP_END, 3],
    [MMIO_GAP_END + GIB, 5],
    [1, 2],
  ]);
});
