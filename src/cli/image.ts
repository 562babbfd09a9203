/** `sparkler image`: kernels, initramfs and root file systems. Each prints the path of what it made. */

import { copyFileSync } from "node:fs";
import type { ImageOptions } from "../image/cache.ts";
import { defaultCacheDir } from "../image/cache-dir.ts";
import { ensureInitramfs } from "../image/initramfs.ts";
import { ensureKernel } from "../image/kernel.ts";
import { terminalProgress } from "../image/progress.ts";
import { busyboxRootfs, debianRootfs, makeExt4 } from "../image/rootfs.ts";
import { EXIT_OK, UsageError } from "./exit.ts";

const MIB = 2 ** 20;

export interface KernelFlags {
  out?: string;
  update?: boolean;
}

export interface InitramfsFlags {
  out?: string;
}

export interface RootfsFlags {
  out: string;
  size?: number;
  from?: string;
  debian?: boolean;
  include?: string;
  suite?: string;
}

function imageOptions(): ImageOptions {
  return { cacheDir: defaultCacheDir(), progress: terminalProgress() };
}

function deliver(path: string, out: string | undefined): number {
  if (out !== undefined) copyFileSync(path, out);
  process.stdout.write(`${out ?? path}\n`);
  return EXIT_OK;
}

export async function imageKernel(flags: KernelFlags): Promise<number> {
  const kernel = await ensureKernel({ ...imageOptions(), update: flags.update ?? false });
  return deliver(kernel.vmlinux, flags.out);
}

export async function imageInitramfs(flags: InitramfsFlags): Promise<number> {
  const options = imageOptions();
  const kernel = await ensureKernel(options);
  return deliver(await ensureInitramfs({ ...options, kernel }), flags.out);
}

export async function imageRootfs(flags: RootfsFlags): Promise<number> {
  const { out, from, include, suite } = flags;
  if (!flags.debian && (include !== undefined || suite !== undefined)) {
    throw new UsageError("--include and --suite need --debian.");
  }
  const options = imageOptions();
  const size = flags.size === undefined ? {} : { size: flags.size * MIB };
  if (flags.debian) {
    const packages = (include ?? "").split(",").filter((name) => name !== "");
    await debianRootfs({
      packages,
      out,
      progress: options.progress,
      ...size,
      ...(suite === undefined ? {} : { suite }),
    });
  } else if (from !== undefined) {
    await makeExt4(from, out, size.size);
  } else {
    await busyboxRootfs({ ...options, out, ...size });
  }
  return deliver(out, undefined);
}
