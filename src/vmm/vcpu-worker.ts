/** Worker of one vCPU: builds the CPU and its buses, then runs the guest until it ends. */

import type { VcpuEnd } from "../hypervisor/types.ts";
import { Logger } from "../observe/logger.ts";
import { EventFd } from "../platform/eventfd.ts";
import { type Backend, loadBackend, type Vcpu } from "./backend.ts";
import { Doorbell } from "./doorbell.ts";
import type { MachinePlan } from "./machine.ts";
import { describeFailure, type VcpuCommand, type VcpuEvent } from "./messages.ts";
import { createVcpuBus } from "./vcpu-bus.ts";

declare const self: Worker;

/** Known once there is a machine. */
let doorbell: Doorbell | undefined;

function post(event: VcpuEvent): void {
  self.postMessage(event);
  doorbell?.ringForMessage();
}

/** The guest's reset, seen by a device while the CPU is in the middle of a port write. */
let resetRequested = false;

async function createVcpu(plan: MachinePlan, index: number): Promise<Vcpu> {
  const backend: Backend = await loadBackend(plan.backend);
  const log = new Logger(plan.log, `fc_vcpu ${index}`);
  const { pio, mmio } = createVcpuBus({
    plan,
    index,
    irqLine: (gsi) => backend.irqLine(plan.memory, gsi),
    onReset: () => {
      resetRequested = true;
      backend.requestStop(plan.memory);
    },
    onBoot: () => log.info(bootTime(plan)),
  });
  return backend.createVcpu({
    index,
    smt: plan.smt,
    memory: plan.memory,
    ramBytes: plan.ram.size,
    pio,
    mmio,
    log: (message) => log.warn(message),
    onPaused: () => post({ kind: "paused" }),
  });
}

/** Firecracker's line: wall time since the machine was built, and CPU time that the process used for it. */
function bootTime(plan: MachinePlan): string {
  const wall = Math.round((performance.timeOrigin + performance.now() - plan.startedAt) * 1000);
  const { user, system } = process.cpuUsage();
  const cpu = user + system - plan.startedCpu;
  const ms = (us: number) => Math.floor(us / 1000);
  const column = (us: number) => String(us).padStart(6);
  return `Guest-boot-time = ${column(wall)} us ${ms(wall)} ms, ${column(cpu)} CPU us ${ms(cpu)} CPU ms`;
}

let vcpu: Vcpu | undefined;

/** The commands before: while one loads code, the next may come. */
let earlier: Promise<void> = Promise.resolve();

self.onmessage = ({ data }: MessageEvent<VcpuCommand>) => {
  earlier = earlier.then(() => obey(data));
};

async function obey(data: VcpuCommand): Promise<void> {
  try {
    if (data.kind === "load") {
      await (await loadBackend(data.backend)).load?.();
      return;
    }
    if (data.kind === "start") {
      const { shared, doorbell: offset, wakeFd } = data.plan;
      doorbell = new Doorbell(shared, offset, new EventFd(wakeFd));
      vcpu = await createVcpu(data.plan, data.index);
      post({ kind: "ready" });
      return;
    }
    if (vcpu === undefined) throw new Error("a vCPU was told to run before it was built");
    if (data.registers !== undefined) vcpu.setBootRegisters(data.registers);
    const end = vcpu.run();
    const reason: VcpuEnd = end.kind === "stopped" && resetRequested ? { kind: "reset" } : end;
    post({ kind: "end", end: reason, stats: vcpu.stats() });
  } catch (error) {
    post({ kind: "failed", message: describeFailure(error) });
  }
}
