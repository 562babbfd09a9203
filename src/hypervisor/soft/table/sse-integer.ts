/** Packed integer arithmetic, logic and shifts (SDM vol. 1, 11.4.2). MMX uses the same operators. */
import { c32, type Expr, i8x16, i16x8, i32, i32x4, i64x2, select, v128 } from "../wasm/expr.ts";
import type { Func } from "../wasm/func.ts";
import { type Insn, insn, type Semantics } from "./insn.ts";
import { type Binary, bytes16, imm8, packed, SSE, shiftCount, zero128 } from "./sse-operands.ts";

type Vector = (a: Expr, b: Expr) => Expr;
const plain =
  (op: Vector): Binary =>
  (_f, a, b) =>
    op(a, b);

/** The high halves of eight 16-bit products. */
const multiplyHigh =
  (low: Vector, high: Vector): Binary =>
  (_f, a, b) =>
    v128.shuffle(low(a, b), high(a, b), [2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31]);

const EVEN_DWORDS = [0, 1, 2, 3, 8, 9, 10, 11, 0, 1, 2, 3, 8, 9, 10, 11];
const pmuludq: Binary = (_f, a, b) =>
  i64x2.extmul_low_i32x4_u(v128.shuffle(a, a, EVEN_DWORDS), v128.shuffle(b, b, EVEN_DWORDS));

/** Sums of absolute byte differences, one for each 8 bytes. */
const psadbw: Binary = (f, a, b) => {
  const differences = v128.or(i8x16.sub_sat_u(a, b), i8x16.sub_sat_u(b, a));
  const sums = f.let(i32x4.extadd_pairwise_i16x8_u(i16x8.extadd_pairwise_i8x16_u(differences)));
  const low = bytes16((i) => ((i & 7) < 4 ? 0xff : 0));
  return v128.and(i32x4.add(sums, i64x2.shr_u(sums, c32(32))), low);
};

/** `[mnemonic, opcode, operator]` of operators that work lane by lane, the same on 64 and on 128 bits. */
export const LANE_OPERATIONS: readonly (readonly [string, string, Binary])[] = [
  ["pcmpgtb", "64", plain(i8x16.gt_s)],
  ["pcmpgtw", "65", plain(i16x8.gt_s)],
  ["pcmpgtd", "66", plain(i32x4.gt_s)],
  ["pcmpeqb", "74", plain(i8x16.eq)],
  ["pcmpeqw", "75", plain(i16x8.eq)],
  ["pcmpeqd", "76", plain(i32x4.eq)],
  ["paddq", "d4", plain(i64x2.add)],
  ["pmullw", "d5", plain(i16x8.mul)],
  ["psubusb", "d8", plain(i8x16.sub_sat_u)],
  ["psubusw", "d9", plain(i16x8.sub_sat_u)],
  ["pminub", "da", plain(i8x16.min_u)],
  ["pand", "db", plain(v128.and)],
  ["paddusb", "dc", plain(i8x16.add_sat_u)],
  ["paddusw", "dd", plain(i16x8.add_sat_u)],
  ["pmaxub", "de", plain(i8x16.max_u)],
  ["pandn", "df", (_f, a, b) => v128.andnot(b, a)],
  ["pavgb", "e0", plain(i8x16.avgr_u)],
  ["pavgw", "e3", plain(i16x8.avgr_u)],
  ["pmulhuw", "e4", multiplyHigh(i32x4.extmul_low_i16x8_u, i32x4.extmul_high_i16x8_u)],
  ["pmulhw", "e5", multiplyHigh(i32x4.extmul_low_i16x8_s, i32x4.extmul_high_i16x8_s)],
  ["psubsb", "e8", plain(i8x16.sub_sat_s)],
  ["psubsw", "e9", plain(i16x8.sub_sat_s)],
  ["pminsw", "ea", plain(i16x8.min_s)],
  ["por", "eb", plain(v128.or)],
  ["paddsb", "ec", plain(i8x16.add_sat_s)],
  ["paddsw", "ed", plain(i16x8.add_sat_s)],
  ["pmaxsw", "ee", plain(i16x8.max_s)],
  ["pxor", "ef", plain(v128.xor)],
  ["pmuludq", "f4", pmuludq],
  ["pmaddwd", "f5", plain(i32x4.dot_i16x8_s)],
  ["psadbw", "f6", psadbw],
  ["psubb", "f8", plain(i8x16.sub)],
  ["psubw", "f9", plain(i16x8.sub)],
  ["psubd", "fa", plain(i32x4.sub)],
  ["psubq", "fb", plain(i64x2.sub)],
  ["paddb", "fc", plain(i8x16.add)],
  ["paddw", "fd", plain(i16x8.add)],
  ["paddd", "fe", plain(i32x4.add)],
];

/** `[mnemonic, opcode, operator]`: pack with saturation, `a` into the low half. */
export const PACKS: readonly (readonly [string, string, Vector])[] = [
  ["packsswb", "63", i8x16.narrow_i16x8_s],
  ["packuswb", "67", i8x16.narrow_i16x8_u],
  ["packssdw", "6b", i16x8.narrow_i32x4_s],
];

/** Shuffle lanes that interleave elements of `size` bytes of two vectors, from byte `first` of each. */
export function interleave(size: number, first: number): number[] {
  return Array.from({ length: 16 }, (_, i) => {
    const element = Math.floor(i / (2 * size));
    const source = Math.floor(i / size) % 2 === 0 ? 0 : 16;
    return source + first + element * size + (i % size);
  });
}

const unpack = (size: number, first: number): Semantics =>
  packed((_f, a, b) => v128.shuffle(a, b, interleave(size, first)));

