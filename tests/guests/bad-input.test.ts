/** Bad input: each mistake has its own message and exit code, and leaves nothing behind. */

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { chmodSync, copyFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type BootFiles, bootFiles, bzImage } from "./boot-files.ts";
import { finishRuns, host, type Result, Started, sparkler, temporaryDirectory } from "./sparkler.ts";

const BAD_CONFIGURATION = 152;
const BAD_ARGUMENTS = 153;
/** No guest runs, so each case takes a fraction of a second; this is for a machine that is busy. */
const LIMIT = 60_000;

const dir = temporaryDirectory();
const at = (name: string) => join(dir.path, name);
afterAll(() => {
  dir.remove();
  finishRuns();
});

if (existsSync("/dev/kvm")) console.log("skip: that --accel kvm is refused: this machine has KVM");

let files: BootFiles;
beforeAll(async () => {
  files = await bootFiles();
  const compressed = readFileSync(await bzImage());
  const elf = readFileSync(files.vmlinux);
  writeFileSync(at("text"), "This is no kernel.\n".repeat(1000));
  writeFileSync(at("empty"), "");
  writeFileSync(at("half.bz"), compressed.subarray(0, compressed.length / 2));
  writeFileSync(at("start.bz"), compressed.subarray(0, 700));
  writeFileSync(at("half.elf"), elf.subarray(0, elf.length / 2));
  writeFileSync(at("disk"), "d".repeat(4096));
  mkdirSync(at("directory"));
  host(["mkfifo", at("fifo")]);
}, 120_000);

function expectRefused(result: Result, code: number, message: RegExp): void {
  expect(result.stderr).toMatch(message);
  expect(result.stdout.toString()).toBe("");
  expect(result.code).toBe(code);
  const { leftFiles, leftProcesses } = result;
  expect({ leftFiles, leftProcesses }).toEqual({ leftFiles: [], leftProcesses: [] });
  // An error is for people: one line or a few, and no stack of the program.
  expect(result.stderr).not.toMatch(/\n\s+at |\.ts:\d/);
}

describe("run", () => {
  const boot = (kernel: string, initrd = files.initramfs) => ["--kernel", kernel, "--initrd", initrd];
  test.each([
    [
      "a kernel that is none",
      () => [...boot(at("text")), "true"],
      152,
      /neither an ELF vmlinux nor a bzImage/,
    ],
    ["an empty kernel", () => [...boot(at("empty")), "true"], 152, /kernel/i],
    ["a directory as kernel", () => [...boot(at("directory")), "true"], 152, /kernel file .*directory/i],
    [
      "a kernel that is missing",
      () => [...boot(at("none")), "true"],
      152,
      /kernel file cannot be opened: No such file/,
    ],
    ["a truncated bzImage", () => [...boot(at("half.bz")), "true"], 152, /truncated|ends at|end of/i],
    ["a bzImage of 700 bytes", () => [...boot(at("start.bz")), "true"], 152, /truncated|ends at|end of/i],
    ["a truncated vmlinux", () => [...boot(at("half.elf")), "true"], 152, /truncated|ends at|end of/i],
    [
      "a missing initrd",
      () => [...boot(files.vmlinux, at("none")), "true"],
      152,
      /initrd file cannot be opened: No such/,
    ],
    [
      "a directory as initrd",
      () => [...boot(files.vmlinux, at("directory")), "true"],
      152,
      /initrd file .*directory/i,
    ],
    [
      "an initrd that does not fit",
      () => ["--mem", "64", "true"],
      152,
      /initrd of \d+ bytes does not fit.*--mem/,
    ],
    [
      "too little memory for the kernel",
      () => ["--mem", "32", "true"],
      152,
      /guest memory is too small.*--mem/,
    ],
    ["--mem 0", () => ["--mem", "0", "true"], 153, /'--mem <MiB>' argument '0' is invalid/],
    [
      "--mem beyond any machine",
      () => ["--mem", "99999999", "true"],
      153,
      /'--mem <MiB>' argument '99999999' is invalid/,
    ],
    [
      "--mem beyond the software CPU",
      () => ["--accel", "soft", "--mem", "100000", "true"],
      152,
      /100000 MiB.*up to 3072 MiB/,
    ],
    [
      "--vcpus 2 on the software CPU",
      () => ["--accel", "soft", "--vcpus", "2", "true"],
      152,
      /2 vCPUs.*software CPU runs 1/,
    ],
    ["--vcpus 0", () => ["--vcpus", "0", "true"], 153, /'--vcpus <n>' argument '0' is invalid/],
    ["an accelerator that does not exist", () => ["--accel", "xen", "true"], 153, /xen.*auto, kvm, soft/],
    [
      "an unknown flag",
      () => ["--rootf", "x", "true"],
      153,
      /unknown option '--rootf'\n\(Did you mean --rootfs\?\)/,
    ],
    ["no command", () => ["--"], 153, /missing required argument 'cmd'/],
    ["an empty command", () => [""], 1, /no command/],
    ["a root that is missing", () => ["--rootfs", at("none"), "true"], 152, /--rootfs .*none: No such file/],
    [
      "a device as root image",
      () => ["--rootfs", "/dev/null", "true"],
      152,
      /must be a file or a block device: \/dev\/null is a character device/,
    ],
    [
      "a FIFO as root image",
      () => ["--rootfs", at("fifo"), "true"],
      152,
      /must be a file or a block device: .*fifo is a fifo/,
    ],
    [
      "an added file that is missing",
      () => ["--add", `${at("none")}:/x`, "true"],
      1,
      /cannot add .*none to the guest.*no such file/i,
    ],
    ["an added file without a place", () => ["--add", at("text"), "true"], 153, /give HOST:GUEST/],
    [
      "a path out of the guest's root",
      () => ["--add", `${at("text")}:/../x`, "true"],
      1,
      /must not have "\.\."/,
    ],
    ["a relative working directory", () => ["--workdir", "tmp", "true"], 1, /must be an absolute path/],
    ["a variable without a name", () => ["--env", "=x", "true"], 153, /give NAME=VALUE/],
  ] as const)(
    "%s",
    async (_, argv, code, message) => expectRefused(await sparkler(["run", ...argv()]), code, message),
    LIMIT,
  );

  test.skipIf(existsSync("/dev/kvm"))(
    "--accel kvm where there is none",
    async () => expectRefused(await sparkler(["run", "--accel", "kvm", "true"]), BAD_CONFIGURATION, /KVM/),
    LIMIT,
  );
});

