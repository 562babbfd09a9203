/**
 * Floating-point operands of SSE instructions as one or several lanes, and when inline WebAssembly may
 * compute on them.
 *
 * WebAssembly rounds to nearest and reports no exceptions. Its results are taken when the operands and the
 * result are ordinary (no NaN, no denormal, no overflow or underflow), so that PE is the only exception
 * there can be, and when PE changes nothing (it is masked and already set) or is shown not to arise.
 * Everything else is {@link slow}: the TypeScript helper behind sse-slow.ts.
 */
import type { Context } from "../context.ts";
import { HELPER } from "../helpers.ts";
import { MXCSR } from "../layout.ts";
import { SLOW_DESTINATION, SLOW_OPERATION, SLOW_RESULT, SLOW_SOURCE, slowOperation } from "../sse-slow.ts";
import { type Size, zeroAddress } from "../values.ts";
import { F64, I64, V128 } from "../wasm/encoding.ts";
import {
  c32,
  c64,
  cf32,
  cf64,
  cv128,
  type Expr,
  f32,
  f32x4,
  f64,
  f64x2,
  i32,
  i32x4,
  i64,
  i64x2,
  v128,
} from "../wasm/expr.ts";
import type { Func, Label } from "../wasm/func.ts";
import { lowAddress } from "./sse-operands.ts";

/** MXCSR bits (SDM vol. 1, 10.2.3). */
const MXCSR_PE = 1 << 5;
const MXCSR_PM = 1 << 12;
const MXCSR_RC = 3 << 13;

type Unary = (a: Expr) => Expr;
type Vector = (a: Expr, b: Expr) => Expr;

interface Operators {
  readonly abs: Unary;
  readonly neg: Unary;
  readonly sqrt: Unary;
  readonly add: Vector;
  readonly sub: Vector;
  readonly mul: Vector;
  readonly div: Vector;
  readonly eq: Vector;
  readonly lt: Vector;
  readonly gt: Vector;
  readonly le: Vector;
  readonly ge: Vector;
}

/** One of the four operand shapes. Masks are i32 truth values of scalars, all-ones lanes of vectors. */
export interface Shape {
  readonly suffix: "ss" | "sd" | "ps" | "pd";
  readonly prefix: "np" | "66" | "f2" | "f3";
  /** Bits of an element. */
  readonly width: 32 | 64;
  readonly lanes: 1 | 2 | 4;
  readonly ops: Operators;
  /** Smallest normal and largest finite value. */
  readonly least: Expr;
  readonly most: Expr;
  readonly zero: Expr;
  readonly and: Vector;
  readonly or: Vector;
  /** i32: the mask holds in every lane. */
  readonly all: Unary;
  /** i32: `x * y` is exactly `product`, in every lane. Operands are locals and ordinary. */
  readonly isProduct: (f: Func, x: Expr, y: Expr, product: Expr) => Expr;
}

export const LEAST32 = 2 ** -126;
export const MOST32 = 2 ** 128 - 2 ** 104;
const LEAST64 = 2 ** -1022;
const MOST64 = Number.MAX_VALUE;

/** The same value in every lane. */
export const splat32 = (value: number): Expr => cv128(new Uint8Array(new Float32Array(4).fill(value).buffer));
export const splat64 = (value: number): Expr => cv128(new Uint8Array(new Float64Array(2).fill(value).buffer));

/** The product of two singles is exact as a double. */
const isProduct32 = (_f: Func, x: Expr, y: Expr, product: Expr): Expr =>
  f64.eq(f64.mul(f64.promote(x), f64.promote(y)), f64.promote(product));

const FRACTION64 = c64(0xf_ffff_ffff_ffffn);

/** Significand bits of a double that are not needed: trailing zeros, 53 for a power of two and for 0. */
const spareBits = (x: Expr): Expr =>
  i64.ctz(i64.or(i64.and(i64.reinterpret_f64(x), FRACTION64), c64(1n << 53n)));

/** Shows it for factors that need at most 53 bits together; with others, says no. */
const isProduct64 = (_f: Func, x: Expr, y: Expr, product: Expr): Expr =>
  i32.and(f64.eq(f64.mul(x, y), product), i64.ge_u(i64.add(spareBits(x), spareBits(y)), c64(53)));

