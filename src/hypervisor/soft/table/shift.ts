/** Shifts and rotates. */
import type { Context } from "../context.ts";
import { RCX } from "../layout.ts";
import { type Size, sext64, wide, zext64 } from "../values.ts";
import { I32, I64 } from "../wasm/encoding.ts";
import { c32, c64, type Expr, i32, i64, type Local } from "../wasm/expr.ts";
import { type Insn, insn, type Semantics } from "./insn.ts";
import { bit, immediateCount, narrow, sizeOf } from "./shared.ts";

type ShiftName = "rol" | "ror" | "rcl" | "rcr" | "shl" | "shr" | "sar";

/**
 * Shift group. The count is masked to 5 or 6 bits; a count of 0 changes no flag and, for a 4-byte register,
 * still clears the upper half. Undefined flags take the values the formulas give.
 */
const shift =
  (name: ShiftName): Semantics =>
  (c) => {
    const { f } = c;
    const size = sizeOf(c, 0);
    const bits = size * 8;
    const count = f.let(i32.and(shiftCount(c), c32(size === 8 ? 63 : 31)));
    c.dst.modify((a) => {
      const r = f.local(wide(size));
      f.set(r, a);
      f.if(count, () => {
        const value = f.let(zext64(a, size));
        if (name === "rcl" || name === "rcr") rotateCarry(c, name, value, count, r, bits);
        else if (name === "rol" || name === "ror") rotate(c, name, value, count, r, size);
        else plainShift(c, name, value, count, r, size);
      });
      return r;
    });
  };

function shiftCount(c: Context): Expr {
  const spec = c.operands[1]!;
  return spec === "cb" ? c.fixed(RCX, 1).read() : spec === "1" ? c32(1) : immediateCount(c);
}
type PlainShift = "shl" | "shr" | "sar";

function plainShift(c: Context, name: PlainShift, value: Expr, count: Expr, out: Local, size: Size): void {
  const n = c.f.let(i64.extend_u(count));
  const result = narrow(shifted(name, value, n, size), size);
  c.f.set(out, result);
  c.flagsLater(name, narrow(value, size), narrow(n, size), out, size, () =>
    shiftFlags(c, name, value, n, size),
  );
}

/** SHL, SHR or SAR of a zero-extended value; bits above the operand mean nothing. */
function shifted(name: PlainShift, value: Expr, n: Expr, size: Size): Expr {
  if (name === "shl") return i64.shl(value, n);
  if (name === "shr") return i64.shr_u(value, n);
  return i64.shr_s(size === 8 ? value : sext64(i32.wrap(value), size), n);
}

/** Flags of a shift of a zero-extended `value` by `n`, 1 or more. */
export function shiftFlags(c: Context, name: PlainShift, value: Expr, n: Expr, size: Size): void {
  const { f } = c;
  const bits = size * 8;
  const nMinus1 = f.let(i64.sub(n, c64(1)));
  const result = f.let(shifted(name, value, n, size));
  let cf: Expr;
  let of: Expr;
  if (name === "shl") {
    // For narrow operands the last bit shifted out lies just above the operand (0 once all are gone).
    cf = f.let(bit(i64.shl(value, nMinus1), bits - 1));
    of = i32.xor(cf, bit(result, bits - 1));
  } else if (name === "shr") {
    cf = f.let(bit(value, nMinus1));
    of = bit(value, bits - 1);
    // Hardware gives OF = MSB of the original only for a count of 1; it is undefined beyond.
  } else {
    cf = f.let(bit(shifted("sar", value, nMinus1, size), 0));
    of = c32(0);
  }
  c.setResult(narrow(result, size), size);
  c.setCarryOverflow(cf, of);
  c.setFlagA(c32(0));
}

function rotate(c: Context, name: "rol" | "ror", value: Expr, count: Expr, out: Local, size: Size): void {
  const { f } = c;
  const bits = size * 8;
  const n = f.let(i64.extend_u(i32.and(count, c32(bits - 1))));
  let result: Expr;
  if (size === 8) result = name === "rol" ? i64.rotl(value, n) : i64.rotr(value, n);
  else if (size === 4) {
    const word = i32.wrap(value);
    result = i64.extend_u(name === "rol" ? i32.rotl(word, count) : i32.rotr(word, count));
  } else {
    const back = i64.and(i64.sub(c64(bits), n), c64(bits - 1));
    result =
      name === "rol"
        ? i64.or(i64.shl(value, n), i64.shr_u(value, back))
        : i64.or(i64.shr_u(value, n), i64.shl(value, back));
  }
  const r = f.let(result);
  f.set(out, narrow(r, size));
  const msb = f.let(bit(r, bits - 1));
  if (name === "rol") {
    const cf = f.let(bit(r, 0));
    c.setCarryOverflow(cf, i32.xor(cf, msb));
  } else c.setCarryOverflow(msb, i32.xor(msb, bit(r, bits - 2)));
}

