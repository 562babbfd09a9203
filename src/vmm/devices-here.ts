/**
 * Devices served by the main thread, for a machine without an API: it has one thread less to start and to keep. The
 * thread sleeps in epoll_wait; its own event loop gets a turn when there is something for it.
 */

import type { VmmCommand } from "./commands.ts";
import type { DeviceHost } from "./device-host.ts";
import type { Doorbell } from "./doorbell.ts";
import { compileAsUsual } from "./jit-policy.ts";
import type { MachinePlan } from "./machine.ts";
import { describeFailure, type VmmEvent } from "./messages.ts";
import type { VcpuHost, VcpuThread } from "./vcpu-host.ts";
import { createVmmThread, type ResidentVcpu, type VmmThread } from "./vmm-thread.ts";

/**
 * Longest time without a turn, in ms, for timers, and for what no descriptor tells: a signal that came just before the
 * thread fell asleep, or a worker that broke without a message.
 */
const LONGEST_SLEEP = 1000;
/** A message that was sent before its ring comes with the first turn. This is for one that never comes. */
const MAX_TURNS = 1000;

/**
 * Devices for vCPUs with threads of their own; or, if there are none, for one that this thread runs. `doorbell` is the
 * machine's.
 */
export async function serveHere(
  doorbell: Doorbell,
  threads: readonly VcpuThread[],
): Promise<{ host: DeviceHost; vcpus: readonly VcpuHost[] }> {
  if (threads.length === 0) {
    const { VcpuHere } = await import("./vcpu-here.ts");
    const vcpu = new VcpuHere((thread) => host.hear(thread));
    const host = new DevicesHere(doorbell, vcpu);
    return { host, vcpus: [vcpu] };
  }
  const host = new DevicesHere(doorbell);
  for (const thread of threads) host.hear(thread);
  return { host, vcpus: threads };
}

class DevicesHere implements DeviceHost {
  private readonly commands: VmmCommand[] = [];
  private thread: VmmThread | undefined;
  private onEvent: (event: VmmEvent) => void = () => {};
  private received = 0;
  private over = false;

  /** `doorbell` counts the messages of vCPU threads. `resident`: a vCPU that has none. */
  constructor(
    private readonly doorbell: Doorbell,
    private readonly resident?: ResidentVcpu,
  ) {}

  /** The thread of a vCPU, before it sends messages. */
  hear({ worker }: VcpuThread): void {
    worker.addEventListener("message", () => this.received++);
  }

  async build(plan: MachinePlan): Promise<void> {
    this.thread = await createVmmThread(
      plan,
      (event) => this.onEvent(event),
      () => this.commands.shift(),
    );
  }

  serve(onEvent: (event: VmmEvent) => void): void {
    this.onEvent = onEvent;
    const { thread } = this;
    if (thread === undefined) throw new Error("devices are served before they were built");
    void this.run(thread);
  }

  post(command: VmmCommand): void {
    this.commands.push(command);
  }

  async terminate(): Promise<void> {
    this.over = true;
  }

  private async run(thread: VmmThread): Promise<void> {
    try {
      // Whoever built the machine goes on first.
      await eventLoopTurn();
      for (const _ of thread.turns(LONGEST_SLEEP, this.resident)) {
        compileAsUsual();
        await this.eventLoopTurns();
        if (this.over) return;
      }
      this.onEvent({ kind: "stopped", consoleTail: thread.consoleTail, metrics: thread.metrics });
    } catch (error) {
      this.onEvent({ kind: "failed", message: describeFailure(error) });
    }
  }

  /** At least one, and as many as it takes for the messages that have been sent. */
  private async eventLoopTurns(): Promise<void> {
    for (let turns = 0; turns < MAX_TURNS; turns++) {
      await eventLoopTurn();
      if (this.received >= this.doorbell.messages) return;
    }
  }
}

function eventLoopTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
