/**
 * Expressions: pure trees of WebAssembly operators, built by plain function calls and written out when a
 * statement of {@link Func} consumes them. Integer operators fold constants and drop neutral operands, so
 * the same semantics give short code when an operand is known (the JIT) and general code when it is not.
 *
 * A tree that is consumed twice is computed twice: give a value a local (`Func.let`) to share it.
 */
import { type ByteWriter, F32, F64, I32, I64, V128, type ValType } from "./encoding.ts";

export abstract class Expr {
  constructor(readonly type: ValType) {}
  abstract emit(w: ByteWriter): void;
  /** The value if it is an i32 constant. */
  get const32(): number | undefined {
    return undefined;
  }
  /** The value if it is an i64 constant. */
  get const64(): bigint | undefined {
    return undefined;
  }
  /** How many low bits of an i32 can be set, as far as that is known. */
  get width(): number {
    return 32;
  }
  /** The vector that loads and stores at this address mean; see {@link VectorAddress}. */
  get vector(): Local | undefined {
    return undefined;
  }
  /** Notes a store at this address. */
  store(): void {}
}

/**
 * Writes `expr`. All of a tree goes through this one call, whose target is then too varied for the engine to inline:
 * called directly, it inlined emit into emit five levels deep, which took its compiler threads 4 s in each run.
 */
export function emit(expr: Expr, w: ByteWriter): void {
  expr.emit(w);
}

const I32_LOAD8_U = 0x2d;
const I32_LOAD16_U = 0x2f;
const I32_AND = 0x71;

class ConstI32 extends Expr {
  constructor(readonly value: number) {
    super(I32);
  }
  override get const32(): number {
    return this.value;
  }
  emit(w: ByteWriter): void {
    w.u8(0x41);
    w.s32(this.value);
  }
}

/** An address in memory whose 16 bytes are kept in a local: loads and stores there become lanes of it. */
export class VectorAddress extends ConstI32 {
  /** Something has been stored there. */
  written = false;

  constructor(
    address: number,
    private readonly local: Local,
  ) {
    super(address);
  }
  override get vector(): Local {
    return this.local;
  }
  override store(): void {
    this.written = true;
  }
}

class ConstI64 extends Expr {
  constructor(readonly value: bigint) {
    super(I64);
  }
  override get const64(): bigint {
    return this.value;
  }
  emit(w: ByteWriter): void {
    w.u8(0x42);
    w.s64(this.value);
  }
}

class ConstF64 extends Expr {
  constructor(readonly value: number) {
    super(F64);
  }
  emit(w: ByteWriter): void {
    const bytes = new Uint8Array(new Float64Array([this.value]).buffer);
    w.u8(0x44);
    w.append(bytes);
  }
}

class ConstF32 extends Expr {
  constructor(readonly value: number) {
    super(F32);
  }
  emit(w: ByteWriter): void {
    w.u8(0x43);
    w.append(new Uint8Array(new Float32Array([this.value]).buffer));
  }
}

class ConstV128 extends Expr {
  constructor(readonly value: Uint8Array) {
    super(V128);
  }
  emit(w: ByteWriter): void {
    w.u8(0xfd);
    w.u32(12);
    w.append(this.value);
  }
}

export class Local extends Expr {
  constructor(
    type: ValType,
    readonly index: number,
    private readonly bits = 32,
  ) {
    super(type);
  }
  override get width(): number {
    return this.bits;
  }
  emit(w: ByteWriter): void {
    w.u8(0x20);
    w.u32(this.index);
  }
}

/** An operator with a one-byte opcode. */
class Op1 extends Expr {
  constructor(
    type: ValType,
    readonly opcode: number,
    readonly a: Expr,
  ) {
    super(type);
  }
  emit(w: ByteWriter): void {
    emit(this.a, w);
    w.u8(this.opcode);
  }
}

class Op2 extends Expr {
  constructor(
    type: ValType,
    readonly opcode: number,
    readonly a: Expr,
    readonly b: Expr,
  ) {
    super(type);
  }
  override get width(): number {
    const mask = this.opcode === I32_AND ? this.b.const32 : undefined;
    return mask === undefined || mask < 0 ? 32 : 32 - Math.clz32(mask);
  }
  emit(w: ByteWriter): void {
    emit(this.a, w);
    emit(this.b, w);
    w.u8(this.opcode);
  }
}

