/**
 * When the driver hears of frames that have left. It only frees their memory then, and does that by itself whenever it
 * sends or receives, so while much is moved an interrupt for each would cost a slow guest more than it is worth. But a
 * sender may wait for that memory, so none is kept back for long.
 */

import type { Timer, TimerSource } from "../../../ratelimit/rate-limiter.ts";
import type { DeviceQueue } from "../device.ts";

/** Bytes in both directions since the queue was last served from which on much is moved. */
const MUCH = 8192;
/** Longest time until the driver hears of a frame, ms. */
const DELAY = 0.2;
/** With this share of the queue waiting to be told, the driver may soon lack descriptors. */
const SHARE = 4;

export class TransmitInterrupts {
  private queue: DeviceQueue | undefined;
  private readonly timer: Timer;
  private waiting = false;
  private moved = 0;

  constructor(timers: TimerSource) {
    this.timer = timers.create(() => {
      this.waiting = false;
      this.queue?.interrupt();
    });
  }

  /** `queue` has been set up. */
  start(queue: DeviceQueue): void {
    this.queue = queue.holdInterrupts() ? queue : undefined;
  }

  stop(): void {
    this.queue = undefined;
    this.waiting = false;
    this.timer.cancel();
  }

  /** The queue has been served; `moved`: bytes in both directions since the device was made. */
  served(moved: number): void {
    const { queue } = this;
    if (queue === undefined) return;
    const little = moved - this.moved < MUCH;
    this.moved = moved;
    if (queue.untold === 0) return;
    if (little || queue.untold >= queue.size / SHARE) {
      queue.interrupt();
    } else if (!this.waiting) {
      this.waiting = true;
      this.timer.set(DELAY);
    }
  }
}
