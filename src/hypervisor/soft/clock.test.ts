import { expect, test } from "bun:test";
import { Clock } from "./clock.ts";
import { createSoftMemory } from "./index.ts";
import { State } from "./state.ts";

test.each([
  0n,
  1n,
  (1n << 32n) - 1n,
  1n << 52n,
  (1n << 53n) - 1000n,
  1n << 53n,
  1n << 63n,
  (1n << 64n) - 1_000_000_000n,
])("set to %d, both ways to read the counter agree", (value) => {
  const { memory } = createSoftMemory(1 << 20);
  const clock = new Clock(new State(memory), 1 << 20);
  clock.set(value);
  for (let i = 0; i < 100; i++) {
    const before = BigInt.asUintN(64, clock.now());
    const low = clock.readLow();
    const between = (BigInt(clock.high) << 32n) | BigInt(low);
    const after = BigInt.asUintN(64, clock.now());
    expect(between - before).toBeGreaterThanOrEqual(0n);
    expect(after - between).toBeGreaterThanOrEqual(0n);
  }
});
