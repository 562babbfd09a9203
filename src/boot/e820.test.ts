import { expect, test } from "bun:test";
import { memoryRegions } from "../memory/guest-memory.ts";
import { E820_RAM, E820_RESERVED, e820Map } from "./e820.ts";
import { MIB } from "./test-images.ts";

const GIB = 1024 * MIB;
/** 639 KiB to 1 MiB holds the tables. */
const HOLE = 0x10_0000 - 0x9_fc00;

test.each([2 * MIB, 128 * MIB, 3 * GIB - 4096, 3 * GIB, 3 * GIB + 4096, 64 * GIB])(
  "RAM of %d bytes adds up, in order and without overlap",
  (size) => {
    const map = e820Map(memoryRegions(size));
    const ram = map.filter((e) => e.type === E820_RAM).reduce((sum, e) => sum + e.size, 0);
    expect(ram + HOLE).toBe(size);
    for (let i = 1; i < map.length; i++) {
      expect(map[i]!.addr).toBeGreaterThanOrEqual(map[i - 1]!.addr + map[i - 1]!.size);
    }
    expect(map.every((e) => e.size > 0)).toBe(true);
  },
);

test("128 MiB, entry by entry", () => {
  expect(e820Map(memoryRegions(128 * MIB))).toEqual([
    { addr: 0, size: 0x9_fc00, type: E820_RAM },
    { addr: 0x9_fc00, size: 0x6_0400, type: E820_RESERVED },
    { addr: 0x10_0000, size: 127 * MIB, type: E820_RAM },
    { addr: 0xeec0_0000, size: 0x1000_0000, type: E820_RESERVED },
  ]);
});

test("RAM above 3 GiB continues at 4 GiB", () => {
  expect(e820Map(memoryRegions(5 * GIB)).at(-1)).toEqual({ addr: 4 * GIB, size: 2 * GIB, type: E820_RAM });
});
