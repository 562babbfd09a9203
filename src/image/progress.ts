/** What a long step (a download, a decompression) tells the person who waits for it. */

/** One step under way. `done` and `total` are bytes. */
export interface Step {
  update(done: number): void;
  /** Ends the step; its line stays, with the time it took. Calling it again does nothing. */
  finish(): void;
}

export interface Progress {
  /** Starts a step. With `total` (bytes) the line shows a percentage. */
  start(label: string, total?: number): Step;
}

const silentStep: Step = { update: () => {}, finish: () => {} };

/** Reports nothing. */
export const silentProgress: Progress = { start: () => silentStep };

/** Shortest time between two redraws of the line, ms. */
const REDRAW_INTERVAL = 100;

/** Where a progress line goes: `process.stderr` or a stand-in. */
export interface ProgressStream {
  readonly isTTY?: boolean;
  write(text: string): unknown;
}

function mebibytes(bytes: number): string {
  return `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}

/** One updating line a step if `stream` is a terminal; otherwise silent. `now` gives milliseconds. */
export function terminalProgress(
  stream: ProgressStream = process.stderr,
  now: () => number = () => performance.now(),
): Progress {
  if (!stream.isTTY) return silentProgress;
  return {
    start(label, total) {
      const started = now();
      let done = 0;
      let finished = false;
      let drawn = Number.NEGATIVE_INFINITY;
      const draw = () => {
        drawn = now();
        const parts = [label];
        if (done > 0) parts.push(mebibytes(done));
        if (total !== undefined && total > 0) {
          parts.push(`${Math.min(100, Math.floor((done / total) * 100))}%`);
        }
        parts.push(`${((drawn - started) / 1000).toFixed(1)} s`);
        stream.write(`\r\x1b[K${parts.join("  ")}`);
      };
      draw();
      // A step that says nothing for a while must still show that time passes.
      const timer = setInterval(draw, 500);
      return {
        update(bytes) {
          done = bytes;
          if (!finished && now() - drawn >= REDRAW_INTERVAL) draw();
        },
        finish() {
          if (finished) return;
          finished = true;
          clearInterval(timer);
          if (total !== undefined) done = total;
          draw();
          stream.write("\n");
        },
      };
    },
  };
}
