/** KVM as a backend of the machine. */

import type { CpuidFilter } from "../hypervisor/kvm/cpuid.ts";
import { KvmMachine } from "../hypervisor/kvm/machine.ts";
import { KvmUnavailable } from "../hypervisor/kvm/system.ts";
import { SystemError } from "../platform/errno.ts";
import type { Backend, BackendMemory } from "./backend.ts";
import { ConfigError } from "./config-error.ts";

/** `cpuidFilter`: the last word on each vCPU's CPUID. */
export function createKvmBackend(cpuidFilter?: CpuidFilter): Backend {
  return {
    leavesGuest: true,
    createMemory,
    irqLine: (memory, gsi) => new KvmMachine(memory).irqLine(gsi),
    // KVM watches guest memory by itself.
    writeHook: () => undefined,
    requestStop: (memory) => new KvmMachine(memory).requestStop(),
    requestPause: (memory) => new KvmMachine(memory).requestPause(),
    requestResume: (memory) => new KvmMachine(memory).requestResume(),
    async load() {
      await import("../hypervisor/kvm/vcpu.ts");
    },
    async createVcpu({ memory, index, smt, pio, mmio, onPaused }) {
      const { KvmVcpu } = await import("../hypervisor/kvm/vcpu.ts");
      return new KvmVcpu({ memory, index, smt, pio, mmio, onPaused, cpuidFilter });
    },
    ioEvent: (memory, gpa, value) => new KvmMachine(memory).ioEvent(gpa, value),
    release: (memory) => new KvmMachine(memory).close(),
  };
}

function createMemory(ramBytes: number, vcpus: number): BackendMemory {
  try {
    return KvmMachine.create(ramBytes, vcpus);
  } catch (error) {
    if (error instanceof KvmUnavailable) throw new ConfigError(error.message, { cause: error });
    if (!(error instanceof SystemError)) throw error;
    throw new ConfigError(
      `KVM cannot make the microVM: ${error.call}: ${error.message}. Give --accel soft to do without it.`,
      { cause: error },
    );
  }
}

export const backend = createKvmBackend();
