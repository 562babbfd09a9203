/**
 * The transcendental functions of x87 (SDM vol. 1, 8.3.7 and 8.3.9), computed in BigInt fixed point to far
 * more than 64 bits and rounded once. The special operands follow the tables of SDM vol. 2 (F2XM1, FYL2X,
 * FYL2XP1, FPATAN, FPTAN, FSIN, FCOS). Precision control does not apply: results have 64 bits.
 */
import {
  bitLength,
  CLASS_FINITE,
  CLASS_INF,
  CLASS_ZERO,
  F80,
  type Float,
  INTEGER_BIT,
  infinity,
  makeFloat,
  withSign,
  zero,
} from "./float.ts";
import { checkDenormal, DE, type FloatEnv, invalid, ONE, PE, propagateNaN, round, UE, ZE } from "./round.ts";
import { integerSqrt } from "./soft-float.ts";

/** Fraction bits of the fixed-point work. */
const FRACTION = 320;
/** Fraction bits to which the constants are known. */
const CONSTANT_FRACTION = 640;
/**
 * Fraction bits of the pi that FSIN, FCOS, FSINCOS and FPTAN reduce by: CPUs use a pi of 66 significant bits
 * (SDM vol. 1, 8.3.8), and results for large operands differ visibly from those of the true pi.
 */
const PI_FRACTION = 64;
/** Below this exponent the quadratic term of log and exp cannot reach the rounding. */
const LINEAR_EXPONENT = -200;
/** Below this exponent sin, tan, atan and 1 - cos differ from their first term by less than 2^-68. */
const TINY_EXPONENT = -36;

/** `2 * atanh(num / den)`, 0 <= num < den, with `fraction` bits. */
function twiceAtanh(num: bigint, den: bigint, fraction: number): bigint {
  const shift = BigInt(fraction);
  const z = (num << shift) / den;
  const square = (z * z) >> shift;
  let power = z;
  let sum = z;
  for (let n = 3n; power !== 0n; n += 2n) {
    power = (power * square) >> shift;
    sum += power / n;
  }
  return sum << 1n;
}

/** `atan(num / den)`, 0 <= num < den, with `fraction` bits. */
function atanSeries(num: bigint, den: bigint, fraction: number): bigint {
  const shift = BigInt(fraction);
  const z = (num << shift) / den;
  const square = (z * z) >> shift;
  let power = z;
  let sum = z;
  let negative = true;
  for (let n = 3n; power !== 0n; n += 2n) {
    power = (power * square) >> shift;
    sum += negative ? -(power / n) : power / n;
    negative = !negative;
  }
  return sum;
}

const MINUS_HALF = makeFloat(CLASS_FINITE, 1, -1, INTEGER_BIT, false);

interface Constants {
  pi: bigint;
  ln2: bigint;
  log2e: bigint;
  log2Ten: bigint;
  log10Two: bigint;
}

let constants: Constants | undefined;

/** The constants with {@link CONSTANT_FRACTION} bits, computed on first use. */
function getConstants(): Constants {
  if (constants) return constants;
  const guard = 32;
  const bits = CONSTANT_FRACTION + guard;
  const one = 1n << BigInt(bits);
  const pi = 16n * atanSeries(1n, 5n, bits) - 4n * atanSeries(1n, 239n, bits);
  const ln2 = twiceAtanh(1n, 3n, bits);
  const ln10 = 3n * ln2 + twiceAtanh(1n, 9n, bits);
  const cut = (v: bigint): bigint => v >> BigInt(guard);
  constants = {
    pi: cut(pi),
    ln2: cut(ln2),
    log2e: cut((one * one) / ln2),
    log2Ten: cut((ln10 * one) / ln2),
    log10Two: cut((ln2 * one) / ln10),
  };
  return constants;
}

function constantBits(name: keyof Constants, fraction: number): bigint {
  return getConstants()[name] >> BigInt(CONSTANT_FRACTION - fraction);
}

/** FLDPI, FLDL2E, FLDL2T, FLDLG2, FLDLN2: the constant rounded by the current mode. */
export function loadConstant(env: FloatEnv, name: "pi" | "ln2" | "log2e" | "log2Ten" | "log10Two"): Float {
  return round(env, F80, 0, -128, constantBits(name, 128) | 1n);
}

