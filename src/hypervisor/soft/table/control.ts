/** Control transfer and stack instructions. */
import { type Context, WRITE } from "../context.ts";
import { HELPER } from "../helpers.ts";
import { FLAGS_SYSTEM, RBP, RCX, RECORD, RSP } from "../layout.ts";
import { type Size, zeroAddress } from "../values.ts";
import { c32, c64, type Expr, i32, i64 } from "../wasm/expr.ts";
import { CONDITIONS, lowFlags } from "./flags.ts";
import { type Insn, insn, type Semantics } from "./insn.ts";
import { endHelper, viaHelper } from "./shared.ts";

const zextTo64 = (value: Expr, size: Size): Expr => (size === 8 ? value : i64.extend_u(value));
/** A RIP or stack value at operand size. */
const narrow = (value: Expr, size: Size): Expr => (size === 8 ? value : i32.wrap(value));

const jump: Semantics = (c) => c.jumpDirect(c32(1));
/** #GP(0) at the branch itself if its target is not canonical (SDM vol. 2A, JMP), before anything changes. */
function target(c: Context, value: Expr, before: () => void = () => {}): Expr {
  const rip = c.f.let(zextTo64(value, c.size));
  if (c.size === 8) {
    c.f.if(i64.ne(i64.shr_s(i64.shl(rip, c64(16)), c64(16)), rip), () => {
      before();
      c.raise(13, 0);
    });
  }
  return rip;
}
const jumpIndirect: Semantics = (c) => c.jumpTo(target(c, c.f.let(c.dst.read())));

const jcc =
  (cc: number): Semantics =>
  (c) =>
    c.jumpDirect(i32.ne(c.condition(cc), c32(0)));

const call: Semantics = (c) => {
  c.push(narrow(c.nextRip(), c.size), c.size);
  c.callDirect();
};
const callIndirect: Semantics = (c) => {
  // A stack that cannot be written is found first.
  const rip = target(c, c.f.let(c.dst.read()), () => {
    const top = c.f.let(i64.sub(c.gpr(RSP), c64(8)));
    c.throughStack(() => c.translate(WRITE, top, 8));
  });
  c.push(narrow(c.nextRip(), c.size), c.size);
  c.callTo(rip);
};
const ret: Semantics = (c) => {
  const rip = target(c, c.peek(c.size));
  const extra = c.operands.length ? i64.extend_u(c.recordWord(RECORD.imm)) : c64(0);
  c.drop(i64.add(c64(c.size), extra));
  c.returnTo(rip);
};

const counter = (c: Context): Expr => c.pointer(RCX);

const loop =
  (kind: "loop" | "loope" | "loopne"): Semantics =>
  (c) => {
    const left = c.f.let(i64.sub(counter(c), c64(1)));
    c.setGpr(RCX, c.variant.addr32 ? i64.and(left, c64(0xffff_ffffn)) : left);
    const more = i64.ne(counter(c), c64(0));
    const zf = i32.ne(c.zero(), c32(0));
    c.jumpDirect(kind === "loop" ? more : i32.and(more, kind === "loope" ? zf : i32.eqz(zf)));
  };
const jrcxz: Semantics = (c) => c.jumpDirect(i64.eqz(counter(c)));

const push: Semantics = (c) => c.push(c.f.let(c.dst.read()), c.size);
const pushImmediate: Semantics = (c) => c.push(c.immediate().read(), c.size);
const pop: Semantics = (c) => {
  const v = c.peek(c.size);
  c.drop(c64(c.size));
  c.dst.write(v);
};
/** POP to memory computes its address after RSP has moved (SDM vol. 2B, POP). */
const popMemory: Semantics = (c) => {
  const v = c.peek(c.size);
  if (!c.mem) {
    c.drop(c64(c.size));
    c.dst.write(v);
    return;
  }
  const old = c.f.let(c.gpr(RSP));
  c.drop(c64(c.size));
  const lin = c.linearAddress();
  // A fault on the write must leave RSP as it was.
  const moved = c.f.let(c.gpr(RSP));
  c.setGpr(RSP, old);
  c.store(lin, c.size, v);
  c.setGpr(RSP, moved);
};

const leave: Semantics = (c) => {
  const bp = c.f.let(c.variant.mode64 ? c.gpr(RBP) : i64.extend_u(c.fixed(RBP, 4).read()));
  const v = c.throughStack(() => c.load(bp, c.size));
  c.setStackPointer(i64.add(bp, c64(c.size)));
  c.fixed(RBP).write(v);
};

const pushf: Semantics = (c) => {
  const flags = i32.and(
    i32.or(i32.or(lowFlags(c), i32.shl(c.overflow(), c32(11))), i32.load(zeroAddress, FLAGS_SYSTEM)),
    c32(~0x30000), // RF and VM read as 0
  );
  c.push(c.size === 8 ? i64.extend_u(flags) : flags, c.size);
};

