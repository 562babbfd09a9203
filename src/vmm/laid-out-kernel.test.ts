import { afterAll, expect, test } from "bun:test";
import {
  chmodSync,
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadElf } from "../boot/elf.ts";
import { filled, MIB, makeElf, u64 } from "../boot/test-images.ts";
import { GuestMemory } from "../memory/guest-memory.ts";
import { addressOf } from "../platform/memory.ts";
import { kernelSource } from "./file-source.ts";
import { mapLaidOut, pageRuns } from "./laid-out-kernel.ts";
import { type HostRange, MemoryReclaim } from "./reclaim.ts";

const dir = mkdtempSync(join(tmpdir(), "sparkler-laid-out-"));
afterAll(() => rmSync(dir, { recursive: true }));

const BASE = 65_536;
const RAM = 16 * MIB;

function guestMemory(): GuestMemory {
  const pages = (BASE + RAM) / 65_536;
  const { buffer } = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
  if (!(buffer instanceof SharedArrayBuffer)) throw new Error("not shared");
  return new GuestMemory({ buffer, base: BASE, size: RAM });
}

/** Segments that begin and end inside pages, two of them in the same page, and one with zeros behind it. */
const text = filled(2 * MIB + 123, 1);
const data = filled(5000, 2);
const more = filled(300, 3);
const kernel = makeElf(MIB + 16, [
  { gpa: MIB + 16, data: text },
  { gpa: 6 * MIB + 100, data, memSize: 9000 },
  { gpa: 6 * MIB + 16_000, data: more },
]);

function load(path: string, cacheDir: string, memory = guestMemory()): GuestMemory {
  const fd = openSync(path, "r");
  try {
    expect(loadElf(memory, kernelSource({ fd, path }, cacheDir))).toEqual({
      protocol: "linux64",
      entry: MIB + 16,
      end: 6 * MIB + 16_300,
    });
  } finally {
    closeSync(fd);
  }
  return memory;
}

function expectLoaded(memory: GuestMemory, head = text): void {
  const ram = new Uint8Array(RAM);
  ram.set(head, MIB + 16);
  ram.set(data, 6 * MIB + 100);
  ram.set(more, 6 * MIB + 16_000);
  expect(Buffer.compare(memory.slice(0, RAM), ram)).toBe(0);
}

function kernelFile(name: string, bytes = kernel): string {
  const path = join(dir, name);
  writeFileSync(path, bytes);
  return path;
}

/** True if part of this process's memory is a file below `folder`. */
function isMapped(folder: string): boolean {
  return readFileSync("/proc/self/maps", "latin1").includes(folder);
}

test("a kernel is the same mapped as read, and the second guest has the first one's image", () => {
  const path = kernelFile("kernel");
  const cacheDir = join(dir, "cache");
  const first = load(path, cacheDir);
  expect(isMapped(join(cacheDir, "images"))).toBe(true);
  const [image] = readdirSync(join(cacheDir, "images"));
  const { ino } = statSync(join(cacheDir, "images", image!));
  // What a guest writes is its own.
  first.write(MIB + 16, u64(0x1234));
  const second = load(path, cacheDir);
  expectLoaded(second);
  expect(first.readU64(MIB + 16)).toBe(0x1234n);
  expect(readdirSync(join(cacheDir, "images"))).toEqual([image!]);
  expect(statSync(join(cacheDir, "images", image!)).ino).toBe(ino);
});

test("where it is mapped is told, so that pages given to the host do not show the file again", () => {
  const path = kernelFile("told");
  const memory = guestMemory();
  const told: HostRange[] = [];
  const fd = openSync(path, "r");
  loadElf(
    memory,
    kernelSource({ fd, path }, join(dir, "told-cache"), (ranges) => told.push(...ranges)),
  );
  closeSync(fd);
  const ram = addressOf(memory.slice(0, 1));
  expect(told).toEqual([
    { start: ram + MIB, end: ram + 3 * MIB + 4096 },
    { start: ram + 6 * MIB, end: ram + 6 * MIB + 8192 },
    { start: ram + 6 * MIB + 12_288, end: ram + 6 * MIB + 16_384 },
  ]);
  const reclaim = new MemoryReclaim();
  reclaim.addFileRanges(told);
  reclaim.discard(memory.slice(2 * MIB, 4096));
  expect(memory.slice(2 * MIB, 4096).every((byte) => byte === 0)).toBe(true);
  expect(memory.slice(2 * MIB + 4096, 100)).toEqual(text.subarray(MIB + 4096 - 16, MIB + 4096 - 16 + 100));
});

test("a kernel that is written anew in the same place is laid out anew", () => {
  const path = kernelFile("changing");
  const cacheDir = join(dir, "changing-cache");
  load(path, cacheDir);
  const other = filled(text.length, 9);
  const changed = Uint8Array.from(kernel);
  changed.set(other, changed.length - more.length - data.length - text.length);
  writeFileSync(path, changed);
  expectLoaded(load(path, cacheDir), other);
  expect(readdirSync(join(cacheDir, "images"))).toHaveLength(2);
});

test("an image that was cut short is replaced", () => {
  const path = kernelFile("cut");
  const cacheDir = join(dir, "cut-cache");
  load(path, cacheDir);
  const image = join(cacheDir, "images", readdirSync(join(cacheDir, "images"))[0]!);
  const { size } = statSync(image);
  rmSync(image);
  writeFileSync(image, new Uint8Array(4096));
  chmodSync(image, 0o444);
  expectLoaded(load(path, cacheDir));
  expect(statSync(image).size).toBe(size);
});

test("without a cache the kernel is read", () => {
  const path = kernelFile("uncached");
  const notADirectory = kernelFile("file", new Uint8Array(1));
  expectLoaded(load(path, notADirectory));
  expect(isMapped(notADirectory)).toBe(false);
});

test("a small kernel and a file that ends early are not mapped", () => {
  const path = kernelFile("short");
  const fd = openSync(path, "r");
  const cacheDir = join(dir, "short-cache");
  const file = { fd, path };
  expect(mapLaidOut(guestMemory(), file, [{ gpa: MIB, offset: 0, size: 4096 }], cacheDir)).toBe(false);
  truncateSync(path, MIB);
  const memory = guestMemory();
  expect(mapLaidOut(memory, file, [{ gpa: MIB, offset: 0, size: 2 * MIB }], cacheDir)).toBe(false);
  expect(memory.slice(0, RAM).every((byte) => byte === 0)).toBe(true);
  expect(readdirSync(join(cacheDir, "images"))).toEqual([]);
  closeSync(fd);
});

test("pages of segments are joined where they touch", () => {
  const runs = pageRuns([
    { gpa: 0x9100, offset: 0, size: 0x10 },
    { gpa: 0x1fff, offset: 0, size: 2 },
    { gpa: 0x3000, offset: 0, size: 1 },
  ]);
  expect(runs).toEqual([
    { start: 0x1000, end: 0x4000 },
    { start: 0x9000, end: 0xa000 },
  ]);
});
