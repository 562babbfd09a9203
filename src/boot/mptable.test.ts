import { expect, test } from "bun:test";
import { writeMpTable } from "./mptable.ts";
import { TableArea } from "./table-area.ts";
import { guardedMemory, MIB } from "./test-images.ts";

const ENTRY_SIZE: Record<number, number> = { 0: 20, 1: 8, 2: 8, 3: 8, 4: 8 };

test.each([1, 32, 253])("the MP table of %d vCPUs can be walked", (vcpus) => {
  const { memory } = guardedMemory(2 * MIB);
  writeMpTable(new TableArea(memory), vcpus);
  const sum = (bytes: Uint8Array) => bytes.reduce((a, b) => (a + b) & 0xff, 0);
  const pointer = memory.slice(0x9_fc00, 16);
  expect(String.fromCharCode(...pointer.subarray(0, 4))).toBe("_MP_");
  expect(sum(pointer)).toBe(0);
  const at = memory.readU32(0x9_fc04);
  const length = memory.readU16(at + 4);
  expect(String.fromCharCode(...memory.slice(at, 4))).toBe("PCMP");
  expect(sum(memory.slice(at, length))).toBe(0);
  expect(memory.readU32(at + 36)).toBe(0xfee0_0000);

  const counts = [0, 0, 0, 0, 0];
  let entry = at + 44;
  for (let i = 0; i < memory.readU16(at + 34); i++) {
    const type = memory.readU8(entry);
    if (type === 0) {
      expect(memory.readU8(entry + 1)).toBe(counts[0]!);
      expect(memory.readU8(entry + 3)).toBe(counts[0] === 0 ? 3 : 1);
    }
    if (type === 3) expect(memory.readU8(entry + 7)).toBe(memory.readU8(entry + 5));
    counts[type]!++;
    entry += ENTRY_SIZE[type]!;
  }
  expect(entry).toBe(at + length);
  expect(counts).toEqual([vcpus, 1, 1, 24, 2]);
});