class Select extends Expr {
  constructor(
    readonly yes: Expr,
    readonly no: Expr,
    readonly cond: Expr,
  ) {
    super(yes.type);
  }
  emit(w: ByteWriter): void {
    emit(this.yes, w);
    emit(this.no, w);
    emit(this.cond, w);
    if (this.type === V128) {
      w.u8(0x1c);
      w.u8(1);
      w.u8(V128);
    } else w.u8(0x1b);
  }
}

/** A SIMD operator (prefix 0xfd) with up to three operands and an optional lane. */
class Simd extends Expr {
  constructor(
    type: ValType,
    readonly opcode: number,
    readonly kids: readonly Expr[],
    readonly lane = -1,
  ) {
    super(type);
  }
  emit(w: ByteWriter): void {
    for (const k of this.kids) emit(k, w);
    w.u8(0xfd);
    w.u32(this.opcode);
    if (this.lane >= 0) w.u8(this.lane);
  }
}

class Shuffle extends Expr {
  constructor(
    readonly a: Expr,
    readonly b: Expr,
    readonly lanes: readonly number[],
  ) {
    super(V128);
  }
  emit(w: ByteWriter): void {
    emit(this.a, w);
    emit(this.b, w);
    w.u8(0xfd);
    w.u32(13);
    for (const l of this.lanes) w.u8(l);
  }
}

/** A load: opcode (or 0xfd/0xfe-prefixed opcode), alignment exponent, constant offset. */
class Load extends Expr {
  constructor(
    type: ValType,
    readonly prefix: number,
    readonly opcode: number,
    readonly align: number,
    readonly offset: number,
    readonly address: Expr,
  ) {
    super(type);
  }
  override get width(): number {
    return this.prefix !== 0 ? 32 : this.opcode === I32_LOAD8_U ? 8 : this.opcode === I32_LOAD16_U ? 16 : 32;
  }
  emit(w: ByteWriter): void {
    emit(this.address, w);
    if (this.prefix) {
      w.u8(this.prefix);
      w.u32(this.opcode);
    } else w.u8(this.opcode);
    w.u32(this.align);
    w.u32(this.offset);
  }
}

export const c32 = (value: number): Expr => new ConstI32(value | 0);
export const c64 = (value: bigint | number): Expr => new ConstI64(BigInt.asIntN(64, BigInt(value)));
export const cf32 = (value: number): Expr => new ConstF32(value);
export const cf64 = (value: number): Expr => new ConstF64(value);
export const cv128 = (bytes: Uint8Array): Expr => new ConstV128(bytes);
export const select = (cond: Expr, yes: Expr, no: Expr): Expr => new Select(yes, no, cond);

function bin32(opcode: number, fold: ((a: number, b: number) => number) | undefined, neutral?: number) {
  return (a: Expr, b: Expr): Expr => {
    if (a.vector || b.vector) throw new Error("arithmetic on the address of a vector in a local");
    const y = b.const32;
    if (y !== undefined) {
      const x = a.const32;
      if (x !== undefined && fold) return c32(fold(x, y));
      if (neutral !== undefined && y === neutral) return a;
    }
    return new Op2(I32, opcode, a, b);
  };
}

function bin64(opcode: number, fold: ((a: bigint, b: bigint) => bigint) | undefined, neutral?: bigint) {
  return (a: Expr, b: Expr): Expr => {
    const y = b.const64;
    if (y !== undefined) {
      const x = a.const64;
      if (x !== undefined && fold) return c64(fold(x, y));
      if (neutral !== undefined && y === neutral) return a;
    }
    return new Op2(I64, opcode, a, b);
  };
}

const cmp =
  (opcode: number) =>
  (a: Expr, b: Expr): Expr =>
    new Op2(I32, opcode, a, b);
const un =
  (type: ValType, opcode: number) =>
  (a: Expr): Expr =>
    new Op1(type, opcode, a);
const fbin =
  (type: ValType, opcode: number) =>
  (a: Expr, b: Expr): Expr =>
    new Op2(type, opcode, a, b);
const load =
  (type: ValType, opcode: number, align: number, lane?: (v: Expr, offset: number) => Expr) =>
  (address: Expr, offset = 0): Expr => {
    const { vector } = address;
    if (!vector) return new Load(type, 0, opcode, align, offset, address);
    if (!lane) throw new Error(`no lane for a load with opcode ${opcode}`);
    return lane(vector, offset);
  };
const atomicLoad =
  (type: ValType, opcode: number, align: number) =>
  (address: Expr, offset = 0): Expr =>
    new Load(type, 0xfe, opcode, align, offset, address);

