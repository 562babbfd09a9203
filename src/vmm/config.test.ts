import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loggerSettings, parseConfig } from "./config.ts";
import { Resources } from "./resources.ts";

const dir = mkdtempSync(join(tmpdir(), "sparkler-config-"));
afterAll(() => rmSync(dir, { recursive: true }));
const kernel = join(dir, "vmlinux");
writeFileSync(kernel, "kernel");
for (const disk of ["a", "b", "root", "data"]) writeFileSync(join(dir, disk), Buffer.alloc(512));

const boot = { kernel_image_path: kernel, boot_args: "console=ttyS0" };
const drive = (id: string, root = false, more: object = {}) => ({
  drive_id: id,
  is_root_device: root,
  path_on_host: join(dir, id),
  ...more,
});

function parse(config: unknown) {
  return parseConfig(JSON.stringify(config));
}

function configure(config: object) {
  const resources = new Resources();
  try {
    resources.apply(parse({ "boot-source": boot, drives: [], ...config }));
    return { spec: resources.spec(), json: resources.toJson() };
  } finally {
    resources.closeBootFiles();
  }
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
      { "boot-source": boot, drives: [], "machine-config": { vcpu_count: 1, mem_size_mib: 2 ** 64 } },
      "invalid type: floating point `18446744073709552000`, expected an integer at /machine-config/mem_size_mib",
    ],
    [
      { "boot-source": boot, drives: [{ ...drive("a"), cache_type: "None" }] },
      "unknown variant `None`, expected `Unsafe` or `Writeback` at /drives/0/cache_type",
    ],
    [{ "boot-source": boot, drives: {} }, "invalid type: map, expected a sequence at /drives"],
    [
      { "boot-source": { kernel_image_path: null }, drives: [] },
      "invalid type: null, expected a string at /boot-source/kernel_image_path",
    ],
    [[], "invalid type: sequence, expected an object"],
  ])("%j", (config, message) => {
    expect(() => parse(config)).toThrow(new Error(message));
  });

  test("an unknown top-level key lists the known ones, also one that every object has", () => {
    for (const key of ["usb", "toString", "constructor"]) {
      expect(() => parse({ "boot-source": boot, drives: [], [key]: 1 })).toThrow(
        new RegExp(`^unknown field \`${key}\`, expected one of \`boot-source\`, \`drives\`, `),
      );
    }
    expect(() => parseConfig('{"boot-source":{"__proto__":{"kernel_image_path":"k"}},"drives":[]}')).toThrow(
      "unknown field `__proto__`",
    );
  });

  test("text that is no JSON, or nested without end", () => {
    expect(() => parseConfig("{")).toThrow(/^Invalid JSON: /);
    expect(() => parseConfig("[".repeat(100_000))).toThrow("Invalid JSON: recursion limit exceeded");
  });

  test("what cannot be done is named, null, empty lists and defaults pass", () => {
    const base = { "boot-source": boot, drives: [] };
    const given = { "cpu-config": "c" };
    for (const [key, value] of Object.entries(given)) {
      expect(() => parse({ ...base, [key]: value })).toThrow(`\`${key}\` is not supported yet`);
    }
    const passes = { vsock: null, "network-interfaces": [], pmem: [], entropy: { rate_limiter: {} } };
    expect(parse({ ...base, ...passes }).drives).toEqual([]);
  });
});

