/** Token bucket with Firecracker's parameters (its `TokenBucket` of a `rate_limiter`). Times are in milliseconds. */

export interface TokenBucketConfig {
  /** Tokens that the bucket holds. 0: no limit. */
  readonly size: number;
  /** Time in which an empty bucket fills, ms. 0: no limit. */
  readonly refill_time: number;
  /** Tokens there are once, at the start, before those of the bucket are used. */
  readonly one_time_burst?: number | undefined;
}

export class TokenBucket {
  /** Burst tokens that are left. They are never filled up. */
  private burst: number;
  private budget: number;

  private constructor(
    private readonly size: number,
    private readonly refillTime: number,
    burst: number,
    private updatedAt: number,
  ) {
    this.burst = burst;
    this.budget = size;
  }

  /** A full bucket at time `now`; undefined if `config` sets no limit. */
  static create(config: TokenBucketConfig | undefined, now: number): TokenBucket | undefined {
    if (config === undefined || config.size === 0 || config.refill_time === 0) return undefined;
    return new TokenBucket(config.size, config.refill_time, config.one_time_burst ?? 0, now);
  }

  /**
   * Time in ms, from `now`, until `tokens` may be taken; 0: now. More tokens than the bucket holds are granted from a
   * full bucket, which then owes the rest: no request is too large to be ever done, and the rate over time is kept.
   */
  delay(tokens: number, now: number): number {
    this.refill(now);
    const needed = Math.min(tokens - Math.min(this.burst, tokens), this.size);
    return Math.max(0, ((needed - this.budget) * this.refillTime) / this.size);
  }

  /** Takes `tokens`, for which {@link delay} must have been 0. */
  take(tokens: number): void {
    const fromBurst = Math.min(this.burst, tokens);
    this.burst -= fromBurst;
    this.budget -= tokens - fromBurst;
  }

  /** Takes as many of `tokens` as there are, whole ones, and returns how many. For what is not done later but lost. */
  takeUpTo(tokens: number, now: number): number {
    this.refill(now);
    const taken = Math.min(tokens, this.burst + Math.max(0, Math.floor(this.budget)));
    this.take(taken);
    return taken;
  }

  private refill(now: number): void {
    const elapsed = now - this.updatedAt;
    if (elapsed <= 0) return;
    this.updatedAt = now;
    this.budget = Math.min(this.budget + (elapsed * this.size) / this.refillTime, this.size);
  }
}
