import { expect, test } from "bun:test";
import { SERIAL_SHARED_BYTES, SerialBack } from "./serial.ts";
import { type SerialGuestJob, W_BELLS, W_DONE, W_IRQS, W_STUCK } from "./testing/serial-guest.ts";

test("two threads: every byte arrives once, and nobody sleeps through a signal", () => {
  const shared = new SharedArrayBuffer(SERIAL_SHARED_BYTES);
  const signals = new SharedArrayBuffer(64);
  const words = new Int32Array(signals);
  const total = 1_000_000;
  const back = new SerialBack(shared, 0, {
    trigger: () => {
      Atomics.add(words, W_IRQS, 1);
      Atomics.notify(words, W_IRQS);
    },
  });
  const worker = new Worker(new URL("./testing/serial-guest.ts", import.meta.url).href);
  worker.postMessage({ shared, signals, total } satisfies SerialGuestJob);
  let got = 0;
  let wrong = 0;
  for (let bells = 0; ; ) {
    if (Atomics.wait(words, W_BELLS, bells, 5000) === "timed-out")
      throw new Error(`asleep after ${got} bytes`);
    bells = Atomics.load(words, W_BELLS);
    const done = Atomics.load(words, W_DONE) === 1;
    back.drain((bytes) => {
      for (const byte of bytes) if (byte !== (got++ & 0xff)) wrong++;
    });
    if (done) break;
  }
  worker.terminate();
  expect({ got, wrong, stuck: words[W_STUCK], lost: back.lostOutput }).toEqual({
    got: total,
    wrong: 0,
    stuck: 0,
    lost: 0,
  });
}, 30_000);
