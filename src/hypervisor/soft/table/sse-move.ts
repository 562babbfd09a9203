/** Moves between XMM registers, memory and general registers (SDM vol. 2; vol. 1, 10.4.1 and 11.4.1). */
import { type Context, READ_WRITE } from "../context.ts";
import { MXCSR, RDI } from "../layout.ts";
import { type Size, zeroAddress, zext64 } from "../values.ts";
import { c32, c64, type Expr, i8x16, i32, i32x4, i64, i64x2, v128 } from "../wasm/expr.ts";
import { type Insn, insn, type Semantics } from "./insn.ts";
import { copy, imm8, lowAddress, SSE, zero128 } from "./sse-operands.ts";

/** Bits of MXCSR that exist (MXCSR_MASK); setting another is #GP (SDM vol. 1, 10.2.3). */
const MXCSR_BITS = 0xffff;
const GENERAL_PROTECTION = 13;

const load =
  (aligned: boolean): Semantics =>
  (c) =>
    c.writeXmmReg(c.xmmRm(aligned));

const store =
  (aligned: boolean): Semantics =>
  (c) => {
    if (c.mem) c.store128(c.linearAddress(), c.xmmReg(), aligned);
    else c.f.store(16, c.rmAddress(), 0, c.xmmReg());
  };

/** MOVSS and MOVSD load: from memory the rest of the register becomes 0, from a register it stays. */
const loadScalar =
  (size: 4 | 8): Semantics =>
  (c) => {
    const from = lowAddress(c, size);
    if (c.mem) c.writeXmmReg(size === 4 ? v128.load32_zero(from) : v128.load64_zero(from));
    else copy(c, size, c.regAddress(), from);
  };

const storeScalar =
  (size: 4 | 8): Semantics =>
  (c) => {
    if (c.mem) c.store(c.linearAddress(), size, c.readAt(c.regAddress(), size));
    else copy(c, size, c.rmAddress(), c.regAddress());
  };

/** Moves 8 bytes into one half of the register, from `fromOffset` of a register or from memory. */
const loadHalf =
  (toOffset: 0 | 8, fromOffset: 0 | 8): Semantics =>
  (c) =>
    copy(c, 8, c.regAddress(), lowAddress(c, 8), toOffset, c.mem ? 0 : fromOffset);

const storeHalf =
  (fromOffset: 0 | 8): Semantics =>
  (c) =>
    c.store(c.linearAddress(), 8, i64.load(c.regAddress(), fromOffset));

const loadQuad: Semantics = (c) => c.writeXmmReg(v128.load64_zero(lowAddress(c, 8)));
const storeQuad: Semantics = (c) => {
  if (c.mem) c.store(c.linearAddress(), 8, i64.load(c.regAddress()));
  else c.f.store(16, c.rmAddress(), 0, v128.load64_zero(c.regAddress()));
};

/** MOVD and MOVQ from and to a general register or memory. */
const fromGeneral: Semantics = (c) =>
  c.writeXmmReg(i64x2.replace_lane(zero128, 0, zext64(c.operand(1).read(), c.size)));
const toGeneral: Semantics = (c) => c.operand(0).write(c.readAt(c.regAddress(), c.size));

const mask =
  (bits: (v: Expr) => Expr): Semantics =>
  (c) =>
    c.operand(0).write(bits(v128.load(c.rmAddress())));

/** Address and offset of the word of a register that the immediate names; `words` in the register. */
function word(c: Context, register: Expr, words: 4 | 8): [Expr, number] {
  const index = i32.and(imm8(c), c32(words - 1));
  if (index.const32 !== undefined) return [register, 2 * index.const32];
  return [i32.add(register, i32.shl(index, c32(1))), 0];
}

/** PINSRW. */
export const insertWord =
  (words: 4 | 8): Semantics =>
  (c) => {
    const value = c.f.let(c.operand(1).read());
    c.f.store(2, ...word(c, c.regAddress(), words), value);
  };
export const extractWord =
  (words: 4 | 8): Semantics =>
  (c) =>
    c.operand(0).write(i32.load16_u(...word(c, c.rmAddress(), words)));

/**
 * MASKMOVDQU and MASKMOVQ: writes the bytes of `value` whose mask byte has its top bit set to DS:rDI. Pages
 * are checked as for a write of all `size` bytes, whatever the mask.
 */
export function maskedStore(c: Context, size: 8 | 16, value: Expr, maskBytes: Expr): void {
  const { f } = c;
  const pointer = c.pointer(RDI);
  const sum = i64.add(pointer, c.segmentBase());
  const lin = f.let(c.variant.mode64 ? sum : i64.and(sum, c64(0xffff_ffffn)));
  const address = c.translate(READ_WRITE, lin, size);
  const old = size === 16 ? v128.load(address) : v128.load64_zero(address);
  const merged = v128.bitselect(value, old, i8x16.gt_s(zero128, maskBytes));
  f.store(size, address, 0, size === 16 ? merged : i64x2.extract_lane(merged, 0));
  c.commit(address, lin, size);
}

