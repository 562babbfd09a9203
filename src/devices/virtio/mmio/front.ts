/** The vCPU side of a virtio-mmio device: its registers, served without leaving the vCPU's thread. */

import type { BusDevice } from "../../types.ts";
import { VIRTIO_F_VERSION_1 } from "../device.ts";
import * as reg from "./registers.ts";

const VENDOR = 0;
/** What shared-memory registers read as when there is no such region: length and address -1 (4.2.2.1). */
const NO_REGION = 0xffffffff;

/** How a front reaches the device's thread. */
export interface DeviceLink {
  /** Queue `queue` was notified. Does not wait. */
  notify(queue: number): void;
  /** Has `MmioBack.handle` run with the same arguments on the device's thread, and returns when it has. */
  call(command: number, arg0: number, arg1: number): void;
}

/**
 * One object per vCPU thread, all on the same register file, which the back has initialized. The order of the
 * driver's calls is enforced here (virtio 1.2, 3.1.1); values are checked by the back when they are used.
 */
export class MmioFront implements BusDevice {
  private readonly words: Int32Array;
  private readonly config: Uint8Array;

  constructor(
    shared: SharedArrayBuffer,
    offset: number,
    private readonly link: DeviceLink,
  ) {
    const file = reg.registerFile(shared, offset);
    this.words = file.words;
    this.config = file.config;
  }

  read(offset: number, size: number): number {
    if (offset >= reg.CONFIG) return this.readConfig(offset - reg.CONFIG, size);
    if (size !== 4) return 0;
    switch (offset) {
      case reg.MAGIC_VALUE:
        return reg.MAGIC;
      case reg.VERSION:
        return reg.MMIO_VERSION;
      case reg.DEVICE_ID:
        return this.get(reg.W_DEVICE_ID);
      case reg.VENDOR_ID:
        return VENDOR;
      case reg.DEVICE_FEATURES: {
        const page = this.get(reg.W_DEVICE_FEATURES_SEL);
        return page < 2 ? this.get(reg.W_DEVICE_FEATURES + page) : 0;
      }
      case reg.QUEUE_NUM_MAX:
        return this.getQueue(reg.Q_NUM_MAX);
      case reg.QUEUE_READY:
        return this.getQueue(reg.Q_READY);
      case reg.INTERRUPT_STATUS:
        return this.get(reg.W_INTERRUPT_STATUS);
      case reg.STATUS:
        return this.get(reg.W_STATUS);
      case reg.SHM_LEN_LOW:
      case reg.SHM_LEN_HIGH:
      case reg.SHM_BASE_LOW:
      case reg.SHM_BASE_HIGH:
        return NO_REGION;
      case reg.CONFIG_GENERATION:
        return this.get(reg.W_CONFIG_GENERATION);
      default:
        return 0;
    }
  }

  write(offset: number, size: number, value: number): void {
    if (offset >= reg.CONFIG) {
      this.writeConfig(offset - reg.CONFIG, size, value);
      return;
    }
    if (size !== 4) return;
    switch (offset) {
      case reg.DEVICE_FEATURES_SEL:
        this.set(reg.W_DEVICE_FEATURES_SEL, value);
        break;
      case reg.DRIVER_FEATURES_SEL:
        this.set(reg.W_DRIVER_FEATURES_SEL, value);
        break;
      case reg.DRIVER_FEATURES: {
        const page = this.get(reg.W_DRIVER_FEATURES_SEL);
        if (page < 2 && this.between(reg.STATUS_DRIVER, reg.STATUS_FEATURES_OK)) {
          this.set(reg.W_DRIVER_FEATURES + page, value);
        }
        break;
      }
      case reg.QUEUE_SEL:
        this.set(reg.W_QUEUE_SEL, value);
        break;
      case reg.QUEUE_NUM:
        this.setQueue(reg.Q_NUM, value);
        break;
      case reg.QUEUE_READY:
        this.setReady(value & 1);
        break;
      case reg.QUEUE_DESC_LOW:
        this.setQueue(reg.Q_DESC, value);
        break;
      case reg.QUEUE_DESC_HIGH:
        this.setQueue(reg.Q_DESC + 1, value);
        break;
      case reg.QUEUE_DRIVER_LOW:
        this.setQueue(reg.Q_DRIVER, value);
        break;
      case reg.QUEUE_DRIVER_HIGH:
        this.setQueue(reg.Q_DRIVER + 1, value);
        break;
      case reg.QUEUE_DEVICE_LOW:
        this.setQueue(reg.Q_DEVICE, value);
        break;
      case reg.QUEUE_DEVICE_HIGH:
        this.setQueue(reg.Q_DEVICE + 1, value);
        break;
      case reg.QUEUE_NOTIFY:
        if (value < this.get(reg.W_QUEUE_COUNT)) this.link.notify(value);
        break;
      case reg.INTERRUPT_ACK:
        Atomics.and(this.words, reg.W_INTERRUPT_STATUS, ~value);
        break;
      case reg.STATUS:
        this.writeStatus(value);
        break;
      default:
        break;
    }
  }

