/** What both benchmarks need around their guests: kernel, initramfs, a temporary directory, and where results go. */

import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { cpus, loadavg, tmpdir, totalmem } from "node:os";
import { dirname, join, resolve } from "node:path";
import { defaultCacheDir } from "../src/image/cache-dir.ts";
import { CpioWriter } from "../src/image/cpio.ts";
import { ensureInitramfs } from "../src/image/initramfs.ts";
import { ensureKernel } from "../src/image/kernel.ts";
import { terminalProgress } from "../src/image/progress.ts";
import { type Engine, Guest, type GuestFiles, type GuestLine } from "./engines.ts";

/** A guest that has said nothing after this time, ms, hangs. */
const BOOT_LIMIT = 60_000;
const ATTEMPTS = 5;

/** A temporary directory that goes away with the process. */
export function temporaryDirectory(): string {
  const dir = mkdtempSync(join(tmpdir(), "sparkler-bench-"));
  process.on("exit", () => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

export interface BenchFiles extends GuestFiles {
  /** `uname -r` of the guest. */
  kernelVersion: string;
}

/** The default kernel and initramfs, in which what `add` writes (with an /init) takes the place of the guest agent. */
export async function guestFiles(
  dir: string,
  memMib: number,
  add: (cpio: CpioWriter) => void,
): Promise<BenchFiles> {
  const options = { cacheDir: defaultCacheDir(), progress: terminalProgress() };
  const kernel = await ensureKernel(options);
  const cpio = new CpioWriter();
  add(cpio);
  const initrd = join(dir, "initrd");
  const initramfs = await ensureInitramfs({ ...options, kernel });
  writeFileSync(initrd, Buffer.concat([readFileSync(initramfs), cpio.finish()]));
  return { kernel: kernel.vmlinux, kernelVersion: kernel.version, initrd, memMib };
}

/** Adds the files below `dir` to an archive as `path`. Links are followed. */
export function addDirectory(cpio: CpioWriter, dir: string, path: string): void {
  for (const name of readdirSync(dir)) {
    const from = join(dir, name);
    const stats = statSync(from);
    if (stats.isDirectory()) addDirectory(cpio, from, `${path}/${name}`);
    else cpio.file(`${path}/${name}`, readFileSync(from), { mode: stats.mode & 0o777 });
  }
}

export interface BootedGuest {
  guest: Guest;
  first: GuestLine;
  /** Boots before this one that hung. */
  hung: number;
}

/** Starts a guest and waits for its first line. @throws Error if it ends before that or hangs. */
export async function boot(engine: Engine, files: GuestFiles, dir: string): Promise<BootedGuest> {
  for (let hung = 0; ; hung++) {
    const guest = new Guest(engine.argv(files, dir));
    try {
      return { guest, first: await guest.next(BOOT_LIMIT), hung };
    } catch (error) {
      await guest.end(0);
      if (hung + 1 === ATTEMPTS)
        throw new Error(`${engine.name}: ${error instanceof Error ? error.message : error}`);
    }
  }
}

/** The value of `--name N` on the command line. */
export function option(name: string, fallback: number): number {
  const at = process.argv.indexOf(`--${name}`);
  if (at < 0) return fallback;
  const value = Number(process.argv[at + 1]);
  if (!Number.isInteger(value) || value < 1) throw new Error(`--${name}: give a whole number from 1`);
  return value;
}

/** The path after `--name` on the command line. */
export function pathOption(name: string): string | undefined {
  const at = process.argv.indexOf(`--${name}`);
  if (at < 0) return undefined;
  const value = process.argv[at + 1];
  if (value === undefined || value.startsWith("--")) throw new Error(`--${name}: give a path`);
  return resolve(value);
}

/** Processors and memory of this machine. */
export function describeMachine(): string {
  const processors = cpus();
  return `${processors.length} x ${processors[0]!.model}, ${(totalmem() / 2 ** 30).toFixed(0)} GiB`;
}

/** One line on the machine that was measured. Other work on it makes figures worthless, so the load is in it. */
export function describeHost(): string {
  return `${describeMachine()}, load ${loadavg()[0]!.toFixed(1)}`;
}

/** Writes `bench/results/NAME-TIME.json`, or the file after `--out`, and says so. */
export function writeResult(name: string, host: string, result: object): void {
  const time = new Date().toISOString();
  const path =
    pathOption("out") ?? join(import.meta.dir, "results", `${name}-${time.replaceAll(":", "")}.json`);
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, `${JSON.stringify({ time, host, bun: Bun.version, ...result }, null, 2)}\n`);
  console.log(`\nWritten: ${path}`);
}
