/** `sparkler --no-api --config-file`: the guest's console on stdin and stdout, kernels, drives, and how it ends. */

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Random } from "../../src/devices/virtio/testing/fuzz.ts";
import { type BootFiles, bootFiles, bzImage } from "./boot-files.ts";
import { ConsoleShell } from "./console-shell.ts";
import { finishRuns, host, hostHas, Started, TEST_LIMIT, temporaryDirectory } from "./sparkler.ts";

const dir = temporaryDirectory();
afterAll(() => {
  dir.remove();
  finishRuns();
});

let files: BootFiles;
beforeAll(async () => {
  files = await bootFiles();
}, 120_000);

const BOOT_ARGS = "console=ttyS0 reboot=k panic=1 quiet cryptomgr.notests";
const MIB = 2 ** 20;

let configs = 0;
/** Starts a machine with the default initramfs. */
function start(kernel: string, more: object, bootArgs = BOOT_ARGS): Started {
  const path = join(dir.path, `vm-${configs++}.json`);
  const boot = { kernel_image_path: kernel, initrd_path: files.initramfs, boot_args: bootArgs };
  writeFileSync(path, JSON.stringify({ "boot-source": boot, drives: [], ...more }));
  return new Started(["--no-api", "--config-file", path, "--level", "Warn"], "pipe");
}

describe.each([
  ["vmlinux", () => files.vmlinux],
  ["bzImage", bzImage],
] as const)("%s", (_, kernel) => {
  test(
    "a shell on the console, and the guest's restart ends the process with 0",
    async () => {
      const shell = new ConsoleShell(start(await kernel(), { entropy: {} }));
      await shell.ready();
      expect(await shell.type("echo $((6 * 7)) 'an  answer'")).toBe("42 an  answer\n");
      expect(await shell.type("uname -srm")).toMatch(/^Linux 6\.\d+\.\S+ x86_64\n$/);
      expect(await shell.type("cat /sys/class/misc/hw_random/rng_current")).toBe("virtio_rng.0\n");
      expect(await shell.type("head -c 100000 /dev/hwrng | gzip | wc -c")).toMatch(/^100\d\d\d\n$/);
      const { code, stderr } = await shell.reboot();
      expect(stderr).toBe("");
      expect(code).toBe(0);
    },
    2 * TEST_LIMIT,
  );
});

test(
  "drives of every kind: what is written arrives, what is read-only stays",
  async () => {
    const random = new Random(7);
    const content = Uint8Array.from({ length: 4 * MIB }, () => random.below(256));
    const path = (name: string) => join(dir.path, name);
    const drive = (name: string, more: object = {}) => {
      writeFileSync(path(name), content);
      return { drive_id: name, is_root_device: false, path_on_host: path(name), ...more };
    };
    const drives = [
      drive("readonly", { is_read_only: true }),
      drive("unsafe", { cache_type: "Unsafe" }),
      drive("writeback", { cache_type: "Writeback" }),
    ];
    truncateSync(path("writeback"), 4 * MIB);
    const shell = new ConsoleShell(start(files.vmlinux, { drives }));
    await shell.ready();
    const sum = new Bun.CryptoHasher("sha256").update(content).digest("hex");
    expect(await shell.type("for d in a b c; do sha256sum </dev/vd$d; done")).toBe(`${sum}  -\n`.repeat(3));
    expect(
      await shell.type("cat /sys/block/vd[abc]/ro /sys/block/vd[abc]/size /sys/block/vd[abc]/cache_type"),
    ).toBe("1\n0\n0\n8192\n8192\n8192\nwrite through\nwrite through\nwrite back\n");
    expect(
      await shell.type("dd if=/dev/zero of=/dev/vda bs=512 count=1 2>&1 | grep -c -e only -e permitted"),
    ).toBe("1\n");
    // Odd sizes and places, through the page cache and around it.
    const write = (device: string) =>
      `dd if=/dev/zero of=${device} bs=1 seek=1000 count=3000 conv=notrunc 2>/dev/null; ` +
      `dd if=/init of=${device} bs=512 seek=4096 count=8 oflag=direct 2>/dev/null; sync`;
    for (const device of ["/dev/vdb", "/dev/vdc"]) await shell.type(write(device));
    const init = await shell.type("head -c 4096 /init | sha256sum");
    const { code } = await shell.reboot();
    expect(code).toBe(0);
    expect(readFileSync(path("readonly")).equals(content)).toBe(true);
    for (const name of ["unsafe", "writeback"]) {
      const now = readFileSync(path(name));
      const written = now.subarray(4096 * 512, 4096 * 512 + 4096);
      expect(`${new Bun.CryptoHasher("sha256").update(written).digest("hex")}  -\n`).toBe(init);
      const expected = Buffer.from(content);
      expected.fill(0, 1000, 4000);
      written.copy(expected, 4096 * 512);
      expect(now.equals(expected)).toBe(true);
    }
  },
  2 * TEST_LIMIT,
);

const missing = ["mke2fs", "e2fsck"].filter((program) => !hostHas(program));
if (missing.length > 0) console.log(`skip: a guest's root drive: ${missing.join(" and ")} not installed`);

describe.skipIf(missing.length > 0)("a root drive", () => {
  /** An ext4 image with what `fill` writes below its directory. */
  async function image(name: string, fill: (root: string) => void): Promise<string> {
    const root = join(dir.path, `${name}.d`);
    host(["mkdir", "-p", join(root, "sbin")]);
    fill(root);
    const path = join(dir.path, `${name}.ext4`);
    host(["mke2fs", "-q", "-F", "-t", "ext4", "-d", root, path, "16M"]);
    return path;
  }
  const rootDrive = (path: string) => ({
    drives: [{ drive_id: "root", is_root_device: true, path_on_host: path, is_read_only: false }],
  });

  test(
    "its init is started as process 1",
    async () => {
      const path = await image("with-init", (root) => {
        host(["cp", files.busybox, join(root, "sbin", "busybox")]);
        const script = '#!/sbin/busybox sh\necho "I am $$ on $(/sbin/busybox hostname)" >/dev/console\n';
        writeFileSync(join(root, "sbin", "init"), `${script}/sbin/busybox reboot -f\n`, { mode: 0o755 });
      });
      const { code, stdout } = await start(files.vmlinux, rootDrive(path)).result();
      expect(stdout.toString()).toContain("I am 1 on sparkler\r\n");
      expect(code).toBe(0);
      host(["e2fsck", "-fn", path], [0]);
    },
    TEST_LIMIT,
  );

  test(
    "without an init the kernel says so, panics, and the process ends",
    async () => {
      const path = await image("no-init", () => {});
      const { code, stdout, leftProcesses } = await start(files.vmlinux, rootDrive(path)).result();
      expect(stdout.toString()).toContain("Kernel panic - not syncing: Attempted to kill init!");
      expect(code).toBe(0);
      expect(leftProcesses).toEqual([]);
    },
    TEST_LIMIT,
  );
});
