/**
 * Unpacked floating-point values and the three formats of x86 (SDM vol. 1, 4.2.2 and 8.2): single (f32),
 * double (f64) and x87 double-extended (f80, explicit integer bit).
 */

/** Value classes, ordered: everything above {@link CLASS_INF} is not a number. */
export const CLASS_ZERO = 0;
export const CLASS_FINITE = 1;
export const CLASS_INF = 2;
export const CLASS_QNAN = 3;
export const CLASS_SNAN = 4;
/** f80 encodings the FPU refuses: unnormal, pseudo-infinity, pseudo-NaN (SDM vol. 1, 8.2.2). */
export const CLASS_UNSUPPORTED = 5;

/** Integer bit of a 64-bit significand. */
export const INTEGER_BIT = 1n << 63n;
/** Quiet bit of a NaN's 64-bit significand. */
export const QUIET_BIT = 1n << 62n;

/**
 * An unpacked value. A finite value is `(-1)^sign * sig * 2^(exp - 63)` with bit 63 of `sig` set, so `exp`
 * is the exponent of the leading bit. A NaN keeps its payload in `sig` as f80 does (integer bit 63, quiet
 * bit 62). For zero and infinity only `sign` counts.
 */
export interface Float {
  readonly cls: number;
  readonly sign: number;
  readonly exp: number;
  readonly sig: bigint;
  /** Came from a denormal (or pseudo-denormal) encoding: raises DE when it is used. */
  readonly denormal: boolean;
}

/** Where a format rounds: significand bits with the integer bit, and exponent range of normal values. */
export interface Format {
  readonly precision: number;
  readonly emin: number;
  readonly emax: number;
}

export const F32: Format = { precision: 24, emin: -126, emax: 127 };
export const F64: Format = { precision: 53, emin: -1022, emax: 1023 };
export const F80: Format = { precision: 64, emin: -16382, emax: 16383 };
/** f80 under precision control 0 (SDM vol. 1, 8.1.5.2): f32's significand, f80's range. */
export const F80_SINGLE: Format = { precision: 24, emin: -16382, emax: 16383 };
/** f80 under precision control 2. */
export const F80_DOUBLE: Format = { precision: 53, emin: -16382, emax: 16383 };

export function makeFloat(cls: number, sign: number, exp: number, sig: bigint, denormal: boolean): Float {
  return { cls, sign, exp, sig, denormal };
}

const ZERO_POSITIVE = makeFloat(CLASS_ZERO, 0, 0, 0n, false);
const ZERO_NEGATIVE = makeFloat(CLASS_ZERO, 1, 0, 0n, false);
const INF_POSITIVE = makeFloat(CLASS_INF, 0, 0, INTEGER_BIT, false);
const INF_NEGATIVE = makeFloat(CLASS_INF, 1, 0, INTEGER_BIT, false);
/** The QNaN floating-point indefinite: negative, quiet, no payload (SDM vol. 1, 4.8.3.7). */
export const DEFAULT_NAN = makeFloat(CLASS_QNAN, 1, 0, INTEGER_BIT | QUIET_BIT, false);

export function zero(sign: number): Float {
  return sign ? ZERO_NEGATIVE : ZERO_POSITIVE;
}

export function infinity(sign: number): Float {
  return sign ? INF_NEGATIVE : INF_POSITIVE;
}

/** The same value with another sign bit. */
export function withSign(a: Float, sign: number): Float {
  return a.sign === sign ? a : makeFloat(a.cls, sign, a.exp, a.sig, a.denormal);
}

const f64Scratch = new Float64Array(1);
const u32Scratch = new Uint32Array(f64Scratch.buffer);

/** Number of bits of `x`, for 0 < x < 2^1023. */
export function bitLength(x: bigint): number {
  f64Scratch[0] = Number(x);
  const high = u32Scratch[1];
  const length = (high >>> 20) - 1022;
  // A power of two may be the result of Number() rounding up.
  if (length > 53 && u32Scratch[0] === 0 && (high & 0xfffff) === 0 && x >> BigInt(length - 1) === 0n) {
    return length - 1;
  }
  return length;
}