const upperHalf = (v: Expr): Expr =>
  v128.shuffle(v, v, [8, 9, 10, 11, 12, 13, 14, 15, 0, 0, 0, 0, 0, 0, 0, 0]);

const isProduct32x4 = (_f: Func, x: Expr, y: Expr, product: Expr): Expr => {
  const half = (part: Unary) =>
    f64x2.eq(
      f64x2.mul(f64x2.promote_low_f32x4(part(x)), f64x2.promote_low_f32x4(part(y))),
      f64x2.promote_low_f32x4(part(product)),
    );
  return i64x2.all_true(
    v128.and(
      half((v) => v),
      half(upperHalf),
    ),
  );
};

const isProduct64x2 = (f: Func, x: Expr, y: Expr, product: Expr): Expr => {
  const lane = (n: number) => {
    const of = (v: Expr) => f.let(f64x2.extract_lane(v, n));
    return isProduct64(f, of(x), of(y), of(product));
  };
  return f.let(i32.and(lane(0), lane(1)));
};

const same: Unary = (a) => a;

export const SS: Shape = {
  suffix: "ss",
  prefix: "f3",
  width: 32,
  lanes: 1,
  ops: f32,
  least: cf32(LEAST32),
  most: cf32(MOST32),
  zero: cf32(0),
  and: i32.and,
  or: i32.or,
  all: same,
  isProduct: isProduct32,
};

export const SD: Shape = {
  suffix: "sd",
  prefix: "f2",
  width: 64,
  lanes: 1,
  ops: f64,
  least: cf64(LEAST64),
  most: cf64(MOST64),
  zero: cf64(0),
  and: i32.and,
  or: i32.or,
  all: same,
  isProduct: isProduct64,
};

export const PS: Shape = {
  suffix: "ps",
  prefix: "np",
  width: 32,
  lanes: 4,
  ops: f32x4,
  least: splat32(LEAST32),
  most: splat32(MOST32),
  zero: splat32(0),
  and: v128.and,
  or: v128.or,
  all: i32x4.all_true,
  isProduct: isProduct32x4,
};

export const PD: Shape = {
  suffix: "pd",
  prefix: "66",
  width: 64,
  lanes: 2,
  ops: f64x2,
  least: splat64(LEAST64),
  most: splat64(MOST64),
  zero: splat64(0),
  and: v128.and,
  or: v128.or,
  all: i64x2.all_true,
  isProduct: isProduct64x2,
};

export const SHAPES: readonly Shape[] = [SS, SD, PS, PD];

export const elementBytes = (s: Shape): 4 | 8 => (s.width === 64 ? 8 : 4);

/** Mask: neither a NaN nor a denormal. Infinity and 0 are. */
export const ordinary = (s: Shape, x: Expr): Expr =>
  s.or(s.ops.ge(s.ops.abs(x), s.least), s.ops.eq(x, s.zero));

/**
 * Mask: a result that neither overflowed nor can have underflowed. The smallest normal number itself may
 * have been rounded up to from a tiny value.
 */
export const normalResult = (s: Shape, r: Expr): Expr => {
  const magnitude = s.ops.abs(r);
  return s.and(s.ops.gt(magnitude, s.least), s.ops.le(magnitude, s.most));
};

/** Twice the representation of the smallest normal number, which takes the sign away, and the largest exponent. */
const NORMAL = { 32: 2n ** 24n, 64: 2n ** 53n } as const;
const MAX_EXPONENT = { 32: 0xffn, 64: 0x7ffn } as const;

/**
 * Goes to `unsure` unless the operands of a scalar sum, product or quotient are not denormal and its result is a
 * normal number, and not the smallest: then PE is the only exception there can be. A few integer operations, where
 * {@link ordinary} and {@link normalResult} take dozens.
 */
export function checkScalars(
  f: Func,
  unsure: Label,
  s: Shape,
  operands: readonly Expr[],
  result: Expr,
): void {
  const o = s.width === 64 ? i64 : i32;
  const value = (v: bigint): Expr => (s.width === 64 ? c64(v) : c32(Number(v)));
  const doubled = (x: Expr): Expr =>
    o.shl(s.width === 64 ? i64.reinterpret_f64(x) : i32.reinterpret_f32(x), value(1n));
  const least = NORMAL[s.width];
  for (const x of operands) f.brIf(unsure, o.lt_u(o.sub(doubled(x), value(1n)), value(least - 1n)));
  const top = (MAX_EXPONENT[s.width] - 2n) * least;
  f.brIf(unsure, o.ge_u(o.sub(doubled(result), value(2n * least)), value(top)));
}

