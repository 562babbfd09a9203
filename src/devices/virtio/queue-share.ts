/**
 * A queue that two threads serve in turn: the device's own, and the vCPU's, which does simple requests while it is
 * notifying anyway. Who has the lock has the queue, and leaves in shared memory how far it has come.
 */

import type { QueuePosition } from "./queue.ts";

/** Words of the shared region. */
const LOCK = 0;
/** Odd while the vCPU's thread may serve; another number after each change of queue or device. */
const EPOCH = 1;
const NEXT_AVAIL = 2;
const NEXT_USED = 3;
const SHOWN_USED = 4;
const TOLD_USED = 5;
const WORDS = 8;
/** Bytes of the region that are this class's. Its user's begin there. */
export const QUEUE_SHARE_BYTES = 4 * WORDS;

const FREE = 0;
const TAKEN = 1;
/** Taken, and somebody sleeps until it is free. */
const AWAITED = 2;
/** Looks before sleeping: some 10 us. */
const SPIN_ROUNDS = 2000;
/** Many times what the other thread needs, ms. */
const LONGEST_WAIT = 2000;

export class QueueShare {
  private readonly words: Int32Array;

  /** `offset`: in bytes, a multiple of 8; the region there must be zero at first. */
  constructor(shared: SharedArrayBuffer, offset: number) {
    this.words = new Int32Array(shared, offset, WORDS);
  }

  /** Takes the lock if it is free. */
  tryLock(): boolean {
    return Atomics.compareExchange(this.words, LOCK, FREE, TAKEN) === FREE;
  }

  /** Waits for the lock. Whoever has it does not keep it for longer than a few requests take. */
  lock(): void {
    for (let i = 0; i < SPIN_ROUNDS; i++) if (this.tryLock()) return;
    while (Atomics.exchange(this.words, LOCK, AWAITED) !== FREE) {
      // A thread that was terminated with the lock will not give it back.
      if (Atomics.wait(this.words, LOCK, AWAITED, LONGEST_WAIT) === "timed-out") return;
    }
  }

  unlock(): void {
    if (Atomics.exchange(this.words, LOCK, FREE) === AWAITED) Atomics.notify(this.words, LOCK, 1);
  }

  /** With the lock: changes when {@link open} or {@link close} is called. 0: the vCPU's thread may not serve. */
  get epoch(): number {
    const epoch = Atomics.load(this.words, EPOCH);
    return (epoch & 1) === 0 ? 0 : epoch;
  }

  /** With the lock: from now on the vCPU's thread may serve the queue as it is set up now. */
  open(): void {
    Atomics.store(this.words, EPOCH, (Atomics.load(this.words, EPOCH) | 1) + 2);
  }

  /** With the lock: from now on it may not. */
  close(): void {
    const epoch = Atomics.load(this.words, EPOCH);
    if ((epoch & 1) !== 0) Atomics.store(this.words, EPOCH, epoch + 1);
  }

  /** With the lock: how far the queue has been served. */
  get position(): QueuePosition {
    const { words } = this;
    return {
      nextAvail: words[NEXT_AVAIL]!,
      nextUsed: words[NEXT_USED]!,
      shownUsed: words[SHOWN_USED]!,
      toldUsed: words[TOLD_USED]!,
    };
  }

  set position({ nextAvail, nextUsed, shownUsed, toldUsed }: QueuePosition) {
    const { words } = this;
    words[NEXT_AVAIL] = nextAvail;
    words[NEXT_USED] = nextUsed;
    words[SHOWN_USED] = shownUsed;
    words[TOLD_USED] = toldUsed;
  }
}