/** Unpacks the f32 in bits 0-31 of `bits`. */
export function unpackF32(bits: bigint): Float {
  const word = Number(BigInt.asUintN(32, bits));
  const sign = word >>> 31;
  const biased = (word >>> 23) & 0xff;
  const fraction = word & 0x7f_ffff;
  if (biased === 0xff) {
    if (fraction === 0) return infinity(sign);
    const cls = fraction & 0x40_0000 ? CLASS_QNAN : CLASS_SNAN;
    return makeFloat(cls, sign, 0, INTEGER_BIT | (BigInt(fraction) << 40n), false);
  }
  if (biased === 0) {
    if (fraction === 0) return zero(sign);
    const shift = Math.clz32(fraction);
    return makeFloat(CLASS_FINITE, sign, -118 - shift, BigInt(fraction) << BigInt(shift + 32), true);
  }
  return makeFloat(CLASS_FINITE, sign, biased - 127, BigInt(fraction | 0x80_0000) << 40n, false);
}

/** Unpacks the f64 in bits 0-63 of `bits`. */
export function unpackF64(bits: bigint): Float {
  const high = Number(BigInt.asUintN(32, bits >> 32n));
  const sign = high >>> 31;
  const biased = (high >>> 20) & 0x7ff;
  const fraction = BigInt.asUintN(52, bits);
  if (biased === 0x7ff) {
    if (fraction === 0n) return infinity(sign);
    const cls = high & 0x8_0000 ? CLASS_QNAN : CLASS_SNAN;
    return makeFloat(cls, sign, 0, INTEGER_BIT | (fraction << 11n), false);
  }
  if (biased === 0) {
    if (fraction === 0n) return zero(sign);
    const length = bitLength(fraction);
    return makeFloat(CLASS_FINITE, sign, length - 1075, fraction << BigInt(64 - length), true);
  }
  return makeFloat(CLASS_FINITE, sign, biased - 1023, INTEGER_BIT | (fraction << 11n), false);
}

/** Unpacks an f80 from its 16-bit sign and exponent word and its significand. */
export function unpackF80(signExponent: number, sig: bigint): Float {
  const sign = signExponent >>> 15;
  const biased = signExponent & 0x7fff;
  const integer = sig >= INTEGER_BIT;
  if (biased === 0) {
    if (sig === 0n) return zero(sign);
    if (integer) return makeFloat(CLASS_FINITE, sign, F80.emin, sig, true);
    const shift = 64 - bitLength(sig);
    return makeFloat(CLASS_FINITE, sign, F80.emin - shift, sig << BigInt(shift), true);
  }
  if (!integer) return makeFloat(CLASS_UNSUPPORTED, sign, 0, sig, false);
  if (biased === 0x7fff) {
    if (sig === INTEGER_BIT) return infinity(sign);
    return makeFloat(sig & QUIET_BIT ? CLASS_QNAN : CLASS_SNAN, sign, 0, sig, false);
  }
  return makeFloat(CLASS_FINITE, sign, biased - 16383, sig, false);
}

/** Packs a value already rounded to {@link F32}. A NaN's payload is cut to the format. */
export function packF32(a: Float): bigint {
  let word = 0n;
  if (a.cls === CLASS_FINITE) {
    if (a.exp >= F32.emin) word = (BigInt(a.exp + 126) << 23n) + (a.sig >> 40n);
    else word = a.sig >> BigInt(40 + F32.emin - a.exp);
  } else if (a.cls === CLASS_INF) word = 0x7f80_0000n;
  else if (a.cls > CLASS_INF) word = 0x7f80_0000n | ((a.sig >> 40n) & 0x7f_ffffn);
  return a.sign ? word | 0x8000_0000n : word;
}

/** Packs a value already rounded to {@link F64}. A NaN's payload is cut to the format. */
export function packF64(a: Float): bigint {
  let word = 0n;
  if (a.cls === CLASS_FINITE) {
    if (a.exp >= F64.emin) word = (BigInt(a.exp + 1022) << 52n) + (a.sig >> 11n);
    else word = a.sig >> BigInt(11 + F64.emin - a.exp);
  } else if (a.cls === CLASS_INF) word = 0x7ff0_0000_0000_0000n;
  else if (a.cls > CLASS_INF) word = 0x7ff0_0000_0000_0000n | ((a.sig >> 11n) & 0xf_ffff_ffff_ffffn);
  return a.sign ? word | INTEGER_BIT : word;
}

/** Sign and exponent word of a value already rounded to f80's range. */
export function f80SignExponent(a: Float): number {
  const sign = a.sign << 15;
  if (a.cls === CLASS_FINITE) return a.exp >= F80.emin ? sign | (a.exp + 16383) : sign;
  return a.cls === CLASS_ZERO ? sign : sign | 0x7fff;
}

/** Significand word of a value already rounded to f80's range. */
export function f80Significand(a: Float): bigint {
  if (a.cls === CLASS_FINITE) return a.exp >= F80.emin ? a.sig : a.sig >> BigInt(F80.emin - a.exp);
  return a.sig;
}
