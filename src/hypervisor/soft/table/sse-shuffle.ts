/** Shuffles by an immediate, whose value is only known when the instruction runs. */
import type { Context } from "../context.ts";
import { c32, type Expr, i8x16, i32, i32x4, i64x2, select, v128 } from "../wasm/expr.ts";
import { type Insn, insn, type Semantics } from "./insn.ts";
import { bytes16, imm8, SSE } from "./sse-operands.ts";

/**
 * Swizzle indices that pick, for element i (0 to 3) of `size` bytes, element `(imm >> 2i) & 3`. Elements of
 * 2 bytes fill 8 bytes; the pattern then repeats.
 */
export function elementIndices(c: Context, size: 2 | 4): Expr {
  // The four 2-bit fields, one in each byte of an i32.
  const imm = imm8(c);
  const nibbles = c.f.let(i32.and(i32.or(imm, i32.shl(imm, c32(12))), c32(0x000f_000f)));
  const fields = i32.and(i32.or(nibbles, i32.shl(nibbles, c32(6))), c32(0x0303_0303));
  const spread = v128.swizzle(
    i32x4.splat(fields),
    bytes16((i) => Math.floor(i / size) & 3),
  );
  return i8x16.add(
    i8x16.shl(spread, c32(Math.log2(size))),
    bytes16((i) => i % size),
  );
}

const pshufd: Semantics = (c) => {
  const source = c.f.let(c.xmmRm());
  c.writeXmmReg(v128.swizzle(source, elementIndices(c, 4)));
};

const LOW_HALF = [0, 1, 2, 3, 4, 5, 6, 7];
const HIGH_HALF = [24, 25, 26, 27, 28, 29, 30, 31];

const pshuflw: Semantics = (c) => {
  const source = c.f.let(c.xmmRm());
  const low = v128.swizzle(source, elementIndices(c, 2));
  c.writeXmmReg(v128.shuffle(low, source, [...LOW_HALF, ...HIGH_HALF]));
};
const pshufhw: Semantics = (c) => {
  const source = c.f.let(c.xmmRm());
  const high = v128.swizzle(
    source,
    i8x16.add(
      elementIndices(c, 2),
      bytes16(() => 8),
    ),
  );
  c.writeXmmReg(v128.shuffle(source, high, [...LOW_HALF, ...HIGH_HALF]));
};

const shufps: Semantics = (c) => {
  const source = c.f.let(c.xmmRm());
  const indices = c.f.let(elementIndices(c, 4));
  const low = v128.swizzle(c.xmmReg(), indices);
  c.writeXmmReg(v128.shuffle(low, v128.swizzle(source, indices), [...LOW_HALF, ...HIGH_HALF]));
};

const shufpd: Semantics = (c) => {
  const source = c.f.let(c.xmmRm());
  const target = c.f.let(c.xmmReg());
  const imm = imm8(c);
  const pick = (v: Expr, bit: number) =>
    select(i32.and(imm, c32(bit)), i64x2.extract_lane(v, 1), i64x2.extract_lane(v, 0));
  c.writeXmmReg(i64x2.replace_lane(i64x2.splat(pick(target, 1)), 1, pick(source, 2)));
};

export const sseShuffles = (): Insn[] => [
  ...insn("pshufd", "66 0f 70 /r", "Vx,Wx,Ib", pshufd, SSE),
  ...insn("pshuflw", "f2 0f 70 /r", "Vx,Wx,Ib", pshuflw, SSE),
  ...insn("pshufhw", "f3 0f 70 /r", "Vx,Wx,Ib", pshufhw, SSE),
  ...insn("shufps", "np 0f c6 /r", "Vx,Wx,Ib", shufps, SSE),
  ...insn("shufpd", "66 0f c6 /r", "Vx,Wx,Ib", shufpd, SSE),
];
