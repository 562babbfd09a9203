/**
 * Split virtqueue, device side (virtio 1.2, 2.7): the one place that distrusts the driver. What leaves here is
 * validated; what is malformed throws {@link QueueError}, after which the queue must not be used again.
 */

import type { GuestMemory, MemoryWindow } from "../../memory/guest-memory.ts";
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

/** How far a queue has been served: indices as in its rings. */
export interface QueuePosition {
  /** The next chain of the available ring. */
  readonly nextAvail: number;
  readonly nextUsed: number;
  /** The used index that the driver sees, and up to where it was asked whether it wants an interrupt. */
  readonly shownUsed: number;
  readonly toldUsed: number;
}

export interface QueueFeatures {
  readonly eventIdx: boolean;
  readonly indirect: boolean;
}

export class Queue {
  readonly size: number;
  private readonly descTable: MemoryWindow;
  private readonly descGpa: number;
  /** The rings as 16-bit words, for the atomic accesses to their indices. */
  private readonly avail: Uint16Array;
  private readonly used: Uint16Array;
  private readonly usedGpa: number;

  private nextAvail = 0;
  /** Where `avail.idx` was when last read. */
  private seenAvail = 0;
  private nextUsed = 0;
  private publishedUsed = 0;
  /** Up to where the driver was asked whether it wants an interrupt. */
  private toldUsed = 0;

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
    this.descGpa = setup.desc;
    this.avail = this.placeRing("available ring", setup.driver, AVAIL_RING + 2 * size + 2, AVAIL_ALIGN);
    this.used = this.placeRing("used ring", setup.device, USED_RING + USED_ELEM_BYTES * size + 2, USED_ALIGN);
    this.usedGpa = setup.device;
  }

  /** Of a queue that another thread serves too: what that leaves to this one. */
  get position(): QueuePosition {
    const { nextAvail, nextUsed, publishedUsed: shownUsed, toldUsed } = this;
    return { nextAvail, nextUsed, shownUsed, toldUsed };
  }

  set position({ nextAvail, nextUsed, shownUsed, toldUsed }: QueuePosition) {
    this.nextAvail = nextAvail;
    this.seenAvail = nextAvail;
    this.nextUsed = nextUsed;
    this.publishedUsed = shownUsed;
    this.toldUsed = toldUsed;
  }

  /** Takes the next available chain, or undefined if there is none. Throws {@link QueueError}. */
  pop(): DescriptorChain | undefined {
    if (this.nextAvail === this.seenAvail) {
      this.seenAvail = loadWord(this.avail, AVAIL_IDX);
      const waiting = (this.seenAvail - this.nextAvail) & 0xffff;
      if (waiting === 0) return undefined;
      if (waiting > this.size) {
        throw new QueueError(
          `available index jumped from ${this.nextAvail} to ${this.seenAvail} in a queue of ${this.size}`,
        );
      }
    }
    const slot = this.nextAvail & (this.size - 1);
    const head = this.avail[AVAIL_RING / 2 + slot]!;
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
   * {@link show}. Throws RangeError if the device claims more than there is room for.
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

  /** Shows completed chains to the driver. */
  show(): void {
    if (this.nextUsed === this.publishedUsed) return;
    this.publishedUsed = this.nextUsed;
    // Atomic: a fence between elements and index, and between the index and the driver's wish for an interrupt.
    this.storeUsedWord(USED_IDX, this.nextUsed);
  }

  /** Chains shown since {@link wantsInterrupt} was asked. */
  get untold(): number {
    return (this.publishedUsed - this.toldUsed) & 0xffff;
  }

  /** True if the driver wants an interrupt for what was shown since this was asked before (2.7.7, 2.7.10). */
  wantsInterrupt(): boolean {
    const count = this.untold;
    if (count === 0) return false;
    this.toldUsed = this.publishedUsed;
    if (!this.features.eventIdx) return (loadWord(this.avail, 0) & VIRTQ_AVAIL_F_NO_INTERRUPT) === 0;
    const usedEvent = loadWord(this.avail, AVAIL_RING + 2 * this.size);
    return ((this.publishedUsed - usedEvent - 1) & 0xffff) < count;
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
    return loadWord(this.avail, AVAIL_IDX) !== this.nextAvail;
  }

  private place(what: string, gpa: number, length: number, align: number): MemoryWindow {
    if (gpa % align !== 0) {
      throw new QueueError(`${what} at 0x${gpa.toString(16)} is not aligned to ${align} bytes`);
    }
    const window = this.memory.window(gpa, length);
    if (window === undefined) throw outsideRam(what, gpa, length);
    if (window.at(gpa) % align !== 0) {
      throw new QueueError(`guest memory does not start at a multiple of ${align} bytes`);
    }
    return window;
  }

  private placeRing(what: string, gpa: number, length: number, align: number): Uint16Array {
    const window = this.place(what, gpa, length, align);
    return new Uint16Array(window.buffer, window.at(gpa), length / 2);
  }

  private storeUsedWord(at: number, value: number): void {
    Atomics.store(this.used, at / 2, value);
    this.memory.reportWritten(this.usedGpa + at, 2);
  }

  /** Walks a chain. Each descriptor field is read once: the guest may be changing it. */
  private parse(head: number): DescriptorChain {
    const chain = new DescriptorChain(head, this.memory);
    let { view } = this.descTable;
    let table = this.descTable.at(this.descGpa);
    let tableSize = this.size;
    let inIndirect = false;
    let index = head;
    // Descriptors in an indirect table count too: a chain is never longer than the queue (2.7.5.3.1).
    for (let count = 0; ; ) {
      if (index >= tableSize) {
        throw new QueueError(`chain ${head}: descriptor ${index} of a table of ${tableSize}`);
      }
      const at = table + index * DESC_BYTES;
      const gpa = view.getUint32(at, true) + view.getUint32(at + 4, true) * 2 ** 32;
      const length = view.getUint32(at + DESC_LEN, true);
      const flags = view.getUint16(at + DESC_FLAGS, true);
      const next = view.getUint16(at + DESC_NEXT, true);
      if ((flags & VIRTQ_DESC_F_INDIRECT) !== 0) {
        if (!this.features.indirect) throw new QueueError(`chain ${head}: indirect table was not negotiated`);
        if (inIndirect) throw new QueueError(`chain ${head}: indirect table inside an indirect table`);
        if ((flags & VIRTQ_DESC_F_NEXT) !== 0) {
          throw new QueueError(`chain ${head}: descriptor ${index} is indirect and has a next one`);
        }
        if (length === 0 || length % DESC_BYTES !== 0) {
          throw new QueueError(`chain ${head}: indirect table of ${length} bytes is not whole descriptors`);
        }
        const window = this.memory.window(gpa, length);
        if (window === undefined) throw outsideRam(`chain ${head}: indirect table`, gpa, length);
        view = window.view;
        table = window.at(gpa);
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
    if (writable) {
      chain.writableLength += length;
    } else {
      if (chain.writable.length > 0) {
        throw new QueueError(`chain ${chain.head}: readable buffer after a writable one`);
      }
      chain.readableLength += length;
    }
    const buffers = writable ? chain.writable : chain.readable;
    const window = this.memory.window(gpa, length);
    if (window === undefined) this.appendPieces(chain.head, buffers, gpa, length);
    else if (length > 0) buffers.push(new GuestBuffer(window, gpa, length));
    if (chain.readableLength + chain.writableLength > MAX_CHAIN_BYTES) {
      throw new QueueError(`chain ${chain.head}: more than 2^32 bytes in total`);
    }
  }

  /** A buffer that no window shows whole becomes several. */
  private appendPieces(head: number, buffers: GuestBuffer[], gpa: number, length: number): void {
    if (!this.memory.contains(gpa, length)) throw outsideRam(`chain ${head}: buffer`, gpa, length);
    for (const piece of this.memory.pieces(gpa, length)) {
      buffers.push(new GuestBuffer(this.memory.window(piece.gpa, piece.size)!, piece.gpa, piece.size));
    }
  }
}

function outsideRam(what: string, gpa: number, length: number): QueueError {
  return new QueueError(`${what} at 0x${gpa.toString(16)}, ${length} bytes, is not inside RAM`);
}

function loadWord(ring: Uint16Array, at: number): number {
  return Atomics.load(ring, at / 2);
}
