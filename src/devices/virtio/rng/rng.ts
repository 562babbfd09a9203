/** virtio-rng (virtio 1.2, 5.4): random bytes from the host. */

import { RateLimiter, type RateLimiterConfig, type TimerSource } from "../../../ratelimit/rate-limiter.ts";
import type { DescriptorChain } from "../chain.ts";
import {
  type DeviceContext,
  type DeviceHost,
  STOP,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_VERSION_1,
  VIRTIO_ID_ENTROPY,
  type VirtioDevice,
} from "../device.ts";

const QUEUE_SIZE = 256;
/** A larger request gets this much, as in Firecracker; the driver asks again. */
const MAX_REQUEST_BYTES = 64 * 1024;
const SCRATCH_BYTES = 4096;

/** Fills all of `into`, which is never shared memory. Throws if the host has no random bytes. */
export type FillRandom = (into: Uint8Array) => void;

export interface RngMetrics {
  bytes: number;
  requests: number;
  fails: number;
  /** Times that requests had to wait for the rate limiter. */
  throttled: number;
}

export interface RngOptions {
  readonly fillRandom: FillRandom;
  readonly timers: TimerSource;
  readonly rateLimiter?: RateLimiterConfig | undefined;
}

export class RngDevice implements VirtioDevice {
  readonly name = "entropy";
  readonly type = VIRTIO_ID_ENTROPY;
  readonly features = VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX;
  readonly queueSizes = [QUEUE_SIZE];
  readonly config = new Uint8Array(0);

  private readonly counts = { bytes: 0, requests: 0, fails: 0 };
  private readonly scratch = new Uint8Array(SCRATCH_BYTES);
  private host: DeviceHost | undefined;
  private context: DeviceContext | undefined;

  private readonly fillRandom: FillRandom;
  private readonly limiter: RateLimiter;

  constructor(options: RngOptions) {
    this.fillRandom = options.fillRandom;
    this.limiter = new RateLimiter(options.rateLimiter, options.timers, () => this.processQueue());
  }

  get metrics(): RngMetrics {
    return { ...this.counts, throttled: this.limiter.throttled };
  }

  attach(host: DeviceHost): void {
    this.host = host;
  }

  activate(context: DeviceContext): void {
    this.context = context;
  }

  reset(): void {
    this.context = undefined;
    this.limiter.reset();
  }

  processQueue(): void {
    this.context?.queues[0]?.serve((chain) => {
      const wanted = Math.min(chain.writableLength, MAX_REQUEST_BYTES);
      return this.limiter.allow(wanted) ? this.fill(chain, wanted) : STOP;
    });
  }

  private fill(chain: DescriptorChain, wanted: number): number {
    this.counts.requests++;
    let done = 0;
    try {
      while (done < wanted) {
        const piece = this.scratch.subarray(0, Math.min(SCRATCH_BYTES, wanted - done));
        this.fillRandom(piece);
        chain.write(piece, done);
        done += piece.length;
      }
    } catch (error) {
      this.counts.fails++;
      this.host?.log(`no random bytes: ${error instanceof Error ? error.message : String(error)}`);
    }
    this.counts.bytes += done;
    return done;
  }
}