/** `a + b` came out as exactly `sum`: the rounding error of the sum (Knuth's TwoSum) is 0. */
export function isSum(s: Shape, f: Func, a: Expr, b: Expr, sum: Expr): Expr {
  const { add, sub, eq } = s.ops;
  const virtual = f.let(sub(sum, a));
  return s.all(eq(add(sub(a, sub(sum, virtual)), sub(b, virtual)), s.zero));
}

/** The source operand; a whole vector in memory must be aligned. */
export function readSource(c: Context, s: Shape): Expr {
  if (s.lanes !== 1) return c.f.let(c.xmmRm());
  const address = lowAddress(c, elementBytes(s));
  return c.f.let((s.width === 64 ? f64 : f32).load(address));
}

export const readDestination = (c: Context, s: Shape): Expr =>
  c.f.let(s.lanes !== 1 ? c.xmmReg() : (s.width === 64 ? f64 : f32).load(c.regAddress()));

/** Writes the lanes of the shape, leaving the rest of the register. */
export function writeDestination(c: Context, s: Shape, value: Expr): void {
  c.f.store(s.lanes === 1 ? elementBytes(s) : 16, c.regAddress(), 0, value);
}

/** Runs `fast`, which leaves through the label it gets for what it cannot do, and then `slowPath`. */
export function fastOrSlow(f: Func, fast: (slow: Label) => void, slowPath: () => void): void {
  f.block((done) => {
    f.block((slow) => {
      fast(slow);
      f.br(done);
    });
    slowPath();
  });
}

/**
 * Goes to `slow` unless rounding is to nearest (or `truncates`, and does not matter) and PE changes nothing
 * or does not arise, which `exact` shows.
 */
export function checkInexact(f: Func, slow: Label, exact: () => Expr, truncates = false): void {
  const mxcsr = f.let(i32.load(zeroAddress, MXCSR));
  const wanted = MXCSR_PM | MXCSR_PE;
  f.if(i32.ne(i32.and(mxcsr, c32(truncates ? wanted : wanted | MXCSR_RC)), c32(wanted)), () => {
    if (!truncates) f.brIf(slow, i32.and(mxcsr, c32(MXCSR_RC)));
    f.brIf(slow, i32.eqz(exact()));
  });
}

/**
 * Has the helper compute the result slot. An unmasked exception ends the instruction. `a` is the destination
 * operand if it takes part; `modifier` is ORed into the operation word.
 */
export function slow(
  c: Context,
  operation: number,
  s: { readonly width: 32 | 64; readonly lanes: number },
  a: Expr | undefined,
  b: Expr,
  modifier: Expr = c32(0),
): void {
  const { f } = c;
  const bytes = (v: Expr) => (v.type === V128 ? 16 : v.type === I64 || v.type === F64 ? 8 : 4);
  if (a) f.store(bytes(a), zeroAddress, SLOW_DESTINATION, a);
  f.store(bytes(b), zeroAddress, SLOW_SOURCE, b);
  const word = c32(slowOperation(operation, s.width, s.lanes));
  f.store(4, zeroAddress, SLOW_OPERATION, i32.or(modifier, word));
  c.helper(HELPER.sseScalar);
}

/** The result slot of {@link slow}, as an integer or as 128 bits. */
export const slowResult = (size: Size): Expr =>
  size === 8 ? i64.load(zeroAddress, SLOW_RESULT) : i32.load(zeroAddress, SLOW_RESULT);
export const slowVector = (): Expr => v128.load(zeroAddress, SLOW_RESULT);

/** Has the helper compute the destination. */
export function slowToDestination(
  c: Context,
  operation: number,
  s: Shape,
  a: Expr | undefined,
  b: Expr,
  modifier?: Expr,
): void {
  slow(c, operation, s, a, b, modifier);
  writeDestination(c, s, s.lanes === 1 ? slowResult(elementBytes(s)) : slowVector());
}
