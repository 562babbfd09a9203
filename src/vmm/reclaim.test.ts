import { expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { closeFile, openFile } from "../platform/files.ts";
import { addressOf, mapFilePrivately } from "../platform/memory.ts";
import { MemoryReclaim } from "./reclaim.ts";

const PAGE = 4096;
const MIB = 2 ** 20;

/** Memory of this process that is in use, in bytes. */
function resident(): number {
  return Number(/^Rss:\s+(\d+) kB$/m.exec(readFileSync("/proc/self/smaps_rollup", "utf8"))?.[1]) * 1024;
}

test("memory of a guest goes back to the host and reads as zeros, where a file was mapped too", () => {
  const dir = mkdtempSync(join(tmpdir(), "sparkler-reclaim-"));
  try {
    const path = join(dir, "kernel");
    writeFileSync(path, new Uint8Array(4 * PAGE).fill(7));
    const memory = new WebAssembly.Memory({ initial: 1024, maximum: 1024, shared: true });
    const bytes = new Uint8Array(memory.buffer);
    bytes.fill(1);
    const fd = openFile(path);
    mapFilePrivately(bytes.subarray(MIB, MIB + 4 * PAGE), fd, 0);
    closeFile(fd);
    expect(bytes[MIB]).toBe(7);
    const reclaim = new MemoryReclaim();
    reclaim.addFileRanges([{ start: addressOf(bytes) + MIB, end: addressOf(bytes) + MIB + 4 * PAGE }]);

    const before = resident();
    reclaim.discard(bytes.subarray(32 * MIB));
    expect(before - resident()).toBeGreaterThan(30 * MIB);
    expect([bytes[32 * MIB - 1], bytes[32 * MIB], bytes[64 * MIB - 1]]).toEqual([1, 0, 0]);

    reclaim.discard(bytes.subarray(MIB + PAGE, MIB + 2 * PAGE));
    expect([0, 1, 2, 3].map((page) => bytes[MIB + page * PAGE])).toEqual([7, 0, 7, 7]);
    // Over both edges of the file's pages.
    reclaim.discard(bytes.subarray(MIB - PAGE, MIB + 6 * PAGE));
    expect([-2, -1, 0, 3, 5, 6].map((page) => bytes[MIB + page * PAGE])).toEqual([1, 0, 0, 0, 0, 1]);
    bytes[MIB] = 3;
    reclaim.discard(bytes.subarray(MIB, MIB + PAGE));
    expect(bytes[MIB]).toBe(0);
  } finally {
    rmSync(dir, { recursive: true });
  }
});