export const i32 = {
  eqz: un(I32, 0x45),
  eq: cmp(0x46),
  ne: cmp(0x47),
  lt_s: cmp(0x48),
  lt_u: cmp(0x49),
  gt_s: cmp(0x4a),
  gt_u: cmp(0x4b),
  le_s: cmp(0x4c),
  le_u: cmp(0x4d),
  ge_s: cmp(0x4e),
  ge_u: cmp(0x4f),
  clz: un(I32, 0x67),
  ctz: un(I32, 0x68),
  popcnt: un(I32, 0x69),
  add: bin32(0x6a, (a, b) => a + b, 0),
  sub: bin32(0x6b, (a, b) => a - b, 0),
  mul: bin32(0x6c, (a, b) => Math.imul(a, b), 1),
  div_s: bin32(0x6d, undefined),
  div_u: bin32(0x6e, undefined),
  rem_s: bin32(0x6f, undefined),
  rem_u: bin32(0x70, undefined),
  and: bin32(0x71, (a, b) => a & b, -1),
  or: bin32(0x72, (a, b) => a | b, 0),
  xor: bin32(0x73, (a, b) => a ^ b, 0),
  shl: bin32(0x74, (a, b) => a << b, 0),
  shr_s: bin32(0x75, (a, b) => a >> b, 0),
  shr_u: bin32(0x76, (a, b) => a >>> b, 0),
  rotl: bin32(0x77, undefined, 0),
  rotr: bin32(0x78, undefined, 0),
  wrap: (a: Expr): Expr =>
    a.const64 !== undefined ? c32(Number(BigInt.asIntN(32, a.const64))) : un(I32, 0xa7)(a),
  extend8_s: un(I32, 0xc0),
  extend16_s: un(I32, 0xc1),
  load: load(I32, 0x28, 2, (v, at) => i32x4.extract_lane(v, at / 4)),
  load8_s: load(I32, 0x2c, 0),
  load8_u: load(I32, 0x2d, 0, (v, at) => i8x16.extract_lane_u(v, at)),
  load16_s: load(I32, 0x2e, 1),
  load16_u: load(I32, 0x2f, 1, (v, at) => i16x8.extract_lane_u(v, at / 2)),
  atomic_load: atomicLoad(I32, 0x10, 2),
  reinterpret_f32: un(I32, 0xbc),
  trunc_f64_s: un(I32, 0xaa),
  trunc_f32_s: un(I32, 0xa8),
  trunc_sat_f64_s: (a: Expr): Expr => new Sat(I32, 2, a),
  trunc_sat_f32_s: (a: Expr): Expr => new Sat(I32, 0, a),
};

/** A saturating truncation (prefix 0xfc). */
class Sat extends Expr {
  constructor(
    type: ValType,
    readonly opcode: number,
    readonly a: Expr,
  ) {
    super(type);
  }
  emit(w: ByteWriter): void {
    emit(this.a, w);
    w.u8(0xfc);
    w.u32(this.opcode);
  }
}

export const i64 = {
  eqz: un(I32, 0x50),
  eq: cmp(0x51),
  ne: cmp(0x52),
  lt_s: cmp(0x53),
  lt_u: cmp(0x54),
  gt_s: cmp(0x55),
  gt_u: cmp(0x56),
  le_s: cmp(0x57),
  le_u: cmp(0x58),
  ge_s: cmp(0x59),
  ge_u: cmp(0x5a),
  clz: un(I64, 0x79),
  ctz: un(I64, 0x7a),
  popcnt: un(I64, 0x7b),
  add: bin64(0x7c, (a, b) => a + b, 0n),
  sub: bin64(0x7d, (a, b) => a - b, 0n),
  mul: bin64(0x7e, (a, b) => a * b, 1n),
  div_s: bin64(0x7f, undefined),
  div_u: bin64(0x80, undefined),
  rem_s: bin64(0x81, undefined),
  rem_u: bin64(0x82, undefined),
  and: bin64(0x83, (a, b) => a & b, -1n),
  or: bin64(0x84, (a, b) => a | b, 0n),
  xor: bin64(0x85, (a, b) => a ^ b, 0n),
  shl: bin64(0x86, (a, b) => a << (b & 63n), 0n),
  shr_s: bin64(0x87, (a, b) => a >> (b & 63n), 0n),
  shr_u: bin64(0x88, (a, b) => BigInt.asUintN(64, a) >> (b & 63n), 0n),
  rotl: bin64(0x89, undefined, 0n),
  rotr: bin64(0x8a, undefined, 0n),
  extend_u: (a: Expr): Expr => (a.const32 !== undefined ? c64(a.const32 >>> 0) : un(I64, 0xad)(a)),
  extend_s: (a: Expr): Expr => (a.const32 !== undefined ? c64(a.const32) : un(I64, 0xac)(a)),
  extend8_s: un(I64, 0xc2),
  extend16_s: un(I64, 0xc3),
  extend32_s: un(I64, 0xc4),
  load: load(I64, 0x29, 3, (v, at) => i64x2.extract_lane(v, at / 8)),
  load8_s: load(I64, 0x30, 0),
  load8_u: load(I64, 0x31, 0),
  load16_s: load(I64, 0x32, 1),
  load16_u: load(I64, 0x33, 1),
  load32_s: load(I64, 0x34, 2),
  load32_u: load(I64, 0x35, 2),
  reinterpret_f64: un(I64, 0xbd),
  trunc_sat_f64_s: (a: Expr): Expr => new Sat(I64, 6, a),
  trunc_sat_f32_s: (a: Expr): Expr => new Sat(I64, 4, a),
};