/** Rounds `fixed / 2^fraction * 2^e`, irrational, `fixed` > 0. */
function roundFixed(env: FloatEnv, sign: number, fixed: bigint, fraction: number, e = 0): Float {
  return round(env, F80, sign, e - fraction, fixed | 1n);
}

/** Magnitude of `a` with `fraction` bits. */
function toFixed(a: Float, fraction: number): bigint {
  const shift = a.exp - 63 + fraction;
  return shift >= 0 ? a.sig << BigInt(shift) : a.sig >> BigInt(-shift);
}

/** `e^t` minus 1 for signed `t` with `fraction` bits, |t| < 1. */
function expMinusOne(t: bigint, fraction: number): bigint {
  const shift = BigInt(fraction);
  let term = t < 0n ? -t : t;
  const magnitude = term;
  let sum = t;
  for (let n = 2n; term !== 0n; n += 1n) {
    term = ((term * magnitude) >> shift) / n;
    sum += t < 0n && n & 1n ? -term : term;
  }
  return sum;
}

/** F2XM1: `2^a - 1` for |a| <= 1. */
export function exp2MinusOne(env: FloatEnv, a: Float): Float {
  if (a.cls > CLASS_INF) return propagateNaN(env, a, a);
  if (a.cls === CLASS_ZERO) return a;
  if (a.cls === CLASS_INF) return a.sign ? withSign(ONE, 1) : a;
  if (a.denormal) env.flags |= DE;
  if (env.faulted) return a;
  if (a.exp >= 0) {
    // Outside the defined range AMD CPUs give the operand back; for 1 and -1 too they report PE.
    env.flags |= PE;
    return a.exp === 0 && a.sign && a.sig === INTEGER_BIT ? MINUS_HALF : a;
  }
  if (a.exp < LINEAR_EXPONENT) {
    const ln2 = constantBits("ln2", FRACTION);
    return roundFixed(env, a.sign, a.sig * ln2, FRACTION, a.exp - 63);
  }
  const fraction = 192 - a.exp;
  const t = (toFixed(a, fraction) * constantBits("ln2", fraction)) >> BigInt(fraction);
  const value = expMinusOne(a.sign ? -t : t, fraction);
  return roundFixed(env, a.sign, value < 0n ? -value : value, fraction);
}

/** `y * log2(m * 2^k)` where `log` is log2 with `fraction` bits, not 0. */
function timesLog(env: FloatEnv, y: Float, log: bigint, fraction: number, exact: boolean): Float {
  const sign = y.sign ^ (log < 0n ? 1 : 0);
  const product = y.sig * (log < 0n ? -log : log);
  return round(env, F80, sign, y.exp - 63 - fraction, exact ? product : product | 1n);
}

/** `log2(v * 2^e)`, not 0, with {@link FRACTION} bits. */
function log2Of(v: bigint, e: number): bigint {
  const shift = BigInt(FRACTION);
  const length = bitLength(v);
  let unit = 1n << BigInt(length - 1);
  let k = length - 1 + e;
  // Bring v / unit into [0.7, 1.42) so that a logarithm near 0 loses nothing to cancellation.
  if (v * v > unit * unit * 2n) {
    unit <<= 1n;
    k++;
  }
  const ln = v >= unit ? twiceAtanh(v - unit, v + unit, FRACTION) : -twiceAtanh(unit - v, v + unit, FRACTION);
  return (BigInt(k) << shift) + ((ln * constantBits("log2e", FRACTION)) >> shift);
}

/** FYL2X: `y * log2(x)`. */
export function yLog2(env: FloatEnv, x: Float, y: Float): Float {
  if (x.cls > CLASS_INF || y.cls > CLASS_INF) return propagateNaN(env, x, y);
  if (x.cls === CLASS_ZERO) {
    if (y.cls === CLASS_ZERO) return invalid(env);
    checkDenormal(env, x, y);
    if (y.cls === CLASS_FINITE) env.flags = (env.flags & ~DE) | ZE;
    return infinity(y.sign ^ 1);
  }
  if (x.sign) return invalid(env);
  if (x.cls === CLASS_INF) {
    if (y.cls === CLASS_ZERO) return invalid(env);
    checkDenormal(env, x, y);
    return infinity(y.sign);
  }
  const power = x.sig === INTEGER_BIT;
  const isOne = power && x.exp === 0;
  if (y.cls === CLASS_INF) {
    if (isOne) return invalid(env);
    checkDenormal(env, x, y);
    return infinity(y.sign ^ (x.exp < 0 ? 1 : 0));
  }
  checkDenormal(env, x, y);
  if (isOne) return zero(y.sign);
  if (y.cls === CLASS_ZERO) return zero(y.sign ^ (x.exp < 0 ? 1 : 0));
  if (env.faulted) return x;
  if (power) {
    // A power of two may give an exact product; CPUs report an inexact one all the same.
    const value = timesLog(env, y, BigInt(x.exp), 0, true);
    env.flags |= value.denormal ? PE | UE : PE;
    return value;
  }
  return timesLog(env, y, log2Of(x.sig, x.exp - 63), FRACTION, false);
}

