/** Runs `bin/sparkler` as a user does, in a directory for temporary files of its own, and notes how long it took. */

import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, realpathSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";

export const SPARKLER = new URL("../../bin/sparkler", import.meta.url).pathname;

/** A guest that takes longer hangs, ms. */
export const GUEST_LIMIT = 60_000;

/** Name of the environment variable by which processes of one run are found again. */
const MARK = "SPARKLER_TEST_RUN";

export type Child = Bun.Subprocess<"pipe" | "ignore", "pipe", "pipe">;

export interface RunOptions {
  /** Sent to stdin, which then ends. Left out: stdin is /dev/null. */
  stdin?: Uint8Array | string;
  env?: Record<string, string>;
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

/** Prints what the runs of a test file took. For `afterAll`. */
export function printTimings(): void {
  process.stderr.write(timings.splice(0).join(""));
}

/** A directory below the temporary one. `remove` takes it away again. */
export function temporaryDirectory(): { path: string; remove: () => void } {
  const path = realpathSync(mkdtempSync(join(tmpdir(), "sparkler-guests-")));
  return { path, remove: () => rmSync(path, { recursive: true, force: true }) };
}

/** A monitor that was started; {@link Started.result} collects what comes of it. */
export class Started {
  private readonly began = performance.now();
  private readonly temporary = temporaryDirectory();
  private readonly mark = `${process.pid}-${this.temporary.path}`;
  readonly child: Child;

  constructor(
    private readonly argv: readonly string[],
    stdin: "pipe" | "ignore",
    env: Record<string, string> = {},
  ) {
    this.child = Bun.spawn([SPARKLER, ...argv], {
      stdin,
      stdout: "pipe",
      stderr: "pipe",
      env: { ...process.env, TMPDIR: this.temporary.path, [MARK]: this.mark, ...env },
    });
  }

  /** Writes to the monitor's stdin. */
  async write(data: Uint8Array | string): Promise<void> {
    const { stdin } = this.child;
    if (stdin === undefined) throw new Error("the monitor was started without stdin");
    stdin.write(data);
    await stdin.flush();
  }

  /** Waits for the end. `stdout`: what was read of it already, if it was. */
  async result(stdout: Promise<Uint8Array> = new Response(this.child.stdout).bytes()): Promise<Result> {
    const timer = setTimeout(() => this.child.kill("SIGKILL"), GUEST_LIMIT);
    const [out, err] = await Promise.all([stdout, new Response(this.child.stderr).bytes(), this.child.exited]);
    clearTimeout(timer);
    const ms = performance.now() - this.began;
    const what = this.argv.join(" ").replaceAll("\n", " ").slice(0, 100);
    timings.push(`${(ms / 1000).toFixed(2).padStart(7)} s  sparkler ${what}\n`);
    const result = {
      code: this.child.exitCode ?? this.child.signalCode ?? "?",
      stdout: Buffer.from(out),
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
export async function sparkler(argv: readonly string[], { stdin, env }: RunOptions = {}): Promise<Result> {
  const started = new Started(argv, stdin === undefined ? "ignore" : "pipe", env);
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
  const { stdout, stderr, exitCode } = Bun.spawnSync([...argv], { env: { ...process.env, PATH: path, LC_ALL: "C" } });
  if (!statuses.includes(exitCode)) throw new Error(`${argv.join(" ")}: exit ${exitCode}: ${stderr}${stdout}`);
  return stdout.toString();
}

/** Whether the host has `program`, in the system's directories too. */
export function hostHas(program: string): boolean {
  return Bun.which(program, { PATH: `${process.env.PATH ?? ""}:/usr/sbin:/sbin` }) !== null;
}

/** A file of an ext4 image. */
export function fileInImage(image: string, path: string): Buffer {
  const { stdout, stderr } = Bun.spawnSync([Bun.which("debugfs", { PATH: "/usr/sbin:/sbin:/usr/bin" }) ?? "debugfs", "-R", `cat "${path}"`, image]);
  const said = stderr.toString().replace(/^debugfs .*\n/, "");
  if (said !== "") throw new Error(`debugfs: ${said}`);
  return Buffer.from(stdout);
}

/** Where tests keep what is dear to make, from run to run: in the user's cache directory. */
export function testCache(): string {
  const base = process.env.XDG_CACHE_HOME;
  const home = process.env.HOME ?? "/root";
  const dir = join(base?.startsWith("/") ? base : join(home, ".cache"), "sparkler", "tests");
  mkdirSync(dir, { recursive: true });
  return dir;
}

/** The Debian package's static busybox, as the default initramfs has it. */
export async function busybox(): Promise<string> {
  await sparkler(["image", "initramfs"]);
  const dir = join(dirname(testCache()), "busybox");
  const found = readdirSync(dir)
    .map((version) => join(dir, version, "busybox"))
    .find((path) => existsSync(path));
  if (found === undefined) throw new Error(`no busybox in ${dir}`);
  return found;
}
