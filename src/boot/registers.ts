/** The processor state in which a kernel is entered, and the tables in guest RAM that it refers to. */

import type { BootRegisters, Segment } from "../hypervisor/types.ts";
import type { GuestMemory } from "../memory/guest-memory.ts";
import type { BootProtocol } from "./kernel-image.ts";
import {
  BOOT_STACK_POINTER,
  GDT_START,
  IDT_START,
  PAGE_SIZE,
  PDE_START,
  PDPTE_START,
  PML4_START,
  PVH_INFO_START,
  ZERO_PAGE_START,
} from "./layout.ts";

/** Control register and EFER bits (SDM vol. 3A, 2.2.1 and 2.5). */
const CR0_PE = 1n << 0n;
const CR0_ET = 1n << 4n;
const CR0_PG = 1n << 31n;
const CR4_PAE = 1n << 5n;
const EFER_LME = 1n << 8n;
const EFER_LMA = 1n << 10n;

/** Page table entry bits (SDM vol. 3A, 4.5.4). */
const PTE_PRESENT = 1n << 0n;
const PTE_WRITE = 1n << 1n;
const PTE_PAGE_SIZE = 1n << 7n;
const PDE_COUNT = 512;
const PDE_PAGE_SHIFT = 21n;

const DESCRIPTOR_SIZE = 8;
/** Descriptor flag G: the limit counts 4 KiB pages. */
const DESCRIPTOR_GRANULARITY = 0x8000;
const LIMIT_4G = 0xf_ffff;
/** Limit of a 32-bit TSS, in bytes. */
const LIMIT_TSS = 0x67;

/** A descriptor: `limit` is its 20-bit field, `flags` are bits 40-47 and 52-55 as in {@link Segment}. */
interface Descriptor {
  readonly flags: number;
  readonly limit: number;
}

interface BootDescriptors {
  readonly code: Descriptor;
  readonly data: Descriptor;
  readonly tss: Descriptor;
}

const DESCRIPTORS: Record<BootProtocol, BootDescriptors> = {
  linux64: {
    code: { flags: 0xa09b, limit: LIMIT_4G },
    data: { flags: 0xc093, limit: LIMIT_4G },
    tss: { flags: 0x808b, limit: LIMIT_4G },
  },
  pvh: {
    code: { flags: 0xc09b, limit: LIMIT_4G },
    data: { flags: 0xc093, limit: LIMIT_4G },
    tss: { flags: 0x008b, limit: LIMIT_TSS },
  },
};
/** Places in the GDT; entry 0 is the null descriptor. */
const CODE_INDEX = 1;
const DATA_INDEX = 2;
const TSS_INDEX = 3;
const GDT_ENTRIES = 4;

/** Writes the GDT, an empty IDT and, for the Linux 64-bit protocol, the identity map of the first GiB. */
export function writeBootTables(memory: GuestMemory, protocol: BootProtocol): void {
  const { code, data, tss } = DESCRIPTORS[protocol];
  memory.writeU64(GDT_START, 0n);
  memory.writeU64(GDT_START + CODE_INDEX * DESCRIPTOR_SIZE, encodeDescriptor(code));
  memory.writeU64(GDT_START + DATA_INDEX * DESCRIPTOR_SIZE, encodeDescriptor(data));
  memory.writeU64(GDT_START + TSS_INDEX * DESCRIPTOR_SIZE, encodeDescriptor(tss));
  memory.writeU64(IDT_START, 0n);
  if (protocol === "linux64") writePageTables(memory);
}

function writePageTables(memory: GuestMemory): void {
  const table = PTE_PRESENT | PTE_WRITE;
  for (const [at, next] of [
    [PML4_START, PDPTE_START],
    [PDPTE_START, PDE_START],
  ] as const) {
    memory.fill(at, PAGE_SIZE, (page) => page.fill(0));
    memory.writeU64(at, BigInt(next) | table);
  }
  memory.fill(PDE_START, PAGE_SIZE, (page) => {
    const view = new DataView(page.buffer, page.byteOffset, page.length);
    for (let i = 0; i < PDE_COUNT; i++) {
      view.setBigUint64(i * 8, (BigInt(i) << PDE_PAGE_SHIFT) | table | PTE_PAGE_SIZE, true);
    }
  });
}

/** The registers of the boot vCPU for a kernel entered at guest-physical address `entry`. */
export function bootRegisters(protocol: BootProtocol, entry: number): BootRegisters {
  const { code, data, tss } = DESCRIPTORS[protocol];
  const common = {
    rip: BigInt(entry),
    cs: loadSegment(code, CODE_INDEX),
    data: loadSegment(data, DATA_INDEX),
    tr: loadSegment(tss, TSS_INDEX),
    gdt: { base: BigInt(GDT_START), limit: GDT_ENTRIES * DESCRIPTOR_SIZE - 1 },
    idt: { base: BigInt(IDT_START), limit: DESCRIPTOR_SIZE - 1 },
  };
  if (protocol === "pvh") {
    return {
      ...common,
      rsp: 0n,
      rbp: 0n,
      rsi: 0n,
      rbx: BigInt(PVH_INFO_START),
      cr0: CR0_PE | CR0_ET,
      cr3: 0n,
      cr4: 0n,
      efer: 0n,
    };
  }
  return {
    ...common,
    rsp: BigInt(BOOT_STACK_POINTER),
    rbp: BigInt(BOOT_STACK_POINTER),
    rsi: BigInt(ZERO_PAGE_START),
    rbx: 0n,
    cr0: CR0_PE | CR0_ET | CR0_PG,
    cr3: BigInt(PML4_START),
    cr4: CR4_PAE,
    efer: EFER_LME | EFER_LMA,
  };
}

/** The 8 bytes of a descriptor with base 0 (SDM vol. 3A, figure 3-8). */
function encodeDescriptor({ flags, limit }: Descriptor): bigint {
  const low = BigInt(limit & 0xffff);
  const high = BigInt(limit >> 16) << 48n;
  return low | high | (BigInt(flags) << 40n);
}

/** What the processor holds after loading that descriptor. */
function loadSegment({ flags, limit }: Descriptor, index: number): Segment {
  const bytes = (flags & DESCRIPTOR_GRANULARITY) !== 0 ? limit * PAGE_SIZE + (PAGE_SIZE - 1) : limit;
  return { selector: index * DESCRIPTOR_SIZE, base: 0n, limit: bytes, flags };
}
