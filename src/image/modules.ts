/**
 * Kernel modules of a Debian kernel package and the order to load them in. The package has no modules.dep
 * (depmod runs after installation), so dependencies are read from the modules themselves.
 */

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { decompress, detectCompression } from "./decompress.ts";
import { ImageError } from "./errors.ts";
import { type ModuleInfo, moduleName, parseModuleInfo } from "./modinfo.ts";

/** Modules that the default initramfs carries. Those built into the kernel are skipped. */
export const DEFAULT_MODULES: readonly string[] = [
  "virtio_mmio",
  "virtio_pci",
  "virtio_console",
  "virtio_blk",
  "virtio_net",
  "vmw_vsock_virtio_transport",
  "virtio_rng",
  "virtio_balloon",
  "ext4",
];

/** What {@link loadOrder} needs to know of a module; `undefined` for one that does not exist. */
export type ModuleLookup = (
  name: string,
) => Pick<ModuleInfo, "depends" | "softPre" | "softPost"> | "builtin" | undefined;

/**
 * The names of `names` and all they depend on, each after what it needs. Built-in modules are left out, and
 * so are soft dependencies that do not exist or would close a cycle.
 * @throws ImageError if a module or a dependency does not exist, or if dependencies form a cycle.
 */
export function loadOrder(names: readonly string[], lookup: ModuleLookup): string[] {
  const order: string[] = [];
  const placed = new Set<string>();
  const path: string[] = [];
  const afterwards: [name: string, wantedBy: string][] = [];
  const visit = (name: string, wantedBy: string | undefined): void => {
    if (placed.has(name)) return;
    if (path.includes(name)) {
      const cycle = [...path.slice(path.indexOf(name)), name];
      throw new ImageError(`kernel modules depend on one another in a circle: ${cycle.join(" -> ")}`);
    }
    const info = lookup(name);
    if (info === "builtin") return;
    if (info === undefined) {
      throw new ImageError(
        `the kernel has no module ${name}${wantedBy === undefined ? "" : `, which ${wantedBy} needs`}`,
      );
    }
    path.push(name);
    for (const soft of info.softPre) visitSoft(soft, name);
    for (const dependency of info.depends) visit(dependency, name);
    path.pop();
    placed.add(name);
    order.push(name);
    for (const soft of info.softPost) afterwards.push([soft, name]);
  };
  const visitSoft = (name: string, wantedBy: string): void => {
    if (lookup(name) !== undefined && !reaches(name, path, lookup)) visit(name, wantedBy);
  };
  for (const name of names) visit(moduleName(name), undefined);
  for (let soft = afterwards.shift(); soft !== undefined; soft = afterwards.shift()) visitSoft(...soft);
  return order;
}

/** Whether the hard dependencies of `from` lead to one of `targets`. */
function reaches(
  from: string,
  targets: readonly string[],
  lookup: ModuleLookup,
  seen = new Set<string>(),
): boolean {
  if (targets.includes(from)) return true;
  if (seen.has(from)) return false;
  seen.add(from);
  const info = lookup(from);
  if (info === undefined || info === "builtin") return false;
  return info.depends.some((name) => reaches(name, targets, lookup, seen));
}

/** One module as an initramfs carries it. */
export interface LoadedModule {
  name: string;
  /** The module, uncompressed. */
  elf: Uint8Array;
  info: ModuleInfo;
}

/** A directory such as `/lib/modules/6.1.0-56-cloud-amd64`. */
export class ModuleTree {
  private readonly paths = new Map<string, string>();
  private readonly builtin = new Set<string>();
  private readonly loaded = new Map<string, LoadedModule>();

  /** @throws ImageError if `dir` is not such a directory. */
  constructor(readonly dir: string) {
    const builtin = join(dir, "modules.builtin");
    if (!existsSync(builtin))
      throw new ImageError(`${dir} has no modules.builtin: not a kernel's module directory`);
    for (const line of readFileSync(builtin, "utf8").split("\n")) {
      if (line !== "") this.builtin.add(moduleName(line));
    }
    for (const file of readdirSync(dir, { recursive: true, encoding: "utf8" })) {
      if (/\.ko(\.(gz|xz|zst))?$/.test(file)) this.paths.set(moduleName(file), file);
    }
  }

  has(name: string): boolean {
    return this.paths.has(moduleName(name)) || this.isBuiltin(name);
  }

  isBuiltin(name: string): boolean {
    return this.builtin.has(moduleName(name));
  }

  /** Reads one module. @throws ImageError if there is none of that name or it is damaged. */
  private async read(name: string): Promise<LoadedModule> {
    const known = this.loaded.get(name);
    if (known !== undefined) return known;
    const file = this.paths.get(name);
    if (file === undefined) throw new ImageError(`the kernel has no module ${name} (looked in ${this.dir})`);
    let elf: Uint8Array = readFileSync(join(this.dir, file));
    const kind = detectCompression(elf);
    if (kind !== undefined) elf = await decompress(elf, kind);
    try {
      const module = { name, elf, info: parseModuleInfo(elf) };
      this.loaded.set(name, module);
      return module;
    } catch (error) {
      throw new ImageError(`${join(this.dir, file)}: ${error instanceof Error ? error.message : error}`);
    }
  }

  /** `names` and everything they need, in loading order. @throws ImageError as {@link loadOrder}. */
  async resolve(names: readonly string[]): Promise<LoadedModule[]> {
    // loadOrder wants answers at once, so read the closure first.
    const pending = names.map(moduleName);
    for (let name = pending.pop(); name !== undefined; name = pending.pop()) {
      if (this.loaded.has(name) || !this.paths.has(name)) continue;
      const { info } = await this.read(name);
      pending.push(...info.depends, ...info.softPre, ...info.softPost);
    }
    const order = loadOrder(names, (name) =>
      this.isBuiltin(name) ? "builtin" : this.loaded.get(name)?.info,
    );
    return Promise.all(order.map((name) => this.read(name)));
  }
}

/** The virtio device type that a module drives (virtio 1.2, 5), from its alias `virtio:d00000002v*`. */
export function virtioDeviceId(info: Pick<ModuleInfo, "aliases">): number | undefined {
  for (const alias of info.aliases) {
    const match = /^virtio:d([0-9A-F]{8})v/.exec(alias);
    if (match !== null) return Number.parseInt(match[1], 16);
  }
  return undefined;
}
