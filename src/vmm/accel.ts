/** Which CPU backend runs the guest. The one place that decides, and that says why. */

import { ConfigError } from "./config-error.ts";

export const ACCELERATORS = ["auto", "kvm", "soft"] as const;
export type Accelerator = (typeof ACCELERATORS)[number];

/**
 * What a backend can be so far. The software CPU has all of RAM in its WebAssembly memory; on KVM the host sets the limit,
 * when the memory is made.
 */
const LIMITS = {
  kvm: { name: "KVM", vcpus: 32, memMib: Number.POSITIVE_INFINITY },
  soft: { name: "the software CPU", vcpus: 1, memMib: 3072 },
} as const;

export interface AccelChoice {
  readonly backend: "kvm" | "soft";
  /** A sentence for the log. */
  readonly reason: string;
  /** What the user should know before the guest runs. */
  readonly warning?: string;
}

/**
 * KVM-PVM runs a kernel that was not built for it in its instruction emulator, until it comes to one that this does not
 * have. Debian's kernel gets 35 s far, without a word on its console.
 */
const FORCED =
  "It emulates them, without a sign of life for half a minute and more, until it comes to an instruction that it does " +
  "not know. Give --accel soft, or a kernel that was built for this host.";

/** What stands between a guest and the host's KVM. */
export interface KvmProblem {
  /** A sentence that says what to do. */
  readonly text: string;
  /** KVM is there and runs guests made for it, just not unmodified kernels. */
  readonly usable: boolean;
}

/** Why KVM cannot run an unmodified guest here, or undefined if it can. Loads KVM's code only as far as needed. */
export async function kvmProblem(): Promise<KvmProblem | undefined> {
  const { accessProblem, hasHardware, NO_HARDWARE } = await import("../hypervisor/kvm/host.ts");
  const access = accessProblem();
  if (access !== undefined) return { text: access, usable: false };
  if (!hasHardware()) return { text: NO_HARDWARE, usable: true };
  const text = await systemProblem();
  return text === undefined ? undefined : { text, usable: false };
}

/** Opens /dev/kvm to ask for version and capabilities. */
async function systemProblem(): Promise<string | undefined> {
  const { KvmSystem, KvmUnavailable } = await import("../hypervisor/kvm/system.ts");
  try {
    // For the machine, if it comes to that.
    KvmSystem.openAhead();
    return undefined;
  } catch (error) {
    if (error instanceof KvmUnavailable) return error.message;
    throw error;
  }
}

/** Chooses the backend. Throws {@link ConfigError} for KVM that is asked for and cannot be used. */
export async function chooseAccelerator(wanted: Accelerator): Promise<AccelChoice> {
  if (wanted === "soft") return { backend: "soft", reason: "It was asked for." };
  const problem = await kvmProblem();
  return choose(wanted, problem, wanted === "kvm" && problem?.usable ? await systemProblem() : undefined);
}

/** The decision alone. `broken`: what is wrong with KVM even for a guest made for it. */
export function choose(
  wanted: "auto" | "kvm",
  problem: KvmProblem | undefined,
  broken: string | undefined,
): AccelChoice {
  if (problem === undefined) {
    return { backend: "kvm", reason: wanted === "kvm" ? "It was asked for." : "The host's KVM can run it." };
  }
  if (wanted === "auto") return { backend: "soft", reason: problem.text };
  const refusal = problem.usable ? broken : problem.text;
  if (refusal !== undefined) {
    throw new ConfigError(`${refusal} Leave --accel out, or give --accel soft, to run on the software CPU.`);
  }
  return { backend: "kvm", reason: "It was asked for.", warning: `${problem.text} ${FORCED}` };
}

/** The log line for a choice. */
export function describeChoice({ backend, reason }: AccelChoice): string {
  return `The guest runs on ${LIMITS[backend].name}: ${reason}`;
}

/** Throws {@link ConfigError} if `backend` cannot have so many vCPUs or so much memory (MiB). */
export function checkLimits(backend: string, vcpus: number, memMib: number): void {
  const limits = backend === "kvm" ? LIMITS.kvm : LIMITS.soft;
  if (vcpus > limits.vcpus) {
    throw new ConfigError(
      `${vcpus} vCPUs asked for: ${limits.name} runs ${limits.vcpus} so far. Set the number of vCPUs to ${limits.vcpus}.` +
        otherBackend(backend),
    );
  }
  if (memMib > limits.memMib) {
    throw new ConfigError(
      `${memMib} MiB of memory asked for: ${limits.name} takes up to ${limits.memMib} MiB so far.${otherBackend(backend)}`,
    );
  }
}

function otherBackend(backend: string): string {
  return backend === "kvm" ? "" : " KVM can do more; `sparkler doctor` says whether this host has it.";
}
