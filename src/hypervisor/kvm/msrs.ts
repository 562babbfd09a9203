/** Model-specific registers (SDM vol. 4): reading and writing them, and their values at boot, which are Firecracker's. */

import { SystemError } from "../../platform/errno.ts";
import { ioctlStruct } from "../../platform/ioctl.ts";
import { KVM_GET_MSRS, KVM_SET_MSRS, MSR_ENTRY_BYTES, MSRS_HEADER } from "./api.ts";

/** Registers that KVM takes in one call (MAX_IO_MSRS is 256). */
const MAX_MSRS = 256;

const MISC_ENABLE_FAST_STRING = 1n << 0n;
/** IA32_MTRR_DEF_TYPE: MTRRs enabled, memory type write-back where none says otherwise. */
const MTRR_ENABLE_WRITE_BACK = 0x806n;

/** One register and its value. */
export interface MsrEntry {
  readonly index: number;
  readonly data: bigint;
}

const BOOT_MSRS: readonly (MsrEntry & { readonly name: string })[] = [
  { name: "IA32_SYSENTER_CS", index: 0x174, data: 0n },
  { name: "IA32_SYSENTER_ESP", index: 0x175, data: 0n },
  { name: "IA32_SYSENTER_EIP", index: 0x176, data: 0n },
  { name: "IA32_STAR", index: 0xc000_0081, data: 0n },
  { name: "IA32_CSTAR", index: 0xc000_0083, data: 0n },
  { name: "IA32_KERNEL_GS_BASE", index: 0xc000_0102, data: 0n },
  { name: "IA32_FMASK", index: 0xc000_0084, data: 0n },
  { name: "IA32_LSTAR", index: 0xc000_0082, data: 0n },
  { name: "IA32_TIME_STAMP_COUNTER", index: 0x10, data: 0n },
  { name: "IA32_MISC_ENABLE", index: 0x1a0, data: MISC_ENABLE_FAST_STRING },
  { name: "IA32_MTRR_DEF_TYPE", index: 0x2ff, data: MTRR_ENABLE_WRITE_BACK },
];

/** struct kvm_msrs. */
function encodeMsrs(entries: readonly MsrEntry[]): Uint8Array {
  const struct = new Uint8Array(MSRS_HEADER + entries.length * MSR_ENTRY_BYTES);
  const view = new DataView(struct.buffer);
  view.setUint32(0, entries.length, true);
  for (const [i, { index, data }] of entries.entries()) {
    view.setUint32(MSRS_HEADER + i * MSR_ENTRY_BYTES, index, true);
    view.setBigUint64(MSRS_HEADER + i * MSR_ENTRY_BYTES + 8, data, true);
  }
  return struct;
}

/** Sets registers in this order. Returns how many were set: the one after them KVM refuses. Throws {@link SystemError}. */
function trySetMsrs(vcpuFd: number, entries: readonly MsrEntry[]): number {
  for (let done = 0; done < entries.length; ) {
    const part = entries.slice(done, done + MAX_MSRS);
    const set = ioctlStruct(vcpuFd, KVM_SET_MSRS, encodeMsrs(part), "KVM_SET_MSRS");
    done += set;
    if (set < part.length) return done;
  }
  return entries.length;
}

/** Sets registers in this order. Throws {@link SystemError}, or an Error that names the first one KVM refuses. */
export function setMsrs(vcpuFd: number, entries: readonly MsrEntry[]): void {
  const refused = entries[trySetMsrs(vcpuFd, entries)];
  if (refused === undefined) return;
  throw new Error(
    `KVM does not take 0x${refused.data.toString(16)} for MSR 0x${refused.index.toString(16)}: it was saved on another ` +
      "kind of host",
  );
}

/** Those of the registers `indices` that the vCPU has. Throws {@link SystemError}. */
export function getMsrs(vcpuFd: number, indices: readonly number[]): MsrEntry[] {
  const found: MsrEntry[] = [];
  for (let done = 0; done < indices.length; ) {
    const part = indices.slice(done, done + MAX_MSRS);
    const struct = encodeMsrs(part.map((index) => ({ index, data: 0n })));
    const count = ioctlStruct(vcpuFd, KVM_GET_MSRS, struct, "KVM_GET_MSRS");
    const view = new DataView(struct.buffer);
    for (let i = 0; i < count; i++) {
      found.push({
        index: part[i]!,
        data: view.getBigUint64(MSRS_HEADER + i * MSR_ENTRY_BYTES + 8, true),
      });
    }
    // KVM stops at one that the guest's CPUID does not show.
    done += count < part.length ? count + 1 : count;
  }
  return found;
}

/**
 * Sets the values at boot on a vCPU that has its CPUID: from Linux 6.13 on KVM knows by it which there are. Throws an
 * Error that names the first one KVM refuses.
 */
export function setBootMsrs(vcpuFd: number): void {
  let set: number;
  try {
    set = trySetMsrs(vcpuFd, BOOT_MSRS);
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
    throw new Error(`KVM does not take the boot values of any MSR: ${error.message}`, { cause: error });
  }
  const refused = BOOT_MSRS[set];
  if (refused !== undefined) {
    throw new Error(
      `KVM does not take the boot value of MSR ${refused.name} (0x${refused.index.toString(16)})`,
    );
  }
}
