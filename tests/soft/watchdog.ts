/** Worker that stops guests which do not end: a blocked thread cannot time out by itself. */
import { requestStop } from "../../src/hypervisor/soft/index.ts";

declare const self: Worker;

/** Longest a guest of these tests may run, in ms. */
const LIMIT_MS = 4000;

/** `since[0]`: when the run began, in ms of `Date.now()` modulo 2^31, or 0 between runs. */
interface Watched {
  memory: WebAssembly.Memory;
  since: Int32Array;
}

const watched: Watched[] = [];

self.onmessage = ({ data }: MessageEvent<Watched>) => {
  watched.push(data);
};

setInterval(() => {
  for (const { memory, since } of watched) {
    const began = Atomics.load(since, 0);
    if (began === 0) continue;
    const now = Date.now() & 0x7fff_ffff;
    if (now - began > LIMIT_MS) requestStop(memory);
  }
}, 500);
