/** Where the time of a vCPU's thread goes, measured when somebody wants to know: the clock costs some 40 ns a look. */
import { EXIT } from "./layout.ts";

/** What code does in TypeScript on its way. */
export type Detour = "slow accesses" | "helpers";

export class Times {
  /** Milliseconds in code, its detours included, and dealing with each exit, compiling included. */
  private code = 0;
  private readonly exits = new Float64Array(Object.keys(EXIT).length);
  private readonly detours: Record<Detour, number> = { "slow accesses": 0, helpers: 0 };
  private compiling = 0;
  /** The exit being dealt with. What comes before the first is the start's. */
  private exit: number = EXIT.attention;
  private since = performance.now();
  private compiled = 0;

  /** Code is entered at `now`; `compiled`: milliseconds spent compiling so far. */
  entered(now: number, compiled: number): void {
    const compiling = compiled - this.compiled;
    this.compiled = compiled;
    this.compiling += compiling;
    this.exits[this.exit]! += now - this.since - compiling;
    this.since = now;
  }

  /** It has been left with an EXIT code. */
  left(now: number, exit: number): void {
    this.code += now - this.since;
    this.since = now;
    this.exit = exit;
  }

  /** Makes a function count its time as a detour of code's. */
  detour<A extends unknown[], R>(kind: Detour, work: (...args: A) => R): (...args: A) => R {
    return (...args) => {
      const start = performance.now();
      const result = work(...args);
      this.detours[kind] += performance.now() - start;
      return result;
    };
  }

  /** Milliseconds by what they were spent on, each in one place only. */
  report(): Record<string, number> {
    const detours = Object.entries(this.detours);
    const out: Record<string, number> = {
      code: this.code - detours.reduce((sum, [, time]) => sum + time, 0),
      ...Object.fromEntries(detours),
      compiling: this.compiling,
    };
    for (const [name, code] of Object.entries(EXIT)) {
      if (code !== EXIT.returned) out[`exits: ${name}`] = this.exits[code]!;
    }
    return out;
  }
}
