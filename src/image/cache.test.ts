import { afterAll, describe, expect, test } from "bun:test";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { cachedDirectory, cachedFile } from "./cache.ts";
import { defaultCacheDir } from "./cache-dir.ts";
import { ImageError } from "./errors.ts";

const dir = mkdtempSync(join(tmpdir(), "sparkler-cache-"));
afterAll(() => rmSync(dir, { recursive: true }));

describe("the cache", () => {
  test("where it is", () => {
    expect(defaultCacheDir({ XDG_CACHE_HOME: "/x", HOME: "/home/me" })).toBe("/x/sparkler");
    expect(defaultCacheDir({ XDG_CACHE_HOME: "x", HOME: "/home/me" })).toBe("/home/me/.cache/sparkler");
    expect(defaultCacheDir({ HOME: "/home/me" })).toBe("/home/me/.cache/sparkler");
  });

  test("a directory is made once, and whole, by several at once", async () => {
    const path = join(dir, "kernels", "one");
    let seen = false;
    const make = async (temporary: string) => {
      writeFileSync(join(temporary, "a"), "1");
      await Bun.sleep(5);
      seen ||= existsSync(path) && !existsSync(join(path, "b"));
      writeFileSync(join(temporary, "b"), "2");
    };
    await Promise.all([
      cachedDirectory(path, make),
      cachedDirectory(path, make),
      cachedDirectory(path, make),
    ]);
    expect(seen).toBe(false);
    expect(readdirSync(path).sort()).toEqual(["a", "b"]);
    expect(readdirSync(join(dir, "kernels"))).toEqual(["one"]);
    await cachedDirectory(path, () => Promise.reject(new Error("made again")));
  });

  test("nothing is left of a failure, nor of a run that was killed a day ago", async () => {
    const parent = join(dir, "failed");
    mkdirSync(join(parent, ".new-old", "x"), { recursive: true });
    mkdirSync(join(parent, ".new-young"));
    utimesSync(join(parent, ".new-old"), 1, 1);
    await expect(cachedDirectory(join(parent, "it"), () => Promise.reject(new Error("no")))).rejects.toThrow(
      "no",
    );
    expect(readdirSync(parent)).toEqual([".new-young"]);
  });

  test("a file is kept, or replaced if so asked", async () => {
    const path = join(dir, "files", "current");
    await cachedFile(path, async () => "1");
    await cachedFile(path, async () => "2");
    expect(readFileSync(path, "utf8")).toBe("1");
    await cachedFile(path, async () => "3", true);
    expect(readFileSync(path, "utf8")).toBe("3");
    expect(readdirSync(join(dir, "files"))).toEqual(["current"]);
  });

  test("an unusable place is named", async () => {
    writeFileSync(join(dir, "file"), "");
    const error: unknown = await cachedDirectory(join(dir, "file", "x", "y"), async () => {}).catch(
      (e: unknown) => e,
    );
    expect(error).toBeInstanceOf(ImageError);
    expect(String(error)).toContain("cannot write to the cache");
  });
});
