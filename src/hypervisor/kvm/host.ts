/** What can be said of the host's KVM without using it, and the sentences for all that can be wrong with it. */

import { cpuFlags, hasVirtualization } from "../../platform/cpu-flags.ts";
import { SystemError } from "../../platform/errno.ts";
import { checkAccess } from "../../platform/files.ts";

export const KVM_PATH = "/dev/kvm";

/** KVM is there, but guests do not run on the processor itself (KVM-PVM and the like). */
export const NO_HARDWARE =
  "The host's KVM has no VMX or SVM under it and cannot run unmodified kernels: " +
  "use a host with hardware or nested virtualization.";

/** Why /dev/kvm cannot be opened, or undefined. Does not open it. */
export function accessProblem(): string | undefined {
  try {
    checkAccess(KVM_PATH);
    return undefined;
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
    return openProblem(error.code, error.message);
  }
}

/** True if KVM runs guests on the processor itself. */
export function hasHardware(): boolean {
  return hasVirtualization(cpuFlags());
}

/** A sentence for the errno `code` of an open of /dev/kvm. */
export function openProblem(code: string, message: string): string {
  switch (code) {
    case "ENOENT":
    case "ENXIO":
    case "ENODEV":
      return (
        `There is no ${KVM_PATH}: load the kvm_intel or kvm_amd module, and on a virtual machine have nested ` +
        "virtualization turned on."
      );
    case "EACCES":
    case "EPERM":
      return `No permission to open ${KVM_PATH}: add the user to the group that owns it (often kvm).`;
    default:
      return `${KVM_PATH} cannot be opened: ${message}.`;
  }
}

/** A sentence for a /dev/kvm that does not answer KVM's requests. */
export function notKvm(message: string): string {
  return `${KVM_PATH} is not KVM's device, or does not let itself be asked: ${message}. Make it anew, or reload the module.`;
}

/** A sentence for another version of the KVM API than `wanted`, or undefined. */
export function versionProblem(version: number, wanted: number): string | undefined {
  if (version === wanted) return undefined;
  return `${KVM_PATH} speaks version ${version} of the KVM API, and ${wanted} is needed: update the host's kernel.`;
}

/** A sentence for capabilities that are not there, or undefined. */
export function capabilityProblem(missing: readonly string[]): string | undefined {
  if (missing.length === 0) return undefined;
  return `The host's KVM lacks ${missing.join(", ")}: update the host's kernel (5.10 or newer).`;
}
