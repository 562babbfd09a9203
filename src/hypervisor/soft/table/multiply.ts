/** Multiplication and division. */
import type { Context } from "../context.ts";
import { HELPER } from "../helpers.ts";
import { RAX, RDX, SCRATCH } from "../layout.ts";
import { ops, type Size, sext64, zeroAddress, zext, zext64 } from "../values.ts";
import { c32, c64, type Expr, i32, i64 } from "../wasm/expr.ts";
import { type Insn, insn, type Semantics } from "./insn.ts";

/** High 64 bits of an unsigned 64x64 product, from four 32-bit multiplies. */
function mulHighU(c: Context, a: Expr, b: Expr): Expr {
  const { f } = c;
  const mask = c64(0xffff_ffffn);
  const al = f.let(i64.and(a, mask));
  const ah = f.let(i64.shr_u(a, c64(32)));
  const bl = f.let(i64.and(b, mask));
  const bh = f.let(i64.shr_u(b, c64(32)));
  const mid = f.let(i64.add(i64.mul(ah, bl), i64.shr_u(i64.mul(al, bl), c64(32))));
  const mid2 = f.let(i64.add(i64.mul(al, bh), i64.and(mid, mask)));
  return f.let(i64.add(i64.add(i64.mul(ah, bh), i64.shr_u(mid, c64(32))), i64.shr_u(mid2, c64(32))));
}

/** High 64 bits of a signed 64x64 product. */
function mulHighS(c: Context, a: Expr, b: Expr): Expr {
  const high = mulHighU(c, a, b);
  return c.f.let(
    i64.sub(i64.sub(high, i64.and(i64.shr_s(a, c64(63)), b)), i64.and(i64.shr_s(b, c64(63)), a)),
  );
}

/** SF, ZF, AF and PF are undefined after a multiply; CF = OF = the high half matters. */
function flagsMultiply(c: Context, low: Expr, size: Size, significant: Expr): void {
  c.setResult(low, size);
  const bit = c.f.let(significant);
  c.setCarryOverflow(bit, bit);
  c.setFlagA(c32(0));
}

/** MUL and the one-operand IMUL: rDX:rAX = rAX * r/m. */
const multiply =
  (signed: boolean): Semantics =>
  (c) => {
    const { f, size } = c;
    const b = f.let(c.dst.read());
    const a = f.let(c.fixed(RAX, size).read());
    if (size === 8) {
      const low = f.let(i64.mul(a, b));
      const high = signed ? mulHighS(c, a, b) : mulHighU(c, a, b);
      c.fixed(RAX, 8).write(low);
      c.fixed(RDX, 8).write(high);
      flagsMultiply(c, low, 8, i64.ne(high, signed ? i64.shr_s(low, c64(63)) : c64(0)));
      return;
    }
    const extend = signed ? sext64 : zext64;
    const product = f.let(i64.mul(extend(a, size), extend(b, size)));
    const bits = size * 8;
    const low = f.let(i32.wrap(product));
    if (size === 1) c.fixed(RAX, 2).write(low);
    else {
      c.fixed(RAX, size).write(low);
      c.fixed(RDX, size).write(i32.wrap(i64.shr_u(product, c64(bits))));
    }
    const back = signed ? sext64(low, size) : zext64(low, size);
    flagsMultiply(c, low, size, i64.ne(product, back));
  };

/** IMUL with a truncated destination. */
function imulTruncated(c: Context, a: Expr, b: Expr): void {
  const { size } = c;
  const low = c.f.let(ops(size).mul(a, b));
  c.flagsLater("imul", a, b, low, size, () => imulFlags(c, a, b, size));
  c.dst.write(low);
}

