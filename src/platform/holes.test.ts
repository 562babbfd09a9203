import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { closeFile, openFile } from "./files.ts";
import { punchHole, zeroRange } from "./holes.ts";

const dir = mkdtempSync(join(tmpdir(), "sparkler-holes-"));
afterAll(() => rmSync(dir, { recursive: true }));

const BYTES = 1 << 20;

test("a hole reads as zeros, takes no room and leaves the size", () => {
  const path = join(dir, "file");
  writeFileSync(path, new Uint8Array(BYTES).fill(7));
  const fd = openFile(path, { write: true });
  const before = statSync(path).blocks;
  expect(punchHole(fd, 4096, BYTES - 8192)).toBe(true);
  const content = readFileSync(path);
  expect(content.length).toBe(BYTES);
  expect([4095, 4096, BYTES - 4097, BYTES - 4096].map((at) => content[at])).toEqual([7, 0, 0, 7]);
  expect(before - statSync(path).blocks).toBeGreaterThan((BYTES - 64 * 1024) / 512);
  closeFile(fd);
});

test("zeros that keep their room, where the file system can", () => {
  const path = join(dir, "zeros");
  writeFileSync(path, new Uint8Array(BYTES).fill(7));
  const fd = openFile(path, { write: true });
  const done = zeroRange(fd, 100, 1000);
  const content = readFileSync(path);
  expect([99, 100, 1099, 1100].map((at) => content[at])).toEqual(done ? [7, 0, 0, 7] : [7, 7, 7, 7]);
  expect(content.length).toBe(BYTES);
  closeFile(fd);
});

test("what has no holes says so, and a file that is only read is an error", () => {
  const device = openFile("/dev/zero", { write: true });
  expect(() => punchHole(device, 0, 4096)).toThrow();
  closeFile(device);
  const path = join(dir, "read");
  writeFileSync(path, new Uint8Array(8192));
  const fd = openFile(path);
  expect(() => punchHole(fd, 0, 4096)).toThrow("Bad file descriptor");
  closeFile(fd);
});
