/** Values of instruction operands: 1, 2 and 4 bytes are i32, 8 bytes i64. */
import { I32, I64, type ValType } from "./wasm/encoding.ts";
import { c32, c64, type Expr, i32, i64 } from "./wasm/expr.ts";

/** Operand size in bytes. */
export type Size = 1 | 2 | 4 | 8;

/** Address operand of a load or store at a constant offset. */
export const zeroAddress = c32(0);

/** Value type of an operand of `size` bytes. */
export const wide = (size: Size): ValType => (size === 8 ? I64 : I32);
/** Integer operators for values of `size` bytes. */
export const ops = (size: Size): typeof i32 | typeof i64 => (size === 8 ? i64 : i32);
/** Constant of the operand's type. */
export const konst = (size: Size, value: number | bigint): Expr =>
  size === 8 ? c64(value) : c32(Number(value));

/** Clears the bits above `size` bytes. */
export function zext(value: Expr, size: Size): Expr {
  if (value.width <= 8 * size) return value;
  return size === 1 ? i32.and(value, c32(0xff)) : size === 2 ? i32.and(value, c32(0xffff)) : value;
}

/** Sign-extends the low `size` bytes within the operand's own value type. */
export function sext(value: Expr, size: Size): Expr {
  return size === 1 ? i32.extend8_s(value) : size === 2 ? i32.extend16_s(value) : value;
}

/** Sign-extends the low `size` bytes to i64. */
export function sext64(value: Expr, size: Size): Expr {
  return size === 8 ? value : i64.extend_s(sext(value, size));
}

/** Zero-extends the low `size` bytes to i64. */
export function zext64(value: Expr, size: Size): Expr {
  return size === 8 ? value : i64.extend_u(zext(value, size));
}
