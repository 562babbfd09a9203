/** A whole guest in lockstep: a Debian kernel boots and a program runs, every slice compared with the interpreter. */
import { afterAll, expect, test } from "bun:test";
import { finishRuns, sparkler } from "../guests/sparkler.ts";

/** On an idle machine it takes one to four minutes. */
const LIMIT_MS = 20 * 60_000;
const PROGRAM = 'seq 1 3000 | sha256sum; awk "BEGIN { for (i = 1; i <= 2000; i++) s += 1 / i; print s }"';

afterAll(finishRuns);

test(
  "a boot to user space and a program: compiled code and the interpreter never differ",
  async () => {
    const result = await sparkler(["run", "--accel", "soft", "--stats", "sh", "-c", PROGRAM], {
      env: { SPARKLER_JIT: "lockstep" },
      limit: LIMIT_MS,
    });
    expect(result.stderr).not.toContain("compiled code differs");
    expect(result.code).toBe(0);
    const numbers = Array.from({ length: 3000 }, (_, i) => `${i + 1}\n`).join("");
    const digest = new Bun.CryptoHasher("sha256").update(numbers).digest("hex");
    let sum = 0;
    for (let i = 1; i <= 2000; i++) sum += 1 / i;
    expect(result.stdout.toString()).toBe(`${digest}  -\n${sum.toPrecision(6)}\n`);
    const counted = (name: string) => Number(new RegExp(`(\\d+)\\s+${name}`).exec(result.stderr)?.[1] ?? 0);
    expect(counted("regionsCompiled")).toBeGreaterThan(1000);
    expect(counted("slicesCompared")).toBeGreaterThan(100_000);
    expect(counted("slicesSkipped")).toBeLessThan(counted("slicesCompared") / 10);
  },
  LIMIT_MS + 10_000,
);
