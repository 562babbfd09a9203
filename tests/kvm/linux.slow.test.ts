/** A real Linux on KVM, to a shell on a serial console that uses a block device. */

import { expect, test } from "bun:test";
import {
  closeSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { makeExt4 } from "../../src/image/rootfs.ts";
import { buildMicrovm } from "../../src/vmm/builder.ts";
import type { MicrovmEnd } from "../../src/vmm/microvm.ts";
import { BOOT_ARGS, BOOT_LIMIT_MS, BUSYBOX, initramfs, noLinux, writeKernel } from "./linux.ts";

const INIT = `#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
echo "hello from $($b uname -r)"
echo "sum $($b md5sum /dev/vda | $b cut -c 1-32)"
echo written by the guest | $b dd of=/dev/vda bs=512 seek=8 conv=sync 2>/dev/null
$b sync
echo "disk interrupts $($b grep virtio0 /proc/interrupts)"
$b reboot -f
`;

const reason = noLinux();
if (reason !== undefined) console.warn(`Linux on KVM ${reason}`);

interface Guest {
  /** Has `vmlinux` and `disk`. */
  readonly dir: string;
  readonly memMib: number;
  readonly initrd: Uint8Array;
  readonly bootArgs: string;
  readonly limitMs: number;
}

/**
 * A kernel in an instruction emulator is a long time at its page descriptors: 100 s for 6 GiB where 256 MiB boot in 20,
 * and several times that on a machine that is busy otherwise.
 */
const LARGE_LIMIT_MS = 900_000;

/** Runs the guest to its end. */
async function boot({ dir, memMib, initrd, bootArgs, limitMs }: Guest): Promise<MicrovmEnd> {
  const kernel = { path: join(dir, "vmlinux"), fd: openSync(join(dir, "vmlinux"), "r") };
  const microvm = await buildMicrovm(
    {
      vcpus: 1,
      memMib,
      kernel,
      initrd: [initrd],
      bootArgs,
      drives: [{ id: "d", path: join(dir, "disk"), readOnly: false, root: false, cacheType: "Writeback" }],
      entropy: false,
      serial: { keepTail: true },
      bootTimer: false,
      log: { id: "test", fd: 2, level: "Warn", showLevel: true, showOrigin: false },
    },
    { backend: new URL("./v1-backend.ts", import.meta.url).href },
  );
  closeSync(kernel.fd);
  const limit = setTimeout(() => microvm.stop(), limitMs - 5000);
  const outcome = await microvm.ended;
  clearTimeout(limit);
  return outcome;
}

/** A directory with the kernel in it, which is gone after `body`. */
async function withKernel(body: (dir: string) => Promise<void>): Promise<void> {
  const dir = mkdtempSync(join(tmpdir(), "sparkler-kvm-linux-"));
  try {
    await writeKernel(join(dir, "vmlinux"));
    await body(dir);
  } finally {
    rmSync(dir, { recursive: true });
  }
}

test.skipIf(reason !== undefined).each([
  ["I/O APIC", "", "IO-APIC"],
  ["PIC", "noapic ", "XT-PIC"],
])(
  "Linux boots to a shell program that reads and writes its disk, and reboots: interrupts by the %s",
  (_name, more, controller) =>
    withKernel(async (dir) => {
      const content = Buffer.alloc(512 * 1024, "what the host put on the disk. ");
      writeFileSync(join(dir, "disk"), content);
      const { end, consoleTail, stats, metrics } = await boot({
        dir,
        memMib: 256,
        initrd: initramfs(INIT),
        bootArgs: more + BOOT_ARGS,
        limitMs: BOOT_LIMIT_MS,
      });

      const sum = new Bun.CryptoHasher("md5").update(content).digest("hex");
      expect(consoleTail).toMatch(/hello from 6\.1/);
      expect(consoleTail).toContain(`sum ${sum}`);
      expect(consoleTail).toMatch(new RegExp(`disk interrupts .* ${controller} .*virtio0`));
      expect(end).toEqual({ kind: "reset" });
      const after = readFileSync(join(dir, "disk"));
      expect(after.subarray(4096, 4096 + 21).toString()).toBe("written by the guest\n");
      expect(after.subarray(0, 4096).equals(content.subarray(0, 4096))).toBe(true);
      console.log(consoleTail, stats, metrics?.blocks);
    }),
  BOOT_LIMIT_MS,
);

const SWITCH_ROOT = `#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t ext4 /dev/vda /root
$b mount --move /dev /root/dev
exec $b switch_root /root /init
`;

const ROOT_INIT = `#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b grep MemTotal /proc/meminfo
$b grep -i "system ram" /proc/iomem
$b grep " / ext4" /proc/mounts
$b cp /data /copy
$b sync
echo 3 >/proc/sys/vm/drop_caches
echo "sum $($b md5sum /copy | $b cut -c 1-32)"
$b mount -o remount,ro /
$b reboot -f
`;

/** mke2fs lies in a directory of the system's. */
const noMke2fs = Bun.which("mke2fs", { PATH: `${process.env.PATH}:/usr/sbin:/sbin` }) === null;

test.skipIf(reason !== undefined || noMke2fs)(
  "Linux has 6 GiB, on both sides of the MMIO gap, and its root file system on a disk",
  () =>
    withKernel(async (dir) => {
      const root = join(dir, "root");
      for (const name of ["bin", "dev", "proc"]) mkdirSync(join(root, name), { recursive: true });
      copyFileSync(BUSYBOX, join(root, "bin", "busybox"));
      writeFileSync(join(root, "init"), ROOT_INIT, { mode: 0o755 });
      const data = Buffer.alloc(2 ** 20, crypto.getRandomValues(new Uint8Array(65_536)));
      writeFileSync(join(root, "data"), data);
      await makeExt4(root, join(dir, "disk"), 32 * 2 ** 20);
      const { end, consoleTail } = await boot({
        dir,
        memMib: 6144,
        initrd: initramfs(SWITCH_ROOT),
        bootArgs: BOOT_ARGS,
        limitMs: LARGE_LIMIT_MS,
      });

      console.log(consoleTail);
      expect(Number(/MemTotal: +(\d+) kB/.exec(consoleTail)?.[1]) / 2 ** 20).toBeGreaterThan(5);
      expect(consoleTail).toMatch(/100000000-1bfffffff : System RAM/);
      expect(consoleTail).toContain("/dev/vda / ext4");
      expect(consoleTail).toContain(`sum ${new Bun.CryptoHasher("md5").update(data).digest("hex")}`);
      expect(end).toEqual({ kind: "reset" });
    }),
  LARGE_LIMIT_MS,
);
