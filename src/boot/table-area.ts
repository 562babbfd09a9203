/** The piece of guest RAM that holds the MP and ACPI tables. */

import type { GuestMemory } from "../memory/guest-memory.ts";
import { BootError } from "./boot-error.ts";
import { RSDP_ADDR, SYSTEM_MEM_START } from "./layout.ts";

/** Keeps every field of a table naturally aligned. */
const TABLE_ALIGNMENT = 16;

/** Sums all bytes; a table is valid when the low 8 bits are 0. Returns the byte that makes it so. */
export function checksum(bytes: Uint8Array): number {
  let sum = 0;
  for (let i = 0; i < bytes.length; i++) sum += bytes[i]!;
  return -sum & 0xff;
}

/** Hands out the area from its start upwards. */
export class TableArea {
  private next = SYSTEM_MEM_START;

  constructor(private readonly memory: GuestMemory) {}

  /** Where a table would be placed now (guest-physical). */
  get position(): number {
    return this.next;
  }

  /** Writes a table and returns its guest-physical address. Throws {@link BootError} when the area is full. */
  place(table: Uint8Array): number {
    const gpa = this.next;
    const end = gpa + table.length;
    if (end > RSDP_ADDR) {
      throw new BootError(
        "machine",
        "the MP and ACPI tables do not fit below 0xe0000. Use fewer vCPUs or devices.",
      );
    }
    this.memory.write(gpa, table);
    this.next = Math.ceil(end / TABLE_ALIGNMENT) * TABLE_ALIGNMENT;
    return gpa;
  }
}
