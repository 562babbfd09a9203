/** What the rows of several files use. */
import type { Context } from "../context.ts";
import type { Size } from "../values.ts";
import { c32, c64, type Expr, i32, i64 } from "../wasm/expr.ts";
import type { Semantics } from "./insn.ts";

/** Size of an operand by its table letter. */
export function sizeOf(c: Context, n: number): Size {
  const letter = c.operands[n]?.[1];
  if (c.operands[n]?.[0] === "I") return c.size;
  return letter === "b" ? 1 : letter === "w" ? 2 : letter === "d" ? 4 : letter === "q" ? 8 : c.size;
}

/** The immediate byte as an unsigned i32. */
export const immediateCount = (c: Context) => i32.and(c.immediate(1).read(), c32(0xff));

/** A 64-bit value at the type of an operand of `size` bytes. */
export const narrow = (value: Expr, size: Size): Expr => (size === 8 ? value : i32.wrap(value));
/** Bit `n` of an i64, as an i32. */
export const bit = (value: Expr, n: Expr | number): Expr =>
  i32.and(i32.wrap(i64.shr_u(value, typeof n === "number" ? c64(n) : n)), c32(1));

/** Semantics of an instruction that a TypeScript helper carries out. */
export const viaHelper =
  (id: number): Semantics =>
  (c) =>
    c.helper(id);
/** The same for a helper that always ends the block. */
export const endHelper =
  (id: number): Semantics =>
  (c) =>
    c.endWithHelper(id);
