import { describe, expect, test } from "bun:test";
import { RateLimiter, type RateLimiterConfig } from "./rate-limiter.ts";
import { ManualTimers } from "./testing/manual-timers.ts";
import { TokenBucket } from "./token-bucket.ts";

function limiter(config: RateLimiterConfig | undefined) {
  const timers = new ManualTimers();
  let ready = 0;
  const limit = new RateLimiter(config, timers, () => void ready++);
  return { timers, limit, readyCalls: () => ready };
}

/** Bytes that pass in `seconds` if as many as possible are tried, in operations of `bytes`. */
function passed(config: RateLimiterConfig, bytes: number, seconds: number): { bytes: number; ops: number } {
  const timers = new ManualTimers();
  let ops = 0;
  const push = () => {
    while (limit.allow(bytes)) ops++;
  };
  const limit = new RateLimiter(config, timers, push);
  push();
  timers.advance(seconds * 1000);
  return { bytes: ops * bytes, ops };
}

test("a bucket gives what it has, the burst too, and never more", () => {
  const bucket = TokenBucket.create({ size: 10, refill_time: 1000, one_time_burst: 5 }, 0)!;
  expect(bucket.takeUpTo(4, 0)).toBe(4);
  expect(bucket.takeUpTo(100, 0)).toBe(11);
  expect(bucket.takeUpTo(100, 99)).toBe(0);
  expect(bucket.takeUpTo(100, 350)).toBe(3);
  expect(bucket.takeUpTo(100, 399)).toBe(0);
  expect(bucket.takeUpTo(100, 400)).toBe(1);
  // A debt is paid first.
  bucket.take(20);
  expect(bucket.takeUpTo(1, 2000)).toBe(0);
  expect(bucket.takeUpTo(100, 10_000)).toBe(10);
});

describe("a rate limiter", () => {
  test("without buckets, or with buckets of size or refill time 0, limits nothing", () => {
    for (const config of [
      undefined,
      {},
      { bandwidth: { size: 0, refill_time: 100 }, ops: { size: 10, refill_time: 0 } },
    ]) {
      const { limit } = limiter(config);
      for (let i = 0; i < 10_000; i++) expect(limit.allow(1e9)).toBe(true);
    }
  });

  test("takes both or neither of bytes and operations", () => {
    const { limit, timers } = limiter({
      bandwidth: { size: 1000, refill_time: 1000 },
      ops: { size: 2, refill_time: 100_000 },
    });
    expect(limit.allow(900)).toBe(true);
    expect(limit.allow(200)).toBe(false);
    timers.advance(100);
    // Had the refused one used up the second operation, this would have to wait for 50 s.
    expect(limit.allow(200)).toBe(true);
    expect(limit.throttled).toBe(1);
  });

  test("says no until it calls, at the moment when there is enough", () => {
    const { limit, timers, readyCalls } = limiter({ bandwidth: { size: 1000, refill_time: 1000 } });
    expect(limit.allow(1000)).toBe(true);
    expect(limit.allow(500)).toBe(false);
    expect(limit.blocked).toBe(true);
    expect(limit.allow(1)).toBe(false);
    timers.advance(499);
    expect(readyCalls()).toBe(0);
    timers.advance(1);
    expect(readyCalls()).toBe(1);
    expect(limit.blocked).toBe(false);
    expect(limit.allow(500)).toBe(true);
  });

  test("the burst is there once and does not fill up", () => {
    const { limit, timers } = limiter({ ops: { size: 10, refill_time: 1000, one_time_burst: 50 } });
    let count = 0;
    while (limit.allow(1)) count++;
    expect(count).toBe(60);
    timers.advance(100_000);
    count = 0;
    while (limit.allow(1)) count++;
    expect(count).toBe(10);
  });

  test("more than the bucket holds passes, and is paid for afterwards", () => {
    const { limit, timers } = limiter({ bandwidth: { size: 1000, refill_time: 1000 } });
    expect(limit.allow(5000)).toBe(true);
    expect(limit.allow(1000)).toBe(false);
    timers.advance(4999);
    expect(limit.blocked).toBe(true);
    timers.advance(1);
    expect(limit.allow(1000)).toBe(true);
  });

  test("the rate over 10 s is the configured one", () => {
    for (const [size, refill, op] of [
      [1_000_000, 1000, 1500],
      [100_000, 100, 65_536],
      [10_000, 10, 1500],
      [65_536, 1000, 200_000],
    ] as const) {
      const rate = (size / refill) * 1000;
      const { bytes } = passed({ bandwidth: { size, refill_time: refill } }, op, 10);
      // What the full bucket gives at the start, and what one large request may owe, are no part of the rate.
      expect(Math.abs(bytes - size - 10 * rate)).toBeLessThanOrEqual(0.05 * 10 * rate + op);
    }
    const { ops } = passed({ ops: { size: 100, refill_time: 100 } }, 1, 10);
    expect(ops).toBeGreaterThan(9600);
    expect(ops).toBeLessThanOrEqual(10_100);
  });

  test("an update changes what it names and lets what waits try again", () => {
    const { limit, timers, readyCalls } = limiter({
      bandwidth: { size: 10, refill_time: 1_000_000 },
      ops: { size: 3, refill_time: 1_000_000 },
    });
    expect(limit.allow(10)).toBe(true);
    expect(limit.allow(10)).toBe(false);
    limit.update({ bandwidth: { size: 0, refill_time: 0 } });
    timers.advance(0);
    expect(readyCalls()).toBe(1);
    expect([limit.allow(10), limit.allow(10), limit.allow(10)]).toEqual([true, true, false]);
    limit.update({ ops: { size: 1, refill_time: 10 } });
    timers.advance(0);
    expect([limit.allow(10), limit.allow(10)]).toEqual([true, false]);
    timers.advance(10);
    expect(limit.allow(10)).toBe(true);
    expect(limit.allow(10)).toBe(false);
    limit.update(undefined);
    expect(limit.allow(10)).toBe(false);
  });

  test("a reset forgets what waited, and nobody is called", () => {
    const { limit, timers, readyCalls } = limiter({ ops: { size: 1, refill_time: 10 } });
    limit.allow(1);
    limit.allow(1);
    limit.reset();
    timers.advance(100);
    expect(readyCalls()).toBe(0);
    expect(limit.allow(1)).toBe(true);
  });
});
