/** What a vCPU's thread does for block devices by itself. Loaded only for a CPU and devices that have use for it. */

import { DiskShare } from "../devices/virtio/block/disk-share.ts";
import { VcpuReads } from "../devices/virtio/block/vcpu-reads.ts";
import { INT_VRING, registerFile, W_INTERRUPT_STATUS } from "../devices/virtio/mmio/registers.ts";
import { GuestMemory } from "../memory/guest-memory.ts";
import { readVectorNow } from "../platform/iovec.ts";
import type { Backend } from "./backend.ts";
import { Garbage } from "./garbage.ts";
import type { MachinePlan } from "./machine.ts";

/** By virtio device of `plan`; undefined for those that are no block devices. */
export function vcpuDisks(plan: MachinePlan, backend: Backend): (VcpuReads | undefined)[] {
  const memory = new GuestMemory(plan.ram);
  const hook = backend.writeHook(plan.memory);
  if (hook !== undefined) memory.setWriteHook(hook);
  const garbage = new Garbage();
  const served = (requests: number) => {
    garbage.add(requests);
    garbage.collect();
  };
  return plan.virtio.map(({ share, offset, gsi }) => {
    if (share === undefined) return undefined;
    const { words } = registerFile(plan.shared, offset);
    const irq = backend.irqLine(plan.memory, gsi);
    const interrupt = () => {
      Atomics.or(words, W_INTERRUPT_STATUS, INT_VRING);
      irq.trigger();
    };
    return new VcpuReads({
      memory,
      registers: words,
      share: new DiskShare(plan.shared, share),
      readNow: readVectorNow,
      interrupt,
      served,
    });
  });
}
