/** A small virtio driver for tests: lays out rings in guest memory and drives a device's front and back. */

import { GuestMemory } from "../../../memory/guest-memory.ts";
import { VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, type VirtioDevice } from "../device.ts";
import { createMmio, type MmioBack } from "../mmio/back.ts";
import { MmioFront } from "../mmio/front.ts";
import * as reg from "../mmio/registers.ts";
import type { TransportEvents } from "../transport.ts";

const DESC_BYTES = 16;
export const F_NEXT = 1;
export const F_WRITE = 2;
export const F_INDIRECT = 4;

/** Bytes before and after guest RAM that no device may touch. */
const GUARD_BYTES = 4096;
const GUARD_FILL = 0xa5;

export interface DriverOptions {
  readonly ramBytes?: number;
  /** Features to accept if offered; default: all. */
  readonly features?: bigint;
  /** Size of every queue; default: the device's maximum. */
  readonly queueSize?: number;
  readonly events?: TransportEvents;
  /** Guest memory instead of the driver's own, which has guards around it, and where to begin to use it. */
  readonly place?: { readonly memory: GuestMemory; readonly start: number } | undefined;
  /** Makes what the vCPU's thread does when a queue is notified. */
  readonly vcpu?: VcpuSide | undefined;
}

/**
 * `registers`: words of the device's register file; `interrupt`: used buffers of a queue. What it returns is called with
 * the number of a queue that was notified, and says true if there is nothing left in it for the device.
 */
export type VcpuSide = (
  memory: GuestMemory,
  registers: Int32Array,
  interrupt: () => void,
) => (queue: number) => boolean;

/** A descriptor to put into a chain. */
export interface BufferSpec {
  readonly gpa: number;
  readonly length: number;
  readonly write: boolean;
}

export interface UsedElement {
  readonly id: number;
  readonly length: number;
}

/** Device, transport and guest RAM in one thread. */
export class TestDriver {
  readonly memory: GuestMemory;
  readonly back: MmioBack;
  readonly front: MmioFront;
  readonly queues: DriverQueue[] = [];
  readonly ramBytes: number;
  interrupts = 0;
  /** Device writes that were reported, since the array was last emptied. */
  readonly reported: { gpa: number; length: number }[] = [];
  private readonly guards: readonly Uint8Array[];
  private next: number;

  constructor(
    readonly device: VirtioDevice,
    private readonly options: DriverOptions = {},
  ) {
    const { memory, start } = options.place ?? { memory: undefined, start: 0 };
    this.next = start;
    if (memory === undefined) {
      this.ramBytes = options.ramBytes ?? 1 << 20;
      const buffer = new SharedArrayBuffer(this.ramBytes + 2 * GUARD_BYTES);
      this.memory = new GuestMemory({ buffer, base: GUARD_BYTES, size: this.ramBytes });
      this.guards = [
        new Uint8Array(buffer, 0, GUARD_BYTES).fill(GUARD_FILL),
        new Uint8Array(buffer, GUARD_BYTES + this.ramBytes).fill(GUARD_FILL),
      ];
    } else {
      this.ramBytes = memory.size;
      this.memory = memory;
      this.guards = [];
    }
    this.memory.setWriteHook((gpa, length) => this.reported.push({ gpa, length }));
    const shared = new SharedArrayBuffer(reg.MMIO_SHARED_BYTES);
    const irq = { trigger: () => void this.interrupts++ };
    this.back = createMmio(shared, 0, device, this.memory, irq, options.events);
    const { words } = reg.registerFile(shared, 0);
    const serve = options.vcpu?.(this.memory, words, () => this.back.queueInterrupt());
    this.front = new MmioFront(shared, 0, {
      notify: (queue) => {
        if (serve?.(queue) !== true) this.back.notify(queue);
      },
      call: (command, arg0, arg1) => this.back.handle(command, arg0, arg1),
    });
  }

  /** A driver whose device is up: reset, negotiated, queues ready, DRIVER_OK. */
  static start(device: VirtioDevice, options: DriverOptions = {}): TestDriver {
    const driver = new TestDriver(device, options);
    driver.start();
    return driver;
  }

  start(): void {
    this.reset();
    this.negotiate();
    this.device.queueSizes.forEach((_, index) => {
      this.setUpQueue(index);
    });
    this.addStatus(reg.STATUS_DRIVER_OK);
  }

  reset(): void {
    this.write(reg.STATUS, 0);
    this.queues.length = 0;
    this.next = this.options.place?.start ?? 0;
  }

