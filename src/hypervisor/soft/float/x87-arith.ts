/** Exact x87 operations that are not IEEE 754 arithmetic: remainder, scale, extract, packed decimal. */
import {
  CLASS_FINITE,
  CLASS_INF,
  CLASS_ZERO,
  F80,
  type Float,
  infinity,
  makeFloat,
  withSign,
  zero,
} from "./float.ts";
import { checkDenormal, DE, type FloatEnv, IE, invalid, PE, propagateNaN, round, ZE } from "./round.ts";
import { exactInteger, toInt } from "./soft-float.ts";

/** Exponent distance that one FPREM step reduces completely (SDM vol. 2, FPREM). */
const COMPLETE_DISTANCE = 64;

/** FPREM (truncated quotient) and FPREM1 (nearest). Overwritten by each call of {@link remainder}. */
export const remainderResult = { quotient: 0, partial: false };

/**
 * Partial remainder of `a / b`. {@link remainderResult} gets the low three quotient bits, or `partial` when
 * the exponents were too far apart and the result is only a reduced dividend.
 */
export function remainder(env: FloatEnv, a: Float, b: Float, nearest: boolean): Float {
  remainderResult.quotient = 0;
  remainderResult.partial = false;
  if (a.cls > CLASS_INF || b.cls > CLASS_INF) return propagateNaN(env, a, b);
  if (a.cls === CLASS_INF || b.cls === CLASS_ZERO) return invalid(env);
  checkDenormal(env, a, b);
  if (env.faulted || a.cls === CLASS_ZERO) return a;
  const distance = a.exp - b.exp;
  if (b.cls === CLASS_INF || distance < -1) return round(env, F80, a.sign, a.exp - 63, a.sig);
  let e = b.exp - 63;
  let x = a.sig;
  let y = b.sig;
  if (distance < 0) {
    y <<= 1n;
    e--;
  } else if (distance < COMPLETE_DISTANCE) {
    x <<= BigInt(distance);
  } else {
    // N of the SDM's description: 32 to 63, so that the rest is a multiple of 32 (as hosts do).
    const n = 32 + (distance & 31);
    remainderResult.partial = true;
    x <<= BigInt(n);
    e += distance - n;
  }
  let quotient = x / y;
  let rest = x - quotient * y;
  let sign = a.sign;
  if (nearest && !remainderResult.partial) {
    const twice = rest << 1n;
    if (twice > y || (twice === y && quotient & 1n)) {
      rest = y - rest;
      quotient += 1n;
      sign ^= 1;
    }
  }
  if (!remainderResult.partial) remainderResult.quotient = Number(quotient & 7n);
  return rest === 0n ? zero(a.sign) : round(env, F80, sign, e, rest);
}

/** FSCALE: `a * 2^trunc(b)` (SDM vol. 2, FSCALE). */
export function scale(env: FloatEnv, a: Float, b: Float): Float {
  if (a.cls > CLASS_INF || b.cls > CLASS_INF) return propagateNaN(env, a, b);
  if (b.cls === CLASS_INF) {
    if (b.sign ? a.cls === CLASS_INF : a.cls === CLASS_ZERO) return invalid(env);
    checkDenormal(env, a, b);
    return b.sign ? zero(a.sign) : infinity(a.sign);
  }
  checkDenormal(env, a, b);
  if (a.cls !== CLASS_FINITE) return a;
  let amount = 0;
  if (b.cls === CLASS_FINITE && b.exp >= 0) {
    // Anything from 2^17 on overflows or underflows even after the bias adjustment.
    amount = b.exp > 16 ? 1 << 17 : Number(b.sig >> BigInt(63 - b.exp));
    if (b.sign) amount = -amount;
  }
  return round(env, F80, a.sign, a.exp - 63 + amount, a.sig);
}

/** Exponent of `a` as a value (FXTRACT): minus infinity and ZE for zero. */
export function extractExponent(env: FloatEnv, a: Float): Float {
  if (a.cls > CLASS_INF) return propagateNaN(env, a, a);
  if (a.cls === CLASS_INF) return infinity(0);
  if (a.cls === CLASS_ZERO) {
    env.flags |= ZE;
    return infinity(1);
  }
  if (a.denormal) env.flags |= DE;
  return exactInteger(BigInt(a.exp));
}

/** Significand of `a` with exponent 0 (FXTRACT). */
export function extractSignificand(env: FloatEnv, a: Float): Float {
  if (a.cls > CLASS_INF) return propagateNaN(env, a, a);
  return a.cls === CLASS_FINITE ? makeFloat(CLASS_FINITE, a.sign, 0, a.sig, false) : a;
}

const BCD_DIGIT_BYTES = 9;
const BCD_LIMIT = 10n ** 18n;

/** FBLD: 18 packed decimal digits and a sign bit (SDM vol. 1, 4.7). Digits above 9 count as they are. */
export function loadBcd(view: DataView): Float {
  let value = 0n;
  for (let i = BCD_DIGIT_BYTES - 1; i >= 0; i--) {
    const pair = view.getUint8(i);
    value = value * 100n + BigInt((pair >>> 4) * 10 + (pair & 15));
  }
  const sign = view.getUint8(BCD_DIGIT_BYTES) >>> 7;
  return withSign(exactInteger(value), sign);
}

/** FBSTP: rounds `a` to 18 decimal digits at `view`; out of range or NaN gives IE and the indefinite. */
export function storeBcd(env: FloatEnv, a: Float, view: DataView): void {
  const inRange = a.cls === CLASS_ZERO || (a.cls === CLASS_FINITE && a.exp < 60);
  const signed = inRange ? BigInt.asIntN(64, toInt(env, a, 64, false)) : BCD_LIMIT;
  let value = signed < 0n ? -signed : signed;
  if (value >= BCD_LIMIT) {
    env.flags = (env.flags & ~PE) | IE;
    env.roundedUp = false;
    storeBcdIndefinite(view);
    return;
  }
  for (let i = 0; i < BCD_DIGIT_BYTES; i++) {
    const pair = Number(value % 100n);
    value /= 100n;
    view.setUint8(i, (Math.floor(pair / 10) << 4) | (pair % 10));
  }
  view.setUint8(BCD_DIGIT_BYTES, a.sign << 7);
}

/** The packed BCD indefinite (SDM vol. 1, table 4-4). */
export function storeBcdIndefinite(view: DataView): void {
  for (let i = 0; i < 7; i++) view.setUint8(i, 0);
  view.setUint8(7, 0xc0);
  view.setUint8(8, 0xff);
  view.setUint8(9, 0xff);
}
