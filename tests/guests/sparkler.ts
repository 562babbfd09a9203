/** Runs `bin/sparkler` as a user does, in a directory for temporary files of its own, and notes how long it took. */

import { mkdtempSync, readdirSync, readFileSync, realpathSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

export const SPARKLER = new URL("../../bin/sparkler", import.meta.url).pathname;

/** A guest that takes longer hangs, ms; on an idle machine one takes a few seconds. */
const GUEST_LIMIT = 90_000;
/** Time for a test with one guest, ms. */
export const TEST_LIMIT = GUEST_LIMIT + 10_000;

/** Name of the environment variable by which processes of one run are found again. */
const MARK = "SPARKLER_TEST_RUN";

export type Child = Bun.Subprocess<"pipe" | "ignore", "pipe", "pipe">;

export interface RunOptions {
  /** Sent to stdin, which then ends. Left out: stdin is /dev/null. */
  stdin?: Uint8Array | string;
  env?: Record<string, string>;
  /** A program that starts the monitor, e.g. in a network namespace, and its arguments. */
  prefix?: readonly string[];
  /** ms after which the monitor is killed, {@link GUEST_LIMIT} if left out. */
  limit?: number;
}

export interface Result {
  /** Exit status, or the signal that killed the monitor. */
  code: number | string;
  stdout: Buffer;
  stderr: string;
  stderrBytes: Buffer;
  /** Wall time, ms. */
  ms: number;
  /** Names that were left in the directory for temporary files. */
  leftFiles: string[];
  /** Command lines of processes of this run that are still there. */
  leftProcesses: string[];
}

const timings: string[] = [];

/** Those of a test file that did not wait for their end. */
const running = new Set<Started>();

/** Prints what the runs of a test file took, and ends those that a failed test left. For `afterAll`. */
export function finishRuns(): void {
  for (const started of running) started.abandon();
  running.clear();
  process.stderr.write(timings.splice(0).join(""));
}

/** A directory below the temporary one. `remove` takes it away again. */
export function temporaryDirectory(): { path: string; remove: () => void } {
  const path = realpathSync(mkdtempSync(join(tmpdir(), "sparkler-guests-")));
  return { path, remove: () => rmSync(path, { recursive: true, force: true }) };
}

/** A monitor that was started. */
export class Started {
  private readonly began = performance.now();
  private readonly temporary = temporaryDirectory();
  private readonly mark = `${process.pid}-${this.temporary.path}`;
  readonly child: Child;
  private readonly chunks: AsyncIterator<Uint8Array>;
  private readonly stderr: Promise<Uint8Array>;
  private readonly timer: ReturnType<typeof setTimeout>;
  private output = Buffer.alloc(0);
  /** Bytes of `output` that {@link expect} has gone past. */
  private seen = 0;

  constructor(
    private readonly argv: readonly string[],
    stdin: "pipe" | "ignore",
    { env = {}, limit = GUEST_LIMIT, prefix = [] }: Pick<RunOptions, "env" | "limit" | "prefix"> = {},
  ) {
    this.child = Bun.spawn([...prefix, SPARKLER, ...argv], {
      stdin,
      stdout: "pipe",
      stderr: "pipe",
      env: { ...process.env, TMPDIR: this.temporary.path, [MARK]: this.mark, ...env },
    });
    running.add(this);
    this.chunks = this.child.stdout[Symbol.asyncIterator]();
    this.stderr = new Response(this.child.stderr).bytes();
    this.timer = setTimeout(() => this.child.kill("SIGKILL"), limit);
  }

  /** Writes to the monitor's stdin. */
  async write(data: Uint8Array | string): Promise<void> {
    const { stdin } = this.child;
    if (stdin === undefined) throw new Error("the monitor was started without stdin");
    stdin.write(data);
    await stdin.flush();
  }

  /** Reads stdout until it contains `text` beyond what {@link expect} had before; returns all up to its end. */
  async expect(text: string): Promise<string> {
    for (;;) {
      const at = this.output.indexOf(text, this.seen);
      if (at >= 0) {
        const from = this.seen;
        this.seen = at + Buffer.byteLength(text);
        return this.output.toString("utf8", from, this.seen);
      }
      const { value, done } = await this.chunks.next();
      if (done) {
        throw new Error(
          `the output ended before ${JSON.stringify(text)}:\n${this.output.subarray(this.seen)}`,
        );
      }
      this.output = Buffer.concat([this.output, value]);
    }
  }

  /** Closes the reading end of the monitor's stdout. */
  async stopReading(): Promise<void> {
    await this.chunks.return?.();
  }

  private async rest(): Promise<Buffer> {
    const chunks = [this.output];
    for (;;) {
      const { value, done } = await this.chunks.next();
      if (done) return Buffer.concat(chunks);
      chunks.push(Buffer.from(value));
    }
  }

  /** Ends the monitor without asking what came of it. */
  abandon(): void {
    clearTimeout(this.timer);
    this.child.kill("SIGKILL");
    this.temporary.remove();
  }

  /** Waits for the end. The result's stdout is the whole of it. */
  async result(): Promise<Result> {
    const [out, err] = await Promise.all([this.rest(), this.stderr, this.child.exited]);
    clearTimeout(this.timer);
    running.delete(this);
    const ms = performance.now() - this.began;
    const what = this.argv.join(" ").replaceAll("\n", " ").slice(0, 100);
    timings.push(`${(ms / 1000).toFixed(2).padStart(7)} s  sparkler ${what}\n`);
    const result = {
      code: this.child.exitCode ?? this.child.signalCode ?? "?",
      stdout: out,
      stderr: Buffer.from(err).toString(),
      stderrBytes: Buffer.from(err),
      ms,
      leftFiles: readdirSync(this.temporary.path),
      leftProcesses: this.processes(),
    };
    this.temporary.remove();
    return result;
  }

  /** Command lines of the processes that carry this run's mark. */
  private processes(): string[] {
    const found: string[] = [];
    for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
      try {
        if (!readFileSync(`/proc/${pid}/environ`, "latin1").includes(`${MARK}=${this.mark}`)) continue;
        found.push(readFileSync(`/proc/${pid}/cmdline`, "latin1"));
      } catch {
        // It ended meanwhile, or belongs to another user.
      }
    }
    return found;
  }
}

