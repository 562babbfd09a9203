/** The vmm side of a virtio-mmio device: fills the shared register file and runs the device. */

import type { GuestMemory } from "../../../memory/guest-memory.ts";
import type { IrqLine } from "../../types.ts";
import type { VirtioDevice } from "../device.ts";
import { DeviceRunner, type TransportEvents, type TransportSignals } from "../transport.ts";
import * as reg from "./registers.ts";
import { driverFeatures, queueSetup } from "./setup.ts";

/** Runs on the vmm thread. Neither method ever throws, whatever the guest does. */
export class MmioBack implements TransportSignals {
  private readonly words: Int32Array;
  private readonly config: Uint8Array;
  private readonly runner: DeviceRunner;

  /** See {@link createMmio}. */
  constructor(
    shared: SharedArrayBuffer,
    offset: number,
    readonly device: VirtioDevice,
    memory: GuestMemory,
    private readonly irq: IrqLine,
    events: TransportEvents,
  ) {
    if (device.queueSizes.length > reg.MAX_QUEUES) {
      throw new RangeError(
        `${device.name} has ${device.queueSizes.length} queues, at most ${reg.MAX_QUEUES}`,
      );
    }
    if (device.config.length > reg.MAX_CONFIG_BYTES) {
      throw new RangeError(
        `${device.name} has ${device.config.length} bytes of config space, at most ${reg.MAX_CONFIG_BYTES}`,
      );
    }
    const file = reg.registerFile(shared, offset);
    this.words = file.words;
    this.config = file.config;
    this.set(reg.W_DEVICE_ID, device.type);
    this.set(reg.W_DEVICE_FEATURES, Number(device.features & 0xffffffffn));
    this.set(reg.W_DEVICE_FEATURES + 1, Number((device.features >> 32n) & 0xffffffffn));
    this.set(reg.W_QUEUE_COUNT, device.queueSizes.length);
    this.set(reg.W_CONFIG_LENGTH, device.config.length);
    device.queueSizes.forEach((size, index) => {
      this.set(reg.queueWord(index) + reg.Q_NUM_MAX, size);
    });
    this.clearRegisters();
    this.publishConfig();
    this.runner = new DeviceRunner(device, memory, this, events);
  }

  /** Does what a front's `link.call` asks for. */
  handle(command: number, arg0: number, arg1: number): void {
    switch (command) {
      case reg.COMMAND_RESET:
        this.runner.reset();
        this.clearRegisters();
        break;
      case reg.COMMAND_DRIVER_OK:
        this.runner.activate(
          driverFeatures(this.words),
          this.device.queueSizes.map((_, index) => queueSetup(this.words, index)),
        );
        break;
      case reg.COMMAND_WRITE_CONFIG: {
        const bytes = Uint8Array.of(arg1, arg1 >>> 8, arg1 >>> 16, arg1 >>> 24);
        this.runner.writeConfig(arg0 & 0xffff, bytes.subarray(0, arg0 >>> 16));
        break;
      }
      default:
        break;
    }
  }

  /** Queue `index` was notified, by ioeventfd or a front's `link.notify`. */
  notify(index: number): void {
    this.runner.notify(index);
  }

  queueInterrupt(): void {
    this.interrupt(reg.INT_VRING);
  }

  configInterrupt(): void {
    this.interrupt(reg.INT_CONFIG);
  }

  publishConfig(): void {
    // The generation changes before and after, so that a reader of old and new bytes sees that it did.
    Atomics.add(this.words, reg.W_CONFIG_GENERATION, 1);
    this.config.set(this.device.config);
    Atomics.add(this.words, reg.W_CONFIG_GENERATION, 1);
  }

  needsReset(): void {
    Atomics.or(this.words, reg.W_STATUS, reg.STATUS_DEVICE_NEEDS_RESET);
    this.interrupt(reg.INT_CONFIG);
  }

  private set(word: number, value: number): void {
    Atomics.store(this.words, word, value | 0);
  }

  private interrupt(bit: number): void {
    Atomics.or(this.words, reg.W_INTERRUPT_STATUS, bit);
    this.irq.trigger();
  }

  private clearRegisters(): void {
    for (const word of [
      reg.W_DRIVER_FEATURES,
      reg.W_DRIVER_FEATURES + 1,
      reg.W_DEVICE_FEATURES_SEL,
      reg.W_DRIVER_FEATURES_SEL,
      reg.W_QUEUE_SEL,
      reg.W_INTERRUPT_STATUS,
    ]) {
      this.set(word, 0);
    }
    this.device.queueSizes.forEach((size, index) => {
      const queue = reg.queueWord(index);
      for (let word = reg.Q_READY; word < reg.QUEUE_WORDS; word++) this.set(queue + word, 0);
      this.set(queue + reg.Q_NUM, size);
    });
    // Last: the driver polls it to see that the reset is done (4.2.3.1).
    this.set(reg.W_STATUS, 0);
  }
}

/**
 * Puts `device` behind a virtio-mmio register file at `offset` (a multiple of 4) in `shared`, where
 * MMIO_SHARED_BYTES are its own. Must be done before the vCPUs run. Throws RangeError if the device has more
 * queues or configuration space than the register file.
 */
export function createMmio(
  shared: SharedArrayBuffer,
  offset: number,
  device: VirtioDevice,
  memory: GuestMemory,
  irq: IrqLine,
  events: TransportEvents = {},
): MmioBack {
  return new MmioBack(shared, offset, device, memory, irq, events);
}
