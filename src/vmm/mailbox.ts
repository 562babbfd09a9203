/**
 * Synchronous calls from a vCPU thread to the vmm thread: driver-ok, reset, config writes. Rare, but the
 * guest must see them done when its write returns. The caller spins shortly, since a sleeping hop costs about
 * 40 us, then sleeps.
 */

import { type Doorbell, SLOT_MAILBOX } from "./doorbell.ts";

/** Words of one vCPU's mailbox. */
const STATE = 0;
const DEVICE = 1;
const COMMAND = 2;
const ARG0 = 3;
const ARG1 = 4;
const WORDS = 16;
export const MAILBOX_SHARED_BYTES = WORDS * 4;

const IDLE = 0;
const REQUEST = 1;
/** Looks before sleeping: about 30 us. */
const SPIN_ROUNDS = 10_000;

/** What the vmm thread does with a call: `device` is the virtio device's index, the rest is its transport's. */
export type MailboxHandler = (device: number, command: number, arg0: number, arg1: number) => void;

export class Mailbox {
  private readonly words: Int32Array;

  constructor(
    shared: SharedArrayBuffer,
    offset: number,
    private readonly vcpu: number,
    private readonly doorbell: Doorbell,
  ) {
    this.words = new Int32Array(shared, offset, WORDS);
  }

  /** vCPU thread: returns when the vmm thread has done it. Arguments are unsigned 32-bit. */
  call(device: number, command: number, arg0: number, arg1: number): void {
    const { words } = this;
    words[DEVICE] = device;
    words[COMMAND] = command;
    words[ARG0] = arg0;
    words[ARG1] = arg1;
    Atomics.store(words, STATE, REQUEST);
    this.doorbell.ring(SLOT_MAILBOX, this.vcpu);
    for (let i = 0; i < SPIN_ROUNDS; i++) if (Atomics.load(words, STATE) === IDLE) return;
    while (Atomics.load(words, STATE) !== IDLE) Atomics.wait(words, STATE, REQUEST);
  }

  /** vmm thread: does the waiting call, if there is one. The caller is released even if `handle` throws. */
  serve(handle: MailboxHandler): void {
    const { words } = this;
    if (Atomics.load(words, STATE) !== REQUEST) return;
    try {
      handle(words[DEVICE]!, words[COMMAND]!, words[ARG0]! >>> 0, words[ARG1]! >>> 0);
    } finally {
      Atomics.store(words, STATE, IDLE);
      Atomics.notify(words, STATE);
    }
  }
}
