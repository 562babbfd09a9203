import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { closeFile } from "../platform/files.ts";
import { FileDisk, openDisk } from "./file-disk.ts";

const MIB = 2 ** 20;
/** One of a disk's file system, and one of memory, which has holes but no ranges of zeros. */
const folders = [tmpdir(), "/dev/shm"].filter((folder) => existsSync(folder));
const dirs = folders.map((folder) => mkdtempSync(join(folder, "sparkler-file-disk-")));
afterAll(() => {
  for (const dir of dirs) rmSync(dir, { recursive: true });
});

describe.each(dirs)("in %s", (dir) => {
  function withDisk(run: (disk: FileDisk, path: string) => void): void {
    const path = join(dir, "disk");
    writeFileSync(path, new Uint8Array(2 * MIB).fill(7));
    const opened = openDisk("d", path, false);
    try {
      run(new FileDisk(opened), path);
    } finally {
      closeFile(opened.fd);
    }
  }

  test("a discard gives room back and nothing else", () => {
    withDisk((disk, path) => {
      const before = statSync(path).blocks;
      disk.discard(4096, MIB);
      expect((before - statSync(path).blocks) * 512).toBeGreaterThan(0.9 * MIB);
      const content = readFileSync(path);
      expect(content.length).toBe(2 * MIB);
      expect([4095, 4096 + MIB].map((at) => content[at])).toEqual([7, 7]);
    });
  });

  test.each([true, false])("zeros, with unmap %p", (unmap) => {
    withDisk((disk, path) => {
      disk.writeZeros(512, MIB + 1024, unmap);
      const expected = Buffer.alloc(2 * MIB, 7);
      expected.fill(0, 512, 512 + MIB + 1024);
      expect(readFileSync(path).equals(expected)).toBe(true);
      const allocated = statSync(path).blocks * 512;
      if (unmap) expect(allocated).toBeLessThan(1.2 * MIB);
      else expect(allocated).toBeGreaterThanOrEqual(2 * MIB);
    });
  });
});
