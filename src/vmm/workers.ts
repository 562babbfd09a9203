/** Workers of a microVM as the main thread sees them. */

import type { VcpuEvent, VmmEvent } from "./messages.ts";

/** The worker's first message. Rejects if that is a failure. */
export function nextEvent<E extends VmmEvent | VcpuEvent>(worker: Worker, name: string): Promise<E> {
  return new Promise((resolve, reject) => {
    const listening = new AbortController();
    const { signal } = listening;
    worker.addEventListener(
      "message",
      ({ data }: MessageEvent<E>) => {
        listening.abort();
        if (data.kind === "failed") reject(new Error(`${name} failed to start: ${data.message}`));
        else resolve(data);
      },
      { signal },
    );
    worker.addEventListener(
      "error",
      ({ message }) => {
        listening.abort();
        reject(new Error(`${name} failed to start: ${message}`));
      },
      { signal },
    );
  });
}

/** Ends the worker, and resolves when its thread is gone. */
export function terminated(worker: Worker): Promise<void> {
  return new Promise((resolve) => {
    worker.addEventListener("close", () => resolve());
    worker.terminate();
  });
}
