/** Register state of a vCPU in KVM's structures: what a kernel is entered with, and what is shown of a dead one. */

import { ioctlStruct } from "../../platform/ioctl.ts";
import type { BootRegisters, Segment, TableRegister } from "../types.ts";
import * as kvm from "./api.ts";

/** RFLAGS with nothing set: bit 1 is always 1. */
const RFLAGS_RESERVED = 0x2n;
/** FPU after FNINIT: all exceptions masked, 64-bit precision. */
const FCW_INIT = 0x37f;
/** MXCSR after reset: all exceptions masked. */
const MXCSR_INIT = 0x1f80;

/** Local APIC: the two LINT pins of the local vector table, and their delivery modes (SDM vol. 3A, 11.5.1). */
const APIC_LVT_LINT0 = 0x350;
const APIC_LVT_LINT1 = 0x360;
const APIC_DELIVERY_MODE = 0x700;
const APIC_MODE_NMI = 0x400;
const APIC_MODE_EXTINT = 0x700;

/** Segment.flags: type, S, DPL, P, AVL, L, D/B, G. */
const bit = (flags: number, at: number) => (flags >>> at) & 1;

const viewOf = (struct: Uint8Array) => new DataView(struct.buffer, struct.byteOffset, struct.length);

/** struct kvm_regs for `r`. */
export function encodeRegs(r: BootRegisters): Uint8Array {
  const struct = new Uint8Array(kvm.REGS_BYTES);
  const view = viewOf(struct);
  for (const name of ["rip", "rsp", "rbp", "rsi", "rbx"] as const) {
    view.setBigUint64(kvm.REGS[name], r[name], true);
  }
  view.setBigUint64(kvm.REGS.rflags, RFLAGS_RESERVED, true);
  return struct;
}

/** Puts `r` into a struct kvm_sregs; what it does not name (LDT, APIC base, CR8) stays. */
export function writeSregs(struct: Uint8Array, r: BootRegisters): void {
  const view = viewOf(struct);
  const { cs, ds, es, fs, gs, ss, tr } = kvm.SREGS_SEGMENT;
  putSegment(view, cs, r.cs);
  for (const at of [ds, es, fs, gs, ss]) putSegment(view, at, r.data);
  putSegment(view, tr, r.tr);
  putTable(view, kvm.SREGS_GDT, r.gdt);
  putTable(view, kvm.SREGS_IDT, r.idt);
  for (const name of ["cr0", "cr3", "cr4", "efer"] as const)
    view.setBigUint64(kvm.SREGS[name], r[name], true);
}

function putSegment(view: DataView, at: number, { selector, base, limit, flags }: Segment): void {
  view.setBigUint64(at + kvm.SEGMENT_BASE, base, true);
  view.setUint32(at + kvm.SEGMENT_LIMIT, limit, true);
  view.setUint16(at + kvm.SEGMENT_SELECTOR, selector, true);
  view.setUint8(at + kvm.SEGMENT_TYPE, flags & 0xf);
  view.setUint8(at + kvm.SEGMENT_S, bit(flags, 4));
  view.setUint8(at + kvm.SEGMENT_DPL, (flags >>> 5) & 3);
  view.setUint8(at + kvm.SEGMENT_PRESENT, bit(flags, 7));
  view.setUint8(at + kvm.SEGMENT_AVL, bit(flags, 12));
  view.setUint8(at + kvm.SEGMENT_L, bit(flags, 13));
  view.setUint8(at + kvm.SEGMENT_DB, bit(flags, 14));
  view.setUint8(at + kvm.SEGMENT_G, bit(flags, 15));
  view.setUint8(at + kvm.SEGMENT_UNUSABLE, 0);
}

function putTable(view: DataView, at: number, { base, limit }: TableRegister): void {
  view.setBigUint64(at, base, true);
  view.setUint16(at + kvm.DTABLE_LIMIT, limit, true);
}

/** Sets general, segment, control and FPU registers of a vCPU. Throws {@link SystemError}. */
export function setBootRegisters(vcpuFd: number, registers: BootRegisters): void {
  ioctlStruct(vcpuFd, kvm.KVM_SET_REGS, encodeRegs(registers), "KVM_SET_REGS");
  const fpu = new Uint8Array(kvm.FPU_BYTES);
  viewOf(fpu).setUint16(kvm.FPU_FCW, FCW_INIT, true);
  viewOf(fpu).setUint32(kvm.FPU_MXCSR, MXCSR_INIT, true);
  ioctlStruct(vcpuFd, kvm.KVM_SET_FPU, fpu, "KVM_SET_FPU");
  const sregs = new Uint8Array(kvm.SREGS_BYTES);
  ioctlStruct(vcpuFd, kvm.KVM_GET_SREGS, sregs, "KVM_GET_SREGS");
  writeSregs(sregs, registers);
  ioctlStruct(vcpuFd, kvm.KVM_SET_SREGS, sregs, "KVM_SET_SREGS");
}

/** Connects the PIC and the NMI line to the local APIC, as the MP and ACPI tables say. Throws {@link SystemError}. */
export function setLocalInterrupts(vcpuFd: number): void {
  const lapic = new Uint8Array(kvm.LAPIC_BYTES);
  ioctlStruct(vcpuFd, kvm.KVM_GET_LAPIC, lapic, "KVM_GET_LAPIC");
  const view = viewOf(lapic);
  for (const [register, mode] of [
    [APIC_LVT_LINT0, APIC_MODE_EXTINT],
    [APIC_LVT_LINT1, APIC_MODE_NMI],
  ] as const) {
    view.setUint32(register, (view.getUint32(register, true) & ~APIC_DELIVERY_MODE) | mode, true);
  }
  ioctlStruct(vcpuFd, kvm.KVM_SET_LAPIC, lapic, "KVM_SET_LAPIC");
}

const hex = (value: bigint) => value.toString(16);

/** A vCPU's registers as one line for a message, and where it stands. Throws {@link SystemError}. */
export function readState(vcpuFd: number): { text: string; rip: bigint; csBase: bigint } {
  const regs = new Uint8Array(kvm.REGS_BYTES);
  ioctlStruct(vcpuFd, kvm.KVM_GET_REGS, regs, "KVM_GET_REGS");
  const sregs = new Uint8Array(kvm.SREGS_BYTES);
  ioctlStruct(vcpuFd, kvm.KVM_GET_SREGS, sregs, "KVM_GET_SREGS");
  const general = viewOf(regs);
  const system = viewOf(sregs);
  const words = [
    ...Object.entries(kvm.REGS).map(([name, at]) => `${name}=${hex(general.getBigUint64(at, true))}`),
    ...Object.entries(kvm.SREGS).map(([name, at]) => `${name}=${hex(system.getBigUint64(at, true))}`),
    ...Object.entries(kvm.SREGS_SEGMENT).map(
      ([name, at]) => `${name}=${system.getUint16(at + kvm.SEGMENT_SELECTOR, true).toString(16)}`,
    ),
  ];
  return {
    text: words.join(" "),
    rip: general.getBigUint64(kvm.REGS.rip, true),
    csBase: system.getBigUint64(kvm.SREGS_SEGMENT.cs + kvm.SEGMENT_BASE, true),
  };
}
