import { describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CpioWriter } from "./cpio.ts";
import { readNewc } from "./newc.testkit.ts";

function sample(): CpioWriter {
  const cpio = new CpioWriter();
  cpio.file("/a/b/file", "four", { mode: 0o4755, mtime: 1_700_000_000.9 });
  cpio.directory("/a", { mode: 0o700 });
  cpio.file("x", new Uint8Array([1, 2, 3, 4, 5]));
  cpio.symlink("/a/link", "../x");
  cpio.device("/dev/console", "c", 5, 1);
  cpio.device("/dev/vda", "b", 254, 0, { mode: 0o660 });
  cpio.fifo("/pipe");
  cpio.file("/ünï", "");
  return cpio;
}

describe("CpioWriter", () => {
  test("writes every kind of entry, parents first", () => {
    const entries = readNewc(sample().finish());
    expect([...entries].map(([name, entry]) => [name, entry.mode.toString(8)])).toEqual([
      ["a", "40755"],
      ["a/b", "40755"],
      ["a/b/file", "104755"],
      ["x", "100644"],
      ["a/link", "120777"],
      ["dev", "40755"],
      ["dev/console", "20600"],
      ["dev/vda", "60660"],
      ["pipe", "10644"],
      ["ünï", "100644"],
    ]);
    expect(entries.get("a/b/file")).toMatchObject({ mtime: 1_700_000_000, uid: 0, nlink: 1 });
    expect(entries.get("x")?.data).toEqual(Buffer.from([1, 2, 3, 4, 5]));
    expect(entries.get("a/link")?.data.toString()).toBe("../x");
    expect(entries.get("dev/console")?.rdev).toEqual([5, 1]);
    const inodes = [...entries.values()].map((entry) => entry.ino);
    expect(new Set(inodes).size).toBe(inodes.length);
  });

  test("two archives one after the other are read as one", () => {
    const second = new CpioWriter();
    second.file("/later", "1");
    const entries = readNewc(Buffer.concat([sample().finish(), second.finish()]));
    expect(entries.get("later")?.data.toString()).toBe("1");
    expect(entries.size).toBe(11);
  });

  const tool =
    Bun.which("cpio") !== null ? ["cpio"] : Bun.which("busybox") !== null ? ["busybox", "cpio"] : undefined;
  test.skipIf(tool === undefined)(`unpacked by ${tool?.join(" ") ?? "cpio (not installed here)"}`, () => {
    const dir = mkdtempSync(join(tmpdir(), "sparkler-cpio-"));
    try {
      const cpio = new CpioWriter();
      cpio.file("/a/b/file", "four", { mode: 0o751, mtime: 1_700_000_000 });
      cpio.file("/odd", "12345");
      cpio.symlink("/a/link", "../odd");
      const result = Bun.spawnSync([...(tool ?? []), "-i", "-m", "-d"], {
        cwd: dir,
        stdin: cpio.finish() as Uint8Array<ArrayBuffer>,
      });
      expect(result.stderr.toString()).toMatch(/^\d+ blocks?\n$/);
      expect(readFileSync(join(dir, "a/link"), "utf8")).toBe("12345");
      expect(statSync(join(dir, "a/b/file"))).toMatchObject({ mode: 0o100751, mtimeMs: 1_700_000_000_000 });
    } finally {
      rmSync(dir, { recursive: true });
    }
  });

  test("refuses names that the kernel would not take", () => {
    const cpio = new CpioWriter();
    expect(() => cpio.file("/a/../b", "")).toThrow('path with ".."');
    expect(() => cpio.file("a\0b", "")).toThrow("NUL");
    expect(() => cpio.file("/", "")).toThrow("not a path for a file");
    expect(() => cpio.file("TRAILER!!!", "")).toThrow("not a path for a file");
    expect(() => cpio.file("x".repeat(5000), "")).toThrow("longer than 4095");
    cpio.finish();
    expect(() => cpio.file("late", "")).toThrow("finished");
  });
});
