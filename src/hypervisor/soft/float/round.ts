/** Rounding, exception flags and the masked and unmasked responses (SDM vol. 1, 4.8.4, 4.9). */
import {
  bitLength,
  CLASS_FINITE,
  CLASS_QNAN,
  CLASS_SNAN,
  CLASS_UNSUPPORTED,
  DEFAULT_NAN,
  type Float,
  type Format,
  INTEGER_BIT,
  infinity,
  makeFloat,
  QUIET_BIT,
  zero,
} from "./float.ts";

/** Exception flags at their MXCSR and x87 status word positions (SDM vol. 1, 10.2.3). */
export const IE = 0x01;
export const DE = 0x02;
export const ZE = 0x04;
export const OE = 0x08;
export const UE = 0x10;
export const PE = 0x20;
/** Exceptions found before the operation is carried out: unmasked, they leave the destination alone. */
export const PRE_COMPUTATION = IE | DE | ZE;

/** Rounding control encodings, the same in MXCSR.RC and FCW.RC (SDM vol. 1, table 4-8). */
export const ROUND_NEAREST = 0;
export const ROUND_DOWN = 1;
export const ROUND_UP = 2;
export const ROUND_ZERO = 3;

/** Exponent adjustment of an unmasked overflow or underflow on x87 (SDM vol. 1, 8.5.4). */
const BIAS_ADJUST = 24576;

/** No significand here has this many bits. */
const FAR_SHIFT = 1024;

/** What an operation reads from a control register and what it leaves behind. Reused between operations. */
export class FloatEnv {
  /** Rounding control, 0-3. */
  rounding = ROUND_NEAREST;
  /** Masked exceptions, a 1 bit masks. */
  masks = 0x3f;
  /** Exceptions raised by the operation. */
  flags = 0;
  /** The last rounding went away from zero (x87 C1). */
  roundedUp = false;
  /** Denormal operands count as zero (MXCSR.DAZ). */
  daz = false;
  /** Tiny results become zero while underflow is masked (MXCSR.FTZ). */
  ftz = false;
  /** x87 rules: the larger NaN wins, unmasked overflow and underflow deliver a biased result. */
  x87 = false;

  /** Starts an operation: no flags. */
  begin(rounding: number, masks: number): void {
    this.rounding = rounding;
    this.masks = masks;
    this.flags = 0;
    this.roundedUp = false;
  }

  /** True when an unmasked exception forbids writing the destination. */
  get faulted(): boolean {
    return (this.flags & ~this.masks & PRE_COMPUTATION) !== 0;
  }
}

/** Whether a discarded part makes the magnitude grow. `rem` is the discarded part, `half` half a unit. */
function roundsUp(rounding: number, sign: number, odd: boolean, rem: bigint, half: bigint): boolean {
  switch (rounding) {
    case ROUND_NEAREST:
      return rem > half || (rem === half && odd);
    case ROUND_DOWN:
      return sign === 1;
    case ROUND_UP:
      return sign === 0;
    default:
      return false;
  }
}

/** Result of {@link roundShift}. One object, overwritten by each call. */
export const shifted = { inexact: false, up: false };

/** `sig / 2^shift` as an integer in the current rounding mode; `shift` > 0. Fills {@link shifted}. */
export function roundShift(rounding: number, sign: number, sig: bigint, shift: number): bigint {
  // Far below half a unit (sig < 2^1023): spare the engine a huge shift.
  if (shift > FAR_SHIFT) return roundShift(rounding, sign, 1n, 2);
  const count = BigInt(shift);
  let q = sig >> count;
  const rem = BigInt.asUintN(shift, sig);
  shifted.inexact = rem !== 0n;
  shifted.up = shifted.inexact && roundsUp(rounding, sign, (q & 1n) === 1n, rem, 1n << (count - 1n));
  if (shifted.up) q += 1n;
  return q;
}

/**
 * Rounds the exact value `(-1)^sign * sig * 2^e`, sig > 0, to `format`, raising OE, UE and PE. A value known
 * only up to a remainder is passed with at least `precision + 2` bits and its lowest bit set. Tininess is
 * detected after rounding.
 */
