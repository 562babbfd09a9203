/**
 * IEEE 754 arithmetic, exact and in every rounding mode, on unpacked values. Flags go to the
 * {@link FloatEnv}; the result is rounded to the given format. Where an unmasked IE, DE or ZE was raised
 * (`env.faulted`), the returned value means nothing and the destination must stay as it was.
 */
import {
  bitLength,
  CLASS_FINITE,
  CLASS_INF,
  CLASS_QNAN,
  CLASS_ZERO,
  type Float,
  type Format,
  infinity,
  makeFloat,
  withSign,
  zero,
} from "./float.ts";
import {
  checkDenormal,
  DE,
  type FloatEnv,
  IE,
  invalid,
  PE,
  propagateNaN,
  ROUND_DOWN,
  ROUND_ZERO,
  round,
  roundShift,
  shifted,
  ZE,
} from "./round.ts";

/** `a + b`, or `a - b` when `subtract` is 1. */
export function add(env: FloatEnv, format: Format, a: Float, b: Float, subtract: number): Float {
  if (a.cls > CLASS_INF || b.cls > CLASS_INF) return propagateNaN(env, a, b);
  const bSign = b.sign ^ subtract;
  if (a.cls === CLASS_INF) {
    if (b.cls === CLASS_INF && a.sign !== bSign) return invalid(env);
    checkDenormal(env, a, b);
    return a;
  }
  checkDenormal(env, a, b);
  if (b.cls === CLASS_INF) return infinity(bSign);
  const zeroSign = env.rounding === ROUND_DOWN ? 1 : 0;
  if (b.cls === CLASS_ZERO) {
    if (a.cls === CLASS_ZERO) return zero(a.sign === bSign ? a.sign : zeroSign);
    return round(env, format, a.sign, a.exp - 63, a.sig);
  }
  if (a.cls === CLASS_ZERO) return round(env, format, bSign, b.exp - 63, b.sig);

  const distance = a.exp - b.exp;
  const same = a.sign === bSign;
  // Beyond 66 bits the smaller operand is less than a unit three bits below the larger: a sticky bit.
  if (distance > 66) {
    return round(env, format, a.sign, a.exp - 66, (a.sig << 3n) + (same ? 1n : -1n));
  }
  if (distance < -66) {
    return round(env, format, bSign, b.exp - 66, (b.sig << 3n) + (same ? 1n : -1n));
  }
  const x = distance > 0 ? a.sig << BigInt(distance) : a.sig;
  const y = distance < 0 ? b.sig << BigInt(-distance) : b.sig;
  const e = Math.min(a.exp, b.exp) - 63;
  if (same) return round(env, format, a.sign, e, x + y);
  const difference = x - y;
  if (difference === 0n) return zero(zeroSign);
  if (difference > 0n) return round(env, format, a.sign, e, difference);
  return round(env, format, bSign, e, -difference);
}

/** `a * b`. */
export function mul(env: FloatEnv, format: Format, a: Float, b: Float): Float {
  if (a.cls > CLASS_INF || b.cls > CLASS_INF) return propagateNaN(env, a, b);
  const sign = a.sign ^ b.sign;
  if (a.cls === CLASS_INF || b.cls === CLASS_INF) {
    if (a.cls === CLASS_ZERO || b.cls === CLASS_ZERO) return invalid(env);
    checkDenormal(env, a, b);
    return infinity(sign);
  }
  checkDenormal(env, a, b);
  if (a.cls === CLASS_ZERO || b.cls === CLASS_ZERO) return zero(sign);
  return round(env, format, sign, a.exp + b.exp - 126, a.sig * b.sig);
}

/** `a / b`. */
export function div(env: FloatEnv, format: Format, a: Float, b: Float): Float {
  if (a.cls > CLASS_INF || b.cls > CLASS_INF) return propagateNaN(env, a, b);
  const sign = a.sign ^ b.sign;
  if (a.cls === CLASS_INF) {
    if (b.cls === CLASS_INF) return invalid(env);
    checkDenormal(env, a, b);
    return infinity(sign);
  }
  if (b.cls === CLASS_ZERO) {
    if (a.cls === CLASS_ZERO) return invalid(env);
    env.flags |= ZE;
    return infinity(sign);
  }
  checkDenormal(env, a, b);
  if (b.cls === CLASS_INF || a.cls === CLASS_ZERO) return zero(sign);
  const numerator = a.sig << 67n;
  const q = numerator / b.sig;
  const sticky = q * b.sig === numerator ? q : q | 1n;
  return round(env, format, sign, a.exp - b.exp - 67, sticky);
}

/** Integer square root of `n` > 0 (any size): the largest `r` with `r * r <= n`. */
export function integerSqrt(n: bigint): bigint {
  const length = bitLength(n);
  // Number() is good to 53 bits; each Newton step doubles that.
  let r = BigInt(Math.ceil(Math.sqrt(Number(n))));
  for (let good = 50; good < length / 2 + 2; good *= 2) r = (r + n / r) >> 1n;
  while (r * r > n) r -= 1n;
  while ((r + 1n) * (r + 1n) <= n) r += 1n;
  return r;
}

/** Square root of `a`. */
export function sqrt(env: FloatEnv, format: Format, a: Float): Float {
  if (a.cls > CLASS_INF) return propagateNaN(env, a, a);
  if (a.cls === CLASS_ZERO) return a;
  if (a.sign) return invalid(env);
  if (a.cls === CLASS_INF) return a;
  checkDenormal(env, a, a);
  const odd = a.exp & 1;
  // An even exponent of the shifted operand: sig * 2^(exp - 63) = n * 2^(exp - odd - 132).
  const n = a.sig << (odd ? 70n : 69n);
  const r = integerSqrt(n);
  return round(env, format, 0, (a.exp - odd - 132) / 2, r * r === n ? r : r | 1n);
}

