/** The default kernel: Debian's cloud kernel for amd64, as an ELF and its modules, in the cache. */

import { existsSync, readdirSync, readFileSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { cachedDirectory, cachedFile, type ImageOptions } from "./cache.ts";
import { ImageError } from "./errors.ts";
import { PackageClient } from "./packages.ts";
import { extractVmlinux } from "./vmlinux.ts";

const META_PACKAGE = "linux-image-cloud-amd64";
const IMAGE_PREFIX = "linux-image-";

export interface Kernel {
  /** The uncompressed ELF. */
  vmlinux: string;
  /** As `uname -r` says it, e.g. `6.1.0-56-cloud-amd64`. */
  version: string;
  /** The counterpart of `/lib/modules/<version>`. */
  modulesDir: string;
}

export interface KernelOptions extends ImageOptions {
  /** Look for a newer kernel even if one is in the cache. */
  update?: boolean;
}

function kernelIn(dir: string): Kernel | undefined {
  try {
    const version = readdirSync(join(dir, "lib", "modules"))[0];
    const vmlinux = join(dir, "vmlinux");
    if (version === undefined || !existsSync(vmlinux)) return undefined;
    return { vmlinux, version, modulesDir: join(dir, "lib", "modules", version) };
  } catch {
    return undefined;
  }
}

/**
 * The default kernel, from the cache if it is there, else from its Debian package (27 MB).
 * @throws ImageError if it cannot be fetched.
 */
export async function ensureKernel(options: KernelOptions): Promise<Kernel> {
  const kernels = join(options.cacheDir, "kernels");
  const current = join(kernels, "current");
  if (options.update !== true && existsSync(current)) {
    const kernel = kernelIn(join(kernels, readFileSync(current, "utf8").trim()));
    if (kernel !== undefined) return kernel;
  }
  const client = new PackageClient(options, "or give a kernel of your own with --kernel");
  const meta = await client.find(META_PACKAGE);
  const image = meta.depends.find((name) => name.startsWith(IMAGE_PREFIX));
  if (image === undefined)
    throw new ImageError(`the package ${META_PACKAGE} ${meta.version} names no kernel`);
  const wanted = await client.find(image);
  const version = image.slice(IMAGE_PREFIX.length);
  const name = `${version}_${wanted.version}`;
  const dir = join(kernels, name);
  if (kernelIn(dir) === undefined) rmSync(dir, { recursive: true, force: true });
  await cachedDirectory(dir, async (temporary) => {
    await client.unpack(wanted, temporary, ["./boot/vmlinuz-*", "./boot/config-*", "./lib/modules/*"]);
    const boot = join(temporary, "boot");
    const step = options.progress.start(`Unpacking kernel ${version}`);
    try {
      const bzImage = await Bun.file(join(boot, `vmlinuz-${version}`)).bytes();
      await Bun.write(join(temporary, "vmlinux"), await extractVmlinux(bzImage));
    } finally {
      step.finish();
    }
    renameSync(join(boot, `config-${version}`), join(temporary, "config"));
    rmSync(boot, { recursive: true });
  });
  const kernel = kernelIn(dir);
  if (kernel === undefined)
    throw new ImageError(`the package ${image} ${wanted.version} has no kernel or no modules`);
  await cachedFile(current, async () => `${name}\n`, true);
  return kernel;
}
