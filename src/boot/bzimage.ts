/** Loads a compressed kernel: a Linux x86 bzImage (Documentation/arch/x86/boot.rst). */

import type { GuestMemory } from "../memory/guest-memory.ts";
import { hex } from "./boot-error.ts";
import { type ByteSource, readExact, truncated } from "./byte-source.ts";
import {
  alignUp,
  checkIdentityMapped,
  checkKernelRange,
  kernelError,
  type LoadedKernel,
  readU64,
} from "./kernel-image.ts";
import { HIMEM_START } from "./layout.ts";

/** Offsets of the setup header's fields, in the file as in `boot_params`. */
export const SETUP_HEADER = 0x1f1;
export const SETUP_SECTS = 0x1f1;
export const SYSSIZE = 0x1f4;
export const BOOT_FLAG = 0x1fe;
export const JUMP_LENGTH = 0x201;
export const HEADER = 0x202;
export const VERSION = 0x206;
export const TYPE_OF_LOADER = 0x210;
export const LOADFLAGS = 0x211;
export const CODE32_START = 0x214;
export const RAMDISK_IMAGE = 0x218;
export const RAMDISK_SIZE = 0x21c;
export const CMD_LINE_PTR = 0x228;
export const INITRD_ADDR_MAX = 0x22c;
export const KERNEL_ALIGNMENT = 0x230;
export const RELOCATABLE_KERNEL = 0x234;
export const XLOADFLAGS = 0x236;
export const CMDLINE_SIZE = 0x238;
export const SETUP_DATA = 0x250;
export const PREF_ADDRESS = 0x258;
export const INIT_SIZE = 0x260;
/** The header never reaches further than this in `boot_params`: `edd_mbr_sig_buffer` follows. */
export const SETUP_HEADER_LIMIT = 0x290;

export const BOOT_FLAG_MAGIC = 0xaa55;
/** "HdrS". */
export const HEADER_MAGIC = 0x5372_6448;
const LOADED_HIGH = 1 << 0;
const XLF_KERNEL_64 = 1 << 0;
const XLF_CAN_BE_LOADED_ABOVE_4G = 1 << 1;
/** Protocol 2.12 brought `xloadflags`, which tells whether there is a 64-bit entry point. */
const MIN_VERSION = 0x020c;
const SECTOR_SIZE = 512;
/** What `setup_sects` means when it is 0. */
const DEFAULT_SETUP_SECTS = 4;
/** `syssize` counts in these. */
const PARAGRAPH_SIZE = 16;
/** The 64-bit entry point lies this far into the protected-mode part. */
const STARTUP_64_OFFSET = 0x200;

/** True if the first bytes of a file (at least 0x206 of them) are those of a bzImage. */
export function isBzImage(head: Uint8Array): boolean {
  if (head.length < HEADER + 4) return false;
  const view = new DataView(head.buffer, head.byteOffset, head.length);
  return view.getUint16(BOOT_FLAG, true) === BOOT_FLAG_MAGIC && view.getUint32(HEADER, true) === HEADER_MAGIC;
}

/**
 * Reads the protected-mode part straight into guest RAM: at 1 MiB, or at its preferred address if it cannot be
 * relocated. It is entered at its 64-bit entry point. Nothing is written before the header has been checked.
 * Throws {@link BootError}.
 */