export const f32 = {
  load: load(F32, 0x2a, 2, (v, at) => f32x4.extract_lane(v, at / 4)),
  reinterpret_i32: un(F32, 0xbe),
  eq: cmp(0x5b),
  ne: cmp(0x5c),
  lt: cmp(0x5d),
  gt: cmp(0x5e),
  le: cmp(0x5f),
  ge: cmp(0x60),
  abs: un(F32, 0x8b),
  neg: un(F32, 0x8c),
  nearest: un(F32, 0x90),
  trunc: un(F32, 0x8f),
  sqrt: un(F32, 0x91),
  add: fbin(F32, 0x92),
  sub: fbin(F32, 0x93),
  mul: fbin(F32, 0x94),
  div: fbin(F32, 0x95),
  demote: un(F32, 0xb6),
  convert_i32_s: un(F32, 0xb2),
  convert_i64_s: un(F32, 0xb4),
};

export const f64 = {
  load: load(F64, 0x2b, 3, (v, at) => f64x2.extract_lane(v, at / 8)),
  reinterpret_i64: un(F64, 0xbf),
  eq: cmp(0x61),
  ne: cmp(0x62),
  lt: cmp(0x63),
  gt: cmp(0x64),
  le: cmp(0x65),
  ge: cmp(0x66),
  abs: un(F64, 0x99),
  neg: un(F64, 0x9a),
  nearest: un(F64, 0x9e),
  trunc: un(F64, 0x9d),
  sqrt: un(F64, 0x9f),
  add: fbin(F64, 0xa0),
  sub: fbin(F64, 0xa1),
  mul: fbin(F64, 0xa2),
  div: fbin(F64, 0xa3),
  promote: un(F64, 0xbb),
  convert_i32_s: un(F64, 0xb7),
  convert_i64_s: un(F64, 0xb9),
};

const simd2 =
  (opcode: number) =>
  (a: Expr, b: Expr): Expr =>
    new Simd(V128, opcode, [a, b]);
const simd1 =
  (opcode: number) =>
  (a: Expr): Expr =>
    new Simd(V128, opcode, [a]);
const simdShift =
  (opcode: number) =>
  (a: Expr, count: Expr): Expr =>
    new Simd(V128, opcode, [a, count]);
const extract =
  (type: ValType, opcode: number) =>
  (a: Expr, lane: number): Expr =>
    new Simd(type, opcode, [a], lane);
const replace =
  (opcode: number) =>
  (a: Expr, lane: number, value: Expr): Expr =>
    new Simd(V128, opcode, [a, value], lane);

const lowBytes = (count: number): Expr =>
  cv128(Uint8Array.from({ length: 16 }, (_, i) => (i < count ? 0xff : 0)));
const LOW_32 = lowBytes(4);
const LOW_64 = lowBytes(8);

/** SIMD operators that SSE2 semantics use (names as in the WebAssembly specification). */
export const v128 = {
  load: (address: Expr, offset = 0): Expr => address.vector ?? new Load(V128, 0xfd, 0, 4, offset, address),
  load32_zero: (address: Expr, offset = 0): Expr =>
    address.vector ? v128.and(address.vector, LOW_32) : new Load(V128, 0xfd, 92, 2, offset, address),
  load64_zero: (address: Expr, offset = 0): Expr =>
    address.vector ? v128.and(address.vector, LOW_64) : new Load(V128, 0xfd, 93, 3, offset, address),
  not: simd1(77),
  and: simd2(78),
  andnot: simd2(79),
  or: simd2(80),
  xor: simd2(81),
  bitselect: (a: Expr, b: Expr, mask: Expr): Expr => new Simd(V128, 82, [a, b, mask]),
  any_true: (a: Expr): Expr => new Simd(I32, 83, [a]),
  shuffle: (a: Expr, b: Expr, lanes: readonly number[]): Expr => new Shuffle(a, b, lanes),
  swizzle: simd2(14),
};

