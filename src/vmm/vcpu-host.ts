/** Who runs a vCPU of a microVM, as builder and `Microvm` see that: a thread of its own, or the main thread. */

import type { BootRegisters } from "../hypervisor/types.ts";
import type { MachinePlan } from "./machine.ts";
import type { VcpuCommand, VcpuEvent } from "./messages.ts";
import { nextEvent, onWorkerEnd, terminated } from "./workers.ts";

export interface VcpuHost {
  /** Makes the CPU. Rejects if it cannot be. */
  build(plan: MachinePlan): Promise<void>;
  /** Lets it run as soon as it is built; vCPU 0 is the one with registers. */
  run(registers: BootRegisters | undefined): void;
  /** Where everything is reported from now on. `onBroken`: there will be no more events. To be called once. */
  listen(onEvent: (event: VcpuEvent) => void, onBroken: (detail: string) => void): void;
  /** Ends it. Resolves when nothing of it uses the machine any more. */
  terminate(): Promise<void>;
}

/** A Worker. */
export class VcpuThread implements VcpuHost {
  /** The thread loads the code of `backend` (see `loadBackend`) until it is told to build. */
  constructor(
    readonly worker: Worker,
    private readonly index: number,
    backend: string,
  ) {
    this.tell({ kind: "load", backend });
  }

  async build(plan: MachinePlan): Promise<void> {
    const ready = nextEvent<VcpuEvent>(this.worker, `vCPU ${this.index}`);
    this.tell({ kind: "start", plan, index: this.index });
    await ready;
  }

  run(registers: BootRegisters | undefined): void {
    this.tell({ kind: "run", registers });
  }

  listen(onEvent: (event: VcpuEvent) => void, onBroken: (detail: string) => void): void {
    this.worker.onmessage = ({ data }: MessageEvent<VcpuEvent>) => onEvent(data);
    this.worker.onerror = ({ message }) => onBroken(`a vCPU thread failed: ${message}`);
    onWorkerEnd(this.worker, () => onBroken("a vCPU thread ended without a word"));
  }

  terminate(): Promise<void> {
    return terminated(this.worker);
  }

  private tell(command: VcpuCommand): void {
    this.worker.postMessage(command);
  }
}
