/** When which step was done, for `--timings`. */

export interface Timing {
  readonly step: string;
  /** Milliseconds since the process started. */
  readonly at: number;
}

export class Timings {
  readonly marks: Timing[] = [];

  /** Notes that `step` is done. */
  mark(step: string): void {
    this.marks.push({ step, at: performance.now() });
  }

  /** One line a step: when it was done and how long it took since the one before, in ms. */
  toString(): string {
    let before = 0;
    return this.marks
      .map(({ step, at }) => {
        const took = at - before;
        before = at;
        return `${at.toFixed(1).padStart(10)} ms  +${took.toFixed(1).padStart(9)}  ${step}\n`;
      })
      .join("");
  }
}
