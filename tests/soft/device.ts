/** A thread that does what a device does to a guest: writes its memory and raises its interrupts. */
import { GUEST_BASE } from "../../src/hypervisor/soft/layout.ts";

export type DeviceCommand =
  /** Writes through GuestMemory, with the CPU's write hook, after `delayMs`. */
  | { kind: "write"; gpa: number; bytes: number[]; delayMs: number }
  /** Raises an interrupt line after `delayMs`. */
  | { kind: "irq"; gsi: number; delayMs: number }
  /** Raises an interrupt line `times` times, each time that the guest's word at `gpa` has counted the last. */
  | { kind: "rally"; gsi: number; gpa: number; times: number };

export interface DeviceStart {
  memory: WebAssembly.Memory;
  base: number;
}

export class DeviceThread {
  private constructor(private readonly worker: Worker) {}

  /** Resolves when the thread is ready to take commands while this thread is blocked. */
  static async start(memory: WebAssembly.Memory): Promise<DeviceThread> {
    const worker = new Worker(new URL("./device-worker.ts", import.meta.url).href);
    await new Promise<void>((resolve, reject) => {
      worker.onmessage = () => resolve();
      worker.onerror = (event) => reject(new Error(event.message));
      const start: DeviceStart = { memory, base: GUEST_BASE };
      worker.postMessage(start);
    });
    return new DeviceThread(worker);
  }

  send(command: DeviceCommand): void {
    this.worker.postMessage(command);
  }

  stop(): void {
    this.worker.terminate();
  }
}
