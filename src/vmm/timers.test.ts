import { expect, test } from "bun:test";
import { Random } from "../devices/virtio/testing/fuzz.ts";
import { Timers } from "./timers.ts";

class SteppedTimers extends Timers {
  time = 0;

  override now(): number {
    return this.time;
  }
}

test("timers fire once each, in the order of their times, however they are set, moved and cancelled", () => {
  const random = new Random(5);
  for (let round = 0; round < 50; round++) {
    const timers = new SteppedTimers();
    const fired: number[] = [];
    const wanted = new Map<number, number>();
    const all = Array.from({ length: 40 }, (_, id) => timers.create(() => void fired.push(id)));
    for (let step = 0; step < 200; step++) {
      const id = random.below(all.length);
      if (random.chance(4)) {
        all[id]!.cancel();
        wanted.delete(id);
      } else {
        // Distinct times, so that there is only one right order.
        const at = random.below(1000) + id / 64;
        all[id]!.set(at);
        wanted.set(id, at);
      }
    }
    const order = [...wanted].sort(([, a], [, b]) => a - b);
    expect(timers.timeout).toBe(order[0]![1]);
    timers.time = 500;
    timers.fire();
    expect(fired).toEqual(order.filter(([, at]) => at <= 500).map(([id]) => id));
    timers.time = 1001;
    timers.fire();
    expect(fired).toEqual(order.map(([id]) => id));
    expect(timers.timeout).toBe(-1);
  }
});

test("a callback may set its own timer again and cancel others", () => {
  const timers = new SteppedTimers();
  let count = 0;
  const other = timers.create(() => {
    throw new Error("was cancelled");
  });
  const again = timers.create(() => {
    count++;
    other.cancel();
    again.set(0);
  });
  again.set(1);
  other.set(2);
  timers.time = 3;
  timers.fire();
  expect(count).toBe(1);
  expect(timers.timeout).toBe(0);
  timers.fire();
  expect(count).toBe(2);
});
