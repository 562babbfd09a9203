/** The memory map a kernel boots with. */

import type { MemoryRegion } from "../memory/guest-memory.ts";
import { HIMEM_START, PCI_MMCONFIG_SIZE, PCI_MMCONFIG_START, SYSTEM_MEM_START } from "./layout.ts";

/** Types of a range (ACPI 6.5, table 15.2). PVH uses the same numbers. */
export const E820_RAM = 1;
export const E820_RESERVED = 2;

/** One range: guest-physical address and size in bytes. */
export interface E820Entry {
  readonly addr: number;
  readonly size: number;
  readonly type: typeof E820_RAM | typeof E820_RESERVED;
}

/**
 * The map for these RAM regions, in address order. The first region starts at 0 and is larger than 1 MiB;
 * in it, 639 KiB to 1 MiB is reserved for the MP and ACPI tables.
 */
export function e820Map(regions: readonly MemoryRegion[]): E820Entry[] {
  const map: E820Entry[] = [
    { addr: 0, size: SYSTEM_MEM_START, type: E820_RAM },
    { addr: SYSTEM_MEM_START, size: HIMEM_START - SYSTEM_MEM_START, type: E820_RESERVED },
  ];
  for (const { gpa, size } of regions) {
    map.push(
      gpa === 0
        ? { addr: HIMEM_START, size: size - HIMEM_START, type: E820_RAM }
        : { addr: gpa, size, type: E820_RAM },
    );
  }
  map.push({ addr: PCI_MMCONFIG_START, size: PCI_MMCONFIG_SIZE, type: E820_RESERVED });
  return map.sort((a, b) => a.addr - b.addr);
}
