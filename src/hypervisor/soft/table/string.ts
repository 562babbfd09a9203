/** String instructions, with their repeat prefixes (SDM vol. 1, 7.3.9). */
import { type Context, PROBE, WRITE } from "../context.ts";
import { ATTENTION, BOUNCE, FLAGS_SYSTEM, RAX, RCX, RDI, REG, RSI } from "../layout.ts";
import { ops, type Size, wide, zeroAddress } from "../values.ts";
import { I32 } from "../wasm/encoding.ts";
import { c32, c64, type Expr, i32, i64, type Local, select } from "../wasm/expr.ts";
import type { Label } from "../wasm/func.ts";
import { type Insn, insn, type Semantics } from "./insn.ts";

/** rSI, rDI or rCX at the instruction's address size. */
const pointer = (c: Context, reg: number): Expr => c.pointer(reg);

function setPointer(c: Context, reg: number, value: Expr): void {
  c.setGpr(reg, c.variant.addr32 ? i64.and(value, c64(0xffff_ffffn)) : value);
}

function advance(c: Context, reg: number, by: Expr): void {
  setPointer(c, reg, i64.add(pointer(c, reg), by));
}

const truncate = (c: Context, lin: Expr): Expr =>
  c.f.let(c.variant.mode64 ? lin : i64.and(lin, c64(0xffff_ffffn)));

const sourceAddress = (c: Context): Expr => truncate(c, i64.add(pointer(c, RSI), c.segmentBase()));

/** The destination is always in ES, which has base 0 in 64-bit mode. */
const destinationAddress = (c: Context): Expr =>
  truncate(
    c,
    c.variant.mode64 ? pointer(c, RDI) : i64.add(pointer(c, RDI), i64.load(zeroAddress, REG.segBase)),
  );

/** +size, or -size with DF set. */
const step = (c: Context, size: Size): Expr =>
  c.f.let(select(i32.and(i32.load(zeroAddress, FLAGS_SYSTEM), c32(0x400)), c64(-size), c64(size)));

/**
 * Runs `iteration` once, or under a repeat prefix until rCX is 0 or `iteration` leaves. Registers are
 * written back after each element, so a fault or an interrupt in the middle resumes where it stopped.
 */
function repeat(c: Context, iteration: (leave: Label | undefined) => void): void {
  if (!c.variant.rep) {
    iteration(undefined);
    return;
  }
  c.f.block((leave) => {
    c.f.loop((again) => {
      c.f.brIf(leave, i64.eqz(pointer(c, RCX)));
      iteration(leave);
      c.f.brIf(leave, i64.eqz(pointer(c, RCX)));
      c.f.if(i32.lt_s(i32.load(zeroAddress, ATTENTION), c32(0)), () => c.interrupted());
      c.f.br(again);
    });
  });
}

function countDown(c: Context, by: Expr): void {
  if (c.variant.rep) setPointer(c, RCX, i64.sub(pointer(c, RCX), by));
}

const bytesToPageEnd = (lin: Expr): Expr => i64.sub(c64(4096), i64.and(lin, c64(4095)));
const minimum = (c: Context, a: Expr, b: Expr): Expr => {
  const x = c.f.let(a);
  const y = c.f.let(b);
  return c.f.let(select(i64.lt_u(x, y), x, y));
};

/** Elements of `size` that fit from both addresses to their page ends, at most rCX. */
function runLength(c: Context, size: Size, lin: Expr, other?: Expr): Expr {
  const room = other ? minimum(c, bytesToPageEnd(lin), bytesToPageEnd(other)) : bytesToPageEnd(lin);
  return minimum(c, i64.shr_u(room, c64(Math.log2(size))), pointer(c, RCX));
}

/** Whole runs go upwards, and only while nobody waits: the trap flag and interrupts come in after an element. */
const forward = (delta: Expr): Expr =>
  i32.and(i64.gt_s(delta, c64(0)), i32.ge_s(i32.load(zeroAddress, ATTENTION), c32(0)));

