import { expect, test } from "bun:test";
import { bufferSource } from "./byte-source.ts";
import { loadInitrd } from "./initrd.ts";
import { filled, guardedMemory, MIB } from "./test-images.ts";

const ANYWHERE = Number.POSITIVE_INFINITY;

test("page-aligned at the end of RAM", () => {
  const { memory, intact } = guardedMemory(4 * MIB);
  const data = filled(5000, 3);
  const initrd = loadInitrd(memory, bufferSource(data), 2 * MIB, ANYWHERE);
  expect(initrd).toEqual({ gpa: 4 * MIB - 8192, size: 5000 });
  expect(memory.slice(initrd.gpa, 5000)).toEqual(data);
  expect(intact()).toBe(true);
});

test("below the kernel's own limit", () => {
  const { memory } = guardedMemory(4 * MIB);
  expect(loadInitrd(memory, bufferSource(filled(4096, 0)), 0, 3 * MIB - 1).gpa).toBe(3 * MIB - 4096);
  expect(() => loadInitrd(memory, bufferSource(filled(4097, 0)), 3 * MIB - 4096, 3 * MIB - 1)).toThrow(
    "only below 3 MiB",
  );
});

test("fits exactly above the kernel, and not one byte more", () => {
  const { memory } = guardedMemory(4 * MIB);
  expect(loadInitrd(memory, bufferSource(filled(4096, 0)), 4 * MIB - 4096, ANYWHERE).gpa).toBe(
    4 * MIB - 4096,
  );
  expect(() => loadInitrd(memory, bufferSource(filled(4097, 0)), 4 * MIB - 4096, ANYWHERE)).toThrow(
    "an initrd of 4097 bytes does not fit above the kernel: the guest has 4 MiB. Raise mem_size_mib to at least 5",
  );
});

test("an initrd larger than RAM, or empty, is refused", () => {
  const { memory } = guardedMemory(4 * MIB);
  const huge = { size: 1e12, read: () => 0 };
  expect(() => loadInitrd(memory, huge, 2 * MIB, ANYWHERE)).toThrow("does not fit");
  expect(() => loadInitrd(memory, bufferSource(new Uint8Array(0)), 2 * MIB, ANYWHERE)).toThrow("is empty");
});

test("an initrd file that cannot be read is refused", () => {
  const { memory } = guardedMemory(4 * MIB);
  const short = { size: 100, read: bufferSource(filled(60, 0)).read };
  expect(() => loadInitrd(memory, short, 2 * MIB, ANYWHERE)).toThrow("truncated at byte 60 of 100");
  const broken = {
    size: 100,
    read: () => {
      throw new Error("EIO");
    },
  };
  expect(() => loadInitrd(memory, broken, 2 * MIB, ANYWHERE)).toThrow(
    "reading the file failed at byte 0: EIO",
  );
});

test("a source that hands out a few bytes at a time is read to the end", () => {
  const { memory } = guardedMemory(4 * MIB);
  const data = filled(1000, 5);
  const whole = bufferSource(data);
  const slow = { size: 1000, read: (at: number, into: Uint8Array) => whole.read(at, into.subarray(0, 7)) };
  const { gpa } = loadInitrd(memory, slow, 2 * MIB, ANYWHERE);
  expect(memory.slice(gpa, 1000)).toEqual(data);
});