describe("machine", () => {
  test("defaults are Firecracker's", () => {
    expect(configure({}).spec).toMatchObject({
      vcpus: 1,
      smt: false,
      memMib: 128,
      entropy: false,
      bootArgs: "console=ttyS0",
    });
  });

  test("smt is taken with one vCPU, which it does not change", () => {
    const machine = { vcpu_count: 1, mem_size_mib: 128, smt: true };
    expect(configure({ "machine-config": machine }).spec).toMatchObject({ vcpus: 1, smt: true });
  });

  test.each([
    [{ vcpu_count: 0, mem_size_mib: 128 }, "The number of vCPUs must be greater than 0"],
    [{ vcpu_count: 33, mem_size_mib: 128 }, "less than 32"],
    [{ vcpu_count: 1, mem_size_mib: 0 }, "The memory size (MiB) is either 0"],
    [{ vcpu_count: 3, mem_size_mib: 128, smt: true }, "must be 1 or an even number if SMT is enabled"],
    [
      { vcpu_count: 1, mem_size_mib: 128, huge_pages: "2M" },
      "`machine-config.huge_pages` `2M` is not supported yet. Use `None`.",
    ],
    [
      { vcpu_count: 1, mem_size_mib: 128, track_dirty_pages: true },
      "`machine-config.track_dirty_pages` is not",
    ],
    [{ vcpu_count: 1, mem_size_mib: 128, cpu_template: "T2" }, "`machine-config.cpu_template` `T2` is not"],
  ])("%j", (machine, message) => {
    expect(() => configure({ "machine-config": machine })).toThrow(message);
  });

  test("a kernel that is not there, a command line that cannot be", () => {
    expect(() => configure({ "boot-source": { kernel_image_path: join(dir, "none") } })).toThrow(
      new Error("The kernel file cannot be opened: No such file or directory (os error 2)"),
    );
    expect(() => configure({ "boot-source": { ...boot, boot_args: "ä" } })).toThrow(
      "The kernel command line is invalid: ",
    );
    expect(() => configure({ "boot-source": { kernel_image_path: "a\0b" } })).toThrow("NUL");
  });
});

describe("drives", () => {
  test("the root drive comes first, and the same id replaces", () => {
    const { spec, json } = configure({
      drives: [
        drive("data"),
        drive("root", true, { is_read_only: true }),
        drive("data", false, { partuuid: "x" }),
      ],
    });
    expect(spec.drives.map((d) => [d.id, d.root, d.readOnly, d.partuuid, d.cacheType])).toEqual([
      ["root", true, true, undefined, "Unsafe"],
      ["data", false, false, "x", "Unsafe"],
    ]);
    expect(json.drives).toMatchObject([{ drive_id: "root" }, { drive_id: "data" }]);
  });

  test("a rate limiter is handed on, and shown without the buckets that limit nothing", () => {
    const limiter = {
      bandwidth: { size: 5, refill_time: 0 },
      ops: { size: 1, refill_time: 2, one_time_burst: 3 },
    };
    const { spec, json } = configure({ drives: [drive("a", false, { rate_limiter: limiter })] });
    expect(spec.drives[0]!.rateLimiter).toEqual(limiter);
    expect(json.drives).toMatchObject([{ rate_limiter: { bandwidth: null, ops: limiter.ops } }]);
  });

  test.each([
    [[drive("a", true), drive("b", true)], "A root block device already exists!"],
    [[drive("a-b")], "can only contain alphanumeric characters and underscores"],
    [
      [{ drive_id: "a", is_root_device: false, socket: "/s" }],
      "`drives.0.socket` is not supported yet. Leave it out. There are no vhost-user drives: give path_on_host.",
    ],
    [[{ drive_id: "a", is_root_device: false }], "has no path_on_host"],
    [[drive("none")], "No such file or directory (os error 2)"],
    [[{ ...drive("a"), path_on_host: "a\0b" }], "NUL"],
  ])("%j", (drives, message) => {
    expect(() => configure({ drives })).toThrow(message);
  });
});

describe("balloon", () => {
  const balloon = { amount_mib: 64, deflate_on_oom: true };

  test("is handed on with its defaults, and shown", () => {
    expect(configure({}).spec.balloon).toBeUndefined();
    const { spec, json } = configure({ balloon });
    expect(spec.balloon).toEqual({
      amountMib: 64,
      deflateOnOom: true,
      statsPollingIntervalS: 0,
      freePageHinting: false,
      freePageReporting: false,
    });
    expect(json.balloon).toEqual({
      ...balloon,
      stats_polling_interval_s: 0,
      free_page_hinting: false,
      free_page_reporting: false,
    });
  });

  test("is no larger than the memory", () => {
    const machine = { vcpu_count: 1, mem_size_mib: 63 };
    expect(() => configure({ "machine-config": machine, balloon })).toThrow(
      "Amount of pages requested is too large. The guest has 63 MiB: ask for no more.",
    );
  });
});

test("logger settings, with Firecracker's level names", () => {
  const logger = { log_path: "l", level: "WARNING", show_level: true, show_log_origin: false };
  expect(loggerSettings(logger)).toEqual({ path: "l", level: "Warn", showLevel: true, showOrigin: false });
  expect(loggerSettings(undefined)).toEqual({});
  expect(() => loggerSettings({ level: "loud" })).toThrow("unknown variant `loud`");
});