/** Runs `bin/sparkler` to its end. */
export async function sparkler(argv: readonly string[], options: RunOptions = {}): Promise<Result> {
  const { stdin } = options;
  const started = new Started(argv, stdin === undefined ? "ignore" : "pipe", options);
  const result = started.result();
  if (stdin !== undefined) {
    await started.write(stdin).catch(() => {});
    await started.child.stdin?.end();
  }
  return result;
}

/** Runs a program of the host. Throws if it fails, unless `statuses` has its exit status. */
export function host(argv: readonly string[], statuses: readonly number[] = [0]): string {
  const path = `${process.env.PATH ?? ""}:/usr/sbin:/sbin`;
  const { stdout, stderr, exitCode } = Bun.spawnSync([...argv], {
    env: { ...process.env, PATH: path, LC_ALL: "C" },
  });
  if (!statuses.includes(exitCode))
    throw new Error(`${argv.join(" ")}: exit ${exitCode}: ${stderr}${stdout}`);
  return stdout.toString();
}

/** Whether the host has `program`, in the system's directories too. */
export function hostHas(program: string): boolean {
  return Bun.which(program, { PATH: `${process.env.PATH ?? ""}:/usr/sbin:/sbin` }) !== null;
}

/** A file of an ext4 image. */
export function fileInImage(image: string, path: string): Buffer {
  const { stdout, stderr } = Bun.spawnSync([
    Bun.which("debugfs", { PATH: "/usr/sbin:/sbin:/usr/bin" }) ?? "debugfs",
    "-R",
    `cat "${path}"`,
    image,
  ]);
  const said = stderr.toString().replace(/^debugfs .*\n/, "");
  if (said !== "") throw new Error(`debugfs: ${said}`);
  return Buffer.from(stdout);
}
