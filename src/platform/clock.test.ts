import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { monotonicMicros } from "./clock.ts";

test("the monotonic clock is the system's: other processes read the same", () => {
  const other = Bun.spawnSync([
    process.execPath,
    "-e",
    `console.log((await import(${JSON.stringify(import.meta.dir)} + "/clock.ts")).monotonicMicros())`,
  ]);
  const difference = monotonicMicros() - Number(other.stdout.toString());
  expect(difference).toBeGreaterThan(0);
  expect(difference).toBeLessThan(5_000_000);
  // Without time in suspend it is what /proc/uptime shows; with it, less.
  expect(monotonicMicros() / 1e6).toBeLessThan(
    Number(readFileSync("/proc/uptime", "utf8").split(" ")[0]) + 1,
  );
});
