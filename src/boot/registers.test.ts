import { expect, test } from "bun:test";
import { bootRegisters, writeBootTables } from "./registers.ts";
import { guardedMemory, MIB } from "./test-images.ts";

test("linux64: long mode with the first GiB mapped to itself", () => {
  const { memory } = guardedMemory(2 * MIB);
  memory.fill(0x9000, 0x3000, (b) => b.fill(0xff));
  writeBootTables(memory, "linux64");
  const gdt = [0, 1, 2, 3].map((i) => memory.readU64(0x500 + i * 8));
  expect(gdt).toEqual([0n, 0x00af_9b00_0000_ffffn, 0x00cf_9300_0000_ffffn, 0x008f_8b00_0000_ffffn]);
  expect(memory.readU64(0x520)).toBe(0n);
  expect(memory.readU64(0x9000)).toBe(0xa003n);
  expect(memory.readU64(0x9008)).toBe(0n);
  expect(memory.readU64(0xa000)).toBe(0xb003n);
  expect(memory.readU64(0xa008)).toBe(0n);
  for (let i = 0; i < 512; i++) expect(memory.readU64(0xb000 + i * 8)).toBe(BigInt(i * 2 * MIB) | 0x83n);

  expect(bootRegisters("linux64", 0x100_0000)).toEqual({
    rip: 0x100_0000n,
    rsp: 0x8ff0n,
    rbp: 0x8ff0n,
    rsi: 0x7000n,
    rbx: 0n,
    cr0: 0x8000_0011n,
    cr3: 0x9000n,
    cr4: 0x20n,
    efer: 0x500n,
    cs: { selector: 8, base: 0n, limit: 0xffff_ffff, flags: 0xa09b },
    data: { selector: 16, base: 0n, limit: 0xffff_ffff, flags: 0xc093 },
    tr: { selector: 24, base: 0n, limit: 0xffff_ffff, flags: 0x808b },
    gdt: { base: 0x500n, limit: 31 },
    idt: { base: 0x520n, limit: 7 },
  });
});

test("pvh: 32-bit protected mode without paging", () => {
  const { memory } = guardedMemory(2 * MIB);
  writeBootTables(memory, "pvh");
  const gdt = [0, 1, 2, 3].map((i) => memory.readU64(0x500 + i * 8));
  expect(gdt).toEqual([0n, 0x00cf_9b00_0000_ffffn, 0x00cf_9300_0000_ffffn, 0x0000_8b00_0000_0067n]);
  expect(memory.slice(0x9000, 0x3000).every((b) => b === 0)).toBe(true);
  expect(bootRegisters("pvh", 0x100_0000)).toMatchObject({
    rip: 0x100_0000n,
    rbx: 0x6000n,
    rsi: 0n,
    cr0: 0x11n,
    cr3: 0n,
    cr4: 0n,
    efer: 0n,
    cs: { selector: 8, base: 0n, limit: 0xffff_ffff, flags: 0xc09b },
    tr: { selector: 24, base: 0n, limit: 0x67, flags: 0x008b },
  });
});
