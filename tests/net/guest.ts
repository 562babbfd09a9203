/** Debian guests for network tests: the default kernel and initramfs, from a configuration file, one command each. */

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type AddedPath, runArchive } from "../../src/image/run-archive.ts";
import { bootFiles } from "../guests/boot-files.ts";
import { Started } from "../guests/sparkler.ts";

/** The console is for what the command prints; the kernel says nothing. */
const BOOT_ARGS = "console=ttyS0 reboot=k panic=1 quiet loglevel=1 cryptomgr.notests random.trust_cpu=on";

let machines = 0;

export interface GuestOptions {
  /** Directory for the files of the machine. */
  readonly dir: string;
  /** Further keys of the configuration. */
  readonly config: object;
  /** Shell commands that the guest runs. */
  readonly script: string;
  readonly add?: readonly AddedPath[];
  readonly bootArgs?: string;
  readonly flags?: readonly string[];
  /** Socket of the API; without one there is none. */
  readonly api?: string;
  /** Starts the monitor, e.g. in a network namespace. */
  readonly prefix?: readonly string[];
  /** ms after which the monitor is killed. */
  readonly limit?: number;
}

/** Boots a guest that runs `script`, its output on the monitor's stdout, and ends. */
export async function startGuest(options: GuestOptions): Promise<Started> {
  const { dir, config, script, add = [], bootArgs = "", flags = [], prefix = [], api, limit } = options;
  const files = await bootFiles();
  const archive = runArchive({ argv: ["sh", "-c", script], add });
  const base = readFileSync(files.initramfs);
  const name = join(dir, `machine-${machines++}`);
  // Archives of an initramfs begin at multiples of four.
  const padding = Buffer.alloc((4 - (base.length % 4)) % 4);
  writeFileSync(`${name}.cpio`, Buffer.concat([base, padding, archive]));
  const boot = {
    kernel_image_path: files.vmlinux,
    initrd_path: `${name}.cpio`,
    boot_args: `${BOOT_ARGS} ${bootArgs}`,
  };
  const machine = { vcpu_count: 1, mem_size_mib: 256 };
  const json = { "boot-source": boot, "machine-config": machine, drives: [], ...config };
  writeFileSync(`${name}.json`, JSON.stringify(json));
  const serve = api === undefined ? ["--no-api"] : ["--api-sock", api];
  const argv = [...serve, "--config-file", `${name}.json`, "--level", "Warn", ...flags];
  return new Started(argv, "pipe", { prefix, ...(limit === undefined ? {} : { limit }) });
}

/** Compiles a C program of `programs/` for any guest, linked statically. Undefined if there is no compiler. */
export function compile(name: string, dir: string): string | undefined {
  const source = new URL(`./programs/${name}.c`, import.meta.url).pathname;
  const out = join(dir, name);
  const compiler = Bun.which("gcc") ?? Bun.which("cc");
  if (compiler === null) return undefined;
  const { exitCode, stderr } = Bun.spawnSync([compiler, "-O2", "-static", "-o", out, source]);
  if (exitCode !== 0) throw new Error(`${compiler}: ${stderr}`);
  return out;
}
