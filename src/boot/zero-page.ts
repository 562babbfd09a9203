/** The zero page: what the Linux 64-bit boot protocol tells the kernel (`struct boot_params`). */

import type { GuestMemory } from "../memory/guest-memory.ts";
import {
  BOOT_FLAG,
  BOOT_FLAG_MAGIC,
  CMD_LINE_PTR,
  CMDLINE_SIZE,
  CODE32_START,
  HEADER,
  HEADER_MAGIC,
  KERNEL_ALIGNMENT,
  RAMDISK_IMAGE,
  RAMDISK_SIZE,
  SETUP_DATA,
  SETUP_HEADER,
  TYPE_OF_LOADER,
} from "./bzimage.ts";
import { e820Map } from "./e820.ts";
import type { LoadedInitrd } from "./initrd.ts";
import type { LoadedKernel } from "./kernel-image.ts";
import { ZERO_PAGE_SIZE, ZERO_PAGE_START } from "./layout.ts";

/** Offsets in `boot_params` outside its setup header (Documentation/arch/x86/zero-page.rst). */
export const ACPI_RSDP_ADDR = 0x70;
export const E820_ENTRIES = 0x1e8;
export const E820_TABLE = 0x2d0;
export const E820_ENTRY_SIZE = 20;

/** `type_of_loader` of a boot loader without a number of its own. */
const LOADER_UNDEFINED = 0xff;
/** For a vmlinux, which has no header that tells it. Must not be 0. */
const VMLINUX_ALIGNMENT = 0x100_0000;

export interface ZeroPage {
  readonly kernel: LoadedKernel;
  readonly cmdline: { readonly gpa: number; readonly size: number };
  readonly initrd?: LoadedInitrd | undefined;
  /** Guest-physical address of the ACPI root pointer; 0 if there is none. */
  readonly rsdp: number;
}

/** Writes `boot_params`. A bzImage's own setup header is kept but for what a boot loader must fill in. */
export function writeZeroPage(memory: GuestMemory, { kernel, cmdline, initrd, rsdp }: ZeroPage): void {
  const page = new Uint8Array(ZERO_PAGE_SIZE);
  const view = new DataView(page.buffer);
  if (kernel.setup !== undefined) {
    page.set(kernel.setup.header.bytes, SETUP_HEADER);
    view.setUint32(CODE32_START, kernel.setup.loadAddress, true);
    view.setBigUint64(SETUP_DATA, 0n, true);
  } else {
    view.setUint16(BOOT_FLAG, BOOT_FLAG_MAGIC, true);
    view.setUint32(HEADER, HEADER_MAGIC, true);
    view.setUint32(KERNEL_ALIGNMENT, VMLINUX_ALIGNMENT, true);
    view.setUint32(CMDLINE_SIZE, cmdline.size, true);
  }
  view.setUint8(TYPE_OF_LOADER, LOADER_UNDEFINED);
  view.setUint32(CMD_LINE_PTR, cmdline.gpa, true);
  view.setUint32(RAMDISK_IMAGE, initrd?.gpa ?? 0, true);
  view.setUint32(RAMDISK_SIZE, initrd?.size ?? 0, true);
  view.setBigUint64(ACPI_RSDP_ADDR, BigInt(rsdp), true);

  const map = e820Map(memory.regions);
  view.setUint8(E820_ENTRIES, map.length);
  map.forEach((entry, i) => {
    const at = E820_TABLE + i * E820_ENTRY_SIZE;
    view.setBigUint64(at, BigInt(entry.addr), true);
    view.setBigUint64(at + 8, BigInt(entry.size), true);
    view.setUint32(at + 16, entry.type, true);
  });
  memory.write(ZERO_PAGE_START, page);
}
