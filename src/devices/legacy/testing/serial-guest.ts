/**
 * A guest on a thread of its own for the serial test: sends bytes as an interrupt-driven 8250 driver does, sleeping
 * on the interrupt whenever the transmitter is full. A lost doorbell or interrupt leaves both sides asleep.
 */

import { Serial } from "../serial.ts";

const [THR, IER, IIR, LSR] = [0, 1, 2, 5];
const IER_THRI = 0x02;
const LSR_THRE = 0x20;
const FIFO_BYTES = 16;

/** Words: doorbells rung, interrupts raised, time-outs of the guest, 1 when the guest is done. */
export const [W_BELLS, W_IRQS, W_STUCK, W_DONE] = [0, 1, 2, 3];

export interface SerialGuestJob {
  readonly shared: SharedArrayBuffer;
  readonly signals: SharedArrayBuffer;
  readonly total: number;
}

function run({ shared, signals, total }: SerialGuestJob): void {
  const words = new Int32Array(signals);
  const ring = (word: number): void => {
    Atomics.add(words, word, 1);
    Atomics.notify(words, word);
  };
  const port = new Serial(shared, 0, { trigger: () => ring(W_IRQS) }, () => ring(W_BELLS));
  port.write(IER, 1, IER_THRI);
  for (let sent = 0; sent < total; ) {
    const irqs = Atomics.load(words, W_IRQS);
    port.read(IIR, 1);
    if ((port.read(LSR, 1) & LSR_THRE) !== 0) {
      for (let i = 0; i < FIFO_BYTES && sent < total; i++) port.write(THR, 1, sent++ & 0xff);
    } else if (Atomics.wait(words, W_IRQS, irqs, 2000) === "timed-out") {
      Atomics.add(words, W_STUCK, 1);
      break;
    }
  }
  Atomics.store(words, W_DONE, 1);
  ring(W_BELLS);
}

declare const self: { onmessage: (event: MessageEvent<SerialGuestJob>) => void };
if (!Bun.isMainThread) self.onmessage = (event) => run(event.data);
