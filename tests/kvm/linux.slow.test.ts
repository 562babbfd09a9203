/**
 * A real Linux on KVM, to a shell on a serial console that uses a block device. On a KVM without hardware under it this
 * takes a kernel made for that: `SPARKLER_KVM_LINUX` names the folder with its `vmlinux.xz`.
 */

import { expect, test } from "bun:test";
import { closeSync, existsSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CpioWriter } from "../../src/image/cpio.ts";
import { decompress } from "../../src/image/decompress.ts";
import { buildMicrovm } from "../../src/vmm/builder.ts";
import { noKvm } from "./machine.ts";

const folder =
  process.env.SPARKLER_KVM_LINUX ?? new URL("../../../shared/kvm-linux", import.meta.url).pathname;
const kernel = join(folder, "vmlinux.xz");
const BUSYBOX = "/usr/bin/busybox";
const BOOT_LIMIT_MS = 240_000;

/** The kernel's needs on a KVM without hardware under it; see the README beside it. */
const BOOT_ARGS = [
  "console=ttyS0 quiet reboot=k panic=1 noxsave clearcpuid=smap,smep,fsgsbase,cx16,popcnt,erms,fsrm",
  "mitigations=off rodata=off initcall_blacklist=blake2s_mod_init,ptp_kvm_init,slab_sysfs_init",
  "GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX,-AVX2,-AVX_Fast_Unaligned_Load,-AVX512F,-AVX512VL,-AVX512BW," +
    "-AVX512DQ,-AVX512CD,-ERMS,-FSRM,-XSAVEC,-XSAVE",
].join(" ");

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

function missing(): string | undefined {
  const reason = noKvm();
  if (reason !== undefined) return reason;
  if (!existsSync(kernel)) return `skipped: there is no ${kernel}; set SPARKLER_KVM_LINUX to its folder`;
  return existsSync(BUSYBOX) ? undefined : `skipped: there is no ${BUSYBOX}; install busybox-static`;
}

const reason = missing();
if (reason !== undefined) console.warn(`Linux on KVM ${reason}`);

test.skipIf(reason !== undefined)(
  "Linux boots to a shell program that reads and writes its disk, and reboots",
  async () => {
    const dir = mkdtempSync(join(tmpdir(), "sparkler-kvm-linux-"));
    try {
      const file = (name: string, content: Uint8Array) => {
        const path = join(dir, name);
        writeFileSync(path, content);
        return { path, fd: openSync(path, "r") };
      };
      const vmlinux = file("vmlinux", await decompress(readFileSync(kernel), "xz"));
      const cpio = new CpioWriter();
      for (const name of ["/dev", "/proc"]) cpio.directory(name);
      cpio.device("/dev/console", "c", 5, 1);
      cpio.file("/bin/busybox", readFileSync(BUSYBOX), { mode: 0o755 });
      cpio.file("/init", INIT, { mode: 0o755 });
      const content = Buffer.alloc(512 * 1024, "what the host put on the disk. ");
      const disk = file("disk", content);

      const microvm = await buildMicrovm(
        {
          vcpus: 1,
          memMib: 256,
          kernel: vmlinux,
          initrd: [cpio.finish()],
          bootArgs: BOOT_ARGS,
          drives: [{ id: "d", path: disk.path, readOnly: false, root: false, cacheType: "Writeback" }],
          entropy: false,
          serial: { keepTail: true },
          bootTimer: false,
          log: { id: "test", fd: 2, level: "Warn", showLevel: true, showOrigin: false },
        },
        { backend: new URL("./v1-backend.ts", import.meta.url).href },
      );
      for (const { fd } of [vmlinux, disk]) closeSync(fd);
      const limit = setTimeout(() => microvm.stop(), BOOT_LIMIT_MS - 5000);
      const { end, consoleTail, stats, metrics } = await microvm.ended;
      clearTimeout(limit);

      const sum = new Bun.CryptoHasher("md5").update(content).digest("hex");
      expect(consoleTail).toMatch(/hello from 6\.1/);
      expect(consoleTail).toContain(`sum ${sum}`);
      expect(end).toEqual({ kind: "reset" });
      const after = readFileSync(disk.path);
      expect(after.subarray(4096, 4096 + 21).toString()).toBe("written by the guest\n");
      expect(after.subarray(0, 4096).equals(content.subarray(0, 4096))).toBe(true);
      console.log(consoleTail, stats, metrics?.blocks);
    } finally {
      rmSync(dir, { recursive: true });
    }
  },
  BOOT_LIMIT_MS,
);
