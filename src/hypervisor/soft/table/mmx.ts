/** MMX instructions, and those of SSE and SSE2 that work on MMX registers (SDM vol. 1, chapter 9). */
import type { Context } from "../context.ts";
import { zext64 } from "../values.ts";
import { type Expr, i8x16, i64, i64x2, v128 } from "../wasm/expr.ts";
import { type Insn, insn, type Semantics } from "./insn.ts";
import { interleave, LANE_OPERATIONS, PACKS, SHIFTS, type Shift } from "./sse-integer.ts";
import { extractWord, insertWord, maskedStore } from "./sse-move.ts";
import {
  type Binary,
  checkPending,
  enterMmx,
  imm8,
  lowAddress,
  MMX,
  SSE,
  shiftCount,
  writeMmx,
  zero128,
} from "./sse-operands.ts";
import { elementIndices } from "./sse-shuffle.ts";

/** Abridged tag word of an empty stack. */
const ALL_EMPTY = 0;

const low64 = (v: Expr): Expr => i64x2.extract_lane(v, 0);
const mmxReg = (c: Context): Expr => v128.load64_zero(c.regAddress());

/** dst = op(dst, src) on the low halves; `read` bytes of a memory source are read. */
const binary =
  (op: Binary, read: 4 | 8 = 8): Semantics =>
  (c) => {
    checkPending(c);
    const address = lowAddress(c, read);
    const b = c.f.let(c.mem && read === 4 ? v128.load32_zero(address) : v128.load64_zero(address));
    const a = c.f.let(mmxReg(c));
    enterMmx(c);
    writeMmx(c, c.regAddress(), low64(op(c.f, a, b)));
  };

/** The two 8-byte operands side by side, so that the 128-bit operator packs both. */
const HALVES = [0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23];
const pack = (op: (a: Expr, b: Expr) => Expr): Semantics =>
  binary((_f, a, b) => op(v128.shuffle(a, b, HALVES), zero128));

const unpackLow = (size: number): Semantics =>
  binary((_f, a, b) => v128.shuffle(a, b, interleave(size, 0)), 4);
const unpackHigh = (size: number): Semantics => binary((_f, a, b) => v128.shuffle(a, b, interleave(size, 4)));

const shiftByOperand = (shift: Shift): Semantics => binary((f, a, b) => shift(f, a, shiftCount(f, low64(b))));

const shiftByImmediate =
  (shift: Shift): Semantics =>
  (c) => {
    checkPending(c);
    const register = c.f.let(c.rmAddress());
    enterMmx(c);
    writeMmx(c, register, low64(shift(c.f, c.f.let(v128.load64_zero(register)), imm8(c))));
  };

const pshufw: Semantics = (c) => {
  checkPending(c);
  const source = c.f.let(v128.load64_zero(lowAddress(c, 8)));
  enterMmx(c);
  writeMmx(c, c.regAddress(), low64(v128.swizzle(source, elementIndices(c, 2))));
};

const load: Semantics = (c) => {
  checkPending(c);
  const value = c.f.let(i64.load(lowAddress(c, 8)));
  enterMmx(c);
  writeMmx(c, c.regAddress(), value);
};
const store: Semantics = (c) => {
  checkPending(c);
  if (c.mem) c.store(c.linearAddress(), 8, i64.load(c.regAddress()));
  enterMmx(c);
  if (!c.mem) writeMmx(c, c.rmAddress(), i64.load(c.regAddress()));
};

const fromGeneral: Semantics = (c) => {
  checkPending(c);
  const value = c.f.let(c.operand(1).read());
  enterMmx(c);
  writeMmx(c, c.regAddress(), zext64(value, c.size));
};
const toGeneral: Semantics = (c) => {
  checkPending(c);
  c.operand(0).write(c.readAt(c.regAddress(), c.size));
  enterMmx(c);
};

