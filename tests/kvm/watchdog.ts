/** Worker that stops a guest which runs too long. */

import { loadBackend } from "../../src/vmm/backend.ts";

declare const self: Worker;

interface Watch {
  readonly backend: string;
  readonly memory: WebAssembly.Memory;
  /** Word 0: 0 idle, 1 the guest runs, 2 it has ended. Word 1 is set when the guest was stopped. */
  readonly words: Int32Array;
  readonly ms: number;
}

self.onmessage = async ({ data: { backend, memory, words, ms } }: MessageEvent<Watch>) => {
  const { requestStop } = await loadBackend(backend);
  self.postMessage("ready");
  Atomics.wait(words, 0, 0);
  if (Atomics.wait(words, 0, 1, ms) === "timed-out") {
    Atomics.store(words, 1, 1);
    requestStop(memory);
  }
};
