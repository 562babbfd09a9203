/** A small machine around the software CPU for tests: RAM, page tables built by the test, no devices. */

import { type SoftBus, updateMode } from "../../src/hypervisor/soft/cpu.ts";
import { createSoftMemory } from "../../src/hypervisor/soft/index.ts";
import { GUEST_BASE } from "../../src/hypervisor/soft/layout.ts";
import { SoftVcpu } from "../../src/hypervisor/soft/vcpu.ts";
import type { BootRegisters, Segment } from "../../src/hypervisor/types.ts";

const NO_BUS: SoftBus = {
  pioRead: () => 0,
  pioWrite: () => {},
  mmioRead: () => 0,
  mmioWrite: () => {},
};

/** Four-level page tables from guest-physical 0x1000 up; tables are taken from there on demand. */
export class MmuPages {
  static readonly WRITE = 2;
  static readonly USER = 4;
  private next = 0x2000;
  readonly root = 0x1000;
  private readonly view: DataView;

  constructor(buffer: ArrayBufferLike) {
    this.view = new DataView(buffer);
  }

  private entry(table: number, index: number): number {
    return GUEST_BASE + table + index * 8;
  }

  private descend(table: number, index: number): number {
    const at = this.entry(table, index);
    const present = this.view.getBigUint64(at, true);
    if (present & 1n) return Number(present & 0xffff_f000n);
    const made = this.next;
    this.next += 0x1000;
    this.view.setBigUint64(at, BigInt(made) | 7n, true);
    return made;
  }

  /** Maps one 4 KiB page; `flags` are entry bits besides P. */
  map(linear: number | bigint, physical: number, flags: number | bigint): void {
    const l = BigInt(linear);
    const index = (shift: bigint) => Number((l >> shift) & 511n);
    const pdpt = this.descend(this.root, index(39n));
    const pd = this.descend(pdpt, index(30n));
    const pt = this.descend(pd, index(21n));
    this.view.setBigUint64(this.entry(pt, index(12n)), BigInt(physical) | BigInt(flags) | 1n, true);
  }

  /** Puts the vCPU into 64-bit mode with these tables, at privilege 3, SSE on. */
  enterUser(vcpu: SoftVcpu): void {
    vcpu.setBootRegisters(flatRegisters(this.root, 3));
    updateMode(vcpu.cpu);
  }
}

/** 64-bit mode with paging on `cr3` at privilege `cpl`. */
export function flatRegisters(cr3: number, cpl: number): BootRegisters {
  const segment = (flags: number, selector: number): Segment => ({
    selector: selector | cpl,
    base: 0n,
    limit: 0xffff_ffff,
    flags: flags | (cpl << 5),
  });
  return {
    rip: 0n,
    rsp: 0n,
    rbp: 0n,
    rsi: 0n,
    rbx: 0n,
    cr0: 0x8001_0033n,
    cr3: BigInt(cr3),
    cr4: 0x620n,
    efer: 0xd01n,
    cs: segment(0xa09b, 0x30),
    data: segment(0xc093, 0x28),
    tr: { selector: 0, base: 0n, limit: 0, flags: 0x8b },
    gdt: { base: 0n, limit: 0 },
    idt: { base: 0n, limit: 0 },
  };
}

/**
 * How the CPUs of tests compile: SPARKLER_TEST_JIT is `off`, or after how many executions a block is compiled
 * (1: each block at once).
 */
export function testJit(): boolean | number {
  const asked = process.env.SPARKLER_TEST_JIT;
  if (asked === undefined || asked === "") return true;
  if (asked === "off") return false;
  const hot = Number(asked);
  if (!Number.isInteger(hot) || hot < 1) {
    throw new Error(`SPARKLER_TEST_JIT is "${asked}": give "off" or a number from 1 up`);
  }
  return hot;
}

export function softMachine(ramBytes = 4 << 20, bus: SoftBus = NO_BUS): { vcpu: SoftVcpu; pages: MmuPages } {
  const { memory } = createSoftMemory(ramBytes);
  const vcpu = new SoftVcpu({ memory, ramBytes, bus, log: () => {}, jit: testJit() });
  return { vcpu, pages: new MmuPages(memory.buffer) };
}
