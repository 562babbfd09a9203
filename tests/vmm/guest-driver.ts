/** A virtio-mmio driver as a guest kernel has one, small: split rings without event index, one buffer at a time. */

import * as reg from "../../src/devices/virtio/mmio/registers.ts";
import type { GuestMemory } from "../../src/memory/guest-memory.ts";
import type { Bus } from "../../src/vmm/bus.ts";

const VRING_DESC_F_NEXT = 1;
const VRING_DESC_F_WRITE = 2;
const DESC_BYTES = 16;
const QUEUE_SIZE = 16;
/** Descriptor table, available ring and used ring of one queue, a page each. */
const QUEUE_BYTES = 3 * 4096;

export interface Buffer {
  gpa: number;
  length: number;
}

interface DriverQueue {
  desc: number;
  avail: number;
  used: number;
  nextDesc: number;
  seenUsed: number;
}

export class GuestDriver {
  private readonly queues = new Map<number, DriverQueue>();
  private nextRing: number;

  /** `window`: the device's registers. `rings`: free guest RAM for the queues. `idle`: waits for an interrupt. */
  constructor(
    private readonly mmio: Bus,
    private readonly memory: GuestMemory,
    private readonly window: number,
    rings: number,
    private readonly idle: () => void,
  ) {
    this.nextRing = rings;
  }

  read(offset: number): number {
    return this.mmio.read(this.window + offset, 4);
  }

  write(offset: number, value: number): void {
    this.mmio.write(this.window + offset, 4, value);
  }

  config64(offset: number): bigint {
    return this.mmio.read64(this.window + reg.CONFIG + offset);
  }

  /** Negotiates `features` (VERSION_1 is added). Throws if this is not a device of `type`. */
  start(type: number, features = 0): void {
    if (this.read(reg.MAGIC_VALUE) !== reg.MAGIC || this.read(reg.VERSION) !== 2)
      throw new Error("no virtio");
    if (this.read(reg.DEVICE_ID) !== type) throw new Error(`device id ${this.read(reg.DEVICE_ID)}`);
    this.write(reg.STATUS, 0);
    this.write(reg.STATUS, reg.STATUS_ACKNOWLEDGE);
    this.write(reg.STATUS, reg.STATUS_ACKNOWLEDGE | reg.STATUS_DRIVER);
    this.write(reg.DRIVER_FEATURES_SEL, 0);
    this.write(reg.DRIVER_FEATURES, features);
    this.write(reg.DRIVER_FEATURES_SEL, 1);
    this.write(reg.DRIVER_FEATURES, 1);
    const ok = reg.STATUS_ACKNOWLEDGE | reg.STATUS_DRIVER | reg.STATUS_FEATURES_OK;
    this.write(reg.STATUS, ok);
    if (this.read(reg.STATUS) !== ok) throw new Error(`features refused: status ${this.read(reg.STATUS)}`);
  }

  addQueue(index: number): void {
    const desc = this.nextRing;
    this.nextRing += QUEUE_BYTES;
    const queue = { desc, avail: desc + 4096, used: desc + 8192, nextDesc: 0, seenUsed: 0 };
    this.queues.set(index, queue);
    this.write(reg.QUEUE_SEL, index);
    this.write(reg.QUEUE_NUM, QUEUE_SIZE);
    this.write(reg.QUEUE_DESC_LOW, queue.desc);
    this.write(reg.QUEUE_DRIVER_LOW, queue.avail);
    this.write(reg.QUEUE_DEVICE_LOW, queue.used);
    this.write(reg.QUEUE_READY, 1);
  }

  driverOk(): void {
    this.write(reg.STATUS, this.read(reg.STATUS) | reg.STATUS_DRIVER_OK);
    if ((this.read(reg.STATUS) & reg.STATUS_DRIVER_OK) === 0) throw new Error("DRIVER_OK refused");
  }

  writeDescriptor(index: number, at: number, gpa: number, length: number, flags: number, next: number): void {
    const { memory } = this;
    const descriptor = this.queues.get(index)!.desc + at * DESC_BYTES;
    memory.writeU64(descriptor, BigInt(gpa));
    memory.writeU32(descriptor + 8, length);
    memory.writeU16(descriptor + 12, flags);
    memory.writeU16(descriptor + 14, next);
  }

  /** Makes the chain that begins at descriptor `head` available and notifies the device. */
  publish(index: number, head: number): void {
    const { memory } = this;
    const { avail } = this.queues.get(index)!;
    const idx = memory.readU16(avail + 2);
    memory.writeU16(avail + 4 + (idx % QUEUE_SIZE) * 2, head);
    memory.writeU16(avail + 2, (idx + 1) & 0xffff);
    this.write(reg.QUEUE_NOTIFY, index);
  }

  /** Makes a chain available and notifies the device. */
  submit(index: number, readable: Buffer[], writable: Buffer[]): void {
    const queue = this.queues.get(index)!;
    const buffers = [...readable, ...writable];
    const head = queue.nextDesc % QUEUE_SIZE;
    for (const [i, { gpa, length }] of buffers.entries()) {
      const flags =
        (i + 1 < buffers.length ? VRING_DESC_F_NEXT : 0) | (i >= readable.length ? VRING_DESC_F_WRITE : 0);
      const next = (head + i + 1) % QUEUE_SIZE;
      this.writeDescriptor(index, (head + i) % QUEUE_SIZE, gpa, length, flags, next);
    }
    queue.nextDesc += buffers.length;
    this.publish(index, head);
  }

  /** Bytes that the device wrote to the next used chain, or undefined if there is none. */
  used(index: number): number | undefined {
    const queue = this.queues.get(index)!;
    const status = this.read(reg.INTERRUPT_STATUS);
    if (status !== 0) this.write(reg.INTERRUPT_ACK, status);
    if (this.memory.readU16(queue.used + 2) === (queue.seenUsed & 0xffff)) return undefined;
    const at = queue.used + 4 + (queue.seenUsed % QUEUE_SIZE) * 8;
    queue.seenUsed++;
    return this.memory.readU32(at + 4);
  }

  /** Waits for the next used chain and returns the bytes written to it. */
  waitUsed(index: number): number {
    for (;;) {
      const length = this.used(index);
      if (length !== undefined) return length;
      this.idle();
    }
  }
}