const maskMove: Semantics = (c) => maskedStore(c, 16, c.f.let(c.xmmReg()), c.f.let(v128.load(c.rmAddress())));

const ldmxcsr: Semantics = (c) => {
  const value = c.load(c.linearAddress(), 4);
  c.f.if(i32.and(value, c32(~MXCSR_BITS)), () => c.raise(GENERAL_PROTECTION, 0));
  c.f.store(4, zeroAddress, MXCSR, value);
};
const stmxcsr: Semantics = (c) => c.store(c.linearAddress(), 4, i32.load(zeroAddress, MXCSR));

const signBit = (size: Size) => (v: Expr) => (size === 4 ? i32x4.bitmask(v) : i64x2.bitmask(v));

export const sseMoves = (): Insn[] => [
  ...insn("movups", "np 0f 10 /r", "Vx,Wx", load(false), SSE),
  ...insn("movupd", "66 0f 10 /r", "Vx,Wx", load(false), SSE),
  ...insn("movss", "f3 0f 10 /r", "Vx,Wx", loadScalar(4), SSE),
  ...insn("movsd", "f2 0f 10 /r", "Vx,Wx", loadScalar(8), SSE),
  ...insn("movups", "np 0f 11 /r", "Wx,Vx", store(false), SSE),
  ...insn("movupd", "66 0f 11 /r", "Wx,Vx", store(false), SSE),
  ...insn("movss", "f3 0f 11 /r", "Wx,Vx", storeScalar(4), SSE),
  ...insn("movsd", "f2 0f 11 /r", "Wx,Vx", storeScalar(8), SSE),
  ...insn("movhlps", "np 0f 12 /r", "Vx,Ux", loadHalf(0, 8), SSE),
  ...insn("movlps", "np 0f 12 /r", "Vx,Mx", loadHalf(0, 0), SSE),
  ...insn("movlpd", "66 0f 12 /r", "Vx,Mx", loadHalf(0, 0), SSE),
  ...insn("movlps", "np 0f 13 /r", "Mx,Vx", storeHalf(0), SSE),
  ...insn("movlpd", "66 0f 13 /r", "Mx,Vx", storeHalf(0), SSE),
  ...insn("movlhps", "np 0f 16 /r", "Vx,Ux", loadHalf(8, 0), SSE),
  ...insn("movhps", "np 0f 16 /r", "Vx,Mx", loadHalf(8, 0), SSE),
  ...insn("movhpd", "66 0f 16 /r", "Vx,Mx", loadHalf(8, 0), SSE),
  ...insn("movhps", "np 0f 17 /r", "Mx,Vx", storeHalf(8), SSE),
  ...insn("movhpd", "66 0f 17 /r", "Mx,Vx", storeHalf(8), SSE),
  ...insn("movaps", "np 0f 28 /r", "Vx,Wx", load(true), SSE),
  ...insn("movapd", "66 0f 28 /r", "Vx,Wx", load(true), SSE),
  ...insn("movaps", "np 0f 29 /r", "Wx,Vx", store(true), SSE),
  ...insn("movapd", "66 0f 29 /r", "Wx,Vx", store(true), SSE),
  ...insn("movntps", "np 0f 2b /r", "Mx,Vx", store(true), SSE),
  ...insn("movntpd", "66 0f 2b /r", "Mx,Vx", store(true), SSE),
  ...insn("movmskps", "np 0f 50 /r", "Gd,Ux", mask(signBit(4)), SSE),
  ...insn("movmskpd", "66 0f 50 /r", "Gd,Ux", mask(signBit(8)), SSE),
  ...insn("movd", "66 0f 6e /r", "Vx,Ey", fromGeneral, SSE),
  ...insn("movd", "66 0f 7e /r", "Ey,Vx", toGeneral, SSE),
  ...insn("movq", "f3 0f 7e /r", "Vx,Wx", loadQuad, SSE),
  ...insn("movq", "66 0f d6 /r", "Wx,Vx", storeQuad, SSE),
  ...insn("movdqa", "66 0f 6f /r", "Vx,Wx", load(true), SSE),
  ...insn("movdqu", "f3 0f 6f /r", "Vx,Wx", load(false), SSE),
  ...insn("movdqa", "66 0f 7f /r", "Wx,Vx", store(true), SSE),
  ...insn("movdqu", "f3 0f 7f /r", "Wx,Vx", store(false), SSE),
  ...insn("movntdq", "66 0f e7 /r", "Mx,Vx", store(true), SSE),
  ...insn("pmovmskb", "66 0f d7 /r", "Gd,Ux", mask(i8x16.bitmask), SSE),
  ...insn("pinsrw", "66 0f c4 /r", "Vx,Ew,Ib", insertWord(8), SSE),
  ...insn("pextrw", "66 0f c5 /r", "Gd,Ux,Ib", extractWord(8), SSE),
  ...insn("maskmovdqu", "66 0f f7 /r", "Vx,Ux", maskMove, SSE),
  ...insn("ldmxcsr", "np 0f ae /2", "Md", ldmxcsr, SSE),
  ...insn("stmxcsr", "np 0f ae /3", "Md", stmxcsr, SSE),
];
