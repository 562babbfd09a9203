/** Limits of bytes and of operations per time, as a device uses them. */

import { TokenBucket, type TokenBucketConfig } from "./token-bucket.ts";

export interface RateLimiterConfig {
  /** Bytes. */
  readonly bandwidth?: TokenBucketConfig | undefined;
  /** Operations: requests of a disk, frames of a network. */
  readonly ops?: TokenBucketConfig | undefined;
}

/** A call in the future. Setting it again replaces the time; it fires once. */
export interface Timer {
  /** @param ms from now, at least 0; it does not fire earlier. */
  set(ms: number): void;
  cancel(): void;
}

/** Makes timers whose callbacks run on the thread that devices run on. */
export interface TimerSource {
  /** Milliseconds of a clock that never goes back. */
  now(): number;
  create(callback: () => void): Timer;
}

export class RateLimiter {
  private bandwidth: TokenBucket | undefined;
  private ops: TokenBucket | undefined;
  private readonly timer: Timer;
  private waiting = false;
  /** Times that something had to wait. */
  throttled = 0;

  /** `onReady` is called after {@link allow} has said no, when it is worth asking again. */
  constructor(
    config: RateLimiterConfig | undefined,
    private readonly timers: TimerSource,
    private readonly onReady: () => void,
  ) {
    const now = timers.now();
    this.bandwidth = TokenBucket.create(config?.bandwidth, now);
    this.ops = TokenBucket.create(config?.ops, now);
    this.timer = timers.create(() => this.ready());
  }

  /** True between a no of {@link allow} and the call of `onReady`: all that is asked meanwhile is refused. */
  get blocked(): boolean {
    return this.waiting;
  }

  /** True if it may ever say no. */
  get limits(): boolean {
    return this.ops !== undefined || this.bandwidth !== undefined;
  }

  /** Takes one operation of `bytes` and says yes, or takes nothing and says no. */
  allow(bytes: number): boolean {
    if (this.waiting) return false;
    if (this.ops === undefined && this.bandwidth === undefined) return true;
    const now = this.timers.now();
    const wait = Math.max(this.ops?.delay(1, now) ?? 0, this.bandwidth?.delay(bytes, now) ?? 0);
    if (wait === 0) {
      this.ops?.take(1);
      this.bandwidth?.take(bytes);
      return true;
    }
    this.waiting = true;
    this.throttled++;
    this.timer.set(wait);
    return false;
  }

  /**
   * Changes limits while in use (PATCH): what is left out of `config` stays, a bucket of size 0 or refill time 0 lifts
   * the limit, another one replaces it and is full.
   */
  update(config: RateLimiterConfig | undefined): void {
    const now = this.timers.now();
    if (config?.bandwidth !== undefined) this.bandwidth = TokenBucket.create(config.bandwidth, now);
    if (config?.ops !== undefined) this.ops = TokenBucket.create(config.ops, now);
    // What waited for the old limits may go at once under the new ones.
    if (this.waiting) this.timer.set(0);
  }

  /** Forgets what waited: the device was reset. */
  reset(): void {
    this.waiting = false;
    this.timer.cancel();
  }

  private ready(): void {
    this.waiting = false;
    this.onReady();
  }
}