/** FYL2XP1: `y * log2(x + 1)`; the SDM defines it for -(1 - sqrt(1/2)) <= x <= sqrt(2) - 1. */
export function yLog2PlusOne(env: FloatEnv, x: Float, y: Float): Float {
  if (x.cls > CLASS_INF || y.cls > CLASS_INF) return propagateNaN(env, x, y);
  const sign = x.sign ^ y.sign;
  if (x.cls === CLASS_INF) {
    if (x.sign || y.cls === CLASS_ZERO) return invalid(env);
    checkDenormal(env, x, y);
    return infinity(sign);
  }
  if (y.cls === CLASS_INF) {
    if (x.cls === CLASS_ZERO) return invalid(env);
    checkDenormal(env, x, y);
    return infinity(sign);
  }
  checkDenormal(env, x, y);
  if (x.cls === CLASS_ZERO || y.cls === CLASS_ZERO) return zero(sign);
  if (env.faulted) return x;
  if (x.exp < LINEAR_EXPONENT) {
    const log2e = constantBits("log2e", FRACTION);
    return round(env, F80, sign, x.exp + y.exp - 126 - FRACTION, (x.sig * y.sig * log2e) | 1n);
  }
  if (x.exp >= 0) {
    if (x.sign) {
      // No logarithm: undefined by the SDM, and AMD CPUs give the operand back.
      env.flags |= PE;
      return x;
    }
    if (x.exp > 128) return yLog2(env, x, y);
  }
  if (x.exp >= -1) {
    const plusOne = x.sign ? (1n << 192n) - toFixed(x, 192) : (1n << 192n) + toFixed(x, 192);
    return timesLog(env, y, log2Of(plusOne, -192), FRACTION, false);
  }
  const fraction = 192 - x.exp;
  const value = toFixed(x, fraction);
  const two = 2n << BigInt(fraction);
  const ln = x.sign ? -twiceAtanh(value, two - value, fraction) : twiceAtanh(value, two + value, fraction);
  return timesLog(env, y, (ln * constantBits("log2e", fraction)) >> BigInt(fraction), fraction, false);
}

/** Results of {@link sinCosFixed}: magnitudes with {@link FRACTION} bits, and their signs. */
interface SinCos {
  sin: bigint;
  cos: bigint;
  sinSign: number;
  cosSign: number;
}

/** sin and cos of finite `a`, {@link TINY_EXPONENT} <= exp < 63. */
function sinCosFixed(a: Float): SinCos {
  const shift = BigInt(FRACTION);
  const halfPi = constantBits("pi", PI_FRACTION) << BigInt(FRACTION - PI_FRACTION - 1);
  const x = toFixed(a, FRACTION);
  const quarter = (x + (halfPi >> 1n)) / halfPi;
  let r = x - quarter * halfPi;
  const negative = r < 0n;
  if (negative) r = -r;
  const square = (r * r) >> shift;
  let sin = r;
  let cos = 1n << shift;
  let sinTerm = r;
  let cosTerm = cos;
  for (let n = 1n; cosTerm !== 0n; n += 2n) {
    cosTerm = ((cosTerm * square) >> shift) / (n * (n + 1n));
    sinTerm = ((sinTerm * square) >> shift) / ((n + 1n) * (n + 2n));
    if (n & 2n) {
      cos += cosTerm;
      sin += sinTerm;
    } else {
      cos -= cosTerm;
      sin -= sinTerm;
    }
  }
  const quadrant = Number(quarter & 3n);
  const rSign = negative ? 1 : 0;
  const half = quadrant >> 1;
  if (quadrant & 1) return { sin: cos, cos: sin, sinSign: a.sign ^ half, cosSign: rSign ^ half ^ 1 };
  return { sin, cos, sinSign: a.sign ^ rSign ^ half, cosSign: half };
}

