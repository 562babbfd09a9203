/** A thread that takes the lock of a queue many times, to count in memory that only the lock protects. */

import { QueueShare } from "../queue-share.ts";

declare const self: Worker;

self.onmessage = ({ data }: MessageEvent<{ shared: SharedArrayBuffer; at: number; times: number }>) => {
  const share = new QueueShare(data.shared, 0);
  const counter = new Int32Array(data.shared, data.at, 1);
  for (let i = 0; i < data.times; i++) {
    share.lock();
    counter[0]!++;
    share.unlock();
  }
  self.postMessage("done");
};
