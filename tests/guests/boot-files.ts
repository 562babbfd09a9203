/** What guests are booted from: the default kernel as an ELF and as the package's bzImage, and the initramfs. */

import { copyFileSync, existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { cachedDirectory } from "../../src/image/cache.ts";
import { defaultCacheDir } from "../../src/image/cache-dir.ts";
import { ensureInitramfs } from "../../src/image/initramfs.ts";
import { ensureKernel } from "../../src/image/kernel.ts";
import { PackageClient } from "../../src/image/packages.ts";
import { silentProgress } from "../../src/image/progress.ts";

const options = { cacheDir: defaultCacheDir(), progress: silentProgress };

/** Where tests keep what is dear to make, from run to run. */
export const TEST_CACHE = join(options.cacheDir, "tests");

export interface BootFiles {
  /** ELF. */
  readonly vmlinux: string;
  readonly initramfs: string;
  /** A statically linked busybox. */
  readonly busybox: string;
}

/** Fetches the files, or takes them from the cache. */
export async function bootFiles(): Promise<BootFiles> {
  const kernel = await ensureKernel(options);
  const initramfs = await ensureInitramfs({ ...options, kernel });
  const versions = join(options.cacheDir, "busybox");
  const busybox = readdirSync(versions)
    .map((version) => join(versions, version, "busybox"))
    .find((path) => existsSync(path));
  if (busybox === undefined) throw new Error(`no busybox below ${versions}`);
  return { vmlinux: kernel.vmlinux, initramfs, busybox };
}

/** The bzImage of the default kernel, as its package has it. */
export async function bzImage(): Promise<string> {
  const { version } = await ensureKernel(options);
  const name = `vmlinuz-${version}`;
  const dir = join(TEST_CACHE, name);
  await cachedDirectory(dir, async (temporary) => {
    const client = new PackageClient(options, "the test cannot do without it");
    const unpacked = join(temporary, "unpacked");
    await Bun.$`mkdir -p ${unpacked}`.quiet();
    await client.unpack(await client.find(`linux-image-${version}`), unpacked, [`./boot/${name}`]);
    copyFileSync(join(unpacked, "boot", name), join(temporary, name));
    await Bun.$`rm -r ${unpacked}`.quiet();
  });
  return join(dir, name);
}