/** RCL and RCR rotate through CF: bits + 1 positions, the count taken modulo that for 1 and 2 bytes. */
function rotateCarry(
  c: Context,
  name: "rcl" | "rcr",
  value: Expr,
  count: Expr,
  out: Local,
  bits: number,
): void {
  const { f } = c;
  const size = (bits / 8) as Size;
  const n = f.let(i64.extend_u(bits < 32 ? i32.rem_u(count, c32(bits + 1)) : count));
  const cf = f.let(i64.extend_u(c.carry()));
  const r = f.local(I64);
  const cfOut = f.local(I32);
  f.set(r, value);
  f.set(cfOut, i32.wrap(cf));
  f.if(i64.ne(n, c64(0)), () => {
    // A shift by 64 is a shift by 0 in wasm: split the far part into two shifts.
    const far = i64.sub(c64(bits), n);
    if (name === "rcl") {
      f.set(
        r,
        i64.or(
          i64.or(i64.shl(value, n), i64.shl(cf, i64.sub(n, c64(1)))),
          i64.shr_u(i64.shr_u(value, c64(1)), far),
        ),
      );
      f.set(cfOut, bit(i64.shr_u(value, far), 0));
    } else {
      f.set(r, i64.or(i64.or(i64.shr_u(value, n), i64.shl(cf, far)), i64.shl(i64.shl(value, c64(1)), far)));
      f.set(cfOut, bit(i64.shr_u(value, i64.sub(n, c64(1))), 0));
    }
  });
  f.set(out, narrow(r, size));
  const msb = f.let(bit(r, bits - 1));
  c.setCarryOverflow(cfOut, name === "rcl" ? i32.xor(cfOut, msb) : i32.xor(msb, bit(r, bits - 2)));
}

/** SHLD and SHRD: bits come in from a register. */
const doubleShift =
  (left: boolean): Semantics =>
  (c) => {
    const { f, size } = c;
    const bits = size * 8;
    const count = f.let(
      i32.and(c.operands[2] === "cb" ? c.fixed(RCX, 1).read() : immediateCount(c), c32(size === 8 ? 63 : 31)),
    );
    const fill = f.let(zext64(c.src.read(), size));
    c.dst.modify((a) => {
      const out = f.local(wide(size));
      f.set(out, a);
      f.if(count, () => {
        const value = f.let(zext64(a, size));
        const n = f.let(i64.extend_u(count));
        const back = f.let(i64.sub(c64(bits), n));
        let r: Expr;
        let cf: Expr;
        if (size === 2) {
          // Counts above 16 are undefined; AMD's processors go on into a second copy of the source.
          const twice = i64.or(fill, i64.shl(fill, c64(16)));
          const wideValue = f.let(
            left ? i64.or(i64.shl(value, c64(32)), twice) : i64.or(value, i64.shl(twice, c64(16))),
          );
          const shifted = f.let(left ? i64.shr_u(i64.shl(wideValue, n), c64(32)) : i64.shr_u(wideValue, n));
          r = f.let(i64.and(shifted, c64(0xffff)));
          cf = f.let(
            left ? bit(i64.shr_u(i64.shl(wideValue, n), c64(48)), 0) : bit(wideValue, i64.sub(n, c64(1))),
          );
        } else {
          r = f.let(
            left
              ? i64.or(i64.shl(value, n), i64.shr_u(fill, back))
              : i64.or(i64.shr_u(value, n), i64.shl(fill, back)),
          );
          cf = f.let(left ? bit(value, back) : bit(value, i64.sub(n, c64(1))));
        }
        f.set(out, narrow(r, size));
        c.setResult(narrow(r, size), size);
        c.setCarryOverflow(cf, i32.xor(bit(r, bits - 1), bit(value, bits - 1)));
        c.setFlagA(c32(0));
      });
      return out;
    });
  };

export const shiftInstructions = (): Insn[] => [
  ...(["rol", "ror", "rcl", "rcr", "shl", "shr", "shl", "sar"] as const).flatMap((name, n) => [
    ...insn(name, `c0 /${n}`, "Eb,Ib", shift(name)),
    ...insn(name, `c1 /${n}`, "Ev,Ib", shift(name)),
    ...insn(name, `d0 /${n}`, "Eb,1", shift(name)),
    ...insn(name, `d1 /${n}`, "Ev,1", shift(name)),
    ...insn(name, `d2 /${n}`, "Eb,cb", shift(name)),
    ...insn(name, `d3 /${n}`, "Ev,cb", shift(name)),
  ]),
  ...insn("shld", "0f a4 /r", "Ev,Gv,Ib", doubleShift(true)),
  ...insn("shld", "0f a5 /r", "Ev,Gv,cb", doubleShift(true)),
  ...insn("shrd", "0f ac /r", "Ev,Gv,Ib", doubleShift(false)),
  ...insn("shrd", "0f ad /r", "Ev,Gv,cb", doubleShift(false)),
];
