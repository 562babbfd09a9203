/** Runs batches of test cases on the processor of this host. */

import { spawnSync } from "node:child_process";
import {
  closeSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type CaseBatch, ResultBatch } from "./batch.ts";
import {
  HEADER_BYTES,
  HEADER_COUNT,
  HEADER_CURRENT,
  HEADER_DONE,
  HEADER_FPU,
  HEADER_STRIDE,
  HEADER_WINDOW,
} from "./layout.ts";
import { runnerExecutable } from "./program.ts";
import { EXIT_RUNNER_FAULT, EXIT_SETUP, SETUP_STEPS } from "./setup.ts";

/** Longest a batch may take. An endless loop costs at most 0.2 s of processor time. */
const DEFAULT_TIMEOUT_MS = 120_000;

/** Why cases cannot be run natively on this host, or undefined if they can. */
export function nativeUnsupported(): string | undefined {
  if (process.arch !== "x64") return `the processor is ${process.arch}, not x64`;
  if (process.platform !== "linux") return `the system is ${process.platform}, not linux`;
  return undefined;
}

/** A case killed the runner, or the runner could not start. */
export class NativeRunnerError extends Error {
  constructor(
    message: string,
    /** Index of the case that was being run, if it got that far. */
    readonly caseIndex: number | undefined,
  ) {
    super(message);
    this.name = "NativeRunnerError";
  }
}

/**
 * The host's processor as an oracle: one process per batch, which shares a temporary file with this one.
 * Needs x86-64 Linux (see {@link nativeUnsupported}). Holds a temporary directory until closed.
 *
 * ```ts
 * using runner = new NativeRunner();
 * const cases = new CaseBatch(1);
 * cases.setCode(0, [0x48, 0xff, 0xc0]); // inc rax
 * runner.run(cases).gpr(0, RAX); // 1n
 * ```
 */
export class NativeRunner {
  /** Temporary directory of the runner program and the batch file. */
  readonly directory: string;
  private readonly executable: string;
  private readonly file: number;
  private readonly onExit = (): void => this.close();
  private closed = false;

  /** Writes the runner program into a new temporary directory. Throws {@link NativeRunnerError} elsewhere. */
  constructor(private readonly timeoutMs = DEFAULT_TIMEOUT_MS) {
    const reason = nativeUnsupported();
    if (reason) throw new NativeRunnerError(`no native runner: ${reason}; replay stored vectors`, undefined);
    this.directory = mkdtempSync(join(tmpdir(), "oracle-"));
    this.executable = join(this.directory, "runner");
    writeFileSync(this.executable, runnerExecutable(), { mode: 0o700 });
    this.file = openSync(join(this.directory, "batch"), "w+", 0o600);
    process.once("exit", this.onExit);
  }

  /**
   * Runs every case. Throws RangeError on a malformed case and {@link NativeRunnerError} if the runner died,
   * naming the case it died in.
   */
  run(cases: CaseBatch): ResultBatch {
    if (this.closed) throw new Error("the native runner is closed: create a new one");
    cases.validate();
    const header = new DataView(new ArrayBuffer(HEADER_BYTES));
    header.setUint32(HEADER_COUNT, cases.count, true);
    header.setUint32(HEADER_FPU, cases.withFpu ? 1 : 0, true);
    header.setUint32(HEADER_STRIDE, cases.stride, true);
    header.setUint32(HEADER_WINDOW, cases.windowBytes, true);
    this.write(new Uint8Array(header.buffer), 0);
    this.write(cases.bytes, HEADER_BYTES);
    ftruncateSync(this.file, HEADER_BYTES + 2 * cases.bytes.length);

    const child = spawnSync(this.executable, [], {
      stdio: [this.file, "ignore", "ignore"],
      timeout: this.timeoutMs,
      killSignal: "SIGKILL",
      env: {},
    });
    if (child.error && child.status === null && child.signal === null) {
      throw new NativeRunnerError(
        `cannot start the runner in ${tmpdir()}: ${child.error.message}; set TMPDIR to where programs may run`,
        undefined,
      );
    }
    this.read(new Uint8Array(header.buffer), 0);
    if (child.status !== 0 || header.getUint32(HEADER_DONE, true) !== 1) {
      throw this.death(cases, child.status, child.signal, header.getUint32(HEADER_CURRENT, true));
    }
    const results = new ResultBatch(cases.count, cases);
    this.read(results.bytes, HEADER_BYTES + cases.bytes.length);
    return results;
  }

  /** Removes the temporary directory. */
  close(): void {
    if (this.closed) return;
    this.closed = true;
    process.removeListener("exit", this.onExit);
    closeSync(this.file);
    rmSync(this.directory, { recursive: true, force: true });
  }

  [Symbol.dispose](): void {
    this.close();
  }

  private death(cases: CaseBatch, status: number | null, signal: string | null, current: number): Error {
    if (status !== null && status >= EXIT_SETUP) {
      const step = SETUP_STEPS[status - EXIT_SETUP] ?? `step ${status}`;
      return new NativeRunnerError(`the runner could not start: ${step} failed`, undefined);
    }
    const how = signal ? `killed by ${signal}` : `exit status ${status}`;
    const why = status === EXIT_RUNNER_FAULT ? " (the runner itself faulted)" : "";
    return new NativeRunnerError(`the runner died, ${how}${why}, in ${cases.describe(current)}`, current);
  }

  private write(from: Uint8Array, position: number): void {
    for (let done = 0; done < from.length; ) {
      done += writeSync(this.file, from, done, from.length - done, position + done);
    }
  }

  private read(into: Uint8Array, position: number): void {
    for (let done = 0; done < into.length; ) {
      const n = readSync(this.file, into, done, into.length - done, position + done);
      if (n === 0)
        throw new Error("the batch file was cut short: is another program cleaning the directory?");
      done += n;
    }
  }
}