/** Shifts lanes of a vector by an i32 count of 0 to 255. */
export type Shift = (f: Func, a: Expr, count: Expr) => Expr;

/** Counts of the lane's width or more give 0; WebAssembly's counts wrap around. */
const logical =
  (shift: Vector, bits: number): Shift =>
  (_f, a, count) =>
    select(i32.lt_u(count, c32(bits)), shift(a, count), zero128);
/** Counts of the lane's width or more fill it with the sign. */
const arithmetic =
  (shift: Vector, bits: number): Shift =>
  (_f, a, count) =>
    shift(a, select(i32.lt_u(count, c32(bits)), count, c32(bits - 1)));

/** `[mnemonic, opcode with a count operand, opcode and ModRM.reg with an immediate, operator]`. */
export const SHIFTS: readonly (readonly [string, string, string, Shift])[] = [
  ["psrlw", "d1", "71 /2", logical(i16x8.shr_u, 16)],
  ["psrld", "d2", "72 /2", logical(i32x4.shr_u, 32)],
  ["psrlq", "d3", "73 /2", logical(i64x2.shr_u, 64)],
  ["psraw", "e1", "71 /4", arithmetic(i16x8.shr_s, 16)],
  ["psrad", "e2", "72 /4", arithmetic(i32x4.shr_s, 32)],
  ["psllw", "f1", "71 /6", logical(i16x8.shl, 16)],
  ["pslld", "f2", "72 /6", logical(i32x4.shl, 32)],
  ["psllq", "f3", "73 /6", logical(i64x2.shl, 64)],
];

const shiftByOperand =
  (shift: Shift): Semantics =>
  (c) => {
    const count = shiftCount(c.f, i64x2.extract_lane(c.xmmRm(), 0));
    c.writeXmmReg(shift(c.f, c.f.let(c.xmmReg()), count));
  };

const shiftByImmediate =
  (shift: Shift): Semantics =>
  (c) => {
    const register = c.f.let(c.rmAddress());
    c.f.store(16, register, 0, shift(c.f, c.f.let(v128.load(register)), imm8(c)));
  };

/** PSLLDQ (-1) and PSRLDQ (1): a swizzle gives 0 for every index above 15. */
const shiftBytes = (direction: -1 | 1): Semantics =>
  shiftByImmediate((f, a, count) => {
    const n = f.let(i8x16.splat(select(i32.lt_u(count, c32(16)), count, c32(16))));
    const identity = bytes16((i) => i);
    return v128.swizzle(a, direction === 1 ? i8x16.add(identity, n) : i8x16.sub(identity, n));
  });

export const sseIntegers = (): Insn[] => [
  ...LANE_OPERATIONS.flatMap(([name, opcode, op]) =>
    insn(name, `66 0f ${opcode} /r`, "Vx,Wx", packed(op), SSE),
  ),
  ...PACKS.flatMap(([name, opcode, op]) => insn(name, `66 0f ${opcode} /r`, "Vx,Wx", packed(plain(op)), SSE)),
  ...SHIFTS.flatMap(([name, byOperand, byImmediate, shift]) => [
    ...insn(name, `66 0f ${byOperand} /r`, "Vx,Wx", shiftByOperand(shift), SSE),
    ...insn(name, `66 0f ${byImmediate}`, "Ux,Ib", shiftByImmediate(shift), SSE),
  ]),
  ...insn("psrldq", "66 0f 73 /3", "Ux,Ib", shiftBytes(1), SSE),
  ...insn("pslldq", "66 0f 73 /7", "Ux,Ib", shiftBytes(-1), SSE),
  ...insn("punpcklbw", "66 0f 60 /r", "Vx,Wx", unpack(1, 0), SSE),
  ...insn("punpcklwd", "66 0f 61 /r", "Vx,Wx", unpack(2, 0), SSE),
  ...insn("punpckldq", "66 0f 62 /r", "Vx,Wx", unpack(4, 0), SSE),
  ...insn("punpcklqdq", "66 0f 6c /r", "Vx,Wx", unpack(8, 0), SSE),
  ...insn("punpckhbw", "66 0f 68 /r", "Vx,Wx", unpack(1, 8), SSE),
  ...insn("punpckhwd", "66 0f 69 /r", "Vx,Wx", unpack(2, 8), SSE),
  ...insn("punpckhdq", "66 0f 6a /r", "Vx,Wx", unpack(4, 8), SSE),
  ...insn("punpckhqdq", "66 0f 6d /r", "Vx,Wx", unpack(8, 8), SSE),
  ...insn("unpcklps", "np 0f 14 /r", "Vx,Wx", unpack(4, 0), SSE),
  ...insn("unpcklpd", "66 0f 14 /r", "Vx,Wx", unpack(8, 0), SSE),
  ...insn("unpckhps", "np 0f 15 /r", "Vx,Wx", unpack(4, 8), SSE),
  ...insn("unpckhpd", "66 0f 15 /r", "Vx,Wx", unpack(8, 8), SSE),
  ...["np", "66"].flatMap((prefix) => {
    const suffix = prefix === "np" ? "ps" : "pd";
    return [
      ...insn(`and${suffix}`, `${prefix} 0f 54 /r`, "Vx,Wx", packed(plain(v128.and)), SSE),
      ...insn(
        `andn${suffix}`,
        `${prefix} 0f 55 /r`,
        "Vx,Wx",
        packed((_f, a, b) => v128.andnot(b, a)),
        SSE,
      ),
      ...insn(`or${suffix}`, `${prefix} 0f 56 /r`, "Vx,Wx", packed(plain(v128.or)), SSE),
      ...insn(`xor${suffix}`, `${prefix} 0f 57 /r`, "Vx,Wx", packed(plain(v128.xor)), SSE),
    ];
  }),
];
