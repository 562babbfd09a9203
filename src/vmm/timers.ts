/** Timers of the vmm thread: a heap by time, whose earliest one limits how long the thread sleeps. */

import type { Timer, TimerSource } from "../ratelimit/rate-limiter.ts";

const UNSET = -1;
/** Taken out of the heap to be called. */
const DUE = -2;

interface Entry {
  readonly callback: () => void;
  at: number;
  /** Place in the heap, {@link UNSET} or {@link DUE}. */
  place: number;
}

export class Timers implements TimerSource {
  private readonly heap: Entry[] = [];

  now(): number {
    return performance.now();
  }

  create(callback: () => void): Timer {
    const entry: Entry = { callback, at: 0, place: UNSET };
    return {
      set: (ms) => {
        entry.at = this.now() + ms;
        if (entry.place < 0) {
          entry.place = this.heap.length;
          this.heap.push(entry);
        }
        this.settle(entry);
      },
      cancel: () => this.remove(entry),
    };
  }

  /** Time until the earliest timer, ms; -1 if none is set. */
  get timeout(): number {
    const first = this.heap[0];
    return first === undefined ? -1 : Math.max(0, first.at - this.now());
  }

  /** Calls what is due. What callbacks set anew for now is left to the next call. */
  fire(): void {
    if (this.heap.length === 0) return;
    const now = this.now();
    const due: Entry[] = [];
    for (let first = this.heap[0]; first !== undefined && first.at <= now; first = this.heap[0]) {
      this.remove(first);
      first.place = DUE;
      due.push(first);
    }
    for (const entry of due) {
      // Set anew or cancelled by a callback before it.
      if (entry.place !== DUE) continue;
      entry.place = UNSET;
      entry.callback();
    }
  }

  private remove(entry: Entry): void {
    const { place } = entry;
    entry.place = UNSET;
    if (place < 0) return;
    const last = this.heap.pop()!;
    if (last === entry) return;
    this.put(last, place);
    this.settle(last);
  }

  private put(entry: Entry, place: number): void {
    entry.place = place;
    this.heap[place] = entry;
  }

  /** Moves an entry up or down to where its time belongs. */
  private settle(entry: Entry): void {
    const { heap } = this;
    let { place } = entry;
    while (place > 0) {
      const above = heap[(place - 1) >> 1]!;
      if (above.at <= entry.at) break;
      this.put(above, place);
      place = (place - 1) >> 1;
    }
    for (;;) {
      let child = 2 * place + 1;
      if (child + 1 < heap.length && heap[child + 1]!.at < heap[child]!.at) child++;
      if (child >= heap.length || heap[child]!.at >= entry.at) break;
      this.put(heap[child]!, place);
      place = child;
    }
    this.put(entry, place);
  }
}