export const LESS = -1;
export const EQUAL = 0;
export const GREATER = 1;
export const UNORDERED = 2;

/** Magnitude order of two finite values, zero included. */
function compareMagnitude(a: Float, b: Float): number {
  if (a.cls === CLASS_ZERO) return b.cls === CLASS_ZERO ? EQUAL : LESS;
  if (b.cls === CLASS_ZERO) return GREATER;
  if (a.cls === CLASS_INF || b.cls === CLASS_INF) {
    if (a.cls === b.cls) return EQUAL;
    return a.cls === CLASS_INF ? GREATER : LESS;
  }
  if (a.exp !== b.exp) return a.exp < b.exp ? LESS : GREATER;
  if (a.sig === b.sig) return EQUAL;
  return a.sig < b.sig ? LESS : GREATER;
}

/**
 * Compares: {@link LESS}, {@link EQUAL}, {@link GREATER} or {@link UNORDERED}. A quiet comparison raises IE
 * for SNaN (and unsupported encodings) only, a signalling one for any NaN.
 */
export function compare(env: FloatEnv, a: Float, b: Float, signalling: boolean): number {
  if (a.cls > CLASS_INF || b.cls > CLASS_INF) {
    if (signalling || a.cls > CLASS_QNAN || b.cls > CLASS_QNAN) env.flags |= IE;
    return UNORDERED;
  }
  checkDenormal(env, a, b);
  if (a.cls === CLASS_ZERO && b.cls === CLASS_ZERO) return EQUAL;
  if (a.sign !== b.sign) return a.sign ? LESS : GREATER;
  const order = compareMagnitude(a, b);
  return a.sign && order !== EQUAL ? -order : order;
}

/** Converts to `format`: DE for a denormal operand, IE for an SNaN, then rounding. */
export function convert(env: FloatEnv, format: Format, a: Float): Float {
  if (a.cls > CLASS_INF) return propagateNaN(env, a, a);
  if (a.cls !== CLASS_FINITE) return a;
  if (a.denormal) env.flags |= DE;
  return round(env, format, a.sign, a.exp - 63, a.sig);
}

/** The integer `value`, |value| < 2^64, exactly. */
export function exactInteger(value: bigint): Float {
  if (value === 0n) return zero(0);
  const magnitude = value < 0n ? -value : value;
  const length = bitLength(magnitude);
  return makeFloat(CLASS_FINITE, value < 0n ? 1 : 0, length - 1, magnitude << BigInt(64 - length), false);
}

/** The integer `value` rounded to `format`. */
export function fromInt(env: FloatEnv, format: Format, value: bigint): Float {
  if (value === 0n) return zero(0);
  return value < 0n ? round(env, format, 1, 0, -value) : round(env, format, 0, 0, value);
}

/** Magnitude of a finite non-zero `a` rounded to an integer below 2^65. Fills {@link shifted}. */
function integerMagnitude(rounding: number, a: Float): bigint {
  const shift = 63 - a.exp;
  if (shift <= 0) {
    shifted.inexact = false;
    shifted.up = false;
    return a.sig << BigInt(-shift);
  }
  // Below 2^-2 only "something was lost, less than half" matters.
  return shift > 66 ? roundShift(rounding, a.sign, 1n, 3) : roundShift(rounding, a.sign, a.sig, shift);
}

/**
 * Converts to a signed integer of `width` bits (16, 32 or 64), as a two's-complement value 0 <= v < 2^width.
 * NaN, infinity and what does not fit after rounding raise IE and give the integer indefinite (only the top
 * bit set). Truncates when `truncate`, otherwise rounds by `env`. Denormals do not raise DE.
 */
export function toInt(env: FloatEnv, a: Float, width: number, truncate: boolean): bigint {
  if (a.cls === CLASS_ZERO) return 0n;
  const limit = 1n << BigInt(width - 1);
  if (a.cls !== CLASS_FINITE || a.exp > 63) {
    env.flags |= IE;
    return limit;
  }
  const magnitude = integerMagnitude(truncate ? ROUND_ZERO : env.rounding, a);
  if (magnitude > limit || (magnitude === limit && a.sign === 0)) {
    env.flags |= IE;
    return limit;
  }
  if (shifted.inexact) env.flags |= PE;
  env.roundedUp = shifted.up;
  return BigInt.asUintN(width, a.sign ? -magnitude : magnitude);
}

/** Rounds to an integral value in the current mode; PE when that changes it (FRNDINT). */
export function roundToIntegral(env: FloatEnv, a: Float): Float {
  if (a.cls > CLASS_INF) return propagateNaN(env, a, a);
  if (a.cls !== CLASS_FINITE) return a;
  if (a.denormal) env.flags |= DE;
  if (env.faulted || a.exp >= 63) return a;
  const magnitude = integerMagnitude(env.rounding, a);
  if (shifted.inexact) env.flags |= PE;
  env.roundedUp = shifted.up;
  if (magnitude === 0n) return zero(a.sign);
  const length = bitLength(magnitude);
  return makeFloat(CLASS_FINITE, a.sign, length - 1, magnitude << BigInt(64 - length), false);
}

/** Minus `a`, NaN included (FCHS). */
export function negate(a: Float): Float {
  return withSign(a, a.sign ^ 1);
}