  negotiate(): void {
    this.addStatus(reg.STATUS_ACKNOWLEDGE);
    this.addStatus(reg.STATUS_DRIVER);
    const features = this.features;
    for (let page = 0; page < 2; page++) {
      this.write(reg.DRIVER_FEATURES_SEL, page);
      this.write(reg.DRIVER_FEATURES, Number((features >> BigInt(32 * page)) & 0xffffffffn));
    }
    this.addStatus(reg.STATUS_FEATURES_OK);
  }

  /** Features that this driver accepts. */
  get features(): bigint {
    let offered = 0n;
    for (let page = 0; page < 2; page++) {
      this.write(reg.DEVICE_FEATURES_SEL, page);
      offered |= BigInt(this.read(reg.DEVICE_FEATURES)) << BigInt(32 * page);
    }
    return offered & (this.options.features ?? ~0n);
  }

  setUpQueue(index: number): DriverQueue {
    this.write(reg.QUEUE_SEL, index);
    const size = this.options.queueSize ?? this.read(reg.QUEUE_NUM_MAX);
    const queue = new DriverQueue(this, index, size, this.features);
    this.queues[index] = queue;
    this.write(reg.QUEUE_NUM, size);
    this.writeAddress(reg.QUEUE_DESC_LOW, queue.desc);
    this.writeAddress(reg.QUEUE_DRIVER_LOW, queue.avail);
    this.writeAddress(reg.QUEUE_DEVICE_LOW, queue.used);
    this.write(reg.QUEUE_READY, 1);
    return queue;
  }

  writeAddress(low: number, gpa: number): void {
    this.write(low, gpa % 2 ** 32);
    this.write(low + 4, Math.floor(gpa / 2 ** 32));
  }

  read(offset: number): number {
    return this.front.read(offset, 4);
  }

  write(offset: number, value: number): void {
    this.front.write(offset, 4, value);
  }

  get status(): number {
    return this.read(reg.STATUS);
  }

  addStatus(bit: number): void {
    this.write(reg.STATUS, this.status | bit);
  }

  get needsReset(): boolean {
    return (this.status & reg.STATUS_DEVICE_NEEDS_RESET) !== 0;
  }

  /** Fresh zeroed guest memory. */
  alloc(length: number, align = 16): number {
    const gpa = Math.ceil(this.next / align) * align;
    this.next = gpa + length;
    this.ram(gpa, length).fill(0);
    return gpa;
  }

  /** Forgets what was allocated after `mark`, which was the `allocated` of that time. */
  release(mark: number): void {
    this.next = mark;
  }

  get allocated(): number {
    return this.next;
  }

  /** Guest bytes as the guest sees them: writes through this are not reported. */
  ram(gpa: number, length: number): Uint8Array {
    return this.memory.slice(gpa, length);
  }

  /** A readable buffer holding `bytes`. */
  readable(bytes: Uint8Array): BufferSpec {
    const gpa = this.alloc(bytes.length);
    this.ram(gpa, bytes.length).set(bytes);
    return { gpa, length: bytes.length, write: false };
  }

  writable(length: number): BufferSpec {
    return { gpa: this.alloc(length), length, write: true };
  }

  /** Adds one request, kicks, and returns its used length; undefined if it was not completed. */
  request(queue: number, buffers: readonly BufferSpec[]): number | undefined {
    const q = this.queues[queue]!;
    const head = q.add(buffers);
    q.kick();
    return q.takeUsed().find((element) => element.id === head)?.length;
  }

  /** True if nothing outside guest RAM was touched. */
  guardsIntact(): boolean {
    return this.guards.every((guard) => guard.every((byte) => byte === GUARD_FILL));
  }
}

/** One virtqueue, driver side. */
export class DriverQueue {
  readonly desc: number;
  readonly avail: number;
  readonly used: number;
  private readonly free: number[];
  private readonly chains = new Map<number, number[]>();
  private readonly eventIdx: boolean;
  private readonly indirect: boolean;
  private availIdx = 0;
  private usedIdx = 0;
  private kickedIdx = 0;

  constructor(
    private readonly driver: TestDriver,
    readonly index: number,
    readonly size: number,
    features: bigint,
  ) {
    this.desc = driver.alloc(DESC_BYTES * size, 16);
    this.avail = driver.alloc(6 + 2 * size, 2);
    this.used = driver.alloc(6 + 8 * size, 4);
    this.free = Array.from({ length: size }, (_, i) => size - 1 - i);
    this.eventIdx = (features & VIRTIO_F_EVENT_IDX) !== 0n;
    this.indirect = (features & VIRTIO_F_INDIRECT_DESC) !== 0n;
  }

