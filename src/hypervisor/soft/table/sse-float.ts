/** Floating-point arithmetic and comparison (SDM vol. 1, 10.4.1 and 11.4.1). */
import type { Context } from "../context.ts";
import { SLOW, SLOW_PREDICATE_SHIFT } from "../sse-slow.ts";
import { I32 } from "../wasm/encoding.ts";
import { c32, c64, cv128, type Expr, f32x4, i32, i32x4, i64, select, v128 } from "../wasm/expr.ts";
import type { Func } from "../wasm/func.ts";
import { type Insn, insn, type Semantics } from "./insn.ts";
import {
  checkInexact,
  checkScalars,
  fastOrSlow,
  isSum,
  normalResult,
  ordinary,
  PS,
  readDestination,
  readSource,
  SD,
  SHAPES,
  type Shape,
  SS,
  slow,
  slowResult,
  slowToDestination,
  writeDestination,
} from "./sse-lanes.ts";
import { imm8, lowAddress, SSE } from "./sse-operands.ts";

/** An operation that can be inexact. `a` is the destination operand, `b` the source, `r` the result. */
interface Arithmetic {
  readonly operation: number;
  compute(s: Shape, a: Expr, b: Expr): Expr;
  /** Mask: the operands and the result are such that PE is the only exception there can be. */
  fits(s: Shape, a: Expr, b: Expr, r: Expr): Expr;
  exact(s: Shape, f: Func, a: Expr, b: Expr, r: Expr): Expr;
}

const bothOrdinary = (s: Shape, a: Expr, b: Expr): Expr => s.and(ordinary(s, a), ordinary(s, b));
const isZero = (s: Shape, x: Expr): Expr => s.ops.eq(x, s.zero);

/** A sum that comes out as 0 is exact. */
const sumFits = (s: Shape, a: Expr, b: Expr, r: Expr): Expr =>
  s.and(bothOrdinary(s, a, b), s.or(normalResult(s, r), isZero(s, r)));

const ADD: Arithmetic = {
  operation: SLOW.add,
  compute: (s, a, b) => s.ops.add(a, b),
  fits: sumFits,
  exact: (s, f, a, b, r) => isSum(s, f, a, b, r),
};
const SUB: Arithmetic = {
  operation: SLOW.sub,
  compute: (s, a, b) => s.ops.sub(a, b),
  fits: sumFits,
  exact: (s, f, a, b, r) => isSum(s, f, a, f.let(s.ops.neg(b)), r),
};
const MUL: Arithmetic = {
  operation: SLOW.mul,
  compute: (s, a, b) => s.ops.mul(a, b),
  fits: (s, a, b, r) =>
    s.and(
      bothOrdinary(s, a, b),
      s.or(normalResult(s, r), s.and(isZero(s, r), s.or(isZero(s, a), isZero(s, b)))),
    ),
  exact: (s, f, a, b, r) => s.isProduct(f, a, b, r),
};
const DIV: Arithmetic = {
  operation: SLOW.div,
  compute: (s, a, b) => s.ops.div(a, b),
  fits: (s, a, b, r) =>
    s.and(bothOrdinary(s, a, b), s.or(normalResult(s, r), s.and(isZero(s, r), isZero(s, a)))),
  exact: (s, f, a, b, r) => s.isProduct(f, r, b, a),
};
/** The result of an ordinary square root is ordinary too; that of a negative number is a NaN. */
const SQRT: Arithmetic = {
  operation: SLOW.sqrt,
  compute: (s, _a, b) => s.ops.sqrt(b),
  fits: (s, _a, b) => s.or(s.and(s.ops.ge(b, s.least), s.ops.le(b, s.most)), isZero(s, b)),
  exact: (s, f, _a, b, r) => s.isProduct(f, r, r, b),
};