export function loadBzImage(memory: GuestMemory, source: ByteSource): LoadedKernel {
  if (source.size < SETUP_HEADER_LIMIT) throw truncated("kernel", source.size, SETUP_HEADER_LIMIT);
  const head = new Uint8Array(SETUP_HEADER_LIMIT);
  readExact(source, 0, head, "kernel");
  const view = new DataView(head.buffer);
  checkHeader(head, view);

  const setupSize = ((view.getUint8(SETUP_SECTS) || DEFAULT_SETUP_SECTS) + 1) * SECTOR_SIZE;
  const payloadSize = view.getUint32(SYSSIZE, true) * PARAGRAPH_SIZE;
  if (payloadSize <= STARTUP_64_OFFSET) {
    throw kernelError(`the bzImage holds only ${payloadSize} bytes of kernel (syssize). Build it again.`);
  }
  if (setupSize + payloadSize > source.size) throw truncated("kernel", source.size, setupSize + payloadSize);

  const relocatable = view.getUint8(RELOCATABLE_KERNEL) !== 0;
  const prefAddress = readU64(view, PREF_ADDRESS);
  const loadAddress = relocatable ? HIMEM_START : prefAddress;
  const end = Math.max(loadAddress + payloadSize, runtimeEnd(view, loadAddress, prefAddress));
  checkKernelRange(memory, loadAddress, end, "the bzImage (init_size)");
  checkIdentityMapped(end);

  memory.fill(loadAddress, payloadSize, (into) => readExact(source, setupSize, into, "kernel"));
  const headerEnd = Math.min(HEADER + view.getUint8(JUMP_LENGTH), SETUP_HEADER_LIMIT);
  const above4G = (view.getUint16(XLOADFLAGS, true) & XLF_CAN_BE_LOADED_ABOVE_4G) !== 0;
  return {
    protocol: "linux64",
    entry: loadAddress + STARTUP_64_OFFSET,
    end,
    setup: {
      loadAddress,
      header: {
        bytes: head.slice(SETUP_HEADER, headerEnd),
        cmdlineSize: view.getUint32(CMDLINE_SIZE, true),
        // Such a kernel takes its initrd anywhere; the field stays low for old boot loaders.
        initrdAddrMax: above4G ? Number.POSITIVE_INFINITY : view.getUint32(INITRD_ADDR_MAX, true),
      },
    },
  };
}

function checkHeader(head: Uint8Array, view: DataView): void {
  if (!isBzImage(head)) throw kernelError("the file is not a bzImage: boot_flag or HdrS is missing.");
  const version = view.getUint16(VERSION, true);
  if (version < MIN_VERSION) {
    const text = `${version >> 8}.${String(version & 0xff).padStart(2, "0")}`;
    throw kernelError(`the bzImage speaks boot protocol ${text}, older than 2.12. Use Linux 3.8 or later.`);
  }
  if ((view.getUint16(XLOADFLAGS, true) & XLF_KERNEL_64) === 0) {
    throw kernelError("the bzImage has no 64-bit entry point (XLF_KERNEL_64). Give an x86_64 kernel.");
  }
  if ((view.getUint8(LOADFLAGS) & LOADED_HIGH) === 0) {
    throw kernelError("the kernel is a zImage, loaded below 1 MiB (LOADED_HIGH is 0). Build a bzImage.");
  }
  const headerEnd = HEADER + view.getUint8(JUMP_LENGTH);
  if (headerEnd < INIT_SIZE + 4) {
    throw kernelError(
      `the setup header ends at ${hex(headerEnd)}, before init_size. Build the bzImage again.`,
    );
  }
}

/** Where the memory that the kernel needs to decompress itself ends (boot.rst, field `init_size`). */
function runtimeEnd(view: DataView, loadAddress: number, prefAddress: number): number {
  const initSize = view.getUint32(INIT_SIZE, true);
  if (view.getUint8(RELOCATABLE_KERNEL) === 0) return prefAddress + initSize;
  const alignment = view.getUint32(KERNEL_ALIGNMENT, true);
  if (alignment === 0 || (alignment & (alignment - 1)) !== 0) {
    throw kernelError(`kernel_alignment is ${hex(alignment)}, not a power of two. Build the bzImage again.`);
  }
  // The decompressor never goes below the address the kernel was linked for (head_64.S, LOAD_PHYSICAL_ADDR).
  return Math.max(alignUp(loadAddress, alignment), prefAddress) + initSize;
}
