/**
 * How any thread tells the vmm thread that there is work: bits in shared memory, and an eventfd write only
 * when the vmm thread is asleep. A write and the wake-up behind it cost 3 to 20 us; a bit costs nothing while the
 * vmm thread is still busy.
 */

import type { EventFd } from "../platform/eventfd.ts";

/** Slots of work. Virtio device `i` has slot {@link SLOT_VIRTIO} + i and one bit per queue. */
export const SLOT_CONTROL = 0;
/** One bit per vCPU with a request in its mailbox. */
export const SLOT_MAILBOX = 1;
export const SLOT_SERIAL = 2;
export const SLOT_VIRTIO = 3;

/** Bits of {@link SLOT_CONTROL}. */
export const CONTROL_STOP = 0;
export const CONTROL_CTRL_ALT_DEL = 1;
/** A VmmCommand waits in the vmm thread's message port. */
export const CONTROL_COMMAND = 2;
/** A vCPU has sent a message to the main thread, which may be the one that serves the devices. */
export const CONTROL_MESSAGE = 3;

/** Words of the shared region. */
const ASLEEP = 0;
const PENDING = 1;
const BITS = 2;
export const MAX_SLOTS = 32;
/** Counts {@link CONTROL_MESSAGE}. */
const MESSAGES = BITS + MAX_SLOTS;
const WORDS = MESSAGES + 1;
export const DOORBELL_SHARED_BYTES = 192;

export class Doorbell {
  private readonly words: Int32Array;

  /** `wake` is the eventfd in the vmm thread's epoll set; `offset` is in bytes, a multiple of 4. */
  constructor(
    shared: SharedArrayBuffer,
    offset: number,
    private readonly wake: EventFd,
  ) {
    this.words = new Int32Array(shared, offset, WORDS);
  }

  /** Any thread: there is work of kind `bit` (0-31) in `slot`. */
  ring(slot: number, bit: number): void {
    const { words } = this;
    Atomics.or(words, BITS + slot, 1 << bit);
    Atomics.or(words, PENDING, 1 << slot);
    // Sequentially consistent with sleep(): either it sees PENDING, or this sees ASLEEP.
    if (Atomics.load(words, ASLEEP) !== 0 && Atomics.exchange(words, ASLEEP, 0) !== 0) this.wake.signal();
  }

  /** vCPU thread: a message has been sent to the main thread. */
  ringForMessage(): void {
    Atomics.add(this.words, MESSAGES, 1);
    this.ring(SLOT_CONTROL, CONTROL_MESSAGE);
  }

  /** How many messages have been sent to the main thread. */
  get messages(): number {
    return Atomics.load(this.words, MESSAGES);
  }

  /** vmm thread: takes all slots with work, as a bit mask. */
  takeSlots(): number {
    return Atomics.load(this.words, PENDING) === 0 ? 0 : Atomics.exchange(this.words, PENDING, 0);
  }

  /** vmm thread: takes the work bits of a slot. */
  takeBits(slot: number): number {
    return Atomics.exchange(this.words, BITS + slot, 0);
  }

  /** vmm thread: true if there is work. */
  get rung(): boolean {
    return Atomics.load(this.words, PENDING) !== 0;
  }

  /**
   * vmm thread: runs `sleep` so that a ring during it reaches `wake`. `mayBlock` is false if work is already
   * there: then `sleep` must only look.
   */
  sleep(sleep: (mayBlock: boolean) => void): void {
    Atomics.store(this.words, ASLEEP, 1);
    try {
      sleep(Atomics.load(this.words, PENDING) === 0);
    } finally {
      Atomics.store(this.words, ASLEEP, 0);
    }
  }
}
