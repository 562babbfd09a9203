/** /dev/kvm itself: whether it can run this monitor's machines, and what its processor offers. */

import { SystemError } from "../../platform/errno.ts";
import { closeFile, openFile } from "../../platform/files.ts";
import { ioctlStruct, ioctlValue } from "../../platform/ioctl.ts";
import * as kvm from "./api.ts";
import { type CpuidEntry, cpuidBuffer, decodeCpuid } from "./cpuid.ts";
import { capabilityProblem, KVM_PATH, notKvm, openProblem, versionProblem } from "./host.ts";

/** What the backend uses, as in Firecracker's check, and what the kick needs. */
const REQUIRED = {
  KVM_CAP_IRQCHIP: kvm.KVM_CAP_IRQCHIP,
  KVM_CAP_USER_MEMORY: kvm.KVM_CAP_USER_MEMORY,
  KVM_CAP_SET_TSS_ADDR: kvm.KVM_CAP_SET_TSS_ADDR,
  KVM_CAP_EXT_CPUID: kvm.KVM_CAP_EXT_CPUID,
  KVM_CAP_MP_STATE: kvm.KVM_CAP_MP_STATE,
  KVM_CAP_IRQFD: kvm.KVM_CAP_IRQFD,
  KVM_CAP_PIT2: kvm.KVM_CAP_PIT2,
  KVM_CAP_PIT_STATE2: kvm.KVM_CAP_PIT_STATE2,
  KVM_CAP_IOEVENTFD: kvm.KVM_CAP_IOEVENTFD,
  KVM_CAP_ADJUST_CLOCK: kvm.KVM_CAP_ADJUST_CLOCK,
  KVM_CAP_VCPU_EVENTS: kvm.KVM_CAP_VCPU_EVENTS,
  KVM_CAP_DEBUGREGS: kvm.KVM_CAP_DEBUGREGS,
  KVM_CAP_XSAVE: kvm.KVM_CAP_XSAVE,
  KVM_CAP_XCRS: kvm.KVM_CAP_XCRS,
  KVM_CAP_IMMEDIATE_EXIT: kvm.KVM_CAP_IMMEDIATE_EXIT,
} as const;

/** More than any processor has had so far; doubled if KVM says that it is too few. */
const CPUID_ENTRIES = 128;
const MAX_CPUID_ENTRIES = 4096;
const MSR_INDICES = 512;
const MAX_MSR_INDICES = 16_384;

/** KVM cannot be used. The message is a sentence for the user that says why and what to do. */
export class KvmUnavailable extends Error {
  constructor(message: string) {
    super(message);
    this.name = "KvmUnavailable";
  }
}

/** Made by {@link KvmSystem.openAhead}. */
let openedAhead: KvmSystem | undefined;

export class KvmSystem {
  /** `fd` is an open /dev/kvm; threads of one process share it. */
  constructor(readonly fd: number) {}

  /** Does what the next {@link open} of the calling thread would do. Throws {@link KvmUnavailable}. */
  static openAhead(): void {
    openedAhead ??= KvmSystem.openChecked();
  }

  /** Opens /dev/kvm and checks version and capabilities. Throws {@link KvmUnavailable}. */
  static open(): KvmSystem {
    const system = openedAhead ?? KvmSystem.openChecked();
    openedAhead = undefined;
    return system;
  }

  private static openChecked(): KvmSystem {
    let fd: number;
    try {
      fd = openFile(KVM_PATH, { write: true });
    } catch (error) {
      if (error instanceof SystemError) {
        throw new KvmUnavailable(openProblem(error.code, error.message));
      }
      throw error;
    }
    const system = new KvmSystem(fd);
    try {
      system.check();
    } catch (error) {
      closeFile(fd);
      if (error instanceof SystemError) throw new KvmUnavailable(notKvm(error.message));
      throw error;
    }
    return system;
  }

  private check(): void {
    const version = ioctlValue(this.fd, kvm.KVM_GET_API_VERSION, 0, "KVM_GET_API_VERSION");
    const problem =
      versionProblem(version, kvm.KVM_API_VERSION) ??
      capabilityProblem(missingCapabilities((capability) => this.extension(capability)));
    if (problem !== undefined) throw new KvmUnavailable(problem);
  }

  /** KVM_CHECK_EXTENSION: 0 if the capability is not there, else 1 or a number that depends on it. */
  extension(capability: number): number {
    return ioctlValue(this.fd, kvm.KVM_CHECK_EXTENSION, capability, "KVM_CHECK_EXTENSION");
  }

  close(): void {
    closeFile(this.fd);
  }

  /** Bytes of the kvm_run area of a vCPU. */
  get vcpuMmapSize(): number {
    return ioctlValue(this.fd, kvm.KVM_GET_VCPU_MMAP_SIZE, 0, "KVM_GET_VCPU_MMAP_SIZE");
  }

  /** The MSRs that KVM keeps for a guest; which of them a vCPU has depends on its CPUID. */
  msrIndexList(): number[] {
    for (let room = MSR_INDICES; ; room *= 2) {
      const list = new Uint32Array(1 + room);
      list[0] = room;
      try {
        const struct = new Uint8Array(list.buffer);
        ioctlStruct(this.fd, kvm.KVM_GET_MSR_INDEX_LIST, struct, "KVM_GET_MSR_INDEX_LIST");
        return [...list.subarray(1, 1 + list[0]!)];
      } catch (error) {
        const tooFew = error instanceof SystemError && error.code === "E2BIG";
        if (!tooFew || room >= MAX_MSR_INDICES) throw error;
      }
    }
  }

  /** What of the host's processor KVM can show to a guest. */
  supportedCpuid(): CpuidEntry[] {
    for (let room = CPUID_ENTRIES; ; room *= 2) {
      const struct = cpuidBuffer(room);
      try {
        ioctlStruct(this.fd, kvm.KVM_GET_SUPPORTED_CPUID, struct, "KVM_GET_SUPPORTED_CPUID");
        return decodeCpuid(struct);
      } catch (error) {
        const tooFew = error instanceof SystemError && error.code === "E2BIG";
        if (!tooFew || room >= MAX_CPUID_ENTRIES) throw error;
      }
    }
  }
}

/** Names of the capabilities that the backend needs and `extension` says are not there. */
export function missingCapabilities(extension: (capability: number) => number): string[] {
  return Object.entries(REQUIRED)
    .filter(([, capability]) => extension(capability) <= 0)
    .map(([name]) => name);
}
