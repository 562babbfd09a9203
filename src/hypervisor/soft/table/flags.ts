/** Instructions on RFLAGS and on its conditions. */
import type { Context } from "../context.ts";
import { FLAGS_SYSTEM, RAX } from "../layout.ts";
import { zeroAddress } from "../values.ts";
import { c32, c64, type Expr, i32, i64, select } from "../wasm/expr.ts";
import { type Insn, insn, type Semantics } from "./insn.ts";

const LOW_FLAGS = 0xd5; // SF ZF AF PF CF

const lahf: Semantics = (c) => {
  c.fixed(RAX + 1, 1).write(lowFlags(c));
};
/** The low byte of RFLAGS. */
export function lowFlags(c: Context): Expr {
  return c.f.let(
    i32.or(
      i32.or(i32.or(c.carry(), i32.shl(c.parity(), c32(2))), i32.or(i32.shl(c.adjust(), c32(4)), c32(2))),
      i32.or(i32.shl(c.zero(), c32(6)), i32.shl(c.sign(), c32(7))),
    ),
  );
}
/** Sets SF, ZF, AF, PF from the low byte of an i32, and CF and OF from `cf` and `of`. */
export function setLowFlags(c: Context, value: Expr, overflow: Expr): void {
  const v = c.f.let(value);
  c.setFlagZ(i64.extend_u(i32.eqz(i32.and(v, c32(0x40)))));
  // The sign bit, and a low byte of odd parity exactly when PF is 0.
  c.setFlagS(
    i64.or(i64.shl(i64.extend_u(i32.and(v, c32(0x80))), c64(56)), i64.extend_u(i32.eqz(i32.and(v, c32(4))))),
  );
  c.setFlagA(i32.shr_u(i32.and(v, c32(0x10)), c32(1)));
  c.setCarryOverflow(i32.and(v, c32(1)), overflow);
}
const sahf: Semantics = (c) => {
  const of = c.f.let(c.overflow());
  setLowFlags(c, i32.and(c.fixed(RAX + 1, 1).read(), c32(LOW_FLAGS)), of);
};

const setCarry =
  (kind: "clc" | "stc" | "cmc"): Semantics =>
  (c) => {
    const of = c.f.let(c.overflow());
    const cf = kind === "clc" ? c32(0) : kind === "stc" ? c32(1) : i32.xor(c.carry(), c32(1));
    c.setCarryOverflow(c.f.let(cf), of);
  };
const setDirection =
  (on: boolean): Semantics =>
  (c) => {
    const old = i32.load(zeroAddress, FLAGS_SYSTEM);
    c.f.store(4, zeroAddress, FLAGS_SYSTEM, on ? i32.or(old, c32(0x400)) : i32.and(old, c32(~0x400)));
  };

const setcc =
  (cc: number): Semantics =>
  (c) => {
    const v = c.f.let(c.condition(cc));
    c.dst.write(i32.ne(v, c32(0)));
  };
/** CMOVcc reads its source, and may fault on it, whatever the condition; a 4-byte one always clears the top. */
const cmovcc =
  (cc: number): Semantics =>
  (c) => {
    const v = c.f.let(c.src.read());
    const cond = c.f.let(c.condition(cc));
    c.dst.write(select(cond, v, c.dst.read()));
  };

export const flagInstructions = (): Insn[] => [
  ...insn("lahf", "9f", "", lahf),
  ...insn("sahf", "9e", "", sahf),
  ...insn("clc", "f8", "", setCarry("clc")),
  ...insn("stc", "f9", "", setCarry("stc")),
  ...insn("cmc", "f5", "", setCarry("cmc")),
  ...insn("cld", "fc", "", setDirection(false)),
  ...insn("std", "fd", "", setDirection(true)),
  ...Array.from({ length: 16 }, (_, cc) => [
    ...insn(`set${CONDITIONS[cc]}`, `0f ${(0x90 + cc).toString(16)} /r`, "Eb", setcc(cc)),
    ...insn(`cmov${CONDITIONS[cc]}`, `0f ${(0x40 + cc).toString(16)} /r`, "Gv,Ev", cmovcc(cc)),
  ]).flat(),
];

/** Condition suffixes in encoding order. */
export const CONDITIONS = [
  "o",
  "no",
  "b",
  "ae",
  "e",
  "ne",
  "be",
  "a",
  "s",
  "ns",
  "p",
  "np",
  "l",
  "ge",
  "le",
  "g",
];
