/** Places the initial RAM disk. */

import type { GuestMemory } from "../memory/guest-memory.ts";
import { BootError, mib } from "./boot-error.ts";
import { type ByteSource, readExact } from "./byte-source.ts";
import { PAGE_SIZE } from "./layout.ts";

/** An initrd in guest RAM: guest-physical address and size in bytes. */
export interface LoadedInitrd {
  readonly gpa: number;
  readonly size: number;
}

/**
 * Reads the initrd straight into guest RAM, page-aligned, as high as it fits in the first RAM region.
 * `kernelEnd` is where the kernel ends, `addrMax` the highest address the kernel lets the initrd occupy.
 * Throws {@link BootError} if it is empty or does not fit between the two.
 */
export function loadInitrd(
  memory: GuestMemory,
  source: ByteSource,
  kernelEnd: number,
  addrMax: number,
): LoadedInitrd {
  const size = source.size;
  if (size === 0) throw new BootError("initrd", "the initrd file is empty. Check initrd_path.");
  const lowSize = memory.regions[0]!.size;
  const limit = Math.min(lowSize, addrMax + 1);
  const gpa = Math.floor((limit - size) / PAGE_SIZE) * PAGE_SIZE;
  if (gpa < kernelEnd) {
    const advice =
      limit < lowSize
        ? `this kernel takes its initrd only below ${mib(limit)} MiB. Use a smaller initrd.`
        : `the guest has ${mib(lowSize)} MiB. Raise mem_size_mib to at least ${mib(kernelEnd + size + PAGE_SIZE)}, or use a smaller initrd.`;
    throw new BootError("initrd", `an initrd of ${size} bytes does not fit above the kernel: ${advice}`);
  }
  memory.fill(gpa, size, (into) => readExact(source, 0, into, "initrd"));
  return { gpa, size };
}
