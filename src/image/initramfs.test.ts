import { afterAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { appletNames } from "./busybox.ts";
import demoScript from "./guest/demo.sh" with { type: "text" };
import initScript from "./guest/init.sh" with { type: "text" };
import { buildInitramfs } from "./initramfs.ts";
import { readNewc } from "./newc.testkit.ts";

const BUSYBOX = Buffer.from("\x7fELF code\0[\0[[\0ash\0busybox\0sh\0zcat\0\0more");

const modulesDir = mkdtempSync(join(tmpdir(), "sparkler-initramfs-"));
afterAll(() => rmSync(modulesDir, { recursive: true }));

test("applet names", () => {
  expect(appletNames(BUSYBOX)).toEqual(["[", "[[", "ash", "busybox", "sh", "zcat"]);
  expect(() => appletNames(Buffer.from("\x7fELF"))).toThrow("not a busybox");
});

describe("buildInitramfs", () => {
  test("carries busybox, /init and, of the default modules, those that the kernel has", async () => {
    mkdirSync(join(modulesDir, "kernel"));
    writeFileSync(join(modulesDir, "modules.builtin"), "kernel/ext4.ko\nkernel/virtio_blk.ko\n");
    const kernel = { version: "6.1.0-test", modulesDir };
    const entries = readNewc(await buildInitramfs(BUSYBOX, kernel));
    expect(entries.get("init")).toMatchObject({ mode: 0o100755 });
    expect(entries.get("init")?.data.toString()).toBe(initScript);
    expect(entries.get("bin/zcat")?.data.toString()).toBe("busybox");
    expect(entries.get("bin/busybox")?.data.equals(BUSYBOX)).toBe(true);
    expect(entries.get("dev/console")?.rdev).toEqual([5, 1]);
    expect(entries.get("sparkler/release")?.data.toString()).toBe("6.1.0-test\n");
    expect(entries.get("sparkler/modules")?.data.toString()).toBe("");
    await expect(buildInitramfs(BUSYBOX, kernel, ["overlay"])).rejects.toThrow(
      "the kernel has no module overlay",
    );
  });

  test("without a kernel it has no modules", async () => {
    const entries = readNewc(await buildInitramfs(BUSYBOX, undefined));
    expect(entries.has("sparkler/release")).toBe(false);
    await expect(buildInitramfs(BUSYBOX, undefined, ["overlay"])).rejects.toThrow("no kernel to take");
  });
});

const shells = [["sh"], ["busybox", "sh"]].filter(([program]) => Bun.which(program) !== null);
for (const [name, script] of Object.entries({ "init.sh": initScript, "demo.sh": demoScript })) {
  test.each(shells)(`${name} is read without an error by %s`, (...shell) => {
    const argv = shell.filter((word): word is string => typeof word === "string");
    const result = Bun.spawnSync([...argv, "-n"], { stdin: Buffer.from(script) });
    expect(result.stderr.toString()).toBe("");
    expect(result.exitCode).toBe(0);
  });
}
