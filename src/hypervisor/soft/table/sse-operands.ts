/** What the SSE and MMX rows share: reading and writing their operands. */
import { type Context, READ } from "../context.ts";
import { X87 } from "../layout.ts";
import { type Size, zeroAddress } from "../values.ts";
import { c32, c64, cv128, type Expr, i32, i64 } from "../wasm/expr.ts";
import type { Func } from "../wasm/func.ts";
import type { Options, Semantics } from "./insn.ts";

/** Emits a value computed from two operands, which are locals and may be used more than once. */
export type Binary = (f: Func, a: Expr, b: Expr) => Expr;

export const SSE: Options = { fpu: "sse" };
export const MMX: Options = { fpu: "mmx" };

/** Vector #MF. */
const MATH_FAULT = 16;

/** x87 status word and abridged tag word (see float/x87-state.ts). */
const FSW = X87 + 2;
const FTW = X87 + 4;
const FSW_ES = 1 << 7;
const FSW_TOP = 7 << 11;
const ALL_VALID = 0xff;
/** Offset from an MMX register to the sign and exponent of the x87 register it lies in. */
const EXPONENT = 8;

export const bytes16 = (byte: (i: number) => number): Expr =>
  cv128(Uint8Array.from({ length: 16 }, (_, i) => byte(i)));

export const zero128 = bytes16(() => 0);

/** The immediate byte, 0 to 255. */
export const imm8 = (c: Context): Expr => c.f.let(i32.and(c.immediate(4).read(), c32(0xff)));

/** Address of the low `size` bytes of the r/m operand, which needs no alignment. */
export const lowAddress = (c: Context, size: number): Expr =>
  c.f.let(c.mem ? c.translate(READ, c.linearAddress(), size) : c.rmAddress());

/** Copies `size` bytes at `from` to `to`. */
export function copy(c: Context, size: Size, to: Expr, from: Expr, toOffset = 0, fromOffset = 0): void {
  c.f.store(size, to, toOffset, c.readAt(from, size, fromOffset));
}

/** dst = op(dst, src), 128 bits; a memory source must be aligned. */
export const packed =
  (op: Binary): Semantics =>
  (c) => {
    const b = c.f.let(c.xmmRm());
    const a = c.f.let(c.xmmReg());
    c.writeXmmReg(op(c.f, a, b));
  };

/**
 * Starts every MMX instruction: a pending unmasked x87 exception is raised first. CR0.NE is taken as set,
 * as every 64-bit kernel has it.
 */
export function checkPending(c: Context): void {
  c.f.if(i32.and(i32.load16_u(zeroAddress, FSW), c32(FSW_ES)), () => c.raise(MATH_FAULT));
}

/**
 * What MMX instructions do to the x87 state: TOP = 0, and all tags valid, or empty for EMMS (SDM vol. 1,
 * 9.5.1). Comes after every memory access that can fault; an #XM of a conversion finds it done.
 */
export function enterMmx(c: Context, tags = ALL_VALID): void {
  c.f.store(2, zeroAddress, FSW, i32.and(i32.load16_u(zeroAddress, FSW), c32(~FSW_TOP)));
  c.f.store(1, zeroAddress, FTW, c32(tags));
}

/** Writes an MMX register: sign and exponent of the x87 register become ones. */
export function writeMmx(c: Context, address: Expr, value: Expr): void {
  const at = c.f.let(address);
  c.f.store(8, at, 0, value);
  c.f.store(2, at, EXPONENT, c32(0xffff));
}

/** A count in an XMM, MMX or memory operand as an i32: everything above 255 becomes 255. */
export function shiftCount(f: Func, count: Expr): Expr {
  const n = f.let(count);
  const limit = f.let(i64.gt_u(n, c64(255)));
  return f.let(i32.and(i32.or(i32.wrap(n), i32.sub(c32(0), limit)), c32(255)));
}
