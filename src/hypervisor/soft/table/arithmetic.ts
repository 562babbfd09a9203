/** Addition, subtraction, logic, and the read-modify-write instructions built on them (SDM vol. 2). */
import { type Context, READ_WRITE } from "../context.ts";
import { RAX, RBX, RCX, RDX } from "../layout.ts";
import { konst, ops, type Size, wide, zext64 } from "../values.ts";
import { type Expr, i32, i64, select } from "../wasm/expr.ts";
import { type Insn, insn, type Semantics } from "./insn.ts";
import { narrow, sizeOf } from "./shared.ts";

type Combine = (c: Context, a: Expr, b: Expr, size: Size) => Expr;

const add: Combine = (c, a, b, size) => {
  const r = c.f.let(ops(size).add(a, b));
  c.flagsAdd(a, b, r, size);
  return r;
};
const sub: Combine = (c, a, b, size) => {
  const r = c.f.let(ops(size).sub(a, b));
  c.flagsSub(a, b, r, size);
  return r;
};
const carryIn = (c: Context, size: Size) => (size === 8 ? i64.extend_u(c.carry()) : c.carry());
const adc: Combine = (c, a, b, size) => {
  const o = ops(size);
  const r = c.f.let(o.add(o.add(a, b), carryIn(c, size)));
  c.flagsAdc(a, b, r, size);
  return r;
};
const sbb: Combine = (c, a, b, size) => {
  const o = ops(size);
  const r = c.f.let(o.sub(o.sub(a, b), carryIn(c, size)));
  c.flagsSbb(a, b, r, size);
  return r;
};
const logic =
  (name: "and" | "or" | "xor"): Combine =>
  (c, a, b, size) => {
    const r = c.f.let(ops(size)[name](a, b));
    c.flagsLogic(r, size);
    return r;
  };

/** dst = combine(dst, src) */
const binary =
  (combine: Combine): Semantics =>
  (c) => {
    const size = sizeOf(c, 0);
    const b = c.f.let(c.src.read());
    c.dst.modify((a) => combine(c, a, b, size));
  };
/** combine(dst, src) for its flags alone. */
const compare =
  (combine: Combine): Semantics =>
  (c) => {
    const size = sizeOf(c, 0);
    const b = c.f.let(c.src.read());
    combine(c, c.f.let(c.dst.read()), b, size);
  };

function arithmetic(): Insn[] {
  const out: Insn[] = [];
  const group: [string, Combine][] = [
    ["add", add],
    ["or", logic("or")],
    ["adc", adc],
    ["sbb", sbb],
    ["and", logic("and")],
    ["sub", sub],
    ["xor", logic("xor")],
    ["cmp", sub],
  ];
  group.forEach(([name, combine], n) => {
    const isCompare = name === "cmp";
    const sem = isCompare ? compare(combine) : binary(combine);
    const lock = isCompare ? {} : { lock: true };
    const at = (low: number) => (n * 8 + low).toString(16).padStart(2, "0");
    out.push(
      ...insn(name, `${at(0)} /r`, "Eb,Gb", sem, lock),
      ...insn(name, `${at(1)} /r`, "Ev,Gv", sem, lock),
      ...insn(name, `${at(2)} /r`, "Gb,Eb", sem),
      ...insn(name, `${at(3)} /r`, "Gv,Ev", sem),
      ...insn(name, at(4), "ab,Ib", sem),
      ...insn(name, at(5), "av,Iz", sem),
      ...insn(name, `80 /${n}`, "Eb,Ib", sem, lock),
      ...insn(name, `82 /${n}`, "Eb,Ib", sem, { ...lock, only: "legacy" }),
      ...insn(name, `81 /${n}`, "Ev,Iz", sem, lock),
      ...insn(name, `83 /${n}`, "Ev,Ib", sem, lock),
    );
  });
  const test = compare(logic("and"));
  out.push(
    ...insn("test", "84 /r", "Eb,Gb", test),
    ...insn("test", "85 /r", "Ev,Gv", test),
    ...insn("test", "a8", "ab,Ib", test),
    ...insn("test", "a9", "av,Iz", test),
  );
  for (const n of [0, 1]) {
    out.push(...insn("test", `f6 /${n}`, "Eb,Ib", test), ...insn("test", `f7 /${n}`, "Ev,Iz", test));
  }
  return out;
}

/** INC and DEC leave CF as it was. */
const incDec =
  (name: "inc" | "dec"): Semantics =>
  (c) => {
    const size = sizeOf(c, 0);
    const cf = c.f.let(narrow(i64.extend_u(c.carry()), size));
    c.dst.modify((a) => {
      const one = konst(size, 1);
      const r = c.f.let(name === "inc" ? ops(size).add(a, one) : ops(size).sub(a, one));
      c.flagsLater(name, a, cf, r, size, () => incDecFlags(c, name, a, cf, size));
      return r;
    });
  };

