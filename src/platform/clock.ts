/** The system's clocks (clock_gettime(2)). */

import { check } from "./errno.ts";
import { libc } from "./libc.ts";

const CLOCK_MONOTONIC = 1;
/** struct tm begins with seconds, minutes, hours, day of the month, month from 0, years since 1900. */
const TM_WORDS = 14;
const TM_YEAR_BASE = 1900;

export interface CalendarTime {
  readonly year: number;
  /** 1 to 12, and 1 to 31. */
  readonly month: number;
  readonly day: number;
  readonly hour: number;
  readonly minute: number;
  readonly second: number;
}

/** `unixSeconds` (whole) in the local time zone. The runtime's own Date takes 4 ms to find that out. */
export function localTime(unixSeconds: number): CalendarTime {
  const tm = new Int32Array(TM_WORDS);
  libc().localtime_r(BigInt64Array.of(BigInt(unixSeconds)), tm);
  const [second, minute, hour, day, month, year] = tm;
  return {
    year: year! + TM_YEAR_BASE,
    month: month! + 1,
    day: day!,
    hour: hour!,
    minute: minute!,
    second: second!,
  };
}

/** CLOCK_MONOTONIC in microseconds: the same for all processes, unlike the runtime's own clocks. */
export function monotonicMicros(): number {
  const time = new BigInt64Array(2);
  check(libc().clock_gettime(CLOCK_MONOTONIC, time), "clock_gettime");
  const [seconds, nanoseconds] = time;
  return Number(seconds! * 1_000_000n + nanoseconds! / 1000n);
}
