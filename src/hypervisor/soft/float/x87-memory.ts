/** x87 loads and stores (SDM vol. 2: FLD, FILD, FBLD, FST, FIST, FISTTP, FBSTP). */
import {
  CLASS_INF,
  DEFAULT_NAN,
  F32,
  F64,
  type Float,
  f80SignExponent,
  f80Significand,
  packF32,
  packF64,
  unpackF32,
  unpackF64,
} from "./float.ts";
import { DE, IE, OE, PE, propagateNaN, round, UE } from "./round.ts";
import { exactInteger, toInt } from "./soft-float.ts";
import { loadBcd, storeBcd, storeBcdIndefinite } from "./x87-arith.ts";
import type { X87State } from "./x87-state.ts";

/** An integer operand as a value; always exact in f80. */
export function integerOperand(operand: DataView, width: number): Float {
  const value =
    width === 16
      ? BigInt(operand.getInt16(0, true))
      : width === 32
        ? BigInt(operand.getInt32(0, true))
        : operand.getBigInt64(0, true);
  return exactInteger(value);
}

/** A single or double operand of an arithmetic instruction. */
export function realOperand(operand: DataView, width: number): Float {
  return width === 32
    ? unpackF32(BigInt(operand.getUint32(0, true)))
    : unpackF64(operand.getBigUint64(0, true));
}

/** Pushes a value that raises nothing (FILD, FBLD, FLD m80). */
function pushExact(fpu: X87State, signExponent: number, significand: bigint): void {
  if (!fpu.isEmpty(7)) {
    if (fpu.stackOverflow()) fpu.push(DEFAULT_NAN);
    return;
  }
  fpu.begin();
  fpu.top = fpu.top - 1;
  fpu.writeRaw(0, signExponent, significand);
}

/** FILD m16, m32, m64. */
export function loadInteger(fpu: X87State, operand: DataView, width: number): void {
  const value = integerOperand(operand, width);
  pushExact(fpu, f80SignExponent(value), f80Significand(value));
}

/** FBLD. */
export function loadDecimal(fpu: X87State, operand: DataView): void {
  const value = loadBcd(operand);
  pushExact(fpu, f80SignExponent(value), f80Significand(value));
}

/** FLD m80: every bit pattern goes in as it is. */
export function loadExtended(fpu: X87State, operand: DataView): void {
  pushExact(fpu, operand.getUint16(8, true), operand.getBigUint64(0, true));
}

/** FLD m32, m64: an SNaN raises IE and becomes quiet, a denormal raises DE and becomes normal, unmasked too. */
export function loadReal(fpu: X87State, operand: DataView, width: number): void {
  if (!fpu.isEmpty(7)) {
    if (fpu.stackOverflow()) fpu.push(DEFAULT_NAN);
    return;
  }
  const env = fpu.begin();
  let value = realOperand(operand, width);
  if (value.cls > CLASS_INF) value = propagateNaN(env, value, value);
  else if (value.denormal) env.flags |= DE;
  if (fpu.commit() || (env.flags & IE) === 0) fpu.push(value);
}

/** Stores `bits` of 16, 32 or 64 bits. */
function put(operand: DataView, width: number, bits: bigint): void {
  if (width === 16) operand.setUint16(0, Number(bits), true);
  else if (width === 32) operand.setUint32(0, Number(bits), true);
  else operand.setBigUint64(0, bits, true);
}

/** Ends a store: pops if it took place. */
function stored(fpu: X87State, done: boolean, pops: boolean): void {
  fpu.stored = done;
  if (done && pops) fpu.pop();
}

/** FST and FSTP to m32, m64. Unmasked overflow or underflow stores nothing. */
export function storeReal(fpu: X87State, operand: DataView, width: number, pops: boolean): void {
  const pack = (value: Float): void => put(operand, width, width === 32 ? packF32(value) : packF64(value));
  if (fpu.isEmpty(0)) {
    const masked = fpu.stackUnderflow();
    if (masked) pack(DEFAULT_NAN);
    stored(fpu, masked, pops);
    return;
  }
  const env = fpu.begin();
  const a = fpu.read(0);
  let value = a;
  if (a.cls > CLASS_INF) value = propagateNaN(env, a, a);
  else if (a.sig !== 0n && a.cls !== CLASS_INF) {
    // Memory has no biased response: as on SSE.
    env.x87 = false;
    value = round(env, width === 32 ? F32 : F64, a.sign, a.exp - 63, a.sig);
    env.x87 = true;
  }
  const suppressed = (env.flags & ~env.masks & (OE | UE)) !== 0;
  if (suppressed) {
    env.flags &= ~PE;
    env.roundedUp = false;
  }
  const done = fpu.commit() && !suppressed;
  if (done) pack(value);
  stored(fpu, done, pops);
}

/** FSTP m80: every bit pattern goes out as it is. */
export function storeExtended(fpu: X87State, operand: DataView): void {
  let signExponent = f80SignExponent(DEFAULT_NAN);
  let significand = DEFAULT_NAN.sig;
  if (fpu.isEmpty(0)) {
    if (!fpu.stackUnderflow()) {
      stored(fpu, false, true);
      return;
    }
  } else {
    fpu.begin();
    const at = fpu.offset(0);
    signExponent = fpu.view.getUint16(at + 8, true);
    significand = fpu.view.getBigUint64(at, true);
  }
  operand.setBigUint64(0, significand, true);
  operand.setUint16(8, signExponent, true);
  stored(fpu, true, true);
}

/** FIST, FISTP and, with `truncate`, FISTTP. */
export function storeInteger(
  fpu: X87State,
  operand: DataView,
  width: number,
  truncate: boolean,
  pops: boolean,
): void {
  if (fpu.isEmpty(0)) {
    const masked = fpu.stackUnderflow();
    if (masked) put(operand, width, 1n << BigInt(width - 1));
    stored(fpu, masked, pops);
    return;
  }
  const env = fpu.begin();
  const bits = toInt(env, fpu.read(0), width, truncate);
  const done = fpu.commit();
  if (done) put(operand, width, bits);
  stored(fpu, done, pops);
}

/** FBSTP. */
export function storeDecimal(fpu: X87State, operand: DataView): void {
  if (fpu.isEmpty(0)) {
    const masked = fpu.stackUnderflow();
    if (masked) storeBcdIndefinite(operand);
    stored(fpu, masked, true);
    return;
  }
  storeBcd(fpu.begin(), fpu.read(0), operand);
  stored(fpu, fpu.commit(), true);
}