/** The first term `a` of an odd series whose next term is far below its last bit and pulls the given way. */
function almost(env: FloatEnv, a: Float, grows: boolean): Float {
  return round(env, F80, a.sign, a.exp - 67, (a.sig << 4n) + (grows ? 1n : -1n));
}

/** What FSIN, FCOS and FPTAN do before computing: a special result, or undefined for a finite operand. */
function trigSpecial(env: FloatEnv, a: Float, atZero: Float): Float | undefined {
  if (a.cls > CLASS_INF) return propagateNaN(env, a, a);
  if (a.cls === CLASS_INF) return invalid(env);
  if (a.cls === CLASS_ZERO) return atZero;
  if (a.denormal) env.flags |= DE;
  return env.faulted ? a : undefined;
}

/** FSIN; |a| < 2^63. */
export function sin(env: FloatEnv, a: Float): Float {
  const special = trigSpecial(env, a, a);
  if (special) return special;
  if (a.exp < TINY_EXPONENT) return almost(env, a, false);
  const parts = sinCosFixed(a);
  return roundFixed(env, parts.sinSign, parts.sin, FRACTION);
}

/** FCOS; |a| < 2^63. */
export function cos(env: FloatEnv, a: Float): Float {
  const special = trigSpecial(env, a, ONE);
  if (special) return special;
  if (a.exp < TINY_EXPONENT) return almost(env, ONE, false);
  const parts = sinCosFixed(a);
  return roundFixed(env, parts.cosSign, parts.cos, FRACTION);
}

/** FPTAN's tangent; |a| < 2^63. */
export function tan(env: FloatEnv, a: Float): Float {
  const special = trigSpecial(env, a, a);
  if (special) return special;
  if (a.exp < TINY_EXPONENT) return almost(env, a, true);
  const parts = sinCosFixed(a);
  const quotient = (parts.sin << BigInt(FRACTION)) / parts.cos;
  return roundFixed(env, parts.sinSign ^ parts.cosSign, quotient, FRACTION);
}

/** Angle of a vector's smaller over its larger component, with {@link FRACTION} bits: atan(num / den). */
function atanRatio(num: bigint, den: bigint): bigint {
  const shift = BigInt(FRACTION);
  const one = 1n << shift;
  let t = (num << shift) / den;
  // tan(x / 2) = t / (1 + sqrt(1 + t^2)), twice, shortens the series.
  for (let i = 0; i < 2; i++) t = (t << shift) / (one + integerSqrt((one << shift) + t * t));
  return atanSeries(t, one, FRACTION) << 2n;
}

/** FPATAN: the angle of the point (x, y), -pi to pi. */
export function atan2(env: FloatEnv, x: Float, y: Float): Float {
  if (x.cls > CLASS_INF || y.cls > CLASS_INF) return propagateNaN(env, x, y);
  checkDenormal(env, x, y);
  if (env.faulted) return x;
  const pi = constantBits("pi", FRACTION);
  const angle = (fixed: bigint): Float => roundFixed(env, y.sign, fixed, FRACTION);
  if (y.cls === CLASS_INF) {
    if (x.cls !== CLASS_INF) return angle(pi >> 1n);
    return angle(x.sign ? (3n * pi) >> 2n : pi >> 2n);
  }
  if (x.cls === CLASS_INF || y.cls === CLASS_ZERO) return x.sign ? angle(pi) : zero(y.sign);
  if (x.cls === CLASS_ZERO) return angle(pi >> 1n);

  const distance = y.exp - x.exp;
  if (distance < -70) {
    if (x.sign) return angle(pi - 1n);
    const q = (y.sig << 72n) / x.sig;
    // A quotient that is exact in 64 bits still lies above the angle.
    const exact = q * x.sig === y.sig << 72n;
    return round(env, F80, y.sign, distance - 73, exact ? (q << 1n) - 1n : (q << 1n) | 1n);
  }
  if (distance > 70) return angle((pi >> 1n) + (x.sign ? 1n : -1n));
  const ySig = distance > 0 ? y.sig << BigInt(distance) : y.sig;
  const xSig = distance < 0 ? x.sig << BigInt(-distance) : x.sig;
  const first = ySig <= xSig ? atanRatio(ySig, xSig) : (pi >> 1n) - atanRatio(xSig, ySig);
  return angle(x.sign ? pi - first : first);
}
