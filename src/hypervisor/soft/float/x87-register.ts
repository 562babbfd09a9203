/** x87 instructions on registers and the arithmetic shared with memory forms (SDM vol. 2). */

import * as elementary from "./elementary.ts";
import {
  CLASS_FINITE,
  CLASS_INF,
  CLASS_UNSUPPORTED,
  CLASS_ZERO,
  DEFAULT_NAN,
  type Float,
  zero,
} from "./float.ts";
import { type FloatEnv, ONE } from "./round.ts";
import { add, compare, div, EQUAL, LESS, mul, roundToIntegral, sqrt, UNORDERED } from "./soft-float.ts";
import { extractExponent, extractSignificand, remainder, remainderResult, scale } from "./x87-arith.ts";
import { FSW_C0, FSW_C1, FSW_C2, FSW_C3, type X87State } from "./x87-state.ts";

const CONDITIONS = FSW_C0 | FSW_C1 | FSW_C2 | FSW_C3;
const COMPARED = FSW_C0 | FSW_C2 | FSW_C3;

/** ModRM.reg of the eight basic operations. */
export const OP_COM = 2;
export const OP_COMP = 3;

const CF = 0x01;
const PF = 0x04;
const ZF = 0x40;

function operate(fpu: X87State, op: number, a: Float, b: Float): Float {
  const { env, precision } = fpu;
  switch (op) {
    case 0:
      return add(env, precision, a, b, 0);
    case 1:
      return mul(env, precision, a, b);
    case 4:
      return add(env, precision, a, b, 1);
    case 5:
      return add(env, precision, b, a, 1);
    case 6:
      return div(env, precision, a, b);
    default:
      return div(env, precision, b, a);
  }
}

/**
 * FADD to FDIVR by ModRM.reg `op`: ST(0) op `b` into ST(`target`), then a pop if `pops`. An undefined `b`
 * is an empty register.
 */
export function arithmetic(
  fpu: X87State,
  op: number,
  b: Float | undefined,
  target: number,
  pops: boolean,
): void {
  if (fpu.isEmpty(0) || b === undefined) {
    if (!fpu.stackUnderflow()) return;
    fpu.write(target, DEFAULT_NAN);
  } else {
    fpu.begin();
    const value = operate(fpu, op, fpu.read(0), b);
    if (!fpu.commit()) return;
    fpu.write(target, value);
  }
  if (pops) fpu.pop();
}

function conditionsOf(order: number): number {
  if (order === UNORDERED) return COMPARED;
  if (order === EQUAL) return FSW_C3;
  return order === LESS ? FSW_C0 : 0;
}

/** FCOM and FUCOM families: compares ST(0) with `b` and pops `pops` times. */
export function compareToConditions(
  fpu: X87State,
  b: Float | undefined,
  signalling: boolean,
  pops: number,
): void {
  if (fpu.isEmpty(0) || b === undefined) {
    const masked = fpu.stackUnderflow();
    fpu.setConditions(COMPARED, COMPARED);
    if (!masked) return;
  } else {
    fpu.begin();
    const order = compare(fpu.env, fpu.read(0), b, signalling);
    const done = fpu.commit();
    fpu.setConditions(COMPARED, conditionsOf(order));
    if (!done) return;
  }
  for (let i = 0; i < pops; i++) fpu.pop();
}

/** FCOMI and FUCOMI. The flags are set even if an unmasked exception stops the pop, as AMD CPUs do. */
export function compareToFlags(fpu: X87State, i: number, signalling: boolean, pops: boolean): void {
  let order = UNORDERED;
  let done: boolean;
  if (fpu.isEmpty(0) || fpu.isEmpty(i)) done = fpu.stackUnderflow();
  else {
    const c1 = fpu.fsw & FSW_C1;
    fpu.begin();
    order = compare(fpu.env, fpu.read(0), fpu.read(i), signalling);
    done = fpu.commit();
    fpu.setConditions(FSW_C1, c1);
  }
  if (order === UNORDERED) fpu.cpu.flags.set(1, 1, 1);
  else fpu.cpu.flags.set(order === EQUAL ? 1 : 0, 0, order === LESS ? 1 : 0);
  if (done && pops) fpu.pop();
}

