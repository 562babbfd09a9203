import { expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { SystemError } from "./errno.ts";
import { closeFile, openFile } from "./files.ts";
import {
  addressOf,
  adviseMemory,
  Mapping,
  mapFilePrivately,
  mapZeros,
  memoryAt,
  misalignment,
  reserveMemory,
  unmapAt,
} from "./memory.ts";

const PAGE = 4096;

test("two mappings of one file are the same bytes, and the file's", () => {
  const dir = mkdtempSync(join(tmpdir(), "sparkler-mmap-"));
  try {
    const path = join(dir, "file");
    writeFileSync(path, new Uint8Array(PAGE).fill(7));
    const fd = openFile(path, { write: true });
    const one = Mapping.shared(fd, PAGE);
    const two = Mapping.shared(fd, PAGE);
    closeFile(fd);
    expect(one.bytes[100]).toBe(7);
    one.bytes[100] = 9;
    expect(two.bytes[100]).toBe(9);
    one.unmap();
    one.unmap();
    expect(() => one.bytes).toThrow("after it was unmapped");
    expect(readFileSync(path)[100]).toBe(9);
    two.unmap();
  } finally {
    rmSync(dir, { recursive: true });
  }
});

test("a mapping that cannot be is told with its errno", () => {
  try {
    Mapping.shared(-1, PAGE);
    throw new Error("it was mapped");
  } catch (error) {
    expect(error).toBeInstanceOf(SystemError);
    expect(error).toMatchObject({ code: "EBADF", call: "mmap" });
  }
});

test("anonymous memory is zero, page aligned, and forgets its content when told", () => {
  const mapping = Mapping.anonymous(4 * PAGE);
  expect(misalignment(mapping.bytes, PAGE)).toBe(0);
  expect(misalignment(mapping.bytes.subarray(5), PAGE)).toBe(5);
  expect(mapping.bytes.every((byte) => byte === 0)).toBe(true);
  mapping.bytes.fill(1);
  adviseMemory(mapping.bytes.subarray(PAGE, 2 * PAGE), "dontNeed");
  expect([0, PAGE, 2 * PAGE - 1, 2 * PAGE].map((at) => mapping.bytes[at])).toEqual([1, 0, 0, 1]);
  expect(() => adviseMemory(mapping.bytes.subarray(5), "dontNeed")).toThrow("Invalid argument");
  mapping.unmap();
});

test("reserved memory lies where it was asked for, beyond what one ArrayBuffer holds, and is one everywhere", () => {
  const [size, alignment] = [20 * 2 ** 30, 2 ** 21];
  const address = reserveMemory(size, alignment);
  expect(address % alignment).toBe(0);
  const last = memoryAt(address + size - 2 ** 31, 2 ** 31);
  expect(addressOf(last)).toBe(address + size - 2 ** 31);
  expect([last[0], last[2 ** 31 - 1]]).toEqual([0, 0]);
  last[2 ** 31 - 1] = 7;
  expect(memoryAt(address + size - 5, 5)).toEqual(Uint8Array.of(0, 0, 0, 0, 7));
  unmapAt(address, size);
  expect(() => reserveMemory(2 ** 47, alignment)).toThrow(SystemError);
});

test("zeros over a privately mapped file stay, where advice would bring the file back", () => {
  const dir = mkdtempSync(join(tmpdir(), "sparkler-mmap-"));
  const mapping = Mapping.anonymous(4 * PAGE);
  try {
    const path = join(dir, "file");
    writeFileSync(path, new Uint8Array(4 * PAGE).fill(7));
    const fd = openFile(path);
    mapFilePrivately(mapping.bytes, fd, 0);
    closeFile(fd);
    mapping.bytes.fill(9);
    adviseMemory(mapping.bytes.subarray(0, PAGE), "dontNeed");
    mapZeros(mapping.bytes.subarray(PAGE, 3 * PAGE));
    const firsts = () => [0, 1, 2, 3].map((page) => mapping.bytes[page * PAGE]);
    expect(firsts()).toEqual([7, 0, 0, 9]);
    mapping.bytes.fill(5, PAGE, 2 * PAGE);
    adviseMemory(mapping.bytes.subarray(PAGE, 2 * PAGE), "dontNeed");
    expect(firsts()).toEqual([7, 0, 0, 9]);
    expect(() => mapZeros(mapping.bytes.subarray(5, 5 + PAGE))).toThrow("Invalid argument");
  } finally {
    mapping.unmap();
    rmSync(dir, { recursive: true });
  }
});
