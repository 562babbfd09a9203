/** KVM as a backend of the machine. */

import type { CpuidFilter } from "../hypervisor/kvm/cpuid.ts";
import { KvmMachine } from "../hypervisor/kvm/machine.ts";
import type { Backend } from "./backend.ts";

/** `cpuidFilter`: the last word on each vCPU's CPUID. */
export function createKvmBackend(cpuidFilter?: CpuidFilter): Backend {
  return {
    createMemory: (ramBytes, vcpus) => KvmMachine.create(ramBytes, vcpus),
    irqLine: (memory, gsi) => new KvmMachine(memory).irqLine(gsi),
    // KVM watches guest memory by itself.
    writeHook: () => undefined,
    requestStop: (memory) => new KvmMachine(memory).requestStop(),
    requestPause: (memory) => new KvmMachine(memory).requestPause(),
    requestResume: (memory) => new KvmMachine(memory).requestResume(),
    async createVcpu({ memory, ramBytes, index, pio, mmio, onPaused }) {
      const { KvmVcpu } = await import("../hypervisor/kvm/vcpu.ts");
      return new KvmVcpu({ memory, ramBytes, index, pio, mmio, onPaused, cpuidFilter });
    },
    ioEvent: (memory, gpa, value) => new KvmMachine(memory).ioEvent(gpa, value),
    release: (memory) => new KvmMachine(memory).close(),
  };
}

export const backend = createKvmBackend();
