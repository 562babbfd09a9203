/** A real Linux on KVM, to a shell on a serial console that uses a block device. */

import { expect, test } from "bun:test";
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buildMicrovm } from "../../src/vmm/builder.ts";
import { BOOT_ARGS, BOOT_LIMIT_MS, initramfs, noLinux, writeKernel } from "./linux.ts";

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

test.skipIf(reason !== undefined).each([
  ["I/O APIC", "", "IO-APIC"],
  ["PIC", "noapic ", "XT-PIC"],
])(
  "Linux boots to a shell program that reads and writes its disk, and reboots: interrupts by the %s",
  async (_name, more, controller) => {
    const dir = mkdtempSync(join(tmpdir(), "sparkler-kvm-linux-"));
    try {
      const file = (name: string) => ({ path: join(dir, name), fd: openSync(join(dir, name), "r") });
      await writeKernel(join(dir, "vmlinux"));
      const vmlinux = file("vmlinux");
      const content = Buffer.alloc(512 * 1024, "what the host put on the disk. ");
      writeFileSync(join(dir, "disk"), content);
      const disk = file("disk");

      const microvm = await buildMicrovm(
        {
          vcpus: 1,
          memMib: 256,
          kernel: vmlinux,
          initrd: [initramfs(INIT)],
          bootArgs: more + BOOT_ARGS,
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
      expect(consoleTail).toMatch(new RegExp(`disk interrupts .* ${controller} .*virtio0`));
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