export const i8x16 = {
  splat: simd1(15),
  extract_lane_u: extract(I32, 22),
  replace_lane: replace(23),
  eq: simd2(35),
  gt_s: simd2(39),
  bitmask: (a: Expr): Expr => new Simd(I32, 100, [a]),
  narrow_i16x8_s: simd2(101),
  narrow_i16x8_u: simd2(102),
  shl: simdShift(107),
  shr_u: simdShift(109),
  add: simd2(110),
  add_sat_s: simd2(111),
  add_sat_u: simd2(112),
  sub: simd2(113),
  sub_sat_s: simd2(114),
  sub_sat_u: simd2(115),
  min_u: simd2(119),
  max_u: simd2(121),
  avgr_u: simd2(123),
};

export const i16x8 = {
  splat: simd1(16),
  extract_lane_u: extract(I32, 25),
  replace_lane: replace(26),
  eq: simd2(45),
  gt_s: simd2(49),
  narrow_i32x4_s: simd2(133),
  narrow_i32x4_u: simd2(134),
  shl: simdShift(139),
  shr_s: simdShift(140),
  shr_u: simdShift(141),
  add: simd2(142),
  add_sat_s: simd2(143),
  add_sat_u: simd2(144),
  sub: simd2(145),
  sub_sat_s: simd2(146),
  sub_sat_u: simd2(147),
  mul: simd2(149),
  min_s: simd2(150),
  max_s: simd2(152),
  avgr_u: simd2(155),
  extadd_pairwise_i8x16_u: simd1(125),
  extmul_low_s: simd2(156),
  extmul_high_s: simd2(157),
  extmul_low_u: simd2(158),
  extmul_high_u: simd2(159),
};

export const i32x4 = {
  splat: simd1(17),
  extract_lane: extract(I32, 27),
  replace_lane: replace(28),
  eq: simd2(55),
  gt_s: simd2(59),
  all_true: (a: Expr): Expr => new Simd(I32, 163, [a]),
  bitmask: (a: Expr): Expr => new Simd(I32, 164, [a]),
  extadd_pairwise_i16x8_u: simd1(127),
  shl: simdShift(171),
  shr_s: simdShift(172),
  shr_u: simdShift(173),
  add: simd2(174),
  sub: simd2(177),
  dot_i16x8_s: simd2(186),
  extmul_low_i16x8_s: simd2(188),
  extmul_high_i16x8_s: simd2(189),
  extmul_low_i16x8_u: simd2(190),
  extmul_high_i16x8_u: simd2(191),
  trunc_sat_f32x4_s: simd1(248),
  trunc_sat_f64x2_s_zero: simd1(252),
};

export const i64x2 = {
  splat: simd1(18),
  extract_lane: extract(I64, 29),
  replace_lane: replace(30),
  all_true: (a: Expr): Expr => new Simd(I32, 195, [a]),
  bitmask: (a: Expr): Expr => new Simd(I32, 196, [a]),
  shl: simdShift(203),
  shr_u: simdShift(205),
  add: simd2(206),
  sub: simd2(209),
  mul: simd2(213),
  extmul_low_i32x4_u: simd2(222),
};

export const f32x4 = {
  extract_lane: extract(F32, 31),
  replace_lane: replace(32),
  eq: simd2(65),
  lt: simd2(67),
  gt: simd2(68),
  le: simd2(69),
  ge: simd2(70),
  demote_f64x2_zero: simd1(94),
  trunc: simd1(105),
  nearest: simd1(106),
  abs: simd1(224),
  neg: simd1(225),
  sqrt: simd1(227),
  add: simd2(228),
  sub: simd2(229),
  mul: simd2(230),
  div: simd2(231),
  convert_i32x4_s: simd1(250),
};

export const f64x2 = {
  extract_lane: extract(F64, 33),
  replace_lane: replace(34),
  eq: simd2(71),
  lt: simd2(73),
  gt: simd2(74),
  le: simd2(75),
  ge: simd2(76),
  promote_low_f32x4: simd1(95),
  trunc: simd1(122),
  nearest: simd1(148),
  abs: simd1(236),
  neg: simd1(237),
  sqrt: simd1(239),
  add: simd2(240),
  sub: simd2(241),
  mul: simd2(242),
  div: simd2(243),
  convert_low_i32x4_s: simd1(254),
};
