/** `sparkler run`: one program in a microVM of its own. */

import { mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { BootError } from "../boot/boot-error.ts";
import { defaultCacheDir } from "../image/cache-dir.ts";
import { silentProgress, terminalProgress } from "../image/progress.ts";
import { type AddedPath, runArchive } from "../image/run-archive.ts";
import type { MmdsConfig } from "../mmds/mmds.ts";
import { closeFile } from "../platform/files.ts";
import { isTerminal } from "../platform/tty.ts";
import { type Accelerator, checkLimits, chooseAccelerator, describeChoice } from "../vmm/accel.ts";
import { buildMicrovm } from "../vmm/builder.ts";
import { ConfigError } from "../vmm/config-error.ts";
import { openBootFile } from "../vmm/file-source.ts";
import type { Microvm } from "../vmm/microvm.ts";
import type { DriveSpec, FileSource, MachineSpec } from "../vmm/spec.ts";
import { Timings } from "../vmm/timings.ts";
import { EXIT_ERROR, exitForSignal, UsageError } from "./exit.ts";
import type { RunNetwork } from "./network.ts";
import { RunOutcome } from "./run-outcome.ts";
import { stopOnSignal } from "./signals.ts";

export interface RunFlags {
  kernel?: string;
  initrd?: string;
  rootfs?: string;
  mem: number;
  vcpus: number;
  accel: Accelerator;
  add: string[];
  net?: string;
  publish?: string[];
  metadata?: string;
  env: string[];
  workdir?: string;
  bootArgs?: string;
  console?: boolean;
  timings?: boolean;
  stats?: boolean;
}

const STDIN = 0;
const STDOUT = 1;
const STDERR = 2;

/**
 * For a machine that lives shortly: nothing is probed that is not there, and the guest's kernel does not test
 * itself. A panic ends the machine at once.
 */
const RUN_BOOT_ARGS =
  "reboot=k panic=-1 random.trust_cpu=on tsc=reliable no_timer_check mitigations=off cryptomgr.notests " +
  "8250.nr_uarts=1 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce raid=noautodetect audit=0";
/** Every byte on the serial port costs an exit, so only a panic is printed there. */
const QUIET_ARGS = "console=ttyS0 quiet loglevel=1";
const CONSOLE_ARGS = "console=ttyS0 earlyprintk=ttyS0,115200";

/**
 * Runs `argv` in a microVM. Returns its exit status, or 1 if the guest ended before it. `overrides.backend`: a CPU
 * backend by its module, see `loadBackend`.
 */
export async function runCommand(
  argv: readonly string[],
  flags: RunFlags,
  overrides: { backend?: string } = {},
): Promise<number> {
  const timings = new Timings();
  const accel = await chooseAccelerator(flags.accel);
  checkLimits(accel.backend, flags.vcpus, flags.mem);
  if (accel.warning !== undefined) process.stderr.write(`Warning: ${accel.warning}\n`);
  const archive = runArchive({
    argv,
    add: flags.add.map(parseAdd),
    env: Object.fromEntries(flags.env.map(parseEnv)),
    ...(flags.workdir === undefined ? {} : { cwd: flags.workdir }),
  });
  let network: RunNetwork | undefined;
  let mmds: MmdsConfig | undefined;
  if (flags.net !== undefined || (flags.publish ?? []).length > 0) {
    const { IFACE_ID, runNetwork } = await import("./network.ts");
    if (flags.metadata !== undefined) {
      mmds = (await import("./metadata.ts")).runMetadata(flags.metadata, IFACE_ID);
    }
    network = runNetwork(flags.net, flags.publish ?? []);
  } else if (flags.metadata !== undefined) {
    throw new UsageError("--metadata needs --net: the guest gets it through its network.");
  }
  const boot = await bootFiles(flags);
  timings.mark("kernel and initramfs found");
  let microvm: Microvm | undefined;
  const signal = stopOnSignal(() => microvm?.stop());
  const root = flags.rootfs === undefined ? undefined : await rootDrive(flags.rootfs);
  if (root !== undefined) timings.mark("root file system ready");

  const bootArgs = [
    RUN_BOOT_ARGS,
    flags.console ? CONSOLE_ARGS : QUIET_ARGS,
    ...(root === undefined ? [] : ["sparkler.root=/dev/vda", "sparkler.rootflags=rw"]),
    ...(network === undefined || network.bootArgs === "" ? [] : [network.bootArgs]),
    ...(flags.bootArgs === undefined ? [] : [flags.bootArgs]),
  ].join(" ");
  const spec: MachineSpec = {
    vcpus: flags.vcpus,
    memMib: flags.mem,
    measured: flags.stats ?? false,
    kernel: boot.kernel,
    initrd: [boot.initrd, archive],
    bootArgs,
    drives: root === undefined ? [] : [root.drive],
    entropy: true,
    networks: network === undefined ? [] : [network.net],
    mmds,
    serial: { outputFd: flags.console ? STDERR : undefined, keepTail: true },
    program: { stdinFd: STDIN, stdoutFd: STDOUT, stderrFd: STDERR },
    bootTimer: false,
    log: { id: "run", fd: STDERR, level: "Warn", showLevel: true, showOrigin: false },
  };

  // What the guest wrote to an image of the user's must be on it: then the guest shuts down by itself.
  const outcome = new RunOutcome(root?.kept ?? false, timings, () => microvm?.stop());
  void network?.failed.then((reason) => outcome.networkBroken(reason));
  try {
    microvm = await buildMicrovm(spec, {
      backend: overrides.backend ?? accel.backend,
      timings,
      events: {
        onControl: (line) => outcome.control(line),
        onOutputBroken: (code, message) => outcome.outputBroken(code, message),
      },
    });
  } catch (error) {
    network?.close();
    throw namingFlags(error);
  } finally {
    // Open by now. Without a name it goes away with the process, however that ends.
    root?.removeName();
    closeFile(boot.kernel.fd);
    closeFile(boot.initrd.fd);
  }
  if (signal() !== undefined || outcome.isDecided) microvm.stop();
  const end = await microvm.ended;
  network?.close();
  timings.mark("machine ended");

  const { status, message } = outcome.result(end);
  if (flags.timings) {
    process.stderr.write(`${describeChoice(accel)}\n${timings}`);
  }
  if (flags.stats) process.stderr.write(statsLines(end.stats));
  const number = signal();
  if (number !== undefined) return exitForSignal(number);
  if (message !== undefined) process.stderr.write(`sparkler: ${message}\n`);
  return status ?? EXIT_ERROR;
}

/** The machine's errors advise on fields of a configuration file; here the user gave flags. */
function namingFlags(error: unknown): unknown {
  if (!(error instanceof ConfigError || error instanceof BootError)) return error;
  const message = error.message
    .replaceAll("mem_size_mib", "--mem")
    .replaceAll("boot_args", "--boot-args")
    .replaceAll("initrd_path", "--initrd");
  return new ConfigError(message, { cause: error });
}

function statsLines(stats: Readonly<Record<string, number>>): string {
  return Object.entries(stats)
    .map(([name, value]) => `${String(value).padStart(20)}  ${name}\n`)
    .join("");
}

/** `HOST:GUEST`; the guest path is what follows the last `:/`. */
function parseAdd(text: string): AddedPath {
  const at = text.lastIndexOf(":/");
  if (at <= 0) throw new UsageError(`--add ${text}: give HOST:GUEST, with an absolute path in the guest.`);
  return { host: text.slice(0, at), guest: text.slice(at + 1) };
}

function parseEnv(text: string): [string, string] {
  const at = text.indexOf("=");
  if (at <= 0) throw new UsageError(`--env ${text}: give NAME=VALUE.`);
  return [text.slice(0, at), text.slice(at + 1)];
}

/**
 * Opens kernel and initramfs: the user's, or the default ones, which are fetched if they are not cached. A kernel of
 * the user's gets the default initramfs without modules, which are another kernel's.
 */
async function bootFiles(flags: RunFlags): Promise<{ kernel: FileSource; initrd: FileSource }> {
  let kernelPath = flags.kernel;
  let initrdPath = flags.initrd;
  if (initrdPath === undefined) {
    const progress = isTerminal(STDERR) ? terminalProgress() : silentProgress;
    const options = { cacheDir: defaultCacheDir(), progress };
    const { ensureInitramfs } = await import("../image/initramfs.ts");
    if (kernelPath === undefined) {
      const { ensureKernel } = await import("../image/kernel.ts");
      const kernel = await ensureKernel(options);
      kernelPath = kernel.vmlinux;
      initrdPath = await ensureInitramfs({ ...options, kernel });
    } else {
      initrdPath = await ensureInitramfs(options);
    }
  } else if (kernelPath === undefined) {
    throw new UsageError("--initrd needs --kernel: its modules belong to one kernel.");
  }
  return {
    kernel: openBootFile("The kernel file cannot be opened:", kernelPath),
    initrd: openBootFile("The initrd file cannot be opened:", initrdPath),
  };
}

interface RootDrive {
  readonly drive: DriveSpec;
  /** True if the image stays after the run. */
  readonly kept: boolean;
  readonly removeName: () => void;
}

async function rootDrive(path: string): Promise<RootDrive> {
  const status = statSync(path, { throwIfNoEntry: false });
  if (status === undefined) throw new ConfigError(`--rootfs ${path}: No such file or directory (os error 2)`);
  const drive = { id: "rootfs", readOnly: false, root: false, cacheType: "Writeback" } as const;
  if (!status.isDirectory()) return { drive: { ...drive, path }, kept: true, removeName: () => {} };
  const { makeExt4 } = await import("../image/rootfs.ts");
  const dir = mkdtempSync(join(tmpdir(), "sparkler-run-"));
  const removeName = () => rmSync(dir, { recursive: true, force: true });
  try {
    const image = join(dir, "rootfs.ext4");
    await makeExt4(path, image);
    // Nobody reads it after the run, so nothing has to reach the storage device.
    return { drive: { ...drive, path: image, cacheType: "Unsafe" }, kept: false, removeName };
  } catch (error) {
    removeName();
    throw error;
  }
}