/** Flags of INC or DEC of `a` with CF, 0 or 1, before it. */
export function incDecFlags(c: Context, name: "inc" | "dec", a: Expr, cf: Expr, size: Size): void {
  const one = konst(size, 1);
  const carry = c.f.let(i32.wrap(zext64(cf, size)));
  if (name === "inc") c.flagsAdd(a, one, c.f.let(ops(size).add(a, one)), size);
  else c.flagsSub(a, one, c.f.let(ops(size).sub(a, one)), size);
  c.setCarryOverflow(carry, c.overflow());
}

const neg: Semantics = (c) => {
  const size = sizeOf(c, 0);
  c.dst.modify((a) => sub(c, konst(size, 0), a, size));
};
const not: Semantics = (c) => {
  const size = sizeOf(c, 0);
  c.dst.modify((a) => ops(size).xor(a, konst(size, -1)));
};

const xadd: Semantics = (c) => {
  const size = sizeOf(c, 0);
  const b = c.f.let(c.src.read());
  // The source receives the old value; when both are one register the sum wins.
  const old = c.f.local(wide(size));
  if (!c.mem) {
    c.f.set(old, c.dst.read());
    c.src.write(old);
    c.dst.write(add(c, old, b, size));
    return;
  }
  c.dst.modify((a) => {
    c.f.set(old, a);
    return add(c, old, b, size);
  });
  c.src.write(old);
};

const cmpxchg: Semantics = (c) => {
  const size = sizeOf(c, 0);
  const acc = c.f.let(c.fixed(RAX, size).read());
  const replacement = c.f.let(c.src.read());
  const old = c.f.local(wide(size));
  const differs = () => ops(size).ne(old, acc);
  if (c.mem) {
    // Memory is written whatever the outcome, and must be writable.
    c.dst.modify((a) => {
      c.f.set(old, a);
      return select(differs(), old, replacement);
    });
    sub(c, acc, old, size);
    c.f.if(differs(), () => c.fixed(RAX, size).write(old));
    return;
  }
  // A register is written only if equal: a failed compare leaves its upper half alone (as AMD's processors do).
  c.f.set(old, c.dst.read());
  sub(c, acc, old, size);
  c.f.if(
    differs(),
    () => c.fixed(RAX, size).write(old),
    () => c.dst.write(replacement),
  );
};

/** CMPXCHG8B / CMPXCHG16B. */
const cmpxchgPair: Semantics = (c) => {
  const half: Size = c.size === 8 ? 8 : 4;
  const o = ops(half);
  const lin = c.linearAddress();
  if (half === 8) c.checkAlignment(lin);
  const address = c.translate(READ_WRITE, lin, 2 * half);
  const low = c.f.let(c.readAt(address, half));
  const high = c.f.let(c.readAt(address, half, half));
  const equal = c.f.let(i32.and(o.eq(low, c.fixed(RAX, half).read()), o.eq(high, c.fixed(RDX, half).read())));
  c.f.if(
    equal,
    () => {
      c.f.store(half, address, 0, c.fixed(RBX, half).read());
      c.f.store(half, address, half, c.fixed(RCX, half).read());
    },
    () => {
      c.fixed(RAX, half).write(low);
      c.fixed(RDX, half).write(high);
    },
  );
  c.commit(address, lin, 2 * half);
  c.setZero(equal);
};

export const arithmeticInstructions = (): Insn[] => [
  ...arithmetic(),
  ...insn("inc", "fe /0", "Eb", incDec("inc"), { lock: true }),
  ...insn("inc", "ff /0", "Ev", incDec("inc"), { lock: true }),
  ...insn("dec", "fe /1", "Eb", incDec("dec"), { lock: true }),
  ...insn("dec", "ff /1", "Ev", incDec("dec"), { lock: true }),
  ...insn("inc", "40+r", "Zv", incDec("inc"), { only: "legacy" }),
  ...insn("dec", "48+r", "Zv", incDec("dec"), { only: "legacy" }),
  ...insn("not", "f6 /2", "Eb", not, { lock: true }),
  ...insn("not", "f7 /2", "Ev", not, { lock: true }),
  ...insn("neg", "f6 /3", "Eb", neg, { lock: true }),
  ...insn("neg", "f7 /3", "Ev", neg, { lock: true }),
  ...insn("xadd", "0f c0 /r", "Eb,Gb", xadd, { lock: true }),
  ...insn("xadd", "0f c1 /r", "Ev,Gv", xadd, { lock: true }),
  ...insn("cmpxchg", "0f b0 /r", "Eb,Gb", cmpxchg, { lock: true }),
  ...insn("cmpxchg", "0f b1 /r", "Ev,Gv", cmpxchg, { lock: true }),
  ...insn("cmpxchg8b/16b", "0f c7 /1", "My", cmpxchgPair, { lock: true }),
];
