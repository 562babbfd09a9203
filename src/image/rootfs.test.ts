import { afterAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { silentProgress } from "./progress.ts";
import { busyboxRootfs, debianRootfs, makeExt4 } from "./rootfs.ts";

const SYSTEM_PATH = `${process.env.PATH}:/usr/sbin:/sbin`;
const has = (program: string) => Bun.which(program, { PATH: SYSTEM_PATH }) !== null;
const dir = mkdtempSync(join(tmpdir(), "sparkler-rootfs-"));
const path = process.env.PATH;
afterAll(() => {
  process.env.PATH = path;
  rmSync(dir, { recursive: true });
});

/** What debugfs answers about an image. */
function debugfs(image: string, request: string): string {
  const argv = ["debugfs", "-R", request, image];
  return Bun.spawnSync(argv, { env: { ...process.env, PATH: SYSTEM_PATH } }).stdout.toString();
}

describe.skipIf(!has("mke2fs") || !has("debugfs"))("makeExt4", () => {
  const content = join(dir, "content");
  mkdirSync(join(content, "etc"), { recursive: true });
  writeFileSync(join(content, "etc", "motd"), "hello\n");
  const image = join(dir, "image.ext4");

  test("an image of automatic size holds the directory", async () => {
    writeFileSync(join(content, "big"), Buffer.alloc(20 * 2 ** 20, 1));
    await makeExt4(content, image);
    expect(debugfs(image, "cat /etc/motd")).toBe("hello\n");
    expect(debugfs(image, "stat /big")).toContain(`Size: ${20 * 2 ** 20}`);
    const { size } = statSync(image);
    expect(size).toBeGreaterThan(40 * 2 ** 20);
    expect(size).toBeLessThan(48 * 2 ** 20);
    expect(readdirSync(dir).sort()).toEqual(["content", "image.ext4"]);
  });

  test("an image of given size; content that does not fit leaves the old image alone", async () => {
    await makeExt4(join(content, "etc"), image, 64 * 2 ** 20);
    expect(statSync(image).size).toBe(64 * 2 ** 20);
    expect(debugfs(image, "cat /motd")).toBe("hello\n");
    await expect(makeExt4(content, image, 18 * 2 ** 20)).rejects.toThrow(
      /mke2fs failed.*Could not allocate block/s,
    );
    expect(debugfs(image, "cat /motd")).toBe("hello\n");
    expect(readdirSync(dir).sort()).toEqual(["content", "image.ext4"]);
  });

  test("of busybox, from the cache", async () => {
    const cacheDir = join(dir, "cache");
    mkdirSync(join(cacheDir, "busybox", "1"), { recursive: true });
    writeFileSync(join(cacheDir, "busybox", "current"), "1\n");
    writeFileSync(join(cacheDir, "busybox", "1", "busybox"), "\x7fELF\0[\0[[\0sh\0\0");
    await busyboxRootfs({ cacheDir, progress: silentProgress, out: image });
    expect(debugfs(image, "stat /bin/busybox")).toMatch(/Type: regular\s+Mode:\s+0755/);
    expect(debugfs(image, "stat /bin/sh")).toContain('Fast link dest: "busybox"');
    expect(debugfs(image, "stat /tmp")).toMatch(/Mode:\s+01777/);
    expect(readdirSync(cacheDir)).toEqual(["busybox"]);
    rmSync(cacheDir, { recursive: true });
  });

  test("says what is wrong", async () => {
    await expect(makeExt4(join(content, "big"), image)).rejects.toThrow("big is not a directory");
    await expect(makeExt4(content, image, 1000)).rejects.toThrow("at least 16 MiB");
    await expect(makeExt4(content, join(dir, "no", "image"))).rejects.toThrow(/cannot write .*no\/image/);
  });
});

describe("debianRootfs", () => {
  const make = (packages: string[]) =>
    debianRootfs({ packages, out: join(dir, "debian.ext4"), suite: "stable", progress: silentProgress });

  test("without mmdebstrap it says what to install", async () => {
    process.env.PATH = dir;
    await expect(make([])).rejects.toThrow(
      "mmdebstrap is not installed: it is needed for Debian root file systems; install the package mmdebstrap",
    );
    process.env.PATH = path;
  });

  test("takes no options for package names", async () => {
    await expect(make(["curl", "--x"])).rejects.toThrow("not the name of a Debian package: --x");
  });
});
