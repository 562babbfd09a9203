import { expect, test } from "bun:test";
import { GuestMemory, MMIO_GAP_START } from "../../../memory/guest-memory.ts";
import { sparseMemory } from "../../../memory/testing/sparse-memory.ts";
import { addressOf } from "../../../platform/memory.ts";
import { Random } from "../testing/fuzz.ts";
import { discardPages, forEachRun, PAGE_BYTES } from "./pages.ts";

function runs(pfns: readonly number[]): [number, number][] {
  const found: [number, number][] = [];
  forEachRun(Uint32Array.from(pfns).sort(), (first, count) => found.push([first, count]));
  return found;
}

test("neighbouring pages become one run, in whatever order and however often they are named", () => {
  expect(runs([])).toEqual([]);
  expect(runs([7])).toEqual([[7, 1]]);
  expect(runs([5, 4, 9, 3, 4, 4, 10])).toEqual([
    [3, 3],
    [9, 2],
  ]);
  expect(runs([0xffff_ffff, 0xffff_ffff, 0xffff_fffe, 0])).toEqual([
    [0, 1],
    [0xffff_fffe, 2],
  ]);
});

test("runs of random lists hold each page once, and never touch", () => {
  const random = new Random(11);
  for (let round = 0; round < 500; round++) {
    const span = random.pick([4, 40, 400, 2 ** 32]);
    const pfns = Array.from({ length: random.below(256) }, () => random.below(span));
    const found = runs(pfns);
    const pages = found.flatMap(([first, count]) => Array.from({ length: count }, (_, i) => first + i));
    expect(pages).toEqual([...new Set(pfns)].sort((a, b) => a - b));
    for (const [i, [first]] of found.entries()) {
      if (i > 0) expect(first).toBeGreaterThan(found[i - 1]![0] + found[i - 1]![1]);
    }
  }
});

test("only whole pages of RAM are discarded", () => {
  const buffer = new SharedArrayBuffer(9 * PAGE_BYTES);
  const memory = new GuestMemory({ buffer, base: PAGE_BYTES, size: 8 * PAGE_BYTES });
  const bytes = new Uint8Array(buffer).fill(1);
  const reported: [number, number][] = [];
  memory.setWriteHook((gpa, length) => reported.push([gpa, length]));
  const discard = (gpa: number, length: number) =>
    discardPages(memory, gpa, length, (pages) => pages.fill(0));
  expect(discard(PAGE_BYTES - 1, 2 * PAGE_BYTES + 2)).toBe(2 * PAGE_BYTES);
  expect(discard(7 * PAGE_BYTES, 100 * PAGE_BYTES)).toBe(PAGE_BYTES);
  for (const [gpa, length] of [
    [0, PAGE_BYTES - 1],
    [1, 2 * PAGE_BYTES - 2],
    [8 * PAGE_BYTES, PAGE_BYTES],
    [MMIO_GAP_START, PAGE_BYTES],
    [2 ** 44, PAGE_BYTES],
  ] as const) {
    expect(discard(gpa, length)).toBe(0);
  }
  expect(reported).toEqual([
    [PAGE_BYTES, 2 * PAGE_BYTES],
    [7 * PAGE_BYTES, PAGE_BYTES],
  ]);
  const zero = Array.from({ length: 9 }, (_, page) => bytes[page * PAGE_BYTES] === 0);
  expect(zero).toEqual([false, false, true, true, false, false, false, false, true]);
});

test("a range over the MMIO gap loses what is on both sides of it, of as many windows as it takes", () => {
  const highBytes = 2 ** 32 + 2 * PAGE_BYTES;
  const { layout, close } = sparseMemory(highBytes);
  const memory = new GuestMemory(layout);
  const found: number[] = [];
  const freed = discardPages(memory, MMIO_GAP_START - PAGE_BYTES, 2 ** 34, (pages) => {
    found.push(addressOf(pages), pages.length);
  });
  expect(found.slice(0, 2)).toEqual([
    addressOf(new Uint8Array(layout.buffer)) + MMIO_GAP_START - PAGE_BYTES,
    PAGE_BYTES,
  ]);
  let next = layout.high;
  for (let i = 2; i < found.length; i += 2) {
    expect(found[i]).toBe(next);
    next += found[i + 1]!;
  }
  expect(next).toBe(layout.high + highBytes);
  expect(freed).toBe(PAGE_BYTES + highBytes);
  close();
});
