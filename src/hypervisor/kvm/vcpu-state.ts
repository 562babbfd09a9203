/**
 * All that KVM keeps of a vCPU, to read and to set (Documentation/virt/kvm/api.rst). Structures stay KVM's own bytes: a
 * snapshot has no other use for them than to give them back.
 */

import { ioctlStruct, ioctlValue, tryIoctlValue } from "../../platform/ioctl.ts";
import * as kvm from "./api.ts";
import { type CpuidEntry, cpuidBuffer, decodeCpuid, encodeCpuid } from "./cpuid.ts";
import { getMsrs, type MsrEntry, setMsrs } from "./msrs.ts";
import { getStruct, setStruct } from "./structs.ts";
import type { KvmSystem } from "./system.ts";

export interface KvmVcpuState {
  /** KVM_MP_STATE. */
  readonly mpState: number;
  /** struct kvm_regs, kvm_sregs, kvm_xcrs, kvm_debugregs, kvm_lapic_state and kvm_vcpu_events. */
  readonly regs: Uint8Array;
  readonly sregs: Uint8Array;
  readonly xcrs: Uint8Array;
  readonly debugregs: Uint8Array;
  readonly lapic: Uint8Array;
  readonly vcpuEvents: Uint8Array;
  /** struct kvm_xsave: the XSAVE area, with the x87 and SSE registers in its first 512 bytes. */
  readonly xsave: Uint8Array;
  readonly cpuid: readonly CpuidEntry[];
  readonly msrs: readonly MsrEntry[];
  /** Frequency of the guest's TSC in kHz; undefined if KVM does not tell. */
  readonly tscKhz: number | undefined;
}

/** What {@link getVcpuState} has to know of the host: the same for all vCPUs of a machine. */
export interface StateFormat {
  /** Size of struct kvm_xsave, in bytes. */
  readonly xsaveBytes: number;
  /** Registers to read, as far as the vCPU has them. */
  readonly msrs: readonly number[];
}

const IA32_TIME_STAMP_COUNTER = 0x10;
const IA32_TSC_DEADLINE = 0x6e0;

/** MTRRs and PAT (SDM vol. 3A, 12.11 and 12.12), which older kernels keep without naming them in their list. */
const MEMORY_TYPE_MSRS: readonly number[] = [
  ...Array.from({ length: 16 }, (_, i) => 0x200 + i),
  0x250,
  0x258,
  0x259,
  ...Array.from({ length: 8 }, (_, i) => 0x268 + i),
  0x277,
  0x2ff,
];

/**
 * What a guest may have changed, first and last of each range: those of KVM's list that Firecracker saves and that can
 * be set. Not the performance counters and VMX, which no guest here is shown, nor Hyper-V's.
 */
const SAVED_MSRS: readonly (readonly [number, number])[] = [
  [IA32_TIME_STAMP_COUNTER, IA32_TIME_STAMP_COUNTER],
  [0x3a, 0x3b], // IA32_FEATURE_CONTROL, IA32_TSC_ADJUST
  [0x48, 0x48], // IA32_SPEC_CTRL
  [0x8b, 0x8b], // IA32_BIOS_SIGN_ID
  [0x9e, 0x9e], // IA32_SMBASE
  [0xce, 0xce], // MSR_PLATFORM_INFO
  [0xe1, 0xe1], // IA32_UMWAIT_CONTROL
  [0x122, 0x122], // IA32_TSX_CTRL
  [0x140, 0x140], // MSR_MISC_FEATURE_ENABLES
  [0x174, 0x176], // IA32_SYSENTER_CS, _ESP, _EIP
  [0x17a, 0x17a], // IA32_MCG_STATUS
  [0x1a0, 0x1a0], // IA32_MISC_ENABLE
  [0x1c4, 0x1c5], // IA32_XFD, IA32_XFD_ERR
  [0x1d9, 0x1d9], // IA32_DEBUGCTL
  [0x200, 0x2ff], // MTRRs, IA32_PAT
  [0x400, 0x47f], // machine check banks
  [IA32_TSC_DEADLINE, IA32_TSC_DEADLINE],
  [0xd90, 0xd90], // IA32_BNDCFGS
  [0xda0, 0xda0], // IA32_XSS
  [0x4b56_4d00, 0x4b56_4dff], // KVM's own: clocks, steal time, asynchronous page faults, EOI
  [0xc000_0081, 0xc000_0084], // IA32_STAR, IA32_LSTAR, IA32_CSTAR, IA32_FMASK
  [0xc000_0102, 0xc000_0103], // IA32_KERNEL_GS_BASE, IA32_TSC_AUX
  [0xc001_0015, 0xc001_0015], // HWCR
  [0xc001_011f, 0xc001_011f], // VIRT_SPEC_CTRL
];