  private view(gpa: number, length: number): DataView {
    const bytes = this.driver.ram(gpa, length);
    return new DataView(bytes.buffer, bytes.byteOffset, length);
  }

  /** Writes one descriptor of a table at `table`. */
  writeDescriptor(
    table: number,
    index: number,
    gpa: number | bigint,
    length: number,
    flags: number,
    next: number,
  ): void {
    const view = this.view(table + DESC_BYTES * index, DESC_BYTES);
    view.setBigUint64(0, BigInt(gpa), true);
    view.setUint32(8, length, true);
    view.setUint16(12, flags, true);
    view.setUint16(14, next, true);
  }

  get freeDescriptors(): number {
    return this.free.length;
  }

  /** Makes a chain available and returns its head. Throws if descriptors ran out. */
  add(buffers: readonly BufferSpec[], options: { indirect?: boolean } = {}): number {
    if (options.indirect === true) {
      if (!this.indirect) throw new Error("indirect descriptors were not negotiated");
      const table = this.driver.alloc(DESC_BYTES * buffers.length);
      this.writeChain(
        table,
        buffers,
        Array.from(buffers, (_, i) => i),
      );
      const [head] = this.take(1);
      this.writeDescriptor(this.desc, head!, table, DESC_BYTES * buffers.length, F_INDIRECT, 0);
      this.publish(head!);
      return head!;
    }
    const indices = this.take(buffers.length);
    this.writeChain(this.desc, buffers, indices);
    this.publish(indices[0]!);
    return indices[0]!;
  }

  /** Makes descriptor `head` available, whatever it holds. */
  publish(head: number): void {
    this.view(this.avail + 4 + 2 * (this.availIdx % this.size), 2).setUint16(0, head, true);
    this.setAvailIdx(this.availIdx + 1);
  }

  setAvailIdx(value: number): void {
    this.availIdx = value & 0xffff;
    this.view(this.avail + 2, 2).setUint16(0, this.availIdx, true);
  }

  /** Asks for an interrupt at the next used buffer (`true`), or for none. */
  wantInterrupt(on: boolean): void {
    if (!this.eventIdx) this.view(this.avail, 2).setUint16(0, on ? 0 : 1, true);
    const event = on ? this.usedIdx : (this.usedIdx - 1) & 0xffff;
    this.view(this.avail + 4 + 2 * this.size, 2).setUint16(0, event, true);
  }

  /** True if the device asks to be notified of what was made available since the last kick. */
  get kickNeeded(): boolean {
    if (!this.eventIdx) return (this.view(this.used, 2).getUint16(0, true) & 1) === 0;
    const event = this.view(this.used + 4 + 8 * this.size, 2).getUint16(0, true);
    return ((this.availIdx - event - 1) & 0xffff) < ((this.availIdx - this.kickedIdx) & 0xffff);
  }

  /** Notifies the device if it asked for it, as a driver does. */
  kick(): void {
    const needed = this.kickNeeded;
    this.kickedIdx = this.availIdx;
    if (needed) this.notify();
  }

  notify(): void {
    this.driver.write(reg.QUEUE_NOTIFY, this.index);
  }

  /** Used elements since the last call. Asks for an interrupt at the next one. */
  takeUsed(): UsedElement[] {
    const elements: UsedElement[] = [];
    const idx = this.view(this.used + 2, 2).getUint16(0, true);
    while (this.usedIdx !== idx) {
      const view = this.view(this.used + 4 + 8 * (this.usedIdx % this.size), 8);
      const element = { id: view.getUint32(0, true), length: view.getUint32(4, true) };
      elements.push(element);
      this.free.push(...(this.chains.get(element.id) ?? []));
      this.chains.delete(element.id);
      this.usedIdx = (this.usedIdx + 1) & 0xffff;
    }
    this.wantInterrupt(true);
    return elements;
  }

  private take(count: number): number[] {
    if (count > this.free.length)
      throw new Error(`${count} descriptors wanted, ${this.free.length} are free`);
    const indices = Array.from({ length: count }, () => this.free.pop()!);
    this.chains.set(indices[0]!, indices);
    return indices;
  }

  private writeChain(table: number, buffers: readonly BufferSpec[], indices: readonly number[]): void {
    buffers.forEach(({ gpa, length, write }, i) => {
      const last = i === buffers.length - 1;
      const flags = (write ? F_WRITE : 0) | (last ? 0 : F_NEXT);
      this.writeDescriptor(table, indices[i]!, gpa, length, flags, last ? 0 : indices[i + 1]!);
    });
  }
}
