/** A vCPU and the buses to its devices, made from the machine's plan on the thread that runs it. */

import type { BootRegisters, VcpuEnd } from "../hypervisor/types.ts";
import { Logger } from "../observe/logger.ts";
import { loadBackend, type Vcpu } from "./backend.ts";
import type { MachinePlan } from "./machine.ts";
import { createVcpuBus } from "./vcpu-bus.ts";

export class GuestCpu {
  private constructor(
    private readonly vcpu: Vcpu,
    private readonly reset: { requested: boolean },
  ) {}

  /** vCPU `index` of `plan`. `onPaused` is called when it has stopped for a pause. */
  static async create(plan: MachinePlan, index: number, onPaused: () => void): Promise<GuestCpu> {
    const backend = await loadBackend(plan.backend);
    const log = new Logger(plan.log, `fc_vcpu ${index}`);
    const hasDisks = backend.slowGuest === true && plan.virtio.some(({ share }) => share !== undefined);
    const disks = hasDisks ? (await import("./vcpu-disks.ts")).vcpuDisks(plan, backend) : undefined;
    // Seen by a device while the CPU is in the middle of a port write.
    const reset = { requested: false };
    const { pio, mmio } = createVcpuBus({
      plan,
      index,
      irqLine: (gsi) => backend.irqLine(plan.memory, gsi),
      disks,
      onReset: () => {
        reset.requested = true;
        backend.requestStop(plan.memory);
      },
      onBoot: () => log.info(bootTime(plan)),
    });
    const vcpu = await backend.createVcpu({
      index,
      smt: plan.smt,
      measured: plan.measured,
      memory: plan.memory,
      ramBytes: plan.ram.size,
      pio,
      mmio,
      log: (message) => log.warn(message),
      onPaused,
    });
    return new GuestCpu(vcpu, reset);
  }

  /** For vCPU 0; the others wait in {@link run} for the guest to start them. */
  setBootRegisters(registers: BootRegisters): void {
    this.vcpu.setBootRegisters(registers);
  }

  /** Runs the guest on this thread until it ends. */
  run(): VcpuEnd {
    return this.ended(this.vcpu.run());
  }

  /** Runs the guest as `Vcpu.runUntil` does. Undefined if it may go on. */
  runUntil(leave: (interrupted: boolean) => boolean): VcpuEnd | undefined {
    const { vcpu } = this;
    if (vcpu.runUntil === undefined) throw new Error("this CPU backend needs a thread of its own");
    const end = vcpu.runUntil(leave);
    return end && this.ended(end);
  }

  /** Counters of the backend, by name. */
  stats(): Record<string, number> {
    return this.vcpu.stats();
  }

  private ended(end: VcpuEnd): VcpuEnd {
    return end.kind === "stopped" && this.reset.requested ? { kind: "reset" } : end;
  }
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