export function round(env: FloatEnv, format: Format, sign: number, e: number, sig: bigint): Float {
  if (env.faulted) return zero(sign);
  const { precision, emin, emax } = format;
  const length = bitLength(sig);
  let exp = e + length - 1;
  let q = sig;
  let inexact = false;
  let up = false;
  if (length > precision) {
    q = roundShift(env.rounding, sign, sig, length - precision);
    ({ inexact, up } = shifted);
    if (up && q >> BigInt(precision) !== 0n) {
      q >>= 1n;
      exp++;
    }
    q <<= BigInt(64 - precision);
  } else q = sig << BigInt(64 - length);

  if (exp < emin) {
    if (!(env.masks & UE)) {
      env.flags |= UE;
      if (env.x87) {
        exp += BIAS_ADJUST;
        if (exp < emin) {
          env.flags |= PE;
          env.roundedUp = false;
          return zero(sign);
        }
      }
    } else if (env.ftz) {
      env.flags |= UE | PE;
      return zero(sign);
    } else {
      const lowest = emin - precision + 1;
      const shift = lowest - e;
      let units: bigint;
      if (shift > 0) {
        units = roundShift(env.rounding, sign, sig, shift);
        ({ inexact, up } = shifted);
      } else units = sig << BigInt(-shift);
      env.roundedUp = up;
      if (inexact) env.flags |= UE | PE;
      if (units === 0n) return zero(sign);
      const unitsLength = bitLength(units);
      exp = lowest + unitsLength - 1;
      return makeFloat(CLASS_FINITE, sign, exp, units << BigInt(64 - unitsLength), exp < emin);
    }
  } else if (exp > emax) {
    env.flags |= OE;
    if (env.masks & OE) {
      env.flags |= PE;
      const toInfinity = env.rounding === ROUND_NEAREST || env.rounding === (sign ? ROUND_DOWN : ROUND_UP);
      env.roundedUp = toInfinity;
      if (toInfinity) return infinity(sign);
      const ones = (1n << BigInt(precision)) - 1n;
      return makeFloat(CLASS_FINITE, sign, emax, ones << BigInt(64 - precision), false);
    }
    if (env.x87) {
      exp -= BIAS_ADJUST;
      if (exp > emax) {
        env.flags |= PE;
        env.roundedUp = true;
        return infinity(sign);
      }
    }
  }
  if (inexact) env.flags |= PE;
  env.roundedUp = up;
  return makeFloat(CLASS_FINITE, sign, exp, q, false);
}

/** A NaN with its quiet bit set. */
export function quiet(a: Float): Float {
  return makeFloat(CLASS_QNAN, a.sign, 0, a.sig | QUIET_BIT, false);
}

/** Raises IE and answers with the default NaN. */
export function invalid(env: FloatEnv): Float {
  env.flags |= IE;
  return DEFAULT_NAN;
}

/**
 * The result of an operation with at least one operand above {@link CLASS_INF} (SDM vol. 1, table 4-7).
 * SSE takes the first operand that is a NaN. x87 takes a QNaN before an SNaN, otherwise the larger
 * significand, and the positive one of two equal significands.
 */
export function propagateNaN(env: FloatEnv, a: Float, b: Float): Float {
  if (a.cls === CLASS_UNSUPPORTED || b.cls === CLASS_UNSUPPORTED) return invalid(env);
  if (a.cls === CLASS_SNAN || b.cls === CLASS_SNAN) env.flags |= IE;
  const aIsNaN = a.cls >= CLASS_QNAN;
  const bIsNaN = b.cls >= CLASS_QNAN;
  if (!bIsNaN) return quiet(a);
  if (!aIsNaN) return quiet(b);
  if (!env.x87) return quiet(a);
  if (a.cls !== b.cls) return quiet(a.cls === CLASS_QNAN ? a : b);
  if (a.sig !== b.sig) return quiet(a.sig > b.sig ? a : b);
  return quiet(a.sign < b.sign ? a : b);
}

/** Replaces a denormal by zero under DAZ, otherwise leaves the value alone. */
export function daz(env: FloatEnv, a: Float): Float {
  return env.daz && a.denormal ? zero(a.sign) : a;
}

/** Raises DE if an operand was denormal. */
export function checkDenormal(env: FloatEnv, a: Float, b: Float): void {
  if (a.denormal || b.denormal) env.flags |= DE;
}

/** The value 1.0. */
export const ONE = makeFloat(CLASS_FINITE, 0, 0, INTEGER_BIT, false);