  private get(word: number): number {
    return Atomics.load(this.words, word) >>> 0;
  }

  private set(word: number, value: number): void {
    Atomics.store(this.words, word, value | 0);
  }

  /** First word of the selected queue, or -1 if there is no such queue. */
  private selected(): number {
    const index = this.get(reg.W_QUEUE_SEL);
    return index < this.get(reg.W_QUEUE_COUNT) ? reg.queueWord(index) : -1;
  }

  private getQueue(word: number): number {
    const queue = this.selected();
    return queue < 0 ? 0 : this.get(queue + word);
  }

  /** A queue is set up between FEATURES_OK and DRIVER_OK, and only while it is not ready (4.2.3.2). */
  private setQueue(word: number, value: number): void {
    const queue = this.selected();
    if (queue < 0 || !this.between(reg.STATUS_FEATURES_OK, reg.STATUS_DRIVER_OK)) return;
    if (this.get(queue + reg.Q_READY) === 0) this.set(queue + word, value);
  }

  private setReady(value: number): void {
    const queue = this.selected();
    if (queue < 0 || !this.between(reg.STATUS_FEATURES_OK, reg.STATUS_DRIVER_OK)) return;
    this.set(queue + reg.Q_READY, value);
  }

  /** True if status bit `from` is set and neither `until` nor FAILED is. */
  private between(from: number, until: number): boolean {
    const status = this.get(reg.W_STATUS);
    return (status & from) !== 0 && (status & (until | reg.STATUS_FAILED)) === 0;
  }

  private writeStatus(value: number): void {
    if (value === 0) {
      if (this.get(reg.W_STATUS) !== 0) this.link.call(reg.COMMAND_RESET, 0, 0);
      return;
    }
    if ((value & reg.STATUS_FAILED) !== 0) {
      this.raise(reg.STATUS_FAILED);
      return;
    }
    // Bits are only ever added, each after the one before it; only a reset takes them away.
    let status = this.get(reg.W_STATUS);
    if ((status & (reg.STATUS_FAILED | reg.STATUS_DEVICE_NEEDS_RESET)) !== 0) return;
    if ((value & reg.STATUS_ACKNOWLEDGE) !== 0) status = this.raise(reg.STATUS_ACKNOWLEDGE);
    if ((value & reg.STATUS_DRIVER) !== 0 && (status & reg.STATUS_ACKNOWLEDGE) !== 0) {
      status = this.raise(reg.STATUS_DRIVER);
    }
    if ((value & reg.STATUS_FEATURES_OK) !== 0 && (status & reg.STATUS_DRIVER) !== 0 && this.featuresOk()) {
      status = this.raise(reg.STATUS_FEATURES_OK);
    }
    if ((value & reg.STATUS_DRIVER_OK) !== 0 && (status & reg.STATUS_FEATURES_OK) !== 0) {
      const before = Atomics.or(this.words, reg.W_STATUS, reg.STATUS_DRIVER_OK);
      if ((before & reg.STATUS_DRIVER_OK) === 0) this.link.call(reg.COMMAND_DRIVER_OK, 0, 0);
    }
  }

  private raise(bit: number): number {
    return Atomics.or(this.words, reg.W_STATUS, bit) | bit;
  }

  /** The driver accepted nothing that was not offered, and VERSION_1 (virtio 1.2, 6.1). */
  private featuresOk(): boolean {
    for (let page = 0; page < 2; page++) {
      const offered = Atomics.load(this.words, reg.W_DEVICE_FEATURES + page);
      if ((Atomics.load(this.words, reg.W_DRIVER_FEATURES + page) & ~offered) !== 0) return false;
    }
    return (this.get(reg.W_DRIVER_FEATURES + 1) & Number(VIRTIO_F_VERSION_1 >> 32n)) !== 0;
  }

  private readConfig(offset: number, size: number): number {
    const length = Math.min(this.get(reg.W_CONFIG_LENGTH), reg.MAX_CONFIG_BYTES);
    let value = 0;
    for (let i = 0; i < size; i++) {
      if (offset + i < length) value += this.config[offset + i]! * 2 ** (8 * i);
    }
    return value;
  }

  private writeConfig(offset: number, size: number, value: number): void {
    if (offset + size > this.get(reg.W_CONFIG_LENGTH) || !this.between(reg.STATUS_DRIVER, 0)) return;
    this.link.call(reg.COMMAND_WRITE_CONFIG, offset | (size << 16), value);
  }
}
