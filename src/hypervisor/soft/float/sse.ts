/**
 * SSE and SSE2 scalar floating point, one element at a time (SDM vol. 1, 10.2.3 and 11.5). Every function
 * returns the same {@link SseResult} object, overwritten by the next call: read it before calling again.
 *
 * `flags` are the exceptions raised, masked or not, at their MXCSR positions. The caller ORs them into
 * MXCSR; if `flags & ~masks` is not 0 it leaves the destination alone and raises #XM. For a packed
 * instruction the caller ORs the flags of all elements; an element whose unmasked IE, DE or ZE stops it
 * reports no OE, UE or PE.
 */
import {
  CLASS_INF,
  CLASS_ZERO,
  F32,
  F64,
  type Float,
  type Format,
  packF32,
  packF64,
  unpackF32,
  unpackF64,
} from "./float.ts";
import { checkDenormal, daz, FloatEnv, IE } from "./round.ts";
import {
  add,
  compare,
  convert,
  div,
  EQUAL,
  fromInt,
  GREATER,
  LESS,
  mul,
  sqrt,
  toInt,
  UNORDERED,
} from "./soft-float.ts";

/** MXCSR fields (SDM vol. 1, 10.2.3). */
const MXCSR_DAZ = 1 << 6;
const MXCSR_MASK_SHIFT = 7;
const MXCSR_RC_SHIFT = 13;
const MXCSR_FTZ = 1 << 15;

/** Bits of RFLAGS that COMISS and UCOMISS set. */
const CF = 0x01;
const PF = 0x04;
const ZF = 0x40;

/** Operations of {@link sseArith}. */
export const SSE_ADD = 0;
export const SSE_SUB = 1;
export const SSE_MUL = 2;
export const SSE_DIV = 3;
export const SSE_MIN = 4;
export const SSE_MAX = 5;
/** Square root of `b`, the source operand; `a` is ignored. */
export const SSE_SQRT = 6;

/** Element width in bits: 32 (single) or 64 (double). */
export type SseFormat = 32 | 64;

export interface SseResult {
  /** Result bits: f32, f64, an all-ones or zero mask, an integer, or RFLAGS bits. */
  bits: bigint;
  /** Exceptions raised, at MXCSR bits 0-5. */
  flags: number;
}

const result: SseResult = { bits: 0n, flags: 0 };
const env = new FloatEnv();

function begin(mxcsr: number): void {
  env.begin((mxcsr >>> MXCSR_RC_SHIFT) & 3, (mxcsr >>> MXCSR_MASK_SHIFT) & 0x3f);
  env.daz = (mxcsr & MXCSR_DAZ) !== 0;
  env.ftz = (mxcsr & MXCSR_FTZ) !== 0;
}

function finish(bits: bigint): SseResult {
  result.bits = bits;
  result.flags = env.flags;
  return result;
}

function unpack(fmt: SseFormat, bits: bigint): Float {
  return daz(env, fmt === 32 ? unpackF32(bits) : unpackF64(bits));
}

function pack(fmt: SseFormat, a: Float): bigint {
  return fmt === 32 ? packF32(a) : packF64(a);
}

/** MIN and MAX return the second operand when either is a NaN or both are zero (SDM vol. 2, MINSD). */
function minMax(a: Float, b: Float, wanted: number): Float {
  if (a.cls > CLASS_INF || b.cls > CLASS_INF) {
    env.flags |= IE;
    return b;
  }
  checkDenormal(env, a, b);
  if (a.cls === CLASS_ZERO && b.cls === CLASS_ZERO) return b;
  return compare(env, a, b, true) === wanted ? a : b;
}

/**
 * ADDSx, SUBSx, MULSx, DIVSx, MINSx, MAXSx, SQRTSx: `a` is the destination operand, `b` the source.
 * Bits above the format's width are ignored.
 */
export function sseArith(op: number, fmt: SseFormat, a: bigint, b: bigint, mxcsr: number): SseResult {
  begin(mxcsr);
  const format: Format = fmt === 32 ? F32 : F64;
  const y = unpack(fmt, b);
  if (op === SSE_SQRT) return finish(pack(fmt, sqrt(env, format, y)));
  const x = unpack(fmt, a);
  switch (op) {
    case SSE_ADD:
      return finish(pack(fmt, add(env, format, x, y, 0)));
    case SSE_SUB:
      return finish(pack(fmt, add(env, format, x, y, 1)));
    case SSE_MUL:
      return finish(pack(fmt, mul(env, format, x, y)));
    case SSE_DIV:
      return finish(pack(fmt, div(env, format, x, y)));
    case SSE_MIN: {
      const least = minMax(x, y, LESS);
      return finish(pack(fmt, least));
    }
    case SSE_MAX: {
      const greatest = minMax(x, y, GREATER);
      return finish(pack(fmt, greatest));
    }
    default:
      throw new RangeError(`unknown SSE operation ${op}: use one of the SSE_ constants`);
  }
}

/**
 * CMPSx with predicate 0-7 (EQ, LT, LE, UNORD, NEQ, NLT, NLE, ORD; SDM vol. 2, table 3-1). `bits` is all
 * ones in the format's width, or 0.
 */
export function sseCmp(predicate: number, fmt: SseFormat, a: bigint, b: bigint, mxcsr: number): SseResult {
  begin(mxcsr);
  const kind = predicate & 3;
  const order = compare(env, unpack(fmt, a), unpack(fmt, b), kind === 1 || kind === 2);
  let holds: boolean;
  if (kind === 0) holds = order === EQUAL;
  else if (kind === 1) holds = order === LESS;
  else if (kind === 2) holds = order === LESS || order === EQUAL;
  else holds = order === UNORDERED;
  if (predicate & 4) holds = !holds;
  return finish(holds ? (1n << BigInt(fmt)) - 1n : 0n);
}

/** COMISx (`signalling`) and UCOMISx: `bits` holds ZF, PF and CF at their RFLAGS positions. */
export function sseComis(
  signalling: boolean,
  fmt: SseFormat,
  a: bigint,
  b: bigint,
  mxcsr: number,
): SseResult {
  begin(mxcsr);
  const order = compare(env, unpack(fmt, a), unpack(fmt, b), signalling);
  if (order === UNORDERED) return finish(BigInt(ZF | PF | CF));
  if (order === EQUAL) return finish(BigInt(ZF));
  return finish(order === LESS ? BigInt(CF) : 0n);
}

/** CVTSD2SS (from 64) and CVTSS2SD (from 32): `bits` in the other format. */
export function sseConvert(from: SseFormat, a: bigint, mxcsr: number): SseResult {
  begin(mxcsr);
  const value = unpack(from, a);
  return finish(from === 64 ? packF32(convert(env, F32, value)) : packF64(convert(env, F64, value)));
}

/** CVTSI2Sx: the low `width` bits of `value`, signed, to `fmt`. */
export function sseFromInt(fmt: SseFormat, value: bigint, width: 32 | 64, mxcsr: number): SseResult {
  begin(mxcsr);
  return finish(pack(fmt, fromInt(env, fmt === 32 ? F32 : F64, BigInt.asIntN(width, value))));
}

/**
 * CVTSx2SI and, when `truncate`, CVTTSx2SI: `bits` is the two's-complement integer of `width` bits,
 * zero-extended. Out of range gives the integer indefinite and IE.
 */
export function sseToInt(
  fmt: SseFormat,
  a: bigint,
  width: 32 | 64,
  truncate: boolean,
  mxcsr: number,
): SseResult {
  begin(mxcsr);
  return finish(toInt(env, unpack(fmt, a), width, truncate));
}
