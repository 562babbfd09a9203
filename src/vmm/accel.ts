/** Which CPU backend runs the guest. The one place that decides, and that says why. */

import { ConfigError } from "./config-error.ts";

export const ACCELERATORS = ["auto", "kvm", "soft"] as const;
export type Accelerator = (typeof ACCELERATORS)[number];

/** What the software CPU can be so far. Memory: it shares a 4 GiB WebAssembly memory with the CPU's own state. */
export const SOFT_LIMITS = { vcpus: 1, memMib: 3072 } as const;

export interface AccelChoice {
  readonly backend: "soft";
  /** For the log. */
  readonly reason: string;
}

/** Chooses the backend. Throws {@link ConfigError} for one that is not there. */
export function chooseAccelerator(wanted: Accelerator): AccelChoice {
  switch (wanted) {
    case "kvm":
      throw new ConfigError(
        "There is no KVM backend yet. Leave --accel out, or give --accel soft, to run on the software CPU.",
      );
    case "soft":
      return { backend: "soft", reason: "asked for" };
    case "auto":
      return { backend: "soft", reason: "there is no KVM backend yet" };
  }
}

/** Throws {@link ConfigError} if the software CPU cannot have so many vCPUs or so much memory (MiB). */
export function checkLimits(vcpus: number, memMib: number): void {
  if (vcpus > SOFT_LIMITS.vcpus) {
    throw new ConfigError(
      `${vcpus} vCPUs asked for: the software CPU runs ${SOFT_LIMITS.vcpus} so far. Set the number of vCPUs to ${SOFT_LIMITS.vcpus}.`,
    );
  }
  if (memMib > SOFT_LIMITS.memMib) {
    throw new ConfigError(
      `${memMib} MiB of memory asked for: the software CPU takes up to ${SOFT_LIMITS.memMib} MiB so far.`,
    );
  }
}
