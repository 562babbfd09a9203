/** Workers of a microVM as the main thread sees them. */

import type { VcpuEvent, VmmEvent } from "./messages.ts";

/** Workers known to have ended. */
const gone = new WeakSet<Worker>();

/** Calls `report` when the worker's thread has ended, by itself or by {@link terminated}. */
export function onWorkerEnd(worker: Worker, report: () => void, signal?: AbortSignal): void {
  const ended = () => {
    gone.add(worker);
    report();
  };
  worker.addEventListener("close", ended, signal === undefined ? {} : { signal });
}

/** The worker's first message. Rejects if that is a failure, or if the worker ends without one. */
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
    const ended = () => {
      listening.abort();
      reject(new Error(`${name} failed to start: its thread ended without a word`));
    };
    onWorkerEnd(worker, ended, signal);
  });
}

/** Ends the worker, and resolves when its thread is gone. */
export function terminated(worker: Worker): Promise<void> {
  if (gone.has(worker)) return Promise.resolve();
  return new Promise((resolve) => {
    worker.addEventListener("close", () => resolve());
    worker.terminate();
  });
}