const arithmetic =
  (s: Shape, op: Arithmetic): Semantics =>
  (c) => {
    const { f } = c;
    const b = readSource(c, s);
    const a = op === SQRT ? b : readDestination(c, s);
    fastOrSlow(
      f,
      (leave) => {
        const r = f.let(op.compute(s, a, b));
        const check = () => f.brIf(leave, i32.eqz(s.all(op.fits(s, a, b, r))));
        if (s.lanes !== 1 || op === SQRT) check();
        else {
          f.block((checked) => {
            f.block((unsure) => {
              checkScalars(f, unsure, s, [a, b], r);
              f.br(checked);
            });
            check();
          });
        }
        checkInexact(f, leave, () => op.exact(s, f, a, b, r));
        writeDestination(c, s, r);
      },
      () => slowToDestination(c, op.operation, s, a, b),
    );
  };

/** MIN and MAX give the source operand unless the destination is smaller (larger). */
const minMax =
  (s: Shape, which: "min" | "max"): Semantics =>
  (c) => {
    const { f } = c;
    const b = readSource(c, s);
    const a = readDestination(c, s);
    const better = which === "min" ? s.ops.lt(a, b) : s.ops.gt(a, b);
    fastOrSlow(
      f,
      (leave) => {
        f.brIf(leave, i32.eqz(s.all(bothOrdinary(s, a, b))));
        writeDestination(c, s, s.lanes === 1 ? select(better, a, b) : v128.bitselect(a, b, better));
      },
      () => slowToDestination(c, SLOW[which], s, a, b),
    );
  };

/** CMPxx: predicates 0 to 3 are EQ, LT, LE and UNORD (never, between ordinary values); 4 to 7 their negations. */
const compare =
  (s: Shape): Semantics =>
  (c) => {
    const { f } = c;
    const b = readSource(c, s);
    const a = readDestination(c, s);
    const predicate = f.let(i32.and(imm8(c), c32(7)));
    const flag = (value: Expr): Expr => i32.sub(c32(0), i32.and(value, c32(1)));
    const takesEqual = flag(i32.xor(predicate, c32(1)));
    const takesLess = flag(i32.shr_u(i32.add(i32.and(predicate, c32(3)), c32(1)), c32(1)));
    const negated = flag(i32.shr_u(predicate, c32(2)));
    fastOrSlow(
      f,
      (leave) => {
        f.brIf(leave, i32.eqz(s.all(bothOrdinary(s, a, b))));
        const lanes = s.lanes === 1 ? (x: Expr) => x : i32x4.splat;
        const mask = (x: Expr): Expr => (s.lanes === 1 ? i32.sub(c32(0), x) : x);
        const holds = s.or(
          s.and(mask(s.ops.eq(a, b)), lanes(takesEqual)),
          s.and(mask(s.ops.lt(a, b)), lanes(takesLess)),
        );
        if (s.lanes !== 1) writeDestination(c, s, v128.xor(holds, lanes(negated)));
        else if (s.width === 32) writeDestination(c, s, i32.xor(holds, negated));
        else writeDestination(c, s, i64.extend_s(i32.xor(holds, negated)));
      },
      () => slowToDestination(c, SLOW.cmp, s, a, b, i32.shl(predicate, c32(SLOW_PREDICATE_SHIFT))),
    );
  };

const CF = 0x01;
const PF = 0x04;
const ZF = 0x40;

/** COMISx and UCOMISx. */
const compareFlags =
  (s: Shape, operation: number): Semantics =>
  (c) => {
    const { f } = c;
    const b = readSource(c, s);
    const a = readDestination(c, s);
    const flags = f.local(I32);
    fastOrSlow(
      f,
      (leave) => {
        f.brIf(leave, i32.eqz(bothOrdinary(s, a, b)));
        f.set(flags, i32.or(i32.shl(s.ops.eq(a, b), c32(6)), s.ops.lt(a, b)));
      },
      () => {
        slow(c, operation, s, a, b);
        f.set(flags, slowResult(4));
      },
    );
    writeFlags(c, flags);
  };

