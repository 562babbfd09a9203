import { afterAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { type ModuleInfo, moduleName, parseModuleInfo } from "./modinfo.ts";
import { loadOrder, ModuleTree, virtioDeviceId } from "./modules.ts";

/** An ELF64 with a .modinfo section of `strings`. */
function moduleElf(...strings: string[]): Uint8Array {
  const modinfo = Buffer.from(strings.map((text) => `${text}\0`).join(""));
  const names = Buffer.from("\0.modinfo\0.shstrtab\0");
  const elf = Buffer.alloc(64 + modinfo.length + names.length + 3 * 64);
  elf.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  elf.set(modinfo, 64);
  elf.set(names, 64 + modinfo.length);
  const table = 64 + modinfo.length + names.length;
  elf.writeBigUInt64LE(BigInt(table), 0x28);
  elf.writeUInt16LE(64, 0x3a);
  elf.writeUInt16LE(3, 0x3c);
  elf.writeUInt16LE(2, 0x3e);
  const section = (index: number, name: number, offset: number, size: number) => {
    elf.writeUInt32LE(name, table + index * 64);
    elf.writeBigUInt64LE(BigInt(offset), table + index * 64 + 0x18);
    elf.writeBigUInt64LE(BigInt(size), table + index * 64 + 0x20);
  };
  section(1, 1, 64, modinfo.length);
  section(2, 10, 64 + modinfo.length, names.length);
  return elf;
}

describe("parseModuleInfo", () => {
  test("reads dependencies, soft dependencies and aliases", () => {
    const info = parseModuleInfo(
      moduleElf(
        "license=GPL",
        "alias=virtio:d0000001Av*",
        "depends=virtio-ring,virtio,net_failover",
        "softdep=pre: crc32c foo-bar post: late",
        "softdep=pre: more",
        "parm=depends=not this",
      ),
    );
    expect(info).toEqual({
      depends: ["virtio_ring", "virtio", "net_failover"],
      softPre: ["crc32c", "foo_bar", "more"],
      softPost: ["late"],
      aliases: ["virtio:d0000001Av*"],
    });
    expect(virtioDeviceId(info)).toBe(26);
  });

  test("an empty depends= names nothing", () => {
    expect(parseModuleInfo(moduleElf("depends=")).depends).toEqual([]);
  });

  test("refuses what is no module, and a damaged one", () => {
    expect(() => parseModuleInfo(new Uint8Array(100))).toThrow("not a 64-bit ELF");
    const elf = Buffer.from(moduleElf("depends=a"));
    const noTable = Buffer.from(elf);
    noTable.writeBigUInt64LE(1n << 40n, 0x28);
    expect(() => parseModuleInfo(noTable)).toThrow("section table lies outside");
    const badNames = Buffer.from(elf);
    badNames.writeUInt16LE(9, 0x3e);
    expect(() => parseModuleInfo(badNames)).toThrow("no section names");
    const badSection = Buffer.from(elf);
    badSection.writeBigUInt64LE(9999n, Number(elf.readBigUInt64LE(0x28)) + 64 + 0x20);
    expect(() => parseModuleInfo(badSection)).toThrow("a section lies outside");
    elf.fill(0x78, elf.indexOf(".modinfo"), elf.indexOf(".modinfo") + 3);
    expect(() => parseModuleInfo(elf)).toThrow("no .modinfo section");
  });

  test("module names", () => {
    expect(moduleName("kernel/drivers/char/hw_random/virtio-rng.ko.xz")).toBe("virtio_rng");
    expect(moduleName("crc32c-intel")).toBe("crc32c_intel");
  });
});

describe("loadOrder", () => {
  type Graph = Record<string, Partial<ModuleInfo> | "builtin">;
  const order = (graph: Graph, ...names: string[]) =>
    loadOrder(names, (name) => {
      const entry = graph[name];
      return entry === undefined || entry === "builtin"
        ? entry
        : { depends: [], softPre: [], softPost: [], ...entry };
    });

  test("puts each module after what it needs, once", () => {
    const graph: Graph = {
      blk: { depends: ["ring", "virtio"] },
      net: { depends: ["failover", "ring"] },
      failover: {},
      ring: { depends: ["virtio"] },
      virtio: { depends: ["core"] },
      core: "builtin",
    };
    expect(order(graph, "blk", "net", "core")).toEqual(["virtio", "ring", "blk", "failover", "net"]);
  });

  test("soft dependencies: before or after, if they exist", () => {
    const graph: Graph = {
      ext4: { softPre: ["crc32c", "absent"], softPost: ["late"], depends: ["jbd2"] },
      crc32c: {},
      jbd2: {},
      late: { depends: ["ext4"] },
    };
    expect(order(graph, "ext4")).toEqual(["crc32c", "jbd2", "ext4", "late"]);
  });

  test("a soft dependency that would close a cycle is dropped", () => {
    expect(order({ a: { softPre: ["b"] }, b: { depends: ["c"] }, c: { depends: ["a"] } }, "a", "b")).toEqual([
      "a",
      "c",
      "b",
    ]);
    expect(order({ a: { softPre: ["b"] }, b: { softPre: ["a"] } }, "a")).toEqual(["b", "a"]);
    expect(order({ a: { softPost: ["a"] } }, "a")).toEqual(["a"]);
  });

  test("a cycle of dependencies, a missing module and a missing dependency are errors", () => {
    const cycle: Graph = {
      x: { depends: ["a"] },
      a: { depends: ["b"] },
      b: { depends: ["c"] },
      c: { depends: ["a"] },
    };
    expect(() => order(cycle, "x")).toThrow("in a circle: a -> b -> c -> a");
    expect(() => order({ a: { depends: ["a"] } }, "a")).toThrow("a -> a");
    expect(() => order({}, "no")).toThrow("the kernel has no module no");
    expect(() => order({ a: { depends: ["gone"] } }, "a")).toThrow("no module gone, which a needs");
  });
});

describe("ModuleTree", () => {
  const dir = mkdtempSync(join(tmpdir(), "sparkler-modules-"));
  afterAll(() => rmSync(dir, { recursive: true }));
  mkdirSync(join(dir, "kernel", "drivers"), { recursive: true });
  writeFileSync(join(dir, "modules.builtin"), "kernel/fs/ext4/ext4.ko\nkernel/lib/built-in.ko\n");
  const put = (file: string, bytes: Uint8Array) => writeFileSync(join(dir, "kernel", "drivers", file), bytes);
  const ring = moduleElf("depends=");
  put("virtio-ring.ko", moduleElf("depends=built-in"));
  put("virtio_mmio.ko.gz", gzipSync(moduleElf("depends=virtio_ring", "alias=acpi*:LNRO0005:*")));
  put("broken.ko", ring.subarray(0, 80));

  test("reads plain and compressed modules and knows those built in", async () => {
    const tree = new ModuleTree(dir);
    expect(tree.has("virtio-mmio")).toBe(true);
    expect(tree.has("ext4")).toBe(true);
    expect(tree.has("xfs")).toBe(false);
    const modules = await tree.resolve(["virtio_mmio", "ext4"]);
    expect(modules.map((module) => module.name)).toEqual(["virtio_ring", "virtio_mmio"]);
    expect(Buffer.from(modules[1].elf.subarray(1, 4)).toString()).toBe("ELF");
    expect(virtioDeviceId(modules[1].info)).toBeUndefined();
  });

  test("names a damaged module's file, and a directory that is none of a kernel", async () => {
    await expect(new ModuleTree(dir).resolve(["broken"])).rejects.toThrow(/drivers\/broken\.ko: damaged ELF/);
    expect(() => new ModuleTree(join(dir, "kernel"))).toThrow("has no modules.builtin");
  });
});