/** ST(i), or undefined when it is empty. */
export function operandRegister(fpu: X87State, i: number): Float | undefined {
  return fpu.isEmpty(i) ? undefined : fpu.read(i);
}

/** Copies ST(from) to ST(to) bit by bit. */
function copy(fpu: X87State, from: number, to: number): void {
  const at = fpu.offset(from);
  fpu.writeRaw(to, fpu.view.getUint16(at + 8, true), fpu.view.getBigUint64(at, true));
}

/** FLD ST(i). */
export function loadRegister(fpu: X87State, i: number): void {
  if (fpu.isEmpty(i) || !fpu.isEmpty(7)) {
    if (fpu.isEmpty(i) ? fpu.stackUnderflow() : fpu.stackOverflow()) fpu.push(DEFAULT_NAN);
    return;
  }
  fpu.setConditions(FSW_C1, 0);
  fpu.top = fpu.top - 1;
  copy(fpu, (i + 1) & 7, 0);
}

/** FST ST(i) and FSTP ST(i). */
export function storeRegister(fpu: X87State, i: number, pops: boolean): void {
  if (fpu.isEmpty(0)) {
    if (!fpu.stackUnderflow()) return;
    fpu.write(i, DEFAULT_NAN);
  } else {
    fpu.setConditions(FSW_C1, 0);
    copy(fpu, 0, i);
  }
  if (pops) fpu.pop();
}

/** D9 D8+i, undocumented: FSTP ST(i) that neither stores nor complains when ST(0) is empty. */
export function storeRegisterQuietly(fpu: X87State, i: number): void {
  fpu.setConditions(FSW_C1, 0);
  if (!fpu.isEmpty(0)) copy(fpu, 0, i);
  fpu.pop();
}

/** FFREE ST(i) and, with a pop, FFREEP. */
export function free(fpu: X87State, i: number, pops: boolean): void {
  fpu.setConditions(FSW_C1, 0);
  fpu.free(i);
  if (pops) fpu.pop();
}

/** FXCH ST(i). Empty registers become the default NaN first. */
export function exchange(fpu: X87State, i: number): void {
  fpu.setConditions(FSW_C1, 0);
  if (fpu.isEmpty(0) || fpu.isEmpty(i)) {
    if (!fpu.stackUnderflow()) return;
    if (fpu.isEmpty(0)) fpu.write(0, DEFAULT_NAN);
    if (fpu.isEmpty(i)) fpu.write(i, DEFAULT_NAN);
  }
  const a = fpu.offset(0);
  const b = fpu.offset(i);
  const { view } = fpu;
  const significand = view.getBigUint64(a, true);
  const signExponent = view.getUint16(a + 8, true);
  copy(fpu, i, 0);
  view.setBigUint64(b, significand, true);
  view.setUint16(b + 8, signExponent, true);
}

/** FCMOVcc: `reg` 0-3 tests CF, ZF, CF or ZF, PF; `negated` the opposite. */
export function conditionalMove(fpu: X87State, reg: number, i: number, negated: boolean): void {
  const flags = fpu.cpu.flags.get();
  const tested = [CF, ZF, CF | ZF, PF][reg];
  const holds = ((flags & tested) !== 0) !== negated;
  if (fpu.isEmpty(0) || fpu.isEmpty(i)) {
    if (fpu.stackUnderflow()) fpu.write(0, DEFAULT_NAN);
    return;
  }
  if (holds) copy(fpu, i, 0);
}