/** Flags of an IMUL of `a` and `b` whose product is cut to their size. */
export function imulFlags(c: Context, a: Expr, b: Expr, size: Size): void {
  const { f } = c;
  if (size === 8) {
    const low = f.let(i64.mul(a, b));
    flagsMultiply(c, low, 8, i64.ne(mulHighS(c, a, b), i64.shr_s(low, c64(63))));
    return;
  }
  const product = f.let(i64.mul(sext64(a, size), sext64(b, size)));
  const low = f.let(i32.wrap(product));
  flagsMultiply(c, low, size, i64.ne(product, sext64(low, size)));
}
const imul2: Semantics = (c) => {
  const b = c.f.let(c.src.read());
  imulTruncated(c, c.f.let(c.dst.read()), b);
};
const imul3: Semantics = (c) => {
  const a = c.f.let(c.src.read());
  imulTruncated(c, a, c.f.let(c.operand(2).read()));
};

/** Flags are undefined after a divide and stay; #DE on zero and on overflow. */
const divide =
  (signed: boolean): Semantics =>
  (c) => {
    const { f, size } = c;
    const divisor = f.let(c.dst.read());
    const o = ops(size);
    f.if(o.eqz(zext(divisor, size)), () => c.raise(0));
    if (size === 8) return divide64(c, divisor, signed);
    const extend = signed ? sext64 : zext64;
    const d = f.let(extend(divisor, size));
    const dividend = f.let(
      size === 1
        ? extend(c.fixed(RAX, 2).read(), 2)
        : size === 2
          ? extend(i32.or(i32.shl(c.fixed(RDX, 2).read(), c32(16)), c.fixed(RAX, 2).read()), 4)
          : i64.or(i64.shl(c.gpr(RDX), c64(32)), i64.extend_u(c.fixed(RAX, 4).read())),
    );
    if (signed) {
      // The one quotient that overflows the wasm operator itself.
      f.if(i32.and(i64.eq(dividend, c64(-(1n << 63n))), i64.eq(d, c64(-1))), () => c.raise(0));
    }
    const q = f.let(signed ? i64.div_s(dividend, d) : i64.div_u(dividend, d));
    f.if(i64.ne(q, extend(i32.wrap(q), size)), () => c.raise(0));
    const r = f.let(i64.sub(dividend, i64.mul(q, d)));
    if (size === 1) {
      c.fixed(RAX, 1).write(i32.wrap(q));
      c.fixed(RAX + 1, 1).write(i32.wrap(r));
    } else {
      c.fixed(RAX, size).write(i32.wrap(q));
      c.fixed(RDX, size).write(i32.wrap(r));
    }
  };

/** 128 by 64 bits: the common case of a sign- or zero-extended dividend in wasm, the rest in a helper. */
function divide64(c: Context, divisor: Expr, signed: boolean): void {
  const { f } = c;
  const low = f.let(c.gpr(RAX));
  const high = f.let(c.gpr(RDX));
  const simple = signed
    ? i32.and(
        i64.eq(high, i64.shr_s(low, c64(63))),
        i32.or(i64.ne(low, c64(-(1n << 63n))), i64.ne(divisor, c64(-1))),
      )
    : i64.eqz(high);
  f.if(
    simple,
    () => {
      const q = f.let(signed ? i64.div_s(low, divisor) : i64.div_u(low, divisor));
      c.setGpr(RAX, q);
      c.setGpr(RDX, i64.sub(low, i64.mul(q, divisor)));
    },
    () => {
      // Where the helper finds its divisor.
      f.store(8, zeroAddress, SCRATCH, divisor);
      c.helper(signed ? HELPER.idiv128 : HELPER.div128);
    },
  );
}

export const multiplyInstructions = (): Insn[] => [
  ...insn("mul", "f6 /4", "Eb", multiply(false)),
  ...insn("mul", "f7 /4", "Ev", multiply(false)),
  ...insn("imul", "f6 /5", "Eb", multiply(true)),
  ...insn("imul", "f7 /5", "Ev", multiply(true)),
  ...insn("imul", "0f af /r", "Gv,Ev", imul2),
  ...insn("imul", "69 /r", "Gv,Ev,Iz", imul3),
  ...insn("imul", "6b /r", "Gv,Ev,Ib", imul3),
  ...insn("div", "f6 /6", "Eb", divide(false)),
  ...insn("div", "f7 /6", "Ev", divide(false)),
  ...insn("idiv", "f6 /7", "Eb", divide(true)),
  ...insn("idiv", "f7 /7", "Ev", divide(true)),
];
