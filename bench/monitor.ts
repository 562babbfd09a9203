/** Monitors of raw guests, for the benches of start and API. */

import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";

/** The single executable. */
export const EXECUTABLE = join(import.meta.dir, "../dist/sparkler");

/** Throws an Error if `npm run build` has not been run. */
export function requireExecutable(): void {
  if (!existsSync(EXECUTABLE)) throw new Error(`There is no ${EXECUTABLE}: run npm run build.`);
}

/** Writes a configuration file for the kernel beside it and returns its path. */
export function writeConfig(dir: string, name: string, kernel: string, memMib: number): string {
  const path = join(dir, `${name}.json`);
  const config = {
    "boot-source": { kernel_image_path: kernel, boot_args: "" },
    drives: [],
    "machine-config": { vcpu_count: 1, mem_size_mib: memMib },
  };
  writeFileSync(path, JSON.stringify(config));
  return path;
}

export interface RawMonitor {
  readonly pid: number;
  /** When the process was asked for, ms. */
  readonly startedAt: number;
  /** When the guest's next output came, ms. Rejects with the monitor's messages if it ends before. */
  next(): Promise<number>;
  readonly exited: Promise<number>;
  /** SIGKILL. Resolves when it is gone. */
  kill(): Promise<void>;
}

/** Starts a monitor of the machine that the configuration file describes, on KVM. */
export function startMonitor(config: string): RawMonitor {
  const startedAt = performance.now();
  const child = Bun.spawn([EXECUTABLE, "--no-api", "--config-file", config, "--accel", "kvm"], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const reader = child.stdout.getReader();
  return {
    pid: child.pid,
    startedAt,
    exited: child.exited,
    async next() {
      const { done } = await reader.read();
      if (!done) return performance.now();
      throw new Error(`the monitor ended: ${await new Response(child.stderr).text()}`);
    },
    async kill() {
      child.kill("SIGKILL");
      await child.exited;
    },
  };
}
