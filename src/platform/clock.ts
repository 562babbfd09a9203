/** The system's clocks (clock_gettime(2)). */

import { check } from "./errno.ts";
import { libc } from "./libc.ts";

const CLOCK_MONOTONIC = 1;

/** CLOCK_MONOTONIC in microseconds: the same for all processes, unlike the runtime's own clocks. */
export function monotonicMicros(): number {
  const time = new BigInt64Array(2);
  check(libc().clock_gettime(CLOCK_MONOTONIC, time), "clock_gettime");
  const [seconds, nanoseconds] = time;
  return Number(seconds! * 1_000_000n + nanoseconds! / 1000n);
}
