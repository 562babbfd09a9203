/** What a block device is made of, and what it counts. */

import type { RateLimiterConfig, TimerSource } from "../../../ratelimit/rate-limiter.ts";
import type { AsyncDisk, DiskFile } from "./disk.ts";
import type { DiskShare } from "./disk-share.ts";

/** Length of the id that GET_ID returns. */
export const BLOCK_ID_BYTES = 20;

/** `Unsafe`: the guest is offered no flush. `Writeback`: a flush is done when it is reported as done. */
export type CacheType = "Unsafe" | "Writeback";

export interface BlockOptions {
  /** For log lines. */
  readonly driveId: string;
  readonly disk: DiskFile | AsyncDisk;
  /** At most {@link BLOCK_ID_BYTES}; padded with zeros. */
  readonly id: Uint8Array;
  readonly readOnly: boolean;
  readonly cacheType: CacheType;
  /**
   * Data buffers per request, up to 254. Firecracker offers no more than one, which is the default; more lets
   * the driver join scattered pages into one request, and offers indirect descriptors for it.
   */
  readonly segMax?: number;
  readonly rateLimiter?: RateLimiterConfig | undefined;
  readonly timers: TimerSource;
  /** With it a vCPU's thread may do reads too. */
  readonly share?: DiskShare | undefined;
}

/** Counters since the device was created; byte counts include only what succeeded. */
export interface BlockMetrics {
  readBytes: number;
  readCount: number;
  writeBytes: number;
  writeCount: number;
  flushCount: number;
  /** Requests that were malformed, unsupported, or out of the disk's bounds. */
  invalidRequests: number;
  /** Requests that failed in the file. */
  executeFails: number;
  queueEvents: number;
  /** Times that requests had to wait for the rate limiter. */
  throttled: number;
  /** Times that requests had to wait because as many were in flight as an asynchronous disk takes. */
  engineThrottled: number;
}
