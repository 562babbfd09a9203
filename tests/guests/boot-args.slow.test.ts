/** Boot arguments that take interrupt controllers and timers from the default kernel. Each must still boot. */

import { afterAll, beforeAll, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { type BootFiles, bootFiles } from "./boot-files.ts";
import { ConsoleShell } from "./console-shell.ts";
import { finishRuns, Started, TEST_LIMIT, temporaryDirectory } from "./sparkler.ts";

const dir = temporaryDirectory();
afterAll(() => {
  dir.remove();
  finishRuns();
});

let files: BootFiles;
beforeAll(async () => {
  files = await bootFiles();
}, 120_000);

const DISK = Buffer.alloc(64 * 1024, "what is on the disk. ");

test.each([
  // Arguments, the controller of the serial port, the disk's (there is none without ACPI), what ticks.
  ["", "IO-APIC", "IO-APIC", "LOC"],
  ["noapic", "XT-PIC", "XT-PIC", "LOC"],
  ["nosmp", "XT-PIC", "XT-PIC", "LOC"],
  ["acpi=noirq", "XT-PIC", "XT-PIC", "timer"],
  ["nolapic", "XT-PIC", "XT-PIC", "timer"],
  ["acpi=off", "XT-PIC", undefined, "timer"],
  ["noapic acpi=off", "XT-PIC", undefined, "timer"],
  ["noapic no-kvmclock", "XT-PIC", "XT-PIC", "LOC"],
  ["lapic=notscdeadline", "IO-APIC", "IO-APIC", "LOC"],
  ["noapic lapic=notscdeadline", "XT-PIC", "XT-PIC", "LOC"],
])(
  "%j",
  async (more, serial, disk, timer) => {
    const name = (suffix: string) => join(dir.path, `${more.replaceAll(" ", "-")}.${suffix}`);
    writeFileSync(name("img"), DISK);
    const config = {
      "boot-source": {
        kernel_image_path: files.vmlinux,
        initrd_path: files.initramfs,
        boot_args: `${more} console=ttyS0 reboot=k panic=1 quiet cryptomgr.notests`,
      },
      drives: [{ drive_id: "d", path_on_host: name("img"), is_root_device: false }],
    };
    writeFileSync(name("json"), JSON.stringify(config));
    const flags = ["--no-api", "--config-file", name("json"), "--level", "Warn", "--accel", "soft"];
    const shell = new ConsoleShell(new Started(flags, "pipe"));
    await shell.ready();
    const interrupts = await shell.type("cat /proc/interrupts");
    const line = (device: string) => interrupts.split("\n").find((text) => text.includes(device)) ?? "";
    expect(line("ttyS0")).toContain(serial);
    if (disk === undefined) expect(line("virtio0")).toBe("");
    else {
      expect(line("virtio0")).toContain(disk);
      const sum = new Bun.CryptoHasher("sha256").update(DISK).digest("hex");
      expect(await shell.type("sha256sum < /dev/vda")).toBe(`${sum}  -\n`);
    }
    // Some sleep more, so that timers that have stopped would show.
    expect(await shell.type("for i in 1 2 3 4 5; do sleep 0.1; done; echo awake")).toBe("awake\n");
    expect(Number(/^\s*\w+:\s*(\d+)/.exec(line(timer))?.[1])).toBeGreaterThan(10);
    const { code, stderr } = await shell.reboot();
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  },
  2 * TEST_LIMIT,
);