/** `vmFd`: any machine of `system`. Throws {@link SystemError}, as all here. */
export function stateFormat(system: KvmSystem, vmFd: number): StateFormat {
  const xsaveBytes = ioctlValue(vmFd, kvm.KVM_CHECK_EXTENSION, kvm.KVM_CAP_XSAVE2, "KVM_CHECK_EXTENSION");
  const saved = (index: number) => SAVED_MSRS.some(([first, last]) => first <= index && index <= last);
  const msrs = new Set([...system.msrIndexList().filter(saved), ...MEMORY_TYPE_MSRS]);
  return { xsaveBytes: Math.max(xsaveBytes, kvm.XSAVE_BYTES), msrs: [...msrs] };
}

/** A KVM_MP_STATE. KVM lets the local APIC take an INIT or startup IPI that waits, so it comes before all else. */
export function getMpState(vcpuFd: number): number {
  const state = getStruct(vcpuFd, kvm.KVM_GET_MP_STATE, kvm.MP_STATE_BYTES, "KVM_GET_MP_STATE");
  return new DataView(state.buffer).getUint32(0, true);
}

export function setMpState(vcpuFd: number, mpState: number): void {
  const state = new Uint8Array(kvm.MP_STATE_BYTES);
  new DataView(state.buffer).setUint32(0, mpState, true);
  setStruct(vcpuFd, kvm.KVM_SET_MP_STATE, state, kvm.MP_STATE_BYTES, "KVM_SET_MP_STATE");
}

export function getXsave(vcpuFd: number, { xsaveBytes }: StateFormat): Uint8Array {
  return xsaveBytes > kvm.XSAVE_BYTES
    ? getStruct(vcpuFd, kvm.KVM_GET_XSAVE2, xsaveBytes, "KVM_GET_XSAVE2")
    : getStruct(vcpuFd, kvm.KVM_GET_XSAVE, xsaveBytes, "KVM_GET_XSAVE");
}

/**
 * KVM reads as many bytes as this host's area has; one that was saved where it is smaller ends with zeros. Throws
 * {@link RangeError} for a larger one.
 */
export function setXsave(vcpuFd: number, xsave: Uint8Array, { xsaveBytes }: StateFormat): void {
  if (xsave.length > xsaveBytes) {
    throw new RangeError(
      `the XSAVE area has ${xsave.length} bytes, and ${xsaveBytes} on this host: it was saved on another kind of host`,
    );
  }
  const area = new Uint8Array(xsaveBytes);
  area.set(xsave);
  setStruct(vcpuFd, kvm.KVM_SET_XSAVE, area, xsaveBytes, "KVM_SET_XSAVE");
}

/** The CPUID that the vCPU was given. */
export function getCpuid2(vcpuFd: number): CpuidEntry[] {
  const struct = cpuidBuffer(MAX_CPUID_ENTRIES);
  ioctlStruct(vcpuFd, kvm.KVM_GET_CPUID2, struct, "KVM_GET_CPUID2");
  // Some kernels leave the count as it was, and what follows on the entries empty. Leaf 0 is never so.
  return decodeCpuid(struct).filter(
    ({ function: leaf, flags, eax }) => leaf !== 0 || flags !== 0 || eax !== 0,
  );
}

/** Entries that KVM takes (KVM_MAX_CPUID_ENTRIES). */
const MAX_CPUID_ENTRIES = 256;

/** A vCPU that has run goes on with the CPUID it has: KVM takes no other then. */
export function setCpuid2(vcpuFd: number, cpuid: readonly CpuidEntry[]): void {
  ioctlStruct(vcpuFd, kvm.KVM_SET_CPUID2, encodeCpuid(cpuid), "KVM_SET_CPUID2");
}

/** In kHz; undefined if KVM does not tell. */
export function getTscKhz(vcpuFd: number): number | undefined {
  const khz = tryIoctlValue(vcpuFd, kvm.KVM_GET_TSC_KHZ, 0);
  return khz > 0 ? khz : undefined;
}

/** Needs KVM_CAP_TSC_CONTROL for a frequency that is not the host's. */
export function setTscKhz(vcpuFd: number, khz: number): void {
  ioctlValue(vcpuFd, kvm.KVM_SET_TSC_KHZ, khz, "KVM_SET_TSC_KHZ");
}

