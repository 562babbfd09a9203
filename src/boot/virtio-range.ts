/** A virtio-mmio device as the kernel must be told of it. */

import type { GuestMemory } from "../memory/guest-memory.ts";
import { MMIO_GAP_END } from "../memory/guest-memory.ts";
import { BootError, hex } from "./boot-error.ts";
import { GSI_LEGACY_END, GSI_LEGACY_START } from "./layout.ts";

export interface VirtioMmioRange {
  /** Guest-physical address of the register window. */
  readonly gpa: number;
  /** Size of the window in bytes. */
  readonly size: number;
  /** Global system interrupt: an I/O APIC pin, edge-triggered, active high. */
  readonly gsi: number;
}

/**
 * Throws {@link BootError} unless every window lies below 4 GiB (AML's Memory32Fixed holds 32 bits), outside
 * RAM and apart from the others, and has an interrupt of its own.
 */
export function checkVirtioRanges(memory: GuestMemory, ranges: readonly VirtioMmioRange[]): void {
  const gsis = new Set<number>();
  let end = 0;
  for (const { gpa, size, gsi } of ranges.toSorted((a, b) => a.gpa - b.gpa)) {
    const window = `the virtio-mmio window at ${hex(gpa)}, ${size} bytes,`;
    if (!Number.isInteger(gpa) || !Number.isInteger(size) || size <= 0 || gpa + size > MMIO_GAP_END) {
      throw new BootError("machine", `${window} does not lie below 4 GiB. Place it in the MMIO gap.`);
    }
    if (gpa < end) {
      throw new BootError("machine", `${window} overlaps the window before it. Place them apart.`);
    }
    if (memory.regions.some((r) => gpa < r.gpa + r.size && r.gpa < gpa + size)) {
      throw new BootError("machine", `${window} overlaps guest RAM. Place it in the MMIO gap.`);
    }
    if (!Number.isInteger(gsi) || gsi < GSI_LEGACY_START || gsi > GSI_LEGACY_END || gsis.has(gsi)) {
      throw new BootError(
        "machine",
        `${window} cannot use interrupt ${gsi}. Give each device its own, ${GSI_LEGACY_START} to ${GSI_LEGACY_END}.`,
      );
    }
    gsis.add(gsi);
    end = gpa + size;
  }
}
