import { expect, test } from "bun:test";
import { bufferSource } from "./byte-source.ts";
import { loadElf } from "./elf.ts";
import { filled, guardedMemory, MIB, makeElf, makeNote, pvhNote, u64 } from "./test-images.ts";

const ENTRY = 0x100_0040;
const TEXT = { gpa: 0x100_0000, data: filled(0x300, 1) };
const DATA = { gpa: 0x120_0000, data: filled(0x80, 2), memSize: 0x400 };

function load(file: Uint8Array, size = 32 * MIB, forced?: "linux64" | "pvh") {
  const { memory } = guardedMemory(size);
  return { memory, kernel: loadElf(memory, bufferSource(file), forced) };
}

test("segments land at their physical addresses and BSS is zeroed", () => {
  const { memory } = guardedMemory(32 * MIB);
  memory.fill(DATA.gpa, 0x500, (b) => b.fill(0xee));
  const kernel = loadElf(memory, bufferSource(makeElf(ENTRY, [TEXT, DATA])));
  expect(kernel).toEqual({ protocol: "linux64", entry: ENTRY, end: DATA.gpa + 0x400 });
  expect(memory.slice(TEXT.gpa, 0x300)).toEqual(TEXT.data);
  expect(memory.slice(DATA.gpa, 0x80)).toEqual(DATA.data);
  expect(memory.slice(DATA.gpa + 0x80, 0x380).every((b) => b === 0)).toBe(true);
  expect(memory.readU8(DATA.gpa + 0x400)).toBe(0xee);
});

test("a segment without file bytes is zeroed", () => {
  const { memory } = guardedMemory(32 * MIB);
  memory.fill(0x130_0000, 0x100, (b) => b.fill(0xee));
  loadElf(
    memory,
    bufferSource(makeElf(ENTRY, [TEXT, { gpa: 0x130_0000, data: new Uint8Array(0), memSize: 0x80 }])),
  );
  expect(memory.readU8(0x130_007f)).toBe(0);
  expect(memory.readU8(0x130_0080)).toBe(0xee);
});

test("a Xen PHYS32_ENTRY note selects PVH", () => {
  const file = makeElf(ENTRY, [TEXT, pvhNote(0x100_0080)]);
  expect(load(file).kernel).toMatchObject({ protocol: "pvh", entry: 0x100_0080 });
  expect(load(file, 32 * MIB, "linux64").kernel).toMatchObject({ protocol: "linux64", entry: ENTRY });
});

test("the note may hold 4 bytes, and notes may be padded to 8", () => {
  const short = makeNote("Xen\0", 18, u64(0x100_0080).subarray(0, 4));
  expect(load(makeElf(ENTRY, [TEXT, { type: 4, data: short }])).kernel.entry).toBe(0x100_0080);
  const padded = [makeNote("GNU\0", 5, new Uint8Array(4), 8), makeNote("Xen\0", 18, u64(0x100_0080), 8)];
  const data = Uint8Array.from(padded.flatMap((n) => [...n]));
  expect(load(makeElf(ENTRY, [TEXT, { type: 4, data, align: 8 }])).kernel.entry).toBe(0x100_0080);
});

test("notes of another owner or type do not select PVH", () => {
  for (const note of [
    makeNote("Xen\0", 17, u64(1)),
    makeNote("XenX", 18, u64(1)),
    makeNote("Xe\0", 18, u64(1)),
  ]) {
    expect(load(makeElf(ENTRY, [TEXT, { type: 4, data: note }])).kernel.protocol).toBe("linux64");
  }
});

test("a file cut anywhere is refused, and says where", () => {
  const file = makeElf(ENTRY, [TEXT, pvhNote(0x100_0080), DATA]);
  const { memory } = guardedMemory(32 * MIB);
  for (let size = 0; size < file.length; size++) {
    expect(() => loadElf(memory, bufferSource(file.slice(0, size)))).toThrow(
      `the file is truncated at byte ${size} of`,
    );
  }
});

test("a file that shrinks while it is read is refused", () => {
  const file = makeElf(ENTRY, [TEXT]);
  const { memory } = guardedMemory(32 * MIB);
  const source = { size: file.length, read: bufferSource(file.slice(0, file.length - 5)).read };
  expect(() => loadElf(memory, source)).toThrow(`truncated at byte ${file.length - 5} of ${file.length}`);
});

test.each([
  [
    "a segment past the end of RAM",
    makeElf(ENTRY, [TEXT, { ...DATA, memSize: 31 * MIB }]),
    "needs 49 MiB, the guest has 32 MiB",
  ],
  ["a segment below 1 MiB", makeElf(ENTRY, [TEXT, { ...DATA, gpa: 0xf_ffff }]), "below 1 MiB"],
  [
    "overlapping segments",
    makeElf(ENTRY, [TEXT, { ...DATA, gpa: 0x100_02ff }]),
    "overlaps the one before it",
  ],
  [
    "more bytes in the file than in memory",
    makeElf(ENTRY, [TEXT, { ...DATA, memSize: 0x7f }]),
    "larger in the file",
  ],
  ["nothing to load", makeElf(ENTRY, [pvhNote(ENTRY)]), "nothing to load"],
  ["an entry outside every segment", makeElf(0x100_0300, [TEXT]), "0x1000300 lies in no loaded segment"],
  [
    "a PVH entry outside every segment",
    makeElf(ENTRY, [TEXT, pvhNote(0x500)]),
    "0x500 lies in no loaded segment",
  ],
  [
    "a note past its segment",
    makeElf(ENTRY, [TEXT, { type: 4, data: makeNote("Xen\0", 18, u64(1)).subarray(0, 16) }]),
    "past the end of its segment",
  ],
  [
    "a PVH note of 2 bytes",
    makeElf(ENTRY, [TEXT, { type: 4, data: makeNote("Xen\0", 18, new Uint8Array(2)) }]),
    "holds 2 bytes",
  ],
])("refuses %s and writes nothing", (_name, file, message) => {
  const { memory } = guardedMemory(32 * MIB);
  let writes = 0;
  memory.setWriteHook(() => writes++);
  expect(() => loadElf(memory, bufferSource(file))).toThrow(message);
  expect(writes).toBe(0);
});

test.each([
  ["32-bit", 4, [1], "not 64-bit"],
  ["big-endian", 5, [2], "not 64-bit little-endian"],
  ["aarch64", 18, [0xb7], "machine 183"],
  ["a relocatable object", 16, [1], "not an executable"],
  ["no program headers", 56, [0, 0], "no valid program headers"],
  ["program headers of another size", 54, [32], "no valid program headers"],
  ["program headers inside the header", 32, [63], "overlap the ELF header"],
])("refuses an ELF header: %s", (_name, at, bytes, message) => {
  const file = makeElf(ENTRY, [TEXT]);
  file.set(bytes, at);
  expect(() => load(file)).toThrow(message);
});

test("forcing PVH needs the note", () => {
  expect(() => load(makeElf(ENTRY, [TEXT]), 32 * MIB, "pvh")).toThrow("no PVH entry note");
});

test("64-bit addresses near the top do not wrap", () => {
  const file = makeElf(ENTRY, [TEXT, DATA]);
  new DataView(file.buffer).setBigUint64(64 + 56 + 24, 0xffff_ffff_ffff_fff0n, true);
  expect(() => load(file)).toThrow("guest memory is too small");
});
