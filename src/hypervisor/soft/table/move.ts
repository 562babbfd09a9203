/** Moves, exchanges, address computation and sign extension. */

import { RAX, RBX, RDX } from "../layout.ts";
import { type Size, sext, sext64, zext } from "../values.ts";
import { c64, type Expr, i32, i64 } from "../wasm/expr.ts";
import { type Insn, insn, type Semantics } from "./insn.ts";
import { sizeOf } from "./shared.ts";

const mov: Semantics = (c) => c.dst.write(c.f.let(c.src.read()));
const movzx: Semantics = (c) => {
  const v = c.f.let(c.src.read());
  c.dst.write(c.size === 8 ? i64.extend_u(v) : v);
};
const movsx: Semantics = (c) => {
  const from = sizeOf(c, 1);
  const v = c.f.let(c.src.read());
  c.dst.write(c.size === 8 ? sext64(v, from) : sext(v, from));
};
/** MOVSXD: with a 2- or 4-byte operand size a plain move; memory is read as 4 bytes (AMD APM vol. 3). */
const movsxd: Semantics = (c) => {
  const v = c.f.let(c.rm(4).read());
  c.dst.write(c.size === 8 ? i64.extend_s(v) : v);
};

const xchg: Semantics = (c) => {
  const size = sizeOf(c, 0);
  const b = c.f.let(c.src.read());
  let old: Expr | undefined;
  c.dst.modify((a) => {
    old = a;
    return b;
  });
  c.src.write(zext(old!, size));
};

/** CBW / CWDE / CDQE. */
const convertA: Semantics = (c) => {
  const half = (c.size / 2) as Size;
  const v = sext64(c.fixed(RAX, half).read(), half);
  c.fixed(RAX).write(c.size === 8 ? v : i32.wrap(v));
};
/** CWD / CDQ / CQO. */
const convertD: Semantics = (c) => {
  const v = i64.shr_s(sext64(c.fixed(RAX).read(), c.size), c64(63));
  c.fixed(RDX).write(c.size === 8 ? v : i32.wrap(v));
};

const lea: Semantics = (c) => {
  const ea = c.effectiveAddress();
  c.dst.write(c.size === 8 ? ea : i32.wrap(ea));
};

const xlat: Semantics = (c) => {
  let ea: Expr = i64.add(c.gpr(RBX), i64.extend_u(c.fixed(RAX, 1).read()));
  if (c.variant.addr32) ea = i64.and(ea, c64(0xffff_ffffn));
  const lin = c.f.let(i64.add(ea, c.segmentBase()));
  c.fixed(RAX, 1).write(c.load(lin, 1));
};

const nop: Semantics = () => {};

/** Multi-byte NOP and prefetch hints take a memory operand and never touch it. */
const hints = (): Insn[] => [
  ...insn("nop", "90", "", nop),
  ...insn("nop", "0f 1f /r", "Ev", nop),
  ...insn("prefetchw", "0f 0d /r", "Mv", nop),
  ...[0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e].flatMap((op) =>
    insn("nop", `0f ${op.toString(16)} /r`, "Ev", nop),
  ),
];

export const moveInstructions = (): Insn[] => [
  ...hints(),
  ...insn("mov", "88 /r", "Eb,Gb", mov),
  ...insn("mov", "89 /r", "Ev,Gv", mov),
  ...insn("mov", "8a /r", "Gb,Eb", mov),
  ...insn("mov", "8b /r", "Gv,Ev", mov),
  ...insn("mov", "c6 /0", "Eb,Ib", mov),
  ...insn("mov", "c7 /0", "Ev,Iz", mov),
  ...insn("mov", "a0", "ab,Ob", mov),
  ...insn("mov", "a1", "av,Ov", mov),
  ...insn("mov", "a2", "Ob,ab", mov),
  ...insn("mov", "a3", "Ov,av", mov),
  ...insn("mov", "b0+r", "Zb,Ib", mov),
  ...insn("mov", "b8+r", "Zv,Iv", (c) => {
    c.dst.write(c.size === 8 ? c.immediate64() : c.immediate().read());
  }),
  ...insn("movzx", "0f b6 /r", "Gv,Eb", movzx),
  ...insn("movzx", "0f b7 /r", "Gv,Ew", movzx),
  ...insn("movsx", "0f be /r", "Gv,Eb", movsx),
  ...insn("movsx", "0f bf /r", "Gv,Ew", movsx),
  ...insn("movsxd", "63 /r", "Gv,Ev", movsxd, { only: "64" }),
  ...insn("movnti", "np 0f c3 /r", "My,Gy", mov),
  ...insn("xchg", "86 /r", "Eb,Gb", xchg, { lock: true }),
  ...insn("xchg", "87 /r", "Ev,Gv", xchg, { lock: true }),
  ...[1, 2, 3, 4, 5, 6, 7].flatMap((r) => insn("xchg", (0x90 + r).toString(16), "Zv,av", xchg)),
  ...insn("cbw/cwde/cdqe", "98", "", convertA, { size: "v" }),
  ...insn("cwd/cdq/cqo", "99", "", convertD, { size: "v" }),
  ...insn("lea", "8d /r", "Gv,Mv", lea),
  ...insn("xlatb", "d7", "", xlat, { size: "b" }),
];
