/** What the PVH boot protocol tells the kernel (xen/include/public/arch-x86/hvm/start_info.h). */

import type { GuestMemory } from "../memory/guest-memory.ts";
import { e820Map } from "./e820.ts";
import type { LoadedInitrd } from "./initrd.ts";
import { MEMMAP_START, MODLIST_START, PVH_INFO_START } from "./layout.ts";

export const XEN_HVM_START_MAGIC_VALUE = 0x336e_c578;
/** Version 1 brought the memory map. */
const START_INFO_VERSION = 1;

/** `struct hvm_start_info`. */
const START_INFO_SIZE = 56;
const SI_VERSION = 4;
const SI_NR_MODULES = 12;
const SI_MODLIST_PADDR = 16;
const SI_CMDLINE_PADDR = 24;
const SI_RSDP_PADDR = 32;
const SI_MEMMAP_PADDR = 40;
const SI_MEMMAP_ENTRIES = 48;
/** `struct hvm_modlist_entry`: address, size, command line, reserved; 64 bits each. */
const MODLIST_ENTRY_SIZE = 32;
/** `struct hvm_memmap_table_entry`: address, size (64 bits), type, reserved (32 bits). */
const MEMMAP_ENTRY_SIZE = 24;

export interface PvhInfo {
  /** Guest-physical address of the NUL-terminated command line. */
  readonly cmdline: number;
  readonly initrd?: LoadedInitrd | undefined;
  /** Guest-physical address of the ACPI root pointer; 0 if there is none. */
  readonly rsdp: number;
}

/** Writes `hvm_start_info`, the memory map, and the module list with the initrd as its one module. */
export function writePvhInfo(memory: GuestMemory, { cmdline, initrd, rsdp }: PvhInfo): void {
  const map = e820Map(memory.regions);
  const memmap = new DataView(new ArrayBuffer(map.length * MEMMAP_ENTRY_SIZE));
  map.forEach((entry, i) => {
    const at = i * MEMMAP_ENTRY_SIZE;
    memmap.setBigUint64(at, BigInt(entry.addr), true);
    memmap.setBigUint64(at + 8, BigInt(entry.size), true);
    memmap.setUint32(at + 16, entry.type, true);
  });
  memory.write(MEMMAP_START, new Uint8Array(memmap.buffer));

  const info = new DataView(new ArrayBuffer(START_INFO_SIZE));
  info.setUint32(0, XEN_HVM_START_MAGIC_VALUE, true);
  info.setUint32(SI_VERSION, START_INFO_VERSION, true);
  info.setBigUint64(SI_CMDLINE_PADDR, BigInt(cmdline), true);
  info.setBigUint64(SI_RSDP_PADDR, BigInt(rsdp), true);
  info.setBigUint64(SI_MEMMAP_PADDR, BigInt(MEMMAP_START), true);
  info.setUint32(SI_MEMMAP_ENTRIES, map.length, true);
  if (initrd !== undefined) {
    info.setUint32(SI_NR_MODULES, 1, true);
    info.setBigUint64(SI_MODLIST_PADDR, BigInt(MODLIST_START), true);
    const modlist = new DataView(new ArrayBuffer(MODLIST_ENTRY_SIZE));
    modlist.setBigUint64(0, BigInt(initrd.gpa), true);
    modlist.setBigUint64(8, BigInt(initrd.size), true);
    memory.write(MODLIST_START, new Uint8Array(modlist.buffer));
  }
  memory.write(PVH_INFO_START, new Uint8Array(info.buffer));
}
