/**
 * Split virtqueue, device side (virtio 1.2, 2.7): the one place that distrusts the driver. What leaves here is
 * validated; what is malformed throws {@link QueueError}, after which the queue must not be used again.
 */

import type { GuestMemory } from "../../memory/guest-memory.ts";
import { DescriptorChain, GuestBuffer } from "./chain.ts";

/** Descriptor (virtio 1.2, 2.7.5). */
const DESC_BYTES = 16;
const DESC_LEN = 8;
const DESC_FLAGS = 12;
const DESC_NEXT = 14;
const VIRTQ_DESC_F_NEXT = 1;
const VIRTQ_DESC_F_WRITE = 2;
const VIRTQ_DESC_F_INDIRECT = 4;

/** Available ring (2.7.6): flags, idx, ring[size], used_event. */
const AVAIL_IDX = 2;
const AVAIL_RING = 4;
const VIRTQ_AVAIL_F_NO_INTERRUPT = 1;

/** Used ring (2.7.8): flags, idx, {id, len}[size], avail_event. */
const USED_IDX = 2;
const USED_RING = 4;
const USED_ELEM_BYTES = 8;
const VIRTQ_USED_F_NO_NOTIFY = 1;

const DESC_ALIGN = 16;
const AVAIL_ALIGN = 2;
const USED_ALIGN = 4;

const MAX_QUEUE_SIZE = 32768;
/** A chain must not be longer than this in total (2.7.5). */
const MAX_CHAIN_BYTES = 2 ** 32;

/** The driver broke the rules of the virtqueue. The message says which and where. */
export class QueueError extends Error {
  constructor(message: string) {
    super(message);
    this.name = "QueueError";
  }
}

/** A queue as the driver has set it up. Addresses are guest-physical. Nothing here has been checked. */
export interface QueueSetup {
  readonly size: number;
  readonly maxSize: number;
  readonly desc: number;
  /** Available ring ("driver area"). */
  readonly driver: number;
  /** Used ring ("device area"). */
  readonly device: number;
}

export interface QueueFeatures {
  readonly eventIdx: boolean;
  readonly indirect: boolean;
}

export class Queue {
  readonly size: number;
  private readonly view: DataView;
  /** The whole buffer as 16-bit words, for the atomic accesses to ring indices. */
  private readonly words: Uint16Array;
  /** Offsets in the buffer. */
  private readonly descTable: number;
  private readonly avail: number;
  private readonly used: number;
  private readonly usedGpa: number;

  private nextAvail = 0;
  /** Where `avail.idx` was when last read. */
  private seenAvail = 0;
  private nextUsed = 0;
  private publishedUsed = 0;

  /** Throws {@link QueueError} if size, alignment or place of the rings is wrong. */
  constructor(
    private readonly memory: GuestMemory,
    setup: QueueSetup,
    private readonly features: QueueFeatures,
  ) {
    const { size, maxSize } = setup;
    if (size < 1 || size > Math.min(maxSize, MAX_QUEUE_SIZE) || (size & (size - 1)) !== 0) {
      throw new QueueError(`queue size ${size} is not a power of two from 1 to ${maxSize}`);
    }
    this.size = size;
    this.descTable = this.place("descriptor table", setup.desc, size * DESC_BYTES, DESC_ALIGN);
    this.avail = this.place("available ring", setup.driver, AVAIL_RING + 2 * size + 2, AVAIL_ALIGN);
    this.used = this.place("used ring", setup.device, USED_RING + USED_ELEM_BYTES * size + 2, USED_ALIGN);
    this.usedGpa = setup.device;
    const { buffer } = memory.layout;
    this.view = new DataView(buffer);
    this.words = new Uint16Array(buffer, 0, Math.floor(buffer.byteLength / 2));
  }

  /** Takes the next available chain, or undefined if there is none. Throws {@link QueueError}. */
  pop(): DescriptorChain | undefined {
    if (this.nextAvail === this.seenAvail) {
      this.seenAvail = this.loadWord(this.avail + AVAIL_IDX);
      const waiting = (this.seenAvail - this.nextAvail) & 0xffff;
      if (waiting === 0) return undefined;
      if (waiting > this.size) {
        throw new QueueError(
          `available index jumped from ${this.nextAvail} to ${this.seenAvail} in a queue of ${this.size}`,
        );
      }
    }
    const slot = this.nextAvail & (this.size - 1);
    const head = this.view.getUint16(this.avail + AVAIL_RING + 2 * slot, true);
    const chain = this.parse(head);
    this.nextAvail = (this.nextAvail + 1) & 0xffff;
    return chain;
  }

  /** Gives back the chain of the last `pop`, which must not have been completed: `pop` returns it again. */
  undoPop(): void {
    this.nextAvail = (this.nextAvail - 1) & 0xffff;
  }

  /**
   * Completes a chain of which the first `written` writable bytes were written. The driver sees it after
   * {@link publish}. Throws RangeError if the device claims more than there is room for.
   */
  complete(chain: DescriptorChain, written: number): void {
    if (!(written >= 0 && written <= chain.writableLength)) {
      throw new RangeError(`${written} bytes written to a chain with room for ${chain.writableLength}`);
    }
    chain.reportWritten(written);
    const slot = this.usedGpa + USED_RING + USED_ELEM_BYTES * (this.nextUsed & (this.size - 1));
    this.memory.writeU32(slot, chain.head);
    this.memory.writeU32(slot + 4, written);
    this.nextUsed = (this.nextUsed + 1) & 0xffff;
  }

