/**
 * Session tokens of the metadata service. A token carries its own end and a code that only this process can make, so
 * nothing has to be remembered of it.
 */

export const MIN_TTL_SECONDS = 1;
export const MAX_TTL_SECONDS = 21_600;

const KEY_BYTES = 32;
const NONCE_BYTES = 12;
const EXPIRY_BYTES = 8;
const CODE_BYTES = 16;
const TOKEN_BYTES = NONCE_BYTES + EXPIRY_BYTES + CODE_BYTES;

export class Tokens {
  private readonly key = crypto.getRandomValues(new Uint8Array(KEY_BYTES));

  /** `instanceId`: tokens are good for this microVM. `now`: milliseconds of a clock that never goes back. */
  constructor(
    private readonly instanceId: string,
    private readonly now: () => number,
  ) {}

  /** A token for `ttlSeconds`, which must be from {@link MIN_TTL_SECONDS} to {@link MAX_TTL_SECONDS}. */
  create(ttlSeconds: number): string {
    const token = new Uint8Array(TOKEN_BYTES);
    crypto.getRandomValues(token.subarray(0, NONCE_BYTES));
    new DataView(token.buffer).setFloat64(NONCE_BYTES, this.now() + ttlSeconds * 1000);
    token.set(this.code(token), NONCE_BYTES + EXPIRY_BYTES);
    return Buffer.from(token).toString("base64");
  }

  /** True for a token of this object whose time has not ended. */
  isValid(text: string): boolean {
    const token = Buffer.from(text, "base64");
    // Decoding ignores what is no base64.
    if (token.length !== TOKEN_BYTES || token.toString("base64") !== text) return false;
    const code = this.code(token);
    let different = 0;
    for (const [i, byte] of code.entries()) different |= byte ^ token[NONCE_BYTES + EXPIRY_BYTES + i]!;
    return different === 0 && token.readDoubleBE(NONCE_BYTES) > this.now();
  }

  private code(token: Uint8Array): Uint8Array {
    const hasher = new Bun.CryptoHasher("sha256", this.key);
    hasher.update(token.subarray(0, NONCE_BYTES + EXPIRY_BYTES));
    hasher.update(`microvmid=${this.instanceId}`);
    return hasher.digest().subarray(0, CODE_BYTES);
  }
}
