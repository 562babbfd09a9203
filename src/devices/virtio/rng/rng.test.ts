import { beforeEach, expect, test } from "bun:test";
import type { RateLimiterConfig } from "../../../ratelimit/rate-limiter.ts";
import { ManualTimers } from "../../../ratelimit/testing/manual-timers.ts";
import { TestDriver } from "../testing/driver.ts";
import { FUZZ_COUNT, fuzzDevice } from "../testing/fuzz.ts";
import { type FillRandom, RngDevice } from "./rng.ts";

let next: number;
let logs: string[];
let device: RngDevice;
let driver: TestDriver;

let timers: ManualTimers;

function made(fillRandom: FillRandom, rateLimiter?: RateLimiterConfig): RngDevice {
  timers = new ManualTimers();
  return new RngDevice({ fillRandom, timers, rateLimiter });
}

beforeEach(() => {
  next = 1;
  logs = [];
  device = made((into) => {
    expect(into.buffer).not.toBeInstanceOf(SharedArrayBuffer);
    for (let i = 0; i < into.length; i++) into[i] = 1 + (next++ % 255);
  });
  driver = TestDriver.start(device, { events: { log: (line) => logs.push(line) } });
});

test("fills all of a request, over several buffers", () => {
  const buffers = [driver.writable(5000), driver.writable(3)];
  expect(driver.request(0, buffers)).toBe(5003);
  const first = driver.ram(buffers[0]!.gpa, 5000);
  expect(first.every((byte) => byte !== 0)).toBe(true);
  expect(driver.ram(buffers[1]!.gpa, 3).every((byte) => byte !== 0)).toBe(true);
  expect(next - 1).toBe(5003);
  expect(device.metrics).toEqual({ bytes: 5003, requests: 1, fails: 0, throttled: 0 });
});

test("a large request gets 64 KiB", () => {
  const buffer = driver.writable(100_000);
  expect(driver.request(0, [buffer])).toBe(65536);
  expect(driver.ram(buffer.gpa + 65536, 100_000 - 65536).every((byte) => byte === 0)).toBe(true);
});

test("a request with nowhere to write gets nothing", () => {
  expect(driver.request(0, [driver.readable(Uint8Array.of(1))])).toBe(0);
});

test("a host without random bytes costs the request, not the device", () => {
  let broken = true;
  driver = TestDriver.start(
    made((into) => {
      if (broken) throw new Error("getrandom failed");
      into.fill(1);
    }),
    { events: { log: (line) => logs.push(line) } },
  );
  expect(driver.request(0, [driver.writable(8)])).toBe(0);
  expect(logs).toEqual(["entropy: no random bytes: getrandom failed"]);
  broken = false;
  expect(driver.request(0, [driver.writable(8)])).toBe(8);
});

test("the rate limiter lets requests wait", () => {
  device = made((into) => void into.fill(1), { bandwidth: { size: 1000, refill_time: 1000 } });
  driver = TestDriver.start(device);
  expect(driver.request(0, [driver.writable(900)])).toBe(900);
  expect(driver.request(0, [driver.writable(200)])).toBeUndefined();
  timers.advance(100);
  expect(driver.queues[0]!.takeUsed().map(({ length }) => length)).toEqual([200]);
  expect(device.metrics).toEqual({ bytes: 1100, requests: 2, fails: 0, throttled: 1 });
});

test(`survives ${FUZZ_COUNT} mutations`, () => {
  const result = fuzzDevice({
    seed: 3,
    device: () => made((into) => into.fill(0x33)),
    request: (random, d) =>
      Array.from({ length: 1 + random.below(3) }, () => d.writable(1 + random.below(100))),
  });
  expect(result.mutations).toBe(FUZZ_COUNT);
  expect(result.completed).toBeGreaterThan(FUZZ_COUNT / 10);
  expect(result.needsReset).toBeGreaterThan(FUZZ_COUNT / 100);
}, 600_000);
