/** The default initramfs: busybox, the kernel modules of virtio devices, and the guest agent as /init. */

import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { ensureBusybox, writeBusyboxRoot } from "./busybox.ts";
import { cachedFile, type ImageOptions } from "./cache.ts";
import { CpioWriter } from "./cpio.ts";
import { ImageError } from "./errors.ts";
import demoScript from "./guest/demo.sh" with { type: "text" };
import initScript from "./guest/init.sh" with { type: "text" };
import type { Kernel } from "./kernel.ts";
import { moduleName } from "./modinfo.ts";
import { DEFAULT_MODULES, ModuleTree, virtioDeviceId } from "./modules.ts";

/** Part of the cache key: raised when the archive changes otherwise than through /init or the list of modules. */
const LAYOUT = 1;

/** A program in the default initramfs that tells what machine the guest believes it is on; run by `npm start`. */
export const DEMO_PROGRAM = "/bin/demo";

export interface InitramfsOptions extends ImageOptions {
  /** The kernel whose modules to carry. Without it the kernel must have its virtio drivers built in. */
  kernel?: Pick<Kernel, "version" | "modulesDir">;
  /** Further modules for `sparkler.modules=` to load, e.g. `overlay`. */
  modules?: readonly string[];
}

/**
 * Builds the archive (uncompressed: unpacking costs a software CPU more than reading).
 * @throws ImageError if one of `modules` does not exist; default modules that do not exist are left out.
 */
export async function buildInitramfs(
  busybox: Uint8Array,
  kernel: Pick<Kernel, "version" | "modulesDir"> | undefined,
  modules: readonly string[] = [],
): Promise<Uint8Array> {
  if (kernel === undefined && modules.length > 0) {
    throw new ImageError(`no kernel to take the modules ${modules.join(", ")} from`);
  }
  const cpio = new CpioWriter();
  writeBusyboxRoot(cpio, busybox);
  cpio.device("/dev/console", "c", 5, 1);
  cpio.device("/dev/null", "c", 1, 3, { mode: 0o666 });
  cpio.directory("/newroot");
  cpio.file(DEMO_PROGRAM, demoScript, { mode: 0o755 });
  cpio.file("/init", initScript, { mode: 0o755 });
  cpio.directory("/sparkler/lib");
  if (kernel !== undefined) cpio.file("/sparkler/release", `${kernel.version}\n`);
  cpio.file(
    "/sparkler/modules",
    kernel === undefined ? "" : await addModules(cpio, kernel.modulesDir, modules),
  );
  return cpio.finish();
}

/** Adds the modules to `/sparkler/lib`; returns the content of `/sparkler/modules`, see guest/init.sh. */
async function addModules(cpio: CpioWriter, modulesDir: string, modules: readonly string[]): Promise<string> {
  const tree = new ModuleTree(modulesDir);
  const names = new Set([...DEFAULT_MODULES.filter((name) => tree.has(name)), ...modules].map(moduleName));
  const written = new Set<string>();
  let lines = "";
  for (const name of names) {
    const order = await tree.resolve([name]);
    for (const module of order) {
      if (written.has(module.name)) continue;
      written.add(module.name);
      cpio.file(`/sparkler/lib/${module.name}.ko`, module.elf);
    }
    const own = order.find((module) => module.name === name);
    // Nothing to load for a module that is built in.
    if (own === undefined) continue;
    const device = virtioDeviceId(own.info) ?? "-";
    lines += `${name} ${device} ${order.map((module) => module.name).join(" ")}\n`;
  }
  return lines;
}

/**
 * The path of the default initramfs, made if it is not in the cache.
 * @throws ImageError if busybox cannot be fetched or `modules` names one that the kernel does not have.
 */
export async function ensureInitramfs(options: InitramfsOptions): Promise<string> {
  const { kernel, modules = [], cacheDir, progress } = options;
  const key = createHash("sha256")
    .update(JSON.stringify([LAYOUT, initScript, demoScript, DEFAULT_MODULES, modules, kernel?.modulesDir]))
    .digest("hex");
  const path = join(cacheDir, "initramfs", `${kernel?.version ?? "builtin"}-${key.slice(0, 16)}.cpio`);
  if (existsSync(path)) return path;
  const busybox = await Bun.file(await ensureBusybox(options)).bytes();
  const step = progress.start("Building the initramfs");
  try {
    await cachedFile(path, () => buildInitramfs(busybox, kernel, modules));
  } finally {
    step.finish();
  }
  return path;
}