  /** Shows completed chains to the driver. True if it wants an interrupt for them (2.7.7, 2.7.10). */
  publish(): boolean {
    if (this.nextUsed === this.publishedUsed) return false;
    const before = this.publishedUsed;
    this.publishedUsed = this.nextUsed;
    // Atomic stores and loads are fences: elements before index, and index before the driver's wish.
    this.storeUsedWord(USED_IDX, this.nextUsed);
    if (!this.features.eventIdx) return (this.loadWord(this.avail) & VIRTQ_AVAIL_F_NO_INTERRUPT) === 0;
    const usedEvent = this.loadWord(this.avail + AVAIL_RING + 2 * this.size);
    return ((this.nextUsed - usedEvent - 1) & 0xffff) < ((this.nextUsed - before) & 0xffff);
  }

  /** Asks the driver for no notifications while the queue is being served anyway. A hint only. */
  disableNotify(): void {
    // With EVENT_IDX an index that is not moved on does the same.
    if (!this.features.eventIdx) this.storeUsedWord(0, VIRTQ_USED_F_NO_NOTIFY);
  }

  /** Asks for a notification of the next buffer. True if one came meanwhile: serve on, none will be sent. */
  enableNotify(): boolean {
    if (this.features.eventIdx) {
      this.storeUsedWord(USED_RING + USED_ELEM_BYTES * this.size, this.nextAvail);
    } else {
      this.storeUsedWord(0, 0);
    }
    return this.loadWord(this.avail + AVAIL_IDX) !== this.nextAvail;
  }

  private place(what: string, gpa: number, length: number, align: number): number {
    if (gpa % align !== 0) {
      throw new QueueError(`${what} at 0x${gpa.toString(16)} is not aligned to ${align} bytes`);
    }
    const at = this.locate(what, gpa, length);
    if (at % align !== 0) throw new QueueError(`guest memory does not start at a multiple of ${align} bytes`);
    return at;
  }

  private locate(what: string, gpa: number, length: number): number {
    if (!this.memory.contains(gpa, length)) {
      throw new QueueError(`${what} at 0x${gpa.toString(16)}, ${length} bytes, is not inside RAM`);
    }
    return this.memory.offset(gpa, length);
  }

  private loadWord(offset: number): number {
    return Atomics.load(this.words, offset / 2);
  }

  private storeUsedWord(at: number, value: number): void {
    Atomics.store(this.words, (this.used + at) / 2, value);
    this.memory.fill(this.usedGpa + at, 2, nothing);
  }

  /** Walks a chain. Each descriptor field is read once: the guest may be changing it. */
  private parse(head: number): DescriptorChain {
    const chain = new DescriptorChain(head, this.memory);
    let table = this.descTable;
    let tableSize = this.size;
    let inIndirect = false;
    let index = head;
    // Descriptors in an indirect table count too: a chain is never longer than the queue (2.7.5.3.1).
    for (let count = 0; ; ) {
      if (index >= tableSize) {
        throw new QueueError(`chain ${head}: descriptor ${index} of a table of ${tableSize}`);
      }
      const at = table + index * DESC_BYTES;
      const gpa = this.view.getUint32(at, true) + this.view.getUint32(at + 4, true) * 2 ** 32;
      const length = this.view.getUint32(at + DESC_LEN, true);
      const flags = this.view.getUint16(at + DESC_FLAGS, true);
      const next = this.view.getUint16(at + DESC_NEXT, true);
      if ((flags & VIRTQ_DESC_F_INDIRECT) !== 0) {
        if (!this.features.indirect) throw new QueueError(`chain ${head}: indirect table was not negotiated`);
        if (inIndirect) throw new QueueError(`chain ${head}: indirect table inside an indirect table`);
        if ((flags & VIRTQ_DESC_F_NEXT) !== 0) {
          throw new QueueError(`chain ${head}: descriptor ${index} is indirect and has a next one`);
        }
        if (length === 0 || length % DESC_BYTES !== 0) {
          throw new QueueError(`chain ${head}: indirect table of ${length} bytes is not whole descriptors`);
        }
        table = this.locate(`chain ${head}: indirect table`, gpa, length);
        tableSize = length / DESC_BYTES;
        inIndirect = true;
        index = 0;
        continue;
      }
      if (++count > this.size) throw new QueueError(`chain ${head}: longer than the queue, or a loop`);
      this.append(chain, gpa, length, (flags & VIRTQ_DESC_F_WRITE) !== 0);
      if ((flags & VIRTQ_DESC_F_NEXT) === 0) return chain;
      index = next;
    }
  }

  private append(chain: DescriptorChain, gpa: number, length: number, writable: boolean): void {
    const offset = this.locate(`chain ${chain.head}: buffer`, gpa, length);
    if (writable) {
      chain.writableLength += length;
      if (length > 0) chain.writable.push(new GuestBuffer(this.memory, gpa, length, offset));
    } else {
      if (chain.writable.length > 0) {
        throw new QueueError(`chain ${chain.head}: readable buffer after a writable one`);
      }
      chain.readableLength += length;
      if (length > 0) chain.readable.push(new GuestBuffer(this.memory, gpa, length, offset));
    }
    if (chain.readableLength + chain.writableLength > MAX_CHAIN_BYTES) {
      throw new QueueError(`chain ${chain.head}: more than 2^32 bytes in total`);
    }
  }
}

function nothing(): void {}
