/** Firecracker's clients once more (tests/api/clients.test.ts), against the single executable. */

import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buildExecutable } from "../../scripts/build.ts";

const BUILD_TIMEOUT = 30_000;
const TIMEOUT = 10 * 60_000;

const root = new URL("../..", import.meta.url).pathname;
const dir = mkdtempSync(join(tmpdir(), "sparkler-executable-"));
const executable = join(dir, "sparkler");
beforeAll(() => buildExecutable(executable), BUILD_TIMEOUT);
afterAll(() => rmSync(dir, { recursive: true }));

test(
  "its clients drive the executable",
  async () => {
    const child = Bun.spawn([process.execPath, "test", "./tests/api/clients.test.ts"], {
      cwd: root,
      env: { ...process.env, SPARKLER_TEST_PROGRAM: executable },
      stdout: "pipe",
      stderr: "pipe",
    });
    const [stderr, code] = await Promise.all([new Response(child.stderr).text(), child.exited]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: expect.stringContaining(" 4 pass\n 0 fail\n") });
  },
  TIMEOUT,
);