/** Sets ZF, PF and CF as in `flags` (RFLAGS positions) and clears OF, SF and AF. */
function writeFlags(c: Context, flags: Expr): void {
  const isClear = (bit: number) => i64.extend_u(i32.eqz(i32.and(flags, c32(bit))));
  c.setFlagZ(isClear(ZF));
  // A byte with one bit has odd parity.
  c.setFlagS(isClear(PF));
  // Bit 63 is CF; bit 62, CF xor OF, is the same.
  const carry = i64.extend_u(i32.sub(c32(0), i32.and(flags, c32(CF))));
  c.setFlagC(i64.shl(carry, c64(62)));
  c.setFlagA(c32(0));
}

const words = (value: number): Expr => cv128(new Uint8Array(new Uint32Array(4).fill(value).buffer));
const SIGN = words(0x8000_0000);
const QUIET = words(0x0040_0000);
const DEFAULT_NAN = words(0xffc0_0000);
const ONE = words(0x3f80_0000);

/**
 * RCPPS and RSQRTPS without their exceptions, of which they have none: denormals count as 0, tiny results
 * become 0. The true value, rounded, is well inside the error they are allowed (1.5 * 2^-12).
 */
function reciprocal(f: Func, source: Expr, root: boolean): Expr {
  const flush = (v: Expr): Expr => v128.bitselect(v, v128.and(v, SIGN), f32x4.ge(f32x4.abs(v), PS.least));
  const x = f.let(flush(source));
  const y = root ? f32x4.sqrt(x) : x;
  const result = f.let(f32x4.div(ONE, y));
  let value = flush(result);
  if (root) value = v128.bitselect(DEFAULT_NAN, value, f32x4.lt(x, PS.zero));
  const isNumber = f32x4.eq(source, source);
  return v128.bitselect(value, v128.or(source, QUIET), isNumber);
}

const reciprocalPacked =
  (root: boolean): Semantics =>
  (c) =>
    c.writeXmmReg(reciprocal(c.f, c.f.let(c.xmmRm()), root));

const reciprocalScalar =
  (root: boolean): Semantics =>
  (c) => {
    const source = c.f.let(v128.load32_zero(lowAddress(c, 4)));
    c.f.store(4, c.regAddress(), 0, i32x4.extract_lane(reciprocal(c.f, source, root), 0));
  };

export const sseFloats = (): Insn[] => [
  ...SHAPES.flatMap((s) => {
    const row = (name: string, opcode: string, semantics: Semantics, operands = "Vx,Wx") =>
      insn(name + s.suffix, `${s.prefix} 0f ${opcode} /r`, operands, semantics, SSE);
    return [
      ...row("sqrt", "51", arithmetic(s, SQRT)),
      ...row("add", "58", arithmetic(s, ADD)),
      ...row("mul", "59", arithmetic(s, MUL)),
      ...row("sub", "5c", arithmetic(s, SUB)),
      ...row("min", "5d", minMax(s, "min")),
      ...row("div", "5e", arithmetic(s, DIV)),
      ...row("max", "5f", minMax(s, "max")),
      ...row("cmp", "c2", compare(s), "Vx,Wx,Ib"),
    ];
  }),
  ...insn("ucomiss", "np 0f 2e /r", "Vx,Wx", compareFlags(SS, SLOW.ucomis), SSE),
  ...insn("ucomisd", "66 0f 2e /r", "Vx,Wx", compareFlags(SD, SLOW.ucomis), SSE),
  ...insn("comiss", "np 0f 2f /r", "Vx,Wx", compareFlags(SS, SLOW.comis), SSE),
  ...insn("comisd", "66 0f 2f /r", "Vx,Wx", compareFlags(SD, SLOW.comis), SSE),
  ...insn("rsqrtps", "np 0f 52 /r", "Vx,Wx", reciprocalPacked(true), SSE),
  ...insn("rsqrtss", "f3 0f 52 /r", "Vx,Wx", reciprocalScalar(true), SSE),
  ...insn("rcpps", "np 0f 53 /r", "Vx,Wx", reciprocalPacked(false), SSE),
  ...insn("rcpss", "f3 0f 53 /r", "Vx,Wx", reciprocalScalar(false), SSE),
];