const pusha: Semantics = (c) => {
  const sp = c.f.let(c.gpr(RSP));
  // All eight words are one access range: the lowest is written first so that a fault changes nothing.
  for (let r = 7; r >= 0; r--) {
    const at = c.f.let(i64.and(i64.sub(sp, c64((r + 1) * c.size)), c64(0xffff_ffffn)));
    c.store(at, c.size, c.fixed(r * 8).read());
  }
  c.setStackPointer(i64.sub(sp, c64(8 * c.size)));
};
const popa: Semantics = (c) => {
  const values = Array.from({ length: 8 }, (_, i) => c.peek(c.size, i * c.size));
  values.forEach((v, i) => {
    const r = 7 - i;
    if (r !== 4) c.fixed(r * 8).write(v);
  });
  c.drop(c64(8 * c.size));
};

export const controlInstructions = (): Insn[] => [
  ...insn("jmp", "eb", "Jb", jump, { end: "direct", size: "stack" }),
  ...insn("jmp", "e9", "Jz", jump, { end: "direct", size: "stack" }),
  ...insn("jmp", "ff /4", "Ev", jumpIndirect, { end: "indirect", size: "stack" }),
  ...insn("jmp far", "ff /5", "Mv", endHelper(HELPER.jmpFar), { end: "indirect", system: true }),
  ...insn("call", "e8", "Jz", call, { end: "direct", size: "stack" }),
  ...insn("call", "ff /2", "Ev", callIndirect, { end: "indirect", size: "stack" }),
  ...insn("call far", "ff /3", "Mv", endHelper(HELPER.callFar), { end: "indirect", system: true }),
  ...insn("ret", "c3", "", ret, { end: "indirect", size: "stack" }),
  ...insn("ret", "c2", "Iw", ret, { end: "indirect", size: "stack" }),
  ...insn("ret far", "cb", "", endHelper(HELPER.retFar), { end: "indirect", size: "v", system: true }),
  ...insn("ret far", "ca", "Iw", endHelper(HELPER.retFar), { end: "indirect", size: "v", system: true }),
  ...Array.from({ length: 16 }, (_, cc) => [
    ...insn(`j${CONDITIONS[cc]}`, (0x70 + cc).toString(16), "Jb", jcc(cc), { end: "direct", size: "stack" }),
    ...insn(`j${CONDITIONS[cc]}`, `0f ${(0x80 + cc).toString(16)}`, "Jz", jcc(cc), {
      end: "direct",
      size: "stack",
    }),
  ]).flat(),
  ...insn("loopne", "e0", "Jb", loop("loopne"), { end: "direct", size: "stack" }),
  ...insn("loope", "e1", "Jb", loop("loope"), { end: "direct", size: "stack" }),
  ...insn("loop", "e2", "Jb", loop("loop"), { end: "direct", size: "stack" }),
  ...insn("jrcxz", "e3", "Jb", jrcxz, { end: "direct", size: "stack" }),
  ...insn("push", "50+r", "Zv", push, { size: "stack" }),
  ...insn("push", "ff /6", "Ev", push, { size: "stack" }),
  ...insn("push", "6a", "Ib", pushImmediate, { size: "stack" }),
  ...insn("push", "68", "Iz", pushImmediate, { size: "stack" }),
  ...insn("pop", "58+r", "Zv", pop, { size: "stack" }),
  ...insn("pop", "8f /0", "Ev", popMemory, { size: "stack" }),
  ...insn("pusha", "60", "", pusha, { size: "v", only: "legacy" }),
  ...insn("popa", "61", "", popa, { size: "v", only: "legacy" }),
  ...insn("leave", "c9", "", leave, { size: "stack" }),
  ...insn("enter", "c8", "Iw", viaHelper(HELPER.enter), { size: "stack", immediate: "wb" }),
  ...insn("pushf", "9c", "", pushf, { size: "stack" }),
  ...insn("popf", "9d", "", viaHelper(HELPER.popf), { size: "stack" }),
  ...insn("int3", "cc", "", endHelper(HELPER.int3), { end: "indirect" }),
  ...insn("int", "cd", "Ib", endHelper(HELPER.int), { end: "indirect", system: true, immediate: "b" }),
  ...insn("into", "ce", "", endHelper(HELPER.into), { end: "indirect", only: "legacy" }),
  ...insn("int1", "f1", "", endHelper(HELPER.int1), { end: "indirect", system: true }),
  ...insn("call far", "9a", "", endHelper(HELPER.callFar), {
    end: "indirect",
    only: "legacy",
    system: true,
    size: "v",
    immediate: "far",
  }),
  ...insn("jmp far", "ea", "", endHelper(HELPER.jmpFar), {
    end: "indirect",
    only: "legacy",
    system: true,
    size: "v",
    immediate: "far",
  }),
];
