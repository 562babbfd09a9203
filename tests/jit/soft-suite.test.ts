/** The software CPU's own tests once more, with every block compiled before it runs. */
import { expect, test } from "bun:test";
import { join } from "node:path";

/** Left out: what measures time, and random programs, which random.test.ts has more of. */
const LEFT_OUT = ["clock.test.ts", "self-modifying-random.test.ts"];
const TIMEOUT_MS = 120_000;

test(
  "all tests of the software CPU pass on compiled code",
  () => {
    const root = join(import.meta.dir, "..", "..");
    const files = [...new Bun.Glob("tests/soft/*.test.ts").scanSync({ cwd: root })].filter(
      (file) => !LEFT_OUT.some((name) => file.endsWith(`/${name}`)),
    );
    expect(files.length).toBeGreaterThan(10);
    const { exitCode, stdout, stderr } = Bun.spawnSync(
      [process.execPath, "test", ...files.map((file) => `./${file}`), `--timeout=${TIMEOUT_MS / 2}`],
      { cwd: root, env: { ...process.env, SPARKLER_TEST_JIT: "1" } },
    );
    const failures = `${stdout}${stderr}`.split("\n").filter((line) => line.startsWith("(fail)"));
    expect(failures).toEqual([]);
    expect(exitCode).toBe(0);
  },
  TIMEOUT_MS,
);