/** FXAM: class of ST(0) in C3, C2, C0 and its sign in C1. */
function examine(fpu: X87State): void {
  const value = fpu.read(0);
  let code: number;
  if (fpu.isEmpty(0)) code = FSW_C3 | FSW_C0;
  else if (value.cls === CLASS_UNSUPPORTED) code = 0;
  else if (value.cls === CLASS_ZERO) code = FSW_C3;
  else if (value.cls === CLASS_INF) code = FSW_C2 | FSW_C0;
  else if (value.cls > CLASS_INF) code = FSW_C0;
  else code = value.denormal ? FSW_C3 | FSW_C2 : FSW_C2;
  fpu.setConditions(CONDITIONS, code | (value.sign ? FSW_C1 : 0));
}

/** FCHS, and FABS when `clear`: work on any bit pattern. */
function changeSign(fpu: X87State, clear: boolean): void {
  if (fpu.isEmpty(0)) {
    if (fpu.stackUnderflow()) fpu.write(0, DEFAULT_NAN);
    return;
  }
  fpu.setConditions(FSW_C1, 0);
  const at = fpu.offset(0) + 8;
  const signExponent = fpu.view.getUint16(at, true);
  fpu.view.setUint16(at, clear ? signExponent & 0x7fff : signExponent ^ 0x8000, true);
}

const CONSTANTS = ["one", "log2Ten", "log2e", "pi", "log10Two", "ln2", "zero"] as const;

/** FLD1 to FLDZ: D9 E8 + `index`. */
function pushConstant(fpu: X87State, index: number): void {
  if (!fpu.isEmpty(7)) {
    if (fpu.stackOverflow()) fpu.push(DEFAULT_NAN);
    return;
  }
  const name = CONSTANTS[index];
  const env = fpu.begin();
  if (name === "one") fpu.push(ONE);
  else if (name === "zero") fpu.push(zero(0));
  else fpu.push(elementary.loadConstant(env, name));
}

/** An operation on ST(0) alone. */
function unary(fpu: X87State, compute: (env: FloatEnv, a: Float) => Float): void {
  if (fpu.isEmpty(0)) {
    if (fpu.stackUnderflow()) fpu.write(0, DEFAULT_NAN);
    return;
  }
  const value = compute(fpu.begin(), fpu.read(0));
  if (fpu.commit()) fpu.write(0, value);
}

/** FYL2X, FYL2XP1 and FPATAN: ST(0) and ST(1) into ST(1), then a pop. */
function binaryPop(fpu: X87State, compute: (env: FloatEnv, x: Float, y: Float) => Float): void {
  if (fpu.isEmpty(0) || fpu.isEmpty(1)) {
    if (!fpu.stackUnderflow()) return;
    fpu.write(1, DEFAULT_NAN);
  } else {
    const value = compute(fpu.begin(), fpu.read(0), fpu.read(1));
    if (!fpu.commit()) return;
    fpu.write(1, value);
  }
  fpu.pop();
}

/** FSCALE. */
function scaleTop(fpu: X87State): void {
  if (fpu.isEmpty(0) || fpu.isEmpty(1)) {
    if (fpu.stackUnderflow()) fpu.write(0, DEFAULT_NAN);
    return;
  }
  const value = scale(fpu.begin(), fpu.read(0), fpu.read(1));
  if (fpu.commit()) fpu.write(0, value);
}

/** FPREM and FPREM1. Without a remainder (NaN, invalid, empty register) only C2 changes, to 0. */
function partialRemainder(fpu: X87State, nearest: boolean): void {
  fpu.setConditions(FSW_C2, 0);
  if (fpu.isEmpty(0) || fpu.isEmpty(1)) {
    if (fpu.stackUnderflow()) fpu.write(0, DEFAULT_NAN);
    return;
  }
  const value = remainder(fpu.begin(), fpu.read(0), fpu.read(1), nearest);
  if (!fpu.commit()) return;
  fpu.write(0, value);
  if (value.cls > CLASS_INF) return;
  const { quotient, partial } = remainderResult;
  let code = partial ? FSW_C2 : 0;
  if (quotient & 4) code |= FSW_C0;
  if (quotient & 2) code |= FSW_C3;
  if (quotient & 1) code |= FSW_C1;
  fpu.setConditions(CONDITIONS, code);
}