const movs: Semantics = (c) => {
  const { f, size } = c;
  const delta = step(c, size);
  repeat(c, () => {
    const from = sourceAddress(c);
    const to = destinationAddress(c);
    const single = () => {
      c.store(to, size, c.load(from, size));
      advance(c, RSI, delta);
      advance(c, RDI, delta);
      countDown(c, c64(1));
    };
    if (!c.variant.rep) {
      single();
      return;
    }
    // Whole runs inside one source and one destination page are one memory.copy, unless the destination
    // lies shortly above the source: then each element must see the ones written before it.
    // The element is read before it is written: the source's fault comes first.
    const source = c.translate(PROBE, from, size);
    const target = c.translate(WRITE, to, size);
    const n = runLength(c, size, from, to);
    const bytes = f.let(i64.mul(n, c64(size)));
    const plain = i32.and(i32.ne(source, c32(BOUNCE)), i32.ne(target, c32(BOUNCE)));
    const apart = i64.ge_u(i64.extend_u(i32.sub(target, source)), bytes);
    f.if(
      i32.and(i32.and(plain, apart), i32.and(forward(delta), i64.ne(n, c64(0)))),
      () => {
        f.memoryCopy(target, source, i32.wrap(bytes));
        advance(c, RSI, bytes);
        advance(c, RDI, bytes);
        countDown(c, n);
      },
      single,
    );
  });
};

const stos: Semantics = (c) => {
  const { f, size } = c;
  const delta = step(c, size);
  const value = f.let(c.fixed(RAX, size).read());
  repeat(c, () => {
    const to = destinationAddress(c);
    const single = () => {
      c.store(to, size, value);
      advance(c, RDI, delta);
      countDown(c, c64(1));
    };
    if (!c.variant.rep) {
      single();
      return;
    }
    const target = c.translate(WRITE, to, size);
    const n = runLength(c, size, to);
    f.if(
      i32.and(i32.and(i32.ne(target, c32(BOUNCE)), forward(delta)), i64.ne(n, c64(0))),
      () => {
        const bytes = f.let(i64.mul(n, c64(size)));
        fill(c, target, value, i32.wrap(bytes), size);
        advance(c, RDI, bytes);
        countDown(c, n);
      },
      single,
    );
  });
};

function fill(c: Context, target: Expr, value: Expr, length: Expr, size: Size): void {
  const { f } = c;
  if (size === 1) {
    f.memoryFill(target, value, length);
    return;
  }
  const o = ops(size);
  const zero = size === 8 ? c64(0) : c32(0);
  f.if(
    o.eq(value, zero),
    () => f.memoryFill(target, c32(0), length),
    () => {
      const at = f.local(I32);
      const end = f.let(i32.add(target, length));
      f.set(at, target);
      f.loop((again) => {
        f.store(size, at, 0, value);
        f.set(at, i32.add(at, c32(size)));
        f.brIf(again, i32.lt_u(at, end));
      });
    },
  );
}

const lods: Semantics = (c) => {
  const delta = step(c, c.size);
  repeat(c, () => {
    c.fixed(RAX, c.size).write(c.load(sourceAddress(c), c.size));
    advance(c, RSI, delta);
    countDown(c, c64(1));
  });
};

/** SCAS and CMPS stop when ZF no longer matches the prefix. */
const comparing =
  (kind: "scas" | "cmps"): Semantics =>
  (c) => {
    const { f, size } = c;
    const delta = step(c, size);
    const a: Local = f.local(wide(size));
    if (kind === "scas") f.set(a, c.fixed(RAX, size).read());
    const b = f.local(wide(size));
    const compared = f.local(I32);
    f.set(compared, c32(0));
    repeat(c, (leave) => {
      if (kind === "cmps") f.set(a, c.load(sourceAddress(c), size));
      f.set(b, c.load(destinationAddress(c), size));
      if (kind === "cmps") advance(c, RSI, delta);
      advance(c, RDI, delta);
      countDown(c, c64(1));
      // An interrupted repeat resumes with the flags of its last element, so they are set each time.
      c.flagsSub(a, b, f.let(ops(size).sub(a, b)), size);
      if (leave) f.brIf(leave, c.variant.rep === 0xf3 ? ops(size).ne(a, b) : ops(size).eq(a, b));
    });
  };

export const stringInstructions = (): Insn[] => [
  ...insn("movsb", "a4", "", movs, { size: "b", string: true }),
  ...insn("movs", "a5", "", movs, { size: "v", string: true }),
  ...insn("cmpsb", "a6", "", comparing("cmps"), { size: "b", string: true }),
  ...insn("cmps", "a7", "", comparing("cmps"), { size: "v", string: true }),
  ...insn("stosb", "aa", "", stos, { size: "b", string: true }),
  ...insn("stos", "ab", "", stos, { size: "v", string: true }),
  ...insn("lodsb", "ac", "", lods, { size: "b", string: true }),
  ...insn("lods", "ad", "", lods, { size: "v", string: true }),
  ...insn("scasb", "ae", "", comparing("scas"), { size: "b", string: true }),
  ...insn("scas", "af", "", comparing("scas"), { size: "v", string: true }),
];
