/** What the ELF and the bzImage loader have in common. */

import type { GuestMemory } from "../memory/guest-memory.ts";
import { BootError, hex, mib } from "./boot-error.ts";
import { HIMEM_START, IDENTITY_MAP_SIZE } from "./layout.ts";

/** How the kernel is entered: the Linux x86 64-bit boot protocol, or Xen's PVH. */
export type BootProtocol = "linux64" | "pvh";

/** A kernel in guest RAM. Addresses are guest-physical. */
export interface LoadedKernel {
  readonly protocol: BootProtocol;
  readonly entry: number;
  /** One past the last byte that the kernel occupies or needs free before it manages memory itself. */
  readonly end: number;
  /** bzImage only: the file's setup header, and where its protected-mode part was loaded. */
  readonly setup?: { readonly header: SetupHeader; readonly loadAddress: number };
}

/** The setup header of a bzImage (Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header"). */
export interface SetupHeader {
  /** The header as it is in the file, from offset 0x1f1 on. */
  readonly bytes: Uint8Array;
  /** Most characters of command line the kernel takes, NUL left out. */
  readonly cmdlineSize: number;
  /** Highest address the initrd may occupy. */
  readonly initrdAddrMax: number;
}

/** A kernel file is at fault. */
export function kernelError(detail: string): BootError {
  return new BootError("kernel", detail);
}

/** Throws {@link BootError} unless the kernel can have `[start, end)`: at or above 1 MiB, in the first RAM region. */
export function checkKernelRange(memory: GuestMemory, start: number, end: number, what: string): void {
  if (start < HIMEM_START) {
    throw kernelError(
      `${what} would be loaded at ${hex(start)}, below 1 MiB. Build the kernel for x86_64 with its default PHYSICAL_START.`,
    );
  }
  const lowSize = memory.regions[0]!.size;
  if (end > lowSize) {
    throw kernelError(
      `guest memory is too small: ${what} needs ${mib(end)} MiB, the guest has ${mib(lowSize)} MiB below 3 GiB. ` +
        "Raise mem_size_mib, or use a smaller kernel.",
    );
  }
}

/** Throws {@link BootError} unless the identity map of the Linux 64-bit protocol covers the kernel. */
export function checkIdentityMapped(end: number): void {
  if (end > IDENTITY_MAP_SIZE) {
    throw kernelError(
      `the kernel reaches to ${hex(end)}, above the ${mib(IDENTITY_MAP_SIZE)} MiB mapped at entry. Link it lower.`,
    );
  }
}

/** A little-endian 64-bit field. Above 2^53 it is rounded: such a value fails every bounds check all the same. */
export function readU64(view: DataView, at: number): number {
  return view.getUint32(at + 4, true) * 0x1_0000_0000 + view.getUint32(at, true);
}

/** `value` rounded up to a multiple of `alignment`, which need not be a power of two. */
export function alignUp(value: number, alignment: number): number {
  return Math.ceil(value / alignment) * alignment;
}
