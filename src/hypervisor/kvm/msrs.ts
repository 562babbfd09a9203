/** Model-specific registers at boot (SDM vol. 4), the values that Firecracker gives them. */

import { SystemError } from "../../platform/errno.ts";
import { ioctlStruct } from "../../platform/ioctl.ts";
import { KVM_SET_MSRS, MSR_ENTRY_BYTES, MSRS_HEADER } from "./api.ts";

const MISC_ENABLE_FAST_STRING = 1n << 0n;
/** IA32_MTRR_DEF_TYPE: MTRRs enabled, memory type write-back where none says otherwise. */
const MTRR_ENABLE_WRITE_BACK = 0x806n;

interface BootMsr {
  readonly name: string;
  readonly index: number;
  readonly data: bigint;
}

const BOOT_MSRS: readonly BootMsr[] = [
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

/**
 * Sets them on a vCPU that has its CPUID: from Linux 6.13 on KVM knows by it which there are. Throws an Error that
 * names the first one KVM refuses.
 */
export function setBootMsrs(vcpuFd: number): void {
  const struct = new Uint8Array(MSRS_HEADER + BOOT_MSRS.length * MSR_ENTRY_BYTES);
  const view = new DataView(struct.buffer);
  view.setUint32(0, BOOT_MSRS.length, true);
  for (const [i, { index, data }] of BOOT_MSRS.entries()) {
    view.setUint32(MSRS_HEADER + i * MSR_ENTRY_BYTES, index, true);
    view.setBigUint64(MSRS_HEADER + i * MSR_ENTRY_BYTES + 8, data, true);
  }
  let set: number;
  try {
    set = ioctlStruct(vcpuFd, KVM_SET_MSRS, struct, "KVM_SET_MSRS");
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
