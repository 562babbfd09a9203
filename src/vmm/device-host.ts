/** Who serves the devices of a microVM, as its builder and its owner see that: a thread, or the main thread itself. */

import type { VmmCommand } from "./commands.ts";
import type { MachinePlan } from "./machine.ts";
import type { VmmEvent, VmmStart } from "./messages.ts";
import { VMM_WORKER } from "./worker-urls.ts";
import { nextEvent, onWorkerEnd, terminated } from "./workers.ts";

export interface DeviceHost {
  /** Makes the devices. Rejects if one of them cannot be. */
  build(plan: MachinePlan): Promise<void>;
  /** Serves them from now on and reports to `onEvent`. To be called once, after {@link build}. */
  serve(onEvent: (event: VmmEvent) => void): void;
  /** Leaves a command for the devices, who look for it when CONTROL_COMMAND rings. */
  post(command: VmmCommand): void;
  /** Ends the service. Resolves when nothing of it uses the machine any more. */
  terminate(): Promise<void>;
}

/** A Worker, which sleeps in epoll_wait: the main thread stays free for an API. */
export class DeviceThread implements DeviceHost {
  private readonly worker = new Worker(VMM_WORKER);
  private readonly commands = new MessageChannel();

  async build(plan: MachinePlan): Promise<void> {
    const ready = nextEvent<VmmEvent>(this.worker, "the device thread");
    const { port2 } = this.commands;
    this.worker.postMessage({ plan, commands: port2 } satisfies VmmStart, [port2]);
    await ready;
  }

  serve(onEvent: (event: VmmEvent) => void): void {
    this.worker.onmessage = ({ data }: MessageEvent<VmmEvent>) => onEvent(data);
    this.worker.onerror = ({ message }) =>
      onEvent({ kind: "failed", message: `the device thread failed: ${message}` });
    onWorkerEnd(this.worker, () =>
      onEvent({ kind: "failed", message: "the device thread ended without a word" }),
    );
  }

  post(command: VmmCommand): void {
    this.commands.port1.postMessage(command);
  }

  terminate(): Promise<void> {
    this.worker.onmessage = null;
    this.worker.onerror = null;
    this.commands.port1.close();
    return terminated(this.worker);
  }
}