describe("configuration file", () => {
  let count = 0;
  const boot = (): object => ({ kernel_image_path: files.vmlinux });
  /** Starts a machine from the text of a configuration file, or from an object. */
  function config(content: unknown): Started {
    const path = at(`config-${count++}.json`);
    writeFileSync(path, typeof content === "string" ? content : JSON.stringify(content));
    return new Started(["--no-api", "--level", "Off", "--config-file", path], "ignore", { limit: LIMIT });
  }
  const machine = (more: object): object => ({ "boot-source": boot(), drives: [], ...more });
  const drive = (path: string, more: object = {}): object => ({
    drive_id: "data",
    is_root_device: false,
    path_on_host: path,
    ...more,
  });

  test.each<[string, () => unknown, RegExp]>([
    ["invalid JSON", () => '{"boot-source": ', /Invalid JSON|EOF|JSON/],
    ["an empty file", () => "", /JSON|EOF/],
    ["something else than an object", () => "[1]", /invalid type/],
    ["no boot source", () => ({ drives: [] }), /missing field `boot-source`/],
    [
      "an unknown section",
      () => machine({ drivse: [] }),
      /unknown field `drivse`, expected one of .*`drives`/,
    ],
    [
      "an unknown field",
      () => ({ "boot-source": { ...boot(), kernel: "x" }, drives: [] }),
      /unknown field `kernel`, expected one of `kernel_image_path`/,
    ],
    [
      "a text for a number",
      () => machine({ "machine-config": { vcpu_count: "1", mem_size_mib: 128 } }),
      /invalid type: string "1", expected/,
    ],
    [
      "a number for a flag",
      () => machine({ drives: [drive(at("disk"), { is_read_only: 1 })] }),
      /invalid type: integer `1`, expected a boolean/,
    ],
    [
      "an unknown cache type",
      () => machine({ drives: [drive(at("disk"), { cache_type: "None" })] }),
      /unknown variant `None`, expected `Unsafe` or `Writeback`/,
    ],
    ["no memory", () => machine({ "machine-config": { vcpu_count: 1, mem_size_mib: 0 } }), /memory size/],
    [
      "a missing kernel",
      () => ({ "boot-source": { kernel_image_path: at("none") }, drives: [] }),
      /kernel file cannot be opened: No such file or directory \(os error 2\)/,
    ],
    [
      "a kernel that is none",
      () => ({ "boot-source": { kernel_image_path: at("text") }, drives: [] }),
      /neither an ELF vmlinux nor a bzImage/,
    ],
    [
      "a missing initrd",
      () => ({ "boot-source": { ...boot(), initrd_path: at("none") }, drives: [] }),
      /initrd.*No such file/,
    ],
    [
      "an empty initrd",
      () => ({ "boot-source": { ...boot(), initrd_path: at("empty") }, drives: [] }),
      /initrd.* empty/,
    ],
    [
      "a command line that is too long",
      () => ({ "boot-source": { ...boot(), boot_args: "x".repeat(3000) }, drives: [] }),
      /command line.*too long: 3000 characters, at most 2047/,
    ],
    ["a missing disk", () => machine({ drives: [drive(at("none"))] }), /`data`.*none.*No such file/],
    [
      "a directory as disk, to write",
      () => machine({ drives: [drive(at("directory"))] }),
      /`data`.*directory.*Is a directory/,
    ],
    [
      "a directory as disk, to read",
      () => machine({ drives: [drive(at("directory"), { is_read_only: true })] }),
      /`data`.*directory is a directory/,
    ],
    [
      "one file twice as a disk to write",
      () => machine({ drives: [drive(at("disk")), drive(at("disk"), { drive_id: "again" })] }),
      /`again`.*in use.*disk/,
    ],
    [
      "two root drives",
      () =>
        machine({
          drives: [
            drive(at("disk"), { is_root_device: true }),
            drive(at("disk"), { drive_id: "b", is_root_device: true }),
          ],
        }),
      /A root block device already exists/,
    ],
  ])(
    "%s",
    async (_, content, message) =>
      expectRefused(await config(content()).result(), BAD_CONFIGURATION, message),
    LIMIT,
  );

  test.each([
    [
      "is missing",
      ["--no-api", "--config-file", "/none/vm.json"],
      BAD_CONFIGURATION,
      /\/none\/vm\.json.*No such file/,
    ],
    [
      "is a directory",
      ["--no-api", "--config-file", "/"],
      BAD_CONFIGURATION,
      /configuration file.*directory/,
    ],
    ["is not given", ["--no-api"], BAD_ARGUMENTS, /--config-file/],
    [
      "is given by a wrong flag",
      ["--no-api", "--config-fil", "x"],
      BAD_ARGUMENTS,
      /unknown option '--config-fil'\n\(Did you mean --config-file\?\)/,
    ],
  ] as const)(
    "the file %s",
    async (_, argv, code, message) => expectRefused(await sparkler(argv), code, message),
    LIMIT,
  );

  test(
    "a disk that this user may only read",
    async () => {
      const path = at("only-read");
      writeFileSync(path, "x".repeat(512));
      chmodSync(path, 0o444);
      if (process.getuid?.() !== 0) {
        expectRefused(
          await config(machine({ drives: [drive(path)] })).result(),
          BAD_CONFIGURATION,
          /`data`.*only-read.*Permission denied/,
        );
        return;
      }
      // The superuser may write to anything, but not to a file that is being executed.
      const program = at("busy");
      copyFileSync("/bin/sleep", program);
      chmodSync(program, 0o755);
      const sleeper = Bun.spawn([program, "60"]);
      try {
        expectRefused(
          await config(machine({ drives: [drive(program)] })).result(),
          BAD_CONFIGURATION,
          /`data`.*busy.*Text file busy/,
        );
      } finally {
        sleeper.kill();
        await sleeper.exited;
      }
    },
    LIMIT,
  );

  test(
    "two microVMs with one disk: reading together is allowed, writing is not",
    async () => {
      const disk = at("disk");
      const initrd = {
        "boot-source": { ...boot(), initrd_path: files.initramfs, boot_args: "console=ttyS0" },
      };
      const reader = config({ ...initrd, drives: [drive(disk, { is_read_only: true })] });
      const second = config({ ...initrd, drives: [drive(disk, { is_read_only: true })] });
      await Promise.all([reader.expect("Linux version"), second.expect("Linux version")]);
      expectRefused(
        await config(machine({ drives: [drive(disk)] })).result(),
        BAD_CONFIGURATION,
        /`data`.*in use by another microVM/,
      );
      for (const started of [reader, second]) {
        started.child.kill("SIGTERM");
        const { code, leftProcesses } = await started.result();
        expect({ code, leftProcesses }).toEqual({ code: 143, leftProcesses: [] });
      }
      expect(readFileSync(disk, "utf8")).toBe("d".repeat(4096));
    },
    LIMIT,
  );
});