/** Replaces ST(0) by `first` and pushes `second`. Checks the stack before `compute` runs. */
function unaryPush(fpu: X87State, compute: (env: FloatEnv, a: Float) => readonly [Float, Float]): void {
  if (fpu.isEmpty(0) || !fpu.isEmpty(7)) {
    const masked = fpu.isEmpty(0) ? fpu.stackUnderflow() : fpu.stackOverflow();
    if (!masked) return;
    fpu.write(0, DEFAULT_NAN);
    fpu.push(DEFAULT_NAN);
    return;
  }
  const [first, second] = compute(fpu.begin(), fpu.read(0));
  if (!fpu.commit()) return;
  fpu.write(0, first);
  fpu.push(second);
}

/** |a| >= 2^63: FSIN, FCOS, FSINCOS and FPTAN set C2 and do nothing. */
function trigOutOfRange(fpu: X87State, pushes: boolean): boolean {
  fpu.setConditions(FSW_C2, 0);
  if (fpu.isEmpty(0) || (pushes && !fpu.isEmpty(7))) return false;
  const value = fpu.read(0);
  const out = value.cls === CLASS_FINITE && value.exp >= 63;
  if (out) fpu.setConditions(FSW_C1 | FSW_C2, FSW_C2);
  return out;
}

/** FPTAN: the tangent, then 1.0; a NaN twice. */
function tangent(env: FloatEnv, a: Float): readonly [Float, Float] {
  const value = elementary.tan(env, a);
  return [value, value.cls > CLASS_INF ? value : ONE];
}

function sineCosine(env: FloatEnv, a: Float): readonly [Float, Float] {
  return [elementary.sin(env, a), elementary.cos(env, a)];
}

function extract(env: FloatEnv, a: Float): readonly [Float, Float] {
  return [extractExponent(env, a), extractSignificand(env, a)];
}

/** FINCSTP and FDECSTP. */
function rotate(fpu: X87State, by: number): void {
  fpu.setConditions(FSW_C1, 0);
  fpu.top = fpu.top + by;
}

/** D9 E0 to D9 FF. */
export function special(fpu: X87State, modrm: number): void {
  switch (modrm) {
    case 0xe0:
    case 0xe1:
      changeSign(fpu, modrm === 0xe1);
      break;
    case 0xe4:
      compareToConditions(fpu, zero(0), true, 0);
      break;
    case 0xe5:
      examine(fpu);
      break;
    case 0xf0:
      unary(fpu, elementary.exp2MinusOne);
      break;
    case 0xf1:
      binaryPop(fpu, elementary.yLog2);
      break;
    case 0xf2:
      if (!trigOutOfRange(fpu, true)) unaryPush(fpu, tangent);
      break;
    case 0xf3:
      binaryPop(fpu, elementary.atan2);
      break;
    case 0xf4:
      unaryPush(fpu, extract);
      break;
    case 0xf5:
    case 0xf8:
      partialRemainder(fpu, modrm === 0xf5);
      break;
    case 0xf6:
    case 0xf7:
      rotate(fpu, modrm === 0xf7 ? 1 : -1);
      break;
    case 0xf9:
      binaryPop(fpu, elementary.yLog2PlusOne);
      break;
    case 0xfa:
      unary(fpu, (env, a) => sqrt(env, fpu.precision, a));
      break;
    case 0xfb:
      if (!trigOutOfRange(fpu, true)) unaryPush(fpu, sineCosine);
      break;
    case 0xfc:
      unary(fpu, roundToIntegral);
      break;
    case 0xfd:
      scaleTop(fpu);
      break;
    case 0xfe:
      if (!trigOutOfRange(fpu, false)) unary(fpu, elementary.sin);
      break;
    case 0xff:
      if (!trigOutOfRange(fpu, false)) unary(fpu, elementary.cos);
      break;
    default:
      pushConstant(fpu, modrm - 0xe8);
  }
}
