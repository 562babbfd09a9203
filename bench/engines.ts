/** The two software CPUs that are compared: what starts a guest on each, and the guest's lines as they come. */

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

export interface GuestFiles {
  kernel: string;
  initrd: string;
  memMib: number;
  /** Devices, for each engine in its own words. */
  devices?: { config: object; qemuArgs: readonly string[]; bootArgs: string };
}

export interface Engine {
  readonly name: string;
  /** Some boots hang, which is not what is measured: they are repeated. */
  readonly mayHang: boolean;
  /** The command that boots `files`, with the guest's serial console on stdout. `dir`: for files of its own. */
  argv(files: GuestFiles, dir: string): string[];
}

const root = join(import.meta.dir, "..");
const QEMU = "qemu-system-x86_64";

export const SPARKLER = join(root, "bin", "sparkler");

/** The same for both, and what `sparkler run` gives its kernel: no probing, no self-tests, a silent console. */
const BOOT_ARGS =
  "console=ttyS0 quiet loglevel=1 reboot=k panic=-1 random.trust_cpu=on tsc=reliable no_timer_check " +
  "mitigations=off cryptomgr.notests 8250.nr_uarts=1 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce " +
  "raid=noautodetect audit=0";

function bootArgs({ devices }: GuestFiles): string {
  return devices === undefined ? BOOT_ARGS : `${BOOT_ARGS} ${devices.bootArgs}`;
}

export const sparkler: Engine = {
  name: "Sparkler",
  mayHang: false,
  argv(files, dir) {
    const config = join(dir, "vm.json");
    writeFileSync(
      config,
      JSON.stringify({
        "boot-source": {
          kernel_image_path: files.kernel,
          initrd_path: files.initrd,
          boot_args: bootArgs(files),
        },
        drives: [],
        "machine-config": { vcpu_count: 1, mem_size_mib: files.memMib },
        ...files.devices?.config,
      }),
    );
    return [SPARKLER, "--no-api", "--accel", "soft", "--config-file", config];
  },
};

/**
 * With ACPI, as here: Debian's cloud kernel finds neither the local APIC nor the serial port's interrupt without.
 * The processor has what the software CPU shows, besides what every x86-64 has.
 */
export const qemu: Engine = {
  name: "QEMU TCG",
  mayHang: true,
  argv: (files) => [
    ...[QEMU, "-M", "microvm,acpi=on,isa-serial=on,rtc=off,pit=on,pic=on,pcie=off", "-accel", "tcg"],
    ...["-cpu", "qemu64,+popcnt,+rdrand", "-smp", "1", "-m", String(files.memMib)],
    ...["-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial", "stdio"],
    ...["-kernel", files.kernel, "-initrd", files.initrd, "-append", `${bootArgs(files)}${tscArgument()}`],
    ...(files.devices?.qemuArgs ?? []),
  ],
};

/**
 * In QEMU the kernel measures its TSC, which fails now and then and then hangs it. Inside a virtual machine
 * /proc/cpuinfo has the TSC's frequency; elsewhere the kernel goes on measuring, and a hung boot is repeated.
 */
function tscArgument(): string {
  const cpuinfo = readFileSync("/proc/cpuinfo", "latin1");
  if (!/^flags\s*:.*\bhypervisor\b/m.test(cpuinfo)) return "";
  const mhz = /^cpu MHz\s*:\s*([\d.]+)/m.exec(cpuinfo)?.[1];
  return mhz === undefined ? "" : ` tsc_early_khz=${Math.round(Number(mhz) * 1000)}`;
}

/** Sparkler, and QEMU if it is installed. */
export function engines(): Engine[] {
  if (Bun.which(QEMU) !== null) return [sparkler, qemu];
  console.log(`Without QEMU: ${QEMU} is not installed (Debian package qemu-system-x86).`);
  return [sparkler];
}

/** QEMU's version, as it says it. */
export function qemuVersion(): string {
  const said = Bun.spawnSync([QEMU, "--version"]).stdout.toString();
  return /version (\S+)/.exec(said)?.[1] ?? "of unknown version";
}

/** A line of the guest and when its end came, in ms after the process was started. */
export interface GuestLine {
  text: string;
  at: number;
}

/** Marks lines that are meant for the benchmark. */
export const MARK = "bench: ";

/** A guest under way. */
export class Guest {
  readonly pid: number;
  private readonly started = performance.now();
  private readonly child: Bun.Subprocess<"ignore", "pipe", "pipe">;
  private readonly lines: GuestLine[] = [];
  private readonly other: string[] = [];
  /** True once the console is closed: the process has ended or is about to. */
  ended = false;
  private arrived: () => void = () => {};

  constructor(argv: readonly string[]) {
    this.child = Bun.spawn([...argv], { stdin: "ignore", stdout: "pipe", stderr: "pipe" });
    this.pid = this.child.pid;
    void this.read(this.child.stdout, true);
    void this.read(this.child.stderr, false);
  }

  /** The next line that begins with {@link MARK}, without it. @throws Error if none comes within `limit` ms. */
  async next(limit: number): Promise<GuestLine> {
    const until = performance.now() + limit;
    while (this.lines.length === 0) {
      const left = until - performance.now();
      if (this.ended || left <= 0) {
        const why = this.ended ? "ended" : `said nothing for ${(limit / 1000).toFixed(0)} s`;
        throw new Error(`the guest ${why}. Its last lines:\n${this.other.slice(-10).join("\n")}`);
      }
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, left);
        this.arrived = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
    return this.lines.shift()!;
  }

  /** Waits up to `limit` ms for the guest to shut down, then kills it. */
  async end(limit = 2000): Promise<void> {
    const timer = setTimeout(() => this.child.kill("SIGKILL"), limit);
    await this.child.exited;
    clearTimeout(timer);
  }

  private async read(stream: ReadableStream<Uint8Array>, console: boolean): Promise<void> {
    const decoder = new TextDecoder();
    let rest = "";
    for await (const bytes of stream) {
      const at = performance.now() - this.started;
      const parts = (rest + decoder.decode(bytes, { stream: true })).split(/\r?\n/);
      rest = parts.pop()!;
      for (const text of parts) {
        if (console && text.startsWith(MARK)) this.lines.push({ text: text.slice(MARK.length), at });
        else this.other.push(text);
      }
      this.arrived();
    }
    if (console) this.ended = true;
    this.arrived();
  }
}
