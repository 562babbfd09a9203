/**
 * The only vCPU of a machine whose devices the main thread serves, run by that thread as well: there is no second
 * JavaScript engine to start and to keep. When something comes up for which a thread has to wait for descriptors, or the
 * devices have much to do, the vCPU gets a thread after all.
 */

import type { BootRegisters, VcpuEnd } from "../hypervisor/types.ts";
import { Interruption } from "../platform/interruption.ts";
import { GuestCpu } from "./guest-cpu.ts";
import type { MachinePlan } from "./machine.ts";
import { describeFailure, type VcpuEvent } from "./messages.ts";
import { type VcpuHost, VcpuThread } from "./vcpu-host.ts";
import type { ResidentVcpu } from "./vmm-thread.ts";
import { VCPU_WORKER } from "./worker-urls.ts";

/**
 * How long a guest that has exits, and one that has none, runs until the event loop has a turn, in ms: for timers, and
 * for a signal that came just before the guest was entered and did not interrupt it.
 */
const BUSY_PERIOD = 100;
const QUIET_PERIOD = 1000;
/** Exits with work for the devices in such a time, 2 to 5 us each, by which a guest shows that it will make more. */
const MUCH_WORK = 1000;

export class VcpuHere implements VcpuHost, ResidentVcpu {
  private plan: MachinePlan | undefined;
  private cpu: GuestCpu | undefined;
  private registers: BootRegisters | undefined;
  private told = false;
  private timer: Interruption | undefined;
  private period = BUSY_PERIOD;
  private exits = 0;
  private work = 0;
  private muchWork = false;
  private thread: VcpuThread | undefined;
  private onEvent: (event: VcpuEvent) => void = () => {};
  private onBroken: (detail: string) => void = () => {};

  /** `onThread` hears of the thread that the vCPU moves to. */
  constructor(private readonly onThread: (thread: VcpuThread) => void) {}

  async build(plan: MachinePlan): Promise<void> {
    this.plan = plan;
    this.cpu = await GuestCpu.create(plan, 0, () => {
      throw new Error("a vCPU cannot be paused by the thread that runs it");
    });
  }

  run(registers: BootRegisters | undefined): void {
    this.registers = registers;
    this.told = true;
  }

  listen(onEvent: (event: VcpuEvent) => void, onBroken: (detail: string) => void): void {
    this.onEvent = onEvent;
    this.onBroken = onBroken;
  }

  async terminate(): Promise<void> {
    this.told = false;
    await this.thread?.terminate();
  }

  get runsHere(): boolean {
    return this.told && this.cpu !== undefined && this.thread === undefined;
  }

  get wantsThread(): boolean {
    return this.muchWork;
  }

  runHere(serve: () => boolean, leave: () => boolean): void {
    const { cpu } = this;
    if (cpu === undefined) throw new Error("a vCPU was told to run before it was built");
    let end: VcpuEnd | undefined;
    try {
      if (this.registers !== undefined) cpu.setBootRegisters(this.registers);
      this.registers = undefined;
      this.timer ??= new Interruption(this.period);
      end = cpu.runUntil((interrupted) => {
        if (interrupted) {
          this.interrupted();
          return true;
        }
        this.exits++;
        if (!serve()) return false;
        this.work++;
        return leave();
      });
    } catch (error) {
      this.end({ kind: "failed", message: describeFailure(error) });
      return;
    }
    if (end !== undefined) this.end({ kind: "end", end, stats: cpu.stats() });
  }

  moveOut(): void {
    const { plan, cpu } = this;
    if (plan === undefined || cpu === undefined) throw new Error("a vCPU moved before it was built");
    this.stopTimer();
    const thread = new VcpuThread(new Worker(VCPU_WORKER), 0, plan.backend);
    this.thread = thread;
    this.onThread(thread);
    const before = cpu.stats();
    thread.listen(
      (event) => this.onEvent(event.kind === "end" ? { ...event, stats: sum(before, event.stats) } : event),
      (detail) => this.onBroken(detail),
    );
    thread.build(plan).catch((error: unknown) => this.onBroken(describeFailure(error)));
    thread.run(undefined);
  }

  private interrupted(): void {
    this.muchWork = this.work >= MUCH_WORK;
    this.work = 0;
    const period = this.exits > 0 ? BUSY_PERIOD : QUIET_PERIOD;
    this.exits = 0;
    if (period !== this.period) this.timer?.setPeriod(period);
    this.period = period;
  }

  private end(event: VcpuEvent): void {
    this.told = false;
    this.stopTimer();
    this.onEvent(event);
  }

  private stopTimer(): void {
    this.timer?.close();
    this.timer = undefined;
  }
}

function sum(a: Record<string, number>, b: Record<string, number>): Record<string, number> {
  const total = { ...a };
  for (const [name, value] of Object.entries(b)) total[name] = (total[name] ?? 0) + value;
  return total;
}
