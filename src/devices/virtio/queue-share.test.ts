import { expect, test } from "bun:test";
import { QUEUE_SHARE_BYTES, QueueShare } from "./queue-share.ts";

const position = { nextAvail: 0xffff, nextUsed: 7, shownUsed: 6, toldUsed: 5 };

function memory(): SharedArrayBuffer {
  return new SharedArrayBuffer(QUEUE_SHARE_BYTES + 8);
}

test("one side leaves what the other finds", () => {
  const shared = memory();
  const [here, there] = [new QueueShare(shared, 0), new QueueShare(shared, 0)];
  expect(here.position).toEqual({ nextAvail: 0, nextUsed: 0, shownUsed: 0, toldUsed: 0 });
  here.position = position;
  expect(there.position).toEqual(position);
});

test("the lock is held by one", () => {
  const shared = memory();
  const [here, there] = [new QueueShare(shared, 0), new QueueShare(shared, 0)];
  expect(here.tryLock()).toBe(true);
  expect(there.tryLock()).toBe(false);
  here.unlock();
  there.lock();
  expect(here.tryLock()).toBe(false);
});

test("each opening has a number of its own, and closed it has none", () => {
  const share = new QueueShare(memory(), 0);
  const seen = [share.epoch];
  for (let i = 0; i < 3; i++) {
    share.open();
    seen.push(share.epoch);
    share.open();
    seen.push(share.epoch);
    share.close();
    share.close();
    expect(share.epoch).toBe(0);
  }
  expect(new Set(seen).size).toBe(7);
});

test("two threads that want the lock all the time never have it together", async () => {
  const shared = memory();
  const times = 200_000;
  const worker = new Worker(new URL("./testing/locker.ts", import.meta.url));
  const done = new Promise((resolve) => worker.addEventListener("message", resolve));
  worker.postMessage({ shared, at: QUEUE_SHARE_BYTES, times });
  const share = new QueueShare(shared, 0);
  const counter = new Int32Array(shared, QUEUE_SHARE_BYTES, 1);
  for (let i = 0; i < times; i++) {
    share.lock();
    counter[0]!++;
    share.unlock();
  }
  await done;
  worker.terminate();
  expect(counter[0]).toBe(2 * times);
}, 60_000);
