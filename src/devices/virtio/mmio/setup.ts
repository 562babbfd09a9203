/** What the driver has set up, read from the registers that it wrote. */

import type { QueueSetup } from "../queue.ts";
import * as reg from "./registers.ts";

/** Of the features that were offered, those that the driver has accepted. */
export function driverFeatures(words: Int32Array): bigint {
  return both(words, reg.W_DRIVER_FEATURES) & both(words, reg.W_DEVICE_FEATURES);
}

/** Queue `index`, unchecked; undefined if it is not ready. Reads each register once: another vCPU may be writing them. */
export function queueSetup(words: Int32Array, index: number): QueueSetup | undefined {
  const queue = reg.queueWord(index);
  const get = (word: number) => Atomics.load(words, queue + word) >>> 0;
  const address = (word: number) => get(word) + get(word + 1) * 2 ** 32;
  if (get(reg.Q_READY) === 0) return undefined;
  return {
    size: get(reg.Q_NUM),
    maxSize: get(reg.Q_NUM_MAX),
    desc: address(reg.Q_DESC),
    driver: address(reg.Q_DRIVER),
    device: address(reg.Q_DEVICE),
  };
}

function both(words: Int32Array, word: number): bigint {
  const [low, high] = [Atomics.load(words, word) >>> 0, Atomics.load(words, word + 1) >>> 0];
  return BigInt(low) | (BigInt(high) << 32n);
}
