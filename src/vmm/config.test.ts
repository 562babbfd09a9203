import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { closeFile } from "../platform/files.ts";
import { chooseAccelerator } from "./accel.ts";
import { configLogger, configToSpec, parseConfig } from "./config.ts";

const dir = mkdtempSync(join(tmpdir(), "sparkler-config-"));
afterAll(() => rmSync(dir, { recursive: true }));
const kernel = join(dir, "vmlinux");
writeFileSync(kernel, "kernel");

const boot = { kernel_image_path: kernel, boot_args: "console=ttyS0" };
const drive = (id: string, root = false, more: object = {}) => ({
  drive_id: id,
  is_root_device: root,
  path_on_host: `/images/${id}`,
  ...more,
});

function parse(config: unknown) {
  return parseConfig(JSON.stringify(config));
}

function convert(config: object) {
  const spec = configToSpec(parse({ "boot-source": boot, drives: [], ...config }));
  for (const file of [spec.kernel, ...spec.initrd]) closeFile(file.fd);
  return spec;
}

describe("schema", () => {
  test.each([
    [{ drives: [] }, "missing field `boot-source`"],
    [{ "boot-source": boot }, "missing field `drives`"],
    [{ "boot-source": { boot_args: "x" }, drives: [] }, "missing field `kernel_image_path` at /boot-source"],
    [
      { "boot-source": { ...boot, kernel: "k" }, drives: [] },
      "unknown field `kernel`, expected one of `kernel_image_path`, `initrd_path`, `boot_args` at /boot-source",
    ],
    [
      { "boot-source": boot, drives: [], "machine-config": { mem_size_mib: 128 } },
      "missing field `vcpu_count` at /machine-config",
    ],
    [
      { "boot-source": boot, drives: [], "machine-config": { vcpu_count: "1", mem_size_mib: 128 } },
      'invalid type: string "1", expected an integer at /machine-config/vcpu_count',
    ],
    [
      { "boot-source": boot, drives: [], "machine-config": { vcpu_count: -1, mem_size_mib: 128 } },
      "invalid value: integer `-1`, expected 0 to 255 at /machine-config/vcpu_count",
    ],
    [
      { "boot-source": boot, drives: [{ ...drive("a"), cache_type: "None" }] },
      "unknown variant `None`, expected `Unsafe` or `Writeback` at /drives/0/cache_type",
    ],
    [{ "boot-source": boot, drives: {} }, "invalid type: map, expected a sequence at /drives"],
    [[], "invalid type: sequence, expected an object"],
  ])("%j", (config, message) => {
    expect(() => parse(config)).toThrow(new Error(message));
  });

  test("an unknown top-level key lists the known ones", () => {
    expect(() => parse({ "boot-source": boot, drives: [], usb: 1 })).toThrow(
      /^unknown field `usb`, expected one of `boot-source`, `drives`, /,
    );
  });

  test("text that is no JSON", () => {
    expect(() => parseConfig("{")).toThrow(/^Invalid JSON: /);
  });

  test("keys not acted on are named, null and empty lists pass", () => {
    const base = { "boot-source": boot, drives: [] };
    for (const key of ["metrics", "vsock", "network-interfaces", "balloon", "cpu-config", "mmds-config"]) {
      expect(() => parse({ ...base, [key]: [{}] })).toThrow(`\`${key}\` is not supported yet`);
    }
    expect(parse({ ...base, vsock: null, "network-interfaces": [], pmem: [] }).drives).toEqual([]);
  });
});

describe("machine", () => {
  test("defaults are Firecracker's", () => {
    expect(convert({})).toMatchObject({ vcpus: 1, memMib: 128, entropy: false, bootArgs: "console=ttyS0" });
  });

  test.each([
    [{ vcpu_count: 0, mem_size_mib: 128 }, "The number of vCPUs must be greater than 0"],
    [{ vcpu_count: 33, mem_size_mib: 128 }, "less than 32"],
    [{ vcpu_count: 3, mem_size_mib: 128, smt: true }, "even number if SMT is enabled"],
    [{ vcpu_count: 2, mem_size_mib: 128 }, "2 vCPUs asked for: the software CPU runs 1"],
    [{ vcpu_count: 1, mem_size_mib: 0 }, "The memory size (MiB) is either 0"],
    [{ vcpu_count: 1, mem_size_mib: 3073 }, "up to 3072 MiB"],
    [{ vcpu_count: 1, mem_size_mib: 128, huge_pages: "2M" }, "`huge_pages` `2M` is not supported yet"],
    [{ vcpu_count: 1, mem_size_mib: 128, track_dirty_pages: true }, "`track_dirty_pages` is not supported"],
    [{ vcpu_count: 1, mem_size_mib: 128, cpu_template: "T2" }, "`cpu_template` `T2` is not supported"],
  ])("%j", (machine, message) => {
    expect(() => convert({ "machine-config": machine })).toThrow(message);
  });

  test("a kernel that is not there", () => {
    expect(() => convert({ "boot-source": { kernel_image_path: join(dir, "none") } })).toThrow(
      new Error("The kernel file cannot be opened: No such file or directory (os error 2)"),
    );
  });

  test("KVM is refused in words, auto says why it is the software CPU", () => {
    expect(() => chooseAccelerator("kvm")).toThrow("There is no KVM backend yet");
    expect(chooseAccelerator("auto")).toEqual({ backend: "soft", reason: "there is no KVM backend yet" });
  });
});

describe("drives", () => {
  test("the root drive comes first, and the same id replaces", () => {
    const { drives } = convert({
      drives: [
        drive("data"),
        drive("root", true, { is_read_only: true }),
        drive("data", false, { partuuid: "x" }),
      ],
    });
    expect(drives.map((d) => [d.id, d.root, d.readOnly, d.partuuid, d.cacheType])).toEqual([
      ["root", true, true, undefined, "Unsafe"],
      ["data", false, false, "x", "Unsafe"],
    ]);
  });

  test.each([
    [[drive("a", true), drive("b", true)], "A root block device already exists!"],
    [[drive("a-b")], "can only contain alphanumeric characters and underscores"],
    [[drive("a", false, { io_engine: "Async" })], "`io_engine` `Async` of drive `a` is not supported yet"],
    [[drive("a", false, { socket: "/s" })], "`socket` (vhost-user) of drive `a`"],
    [[drive("a", false, { rate_limiter: {} })], "`rate_limiter` of drive `a`"],
    [[{ drive_id: "a", is_root_device: false }], "missing field `path_on_host`"],
  ])("%j", (drives, message) => {
    expect(() => convert({ drives })).toThrow(message);
  });
});

test("logger settings, with Firecracker's level names", () => {
  const base = { "boot-source": boot, drives: [] };
  const logger = { log_path: "l", level: "WARNING", show_level: true, show_log_origin: false };
  expect(configLogger(parse({ ...base, logger }))).toEqual({
    path: "l",
    level: "Warn",
    showLevel: true,
    showOrigin: false,
  });
  expect(configLogger(parse(base))).toEqual({});
  expect(() => configLogger(parse({ ...base, logger: { level: "loud" } }))).toThrow("unknown variant `loud`");
});
