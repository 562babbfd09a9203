/** Timers that a test moves on by hand, in whole milliseconds. */

import type { Timer, TimerSource } from "../rate-limiter.ts";

export class ManualTimers implements TimerSource {
  private time = 0;
  private readonly due = new Map<() => void, number>();

  now(): number {
    return this.time;
  }

  create(callback: () => void): Timer {
    return {
      set: (ms) => void this.due.set(callback, this.time + Math.ceil(ms)),
      cancel: () => void this.due.delete(callback),
    };
  }

  /** Lets `ms` pass and calls what is due, in order. */
  advance(ms: number): void {
    const end = this.time + ms;
    for (;;) {
      let first: [() => void, number] | undefined;
      for (const entry of this.due) if (first === undefined || entry[1] < first[1]) first = entry;
      if (first === undefined || first[1] > end) break;
      this.time = Math.max(this.time, first[1]);
      this.due.delete(first[0]);
      first[0]();
    }
    this.time = end;
  }
}