/** MOVQ2DQ and MOVDQ2Q. */
const toXmm: Semantics = (c) => {
  checkPending(c);
  enterMmx(c);
  c.writeXmmReg(v128.load64_zero(c.rmAddress()));
};
const fromXmm: Semantics = (c) => {
  checkPending(c);
  enterMmx(c);
  writeMmx(c, c.regAddress(), i64.load(c.rmAddress()));
};

const pmovmskb: Semantics = (c) => {
  checkPending(c);
  enterMmx(c);
  c.operand(0).write(i8x16.bitmask(v128.load64_zero(c.rmAddress())));
};
const pextrw: Semantics = (c) => {
  checkPending(c);
  enterMmx(c);
  extractWord(4)(c);
};
const pinsrw: Semantics = (c) => {
  checkPending(c);
  insertWord(4)(c);
  enterMmx(c);
  writeMmx(c, c.regAddress(), i64.load(c.regAddress()));
};

const maskMove: Semantics = (c) => {
  checkPending(c);
  maskedStore(c, 8, c.f.let(mmxReg(c)), c.f.let(v128.load64_zero(c.rmAddress())));
  enterMmx(c);
};

const emms: Semantics = (c) => {
  checkPending(c);
  enterMmx(c, ALL_EMPTY);
};

export const mmxInstructions = (): Insn[] => [
  ...LANE_OPERATIONS.flatMap(([name, opcode, op]) =>
    insn(name, `np 0f ${opcode} /r`, "Pq,Qq", binary(op), MMX),
  ),
  ...PACKS.flatMap(([name, opcode, op]) => insn(name, `np 0f ${opcode} /r`, "Pq,Qq", pack(op), MMX)),
  ...SHIFTS.flatMap(([name, byOperand, byImmediate, shift]) => [
    ...insn(name, `np 0f ${byOperand} /r`, "Pq,Qq", shiftByOperand(shift), MMX),
    ...insn(name, `np 0f ${byImmediate}`, "Nq,Ib", shiftByImmediate(shift), MMX),
  ]),
  ...insn("punpcklbw", "np 0f 60 /r", "Pq,Qq", unpackLow(1), MMX),
  ...insn("punpcklwd", "np 0f 61 /r", "Pq,Qq", unpackLow(2), MMX),
  ...insn("punpckldq", "np 0f 62 /r", "Pq,Qq", unpackLow(4), MMX),
  ...insn("punpckhbw", "np 0f 68 /r", "Pq,Qq", unpackHigh(1), MMX),
  ...insn("punpckhwd", "np 0f 69 /r", "Pq,Qq", unpackHigh(2), MMX),
  ...insn("punpckhdq", "np 0f 6a /r", "Pq,Qq", unpackHigh(4), MMX),
  ...insn("pshufw", "np 0f 70 /r", "Pq,Qq,Ib", pshufw, MMX),
  ...insn("movd", "np 0f 6e /r", "Px,Ey", fromGeneral, MMX),
  ...insn("movd", "np 0f 7e /r", "Ey,Px", toGeneral, MMX),
  ...insn("movq", "np 0f 6f /r", "Pq,Qq", load, MMX),
  ...insn("movq", "np 0f 7f /r", "Qq,Pq", store, MMX),
  ...insn("movntq", "np 0f e7 /r", "Mq,Pq", store, MMX),
  ...insn("movq2dq", "f3 0f d6 /r", "Vx,Nq", toXmm, SSE),
  ...insn("movdq2q", "f2 0f d6 /r", "Pq,Ux", fromXmm, SSE),
  ...insn("pmovmskb", "np 0f d7 /r", "Gd,Nq", pmovmskb, MMX),
  ...insn("pinsrw", "np 0f c4 /r", "Px,Ew,Ib", pinsrw, MMX),
  ...insn("pextrw", "np 0f c5 /r", "Gd,Nq,Ib", pextrw, MMX),
  ...insn("maskmovq", "np 0f f7 /r", "Pq,Nq", maskMove, MMX),
  ...insn("emms", "np 0f 77", "", emms, MMX),
];