/** The structures of one size: their name in {@link KvmVcpuState}, and how KVM reads and sets them. */
const STRUCTS = {
  regs: [kvm.KVM_GET_REGS, kvm.KVM_SET_REGS, kvm.REGS_BYTES, "REGS"],
  sregs: [kvm.KVM_GET_SREGS, kvm.KVM_SET_SREGS, kvm.SREGS_BYTES, "SREGS"],
  xcrs: [kvm.KVM_GET_XCRS, kvm.KVM_SET_XCRS, kvm.XCRS_BYTES, "XCRS"],
  debugregs: [kvm.KVM_GET_DEBUGREGS, kvm.KVM_SET_DEBUGREGS, kvm.DEBUGREGS_BYTES, "DEBUGREGS"],
  lapic: [kvm.KVM_GET_LAPIC, kvm.KVM_SET_LAPIC, kvm.LAPIC_BYTES, "LAPIC"],
  vcpuEvents: [kvm.KVM_GET_VCPU_EVENTS, kvm.KVM_SET_VCPU_EVENTS, kvm.VCPU_EVENTS_BYTES, "VCPU_EVENTS"],
} as const;
export type KvmVcpuStruct = keyof typeof STRUCTS;

/** One of the structures of a fixed size. */
export function getVcpuStruct(vcpuFd: number, which: KvmVcpuStruct): Uint8Array {
  const [get, , length, name] = STRUCTS[which];
  return getStruct(vcpuFd, get, length, `KVM_GET_${name}`);
}

/** Throws {@link RangeError} for a structure of another size. */
export function setVcpuStruct(vcpuFd: number, which: KvmVcpuStruct, struct: Uint8Array): void {
  const [, set, length, name] = STRUCTS[which];
  setStruct(vcpuFd, set, struct, length, `KVM_SET_${name}`);
}

/**
 * All of it. No vCPU of the machine may be in the guest, and each must have come back from it by a signal, since KVM
 * ends an access to a port or a register only when it is entered again.
 */
export function getVcpuState(vcpuFd: number, format: StateFormat): KvmVcpuState {
  // The order matters: MP_STATE and LAPIC may change what others read, and VCPU_EVENTS shows what comes of all that.
  const mpState = getMpState(vcpuFd);
  const regs = getVcpuStruct(vcpuFd, "regs");
  const sregs = getVcpuStruct(vcpuFd, "sregs");
  const xsave = getXsave(vcpuFd, format);
  const xcrs = getVcpuStruct(vcpuFd, "xcrs");
  const debugregs = getVcpuStruct(vcpuFd, "debugregs");
  const lapic = getVcpuStruct(vcpuFd, "lapic");
  const tscKhz = getTscKhz(vcpuFd);
  const cpuid = getCpuid2(vcpuFd);
  const msrs = orderMsrs(getMsrs(vcpuFd, format.msrs));
  const vcpuEvents = getVcpuStruct(vcpuFd, "vcpuEvents");
  return { mpState, regs, sregs, xsave, xcrs, debugregs, lapic, tscKhz, cpuid, msrs, vcpuEvents };
}

/**
 * The deadline of the local APIC's timer goes last: KVM compares it with the TSC when it is set. One that has passed
 * reads as 0, and its interrupt may not have been delivered: the guest gets it again, as Firecracker does it.
 */
function orderMsrs(msrs: readonly MsrEntry[]): MsrEntry[] {
  const tsc = msrs.find(({ index }) => index === IA32_TIME_STAMP_COUNTER)?.data ?? 0n;
  const deadlines = msrs.filter(({ index }) => index === IA32_TSC_DEADLINE);
  return [
    ...msrs.filter(({ index }) => index !== IA32_TSC_DEADLINE),
    ...deadlines.map(({ index, data }) => ({ index, data: data === 0n ? tsc : data })),
  ];
}

/**
 * Puts all of it into a vCPU that has not run. Throws {@link SystemError}, {@link RangeError} or an Error if the host's
 * KVM does not take it. The TSC keeps its frequency: see {@link setTscKhz}, which comes before.
 */
export function setVcpuState(vcpuFd: number, state: KvmVcpuState, format: StateFormat): void {
  // SREGS has the local APIC's base, REGS clears a pending exception, and the deadline needs the local APIC's mode.
  setCpuid2(vcpuFd, state.cpuid);
  setMpState(vcpuFd, state.mpState);
  setVcpuStruct(vcpuFd, "regs", state.regs);
  setVcpuStruct(vcpuFd, "sregs", state.sregs);
  setXsave(vcpuFd, state.xsave, format);
  setVcpuStruct(vcpuFd, "xcrs", state.xcrs);
  setVcpuStruct(vcpuFd, "debugregs", state.debugregs);
  setVcpuStruct(vcpuFd, "lapic", state.lapic);
  setMsrs(vcpuFd, state.msrs);
  setVcpuStruct(vcpuFd, "vcpuEvents", state.vcpuEvents);
  // Keeps the guest's watchdog from taking the pause for a lock-up; a guest without KVM's clock makes this fail.
  tryIoctlValue(vcpuFd, kvm.KVM_KVMCLOCK_CTRL, 0);
}
