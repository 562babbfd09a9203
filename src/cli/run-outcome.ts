/** What came of a program run by `sparkler run`: follows the control port and decides the exit status. */

import { constants } from "node:os";
import type { MicrovmEnd } from "../vmm/microvm.ts";
import type { Timings } from "../vmm/timings.ts";
import { EXIT_ERROR, exitForSignal } from "./exit.ts";

/** Lines of the guest's console that are shown when it died. */
const TAIL_LINES = 20;

export class RunOutcome {
  private status: number | undefined;
  private failure: string | undefined;

  constructor(
    /** Wait for the guest to shut down by itself after the program has ended. */
    private readonly waitForShutdown: boolean,
    private readonly timings: Timings,
    private readonly stop: () => void,
  ) {}

  /** A line from the guest's init. Lines it does not know are ignored: the guest is not trusted. */
  control(line: string): void {
    const [, word, rest] = /^(\w+) ?(.*)$/.exec(line) ?? [];
    if (word === "ready") {
      this.timings.mark("program started");
    } else if (word === "exit" && this.status === undefined && /^\d{1,3}$/.test(rest!)) {
      this.timings.mark("program ended");
      this.status = Number(rest) & 0xff;
      if (!this.waitForShutdown) this.stop();
    } else if (word === "error" && this.failure === undefined) {
      this.failure = `the guest could not run the program: ${printable(rest!)}`;
    }
  }

  /**
   * stdout or stderr failed. A program whose reader is gone dies of SIGPIPE, and so does the run.
   */
  outputBroken(code: string, message: string): void {
    if (this.status !== undefined) return;
    if (code === "EPIPE") this.status = exitForSignal(constants.signals.SIGPIPE);
    else {
      this.status = EXIT_ERROR;
      this.failure = `the program's output cannot be written: ${message}`;
    }
    this.stop();
  }

  /** The network ended under the guest. */
  networkBroken(reason: string): void {
    if (this.status !== undefined) return;
    this.status = EXIT_ERROR;
    this.failure = reason;
    this.stop();
  }

  /** True if the exit status is known before the machine has ended. */
  get isDecided(): boolean {
    return this.status !== undefined;
  }

  /** Exit status (undefined: the program did not end) and what to say on stderr, if anything. */
  result({ end, consoleTail }: MicrovmEnd): { status: number | undefined; message: string | undefined } {
    if (this.status !== undefined) return { status: this.status, message: this.failure };
    if (this.failure !== undefined) return { status: EXIT_ERROR, message: this.failure };
    return { status: undefined, message: describeEnd(end, consoleTail) + tail(consoleTail) };
  }
}

function describeEnd(end: MicrovmEnd["end"], console: string): string {
  switch (end.kind) {
    case "reset": {
      const [, panic] = /Kernel panic - not syncing: (.*)/.exec(console) ?? [];
      if (panic === undefined) return "the guest restarted before the program ended.";
      return `the guest's kernel panicked before the program ended: ${printable(panic.trimEnd())}`;
    }
    case "stopped":
      return "the guest was stopped before the program ended.";
    case "shutdown":
      return `the guest stopped by a triple fault before the program ended: ${end.detail}`;
    case "error":
      return end.detail;
  }
}

function tail(console: string): string {
  const lines = console
    .split("\n")
    .map((line) => printable(line.trimEnd()))
    .filter((line) => line !== "");
  if (lines.length === 0) return "\nIt printed nothing; --console shows its kernel's log.";
  return `\nThe last lines of its console:\n${lines
    .slice(-TAIL_LINES)
    .map((line) => `  ${line}`)
    .join("\n")}`;
}

/** The guest's text without control characters, which could do things to a terminal. */
function printable(text: string): string {
  return [...text].map((c) => (/[\p{Cc}\p{Cf}]/u.test(c) ? "?" : c)).join("");
}
