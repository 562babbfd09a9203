/** General-purpose integer instructions: arithmetic, logic, moves, shifts, bits (SDM vol. 2). */
import {
  type Context,
  konst,
  type Operand,
  ops,
  READ_WRITE,
  type Size,
  sext,
  sext64,
  wide,
  zeroAddress,
  zext,
  zext64,
} from "../context.ts";
import { HELPER } from "../helpers.ts";
import { FLAGS_SYSTEM, RAX, RBX, RCX, RDX } from "../layout.ts";
import { I32, I64 } from "../wasm/encoding.ts";
import { c32, c64, type Expr, i32, i64, type Local, select } from "../wasm/expr.ts";
import { type Insn, insn, type Semantics } from "./insn.ts";

/** Size of an operand by its table letter. */
function sizeOf(c: Context, n: number): Size {
  const letter = c.operands[n]?.[1];
  if (c.operands[n]?.[0] === "I") return c.size;
  return letter === "b" ? 1 : letter === "w" ? 2 : letter === "d" ? 4 : letter === "q" ? 8 : c.size;
}

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
  (delta: 1 | -1): Semantics =>
  (c) => {
    const size = sizeOf(c, 0);
    const cf = c.f.local(I64);
    c.f.set(cf, i64.shr_u(c.flagC, c64(63)));
    c.dst.modify((a) => {
      const one = konst(size, 1);
      const r = c.f.let(delta === 1 ? ops(size).add(a, one) : ops(size).sub(a, one));
      if (delta === 1) c.flagsAdd(a, one, r, size);
      else c.flagsSub(a, one, r, size);
      const of = i64.shr_u(i64.xor(c.flagC, i64.shl(c.flagC, c64(1))), c64(63));
      c.setFlagC(i64.shl(i64.or(i64.shl(cf, c64(1)), i64.xor(cf, of)), c64(62)));
      return r;
    });
  };

const neg: Semantics = (c) => {
  const size = sizeOf(c, 0);
  c.dst.modify((a) => sub(c, konst(size, 0), a, size));
};
const not: Semantics = (c) => {
  const size = sizeOf(c, 0);
  c.dst.modify((a) => ops(size).xor(a, konst(size, -1)));
};

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

// --- multiply and divide -----------------------------------------------------------------------

/** High 64 bits of an unsigned 64x64 product, from four 32-bit multiplies. */
function mulHighU(c: Context, a: Expr, b: Expr): Expr {
  const { f } = c;
  const mask = c64(0xffff_ffffn);
  const al = f.let(i64.and(a, mask));
  const ah = f.let(i64.shr_u(a, c64(32)));
  const bl = f.let(i64.and(b, mask));
  const bh = f.let(i64.shr_u(b, c64(32)));
  const mid = f.let(i64.add(i64.mul(ah, bl), i64.shr_u(i64.mul(al, bl), c64(32))));
  const mid2 = f.let(i64.add(i64.mul(al, bh), i64.and(mid, mask)));
  return f.let(i64.add(i64.add(i64.mul(ah, bh), i64.shr_u(mid, c64(32))), i64.shr_u(mid2, c64(32))));
}

/** High 64 bits of a signed 64x64 product. */
function mulHighS(c: Context, a: Expr, b: Expr): Expr {
  const high = mulHighU(c, a, b);
  return c.f.let(
    i64.sub(i64.sub(high, i64.and(i64.shr_s(a, c64(63)), b)), i64.and(i64.shr_s(b, c64(63)), a)),
  );
}

/** SF, ZF, AF and PF are undefined after a multiply; CF = OF = the high half matters. */
function flagsMultiply(c: Context, low: Expr, size: Size, significant: Expr): void {
  c.setResult(low, size);
  const bit = c.f.let(significant);
  c.setCarryOverflow(bit, bit);
  c.setFlagA(c32(0));
}

/** MUL and the one-operand IMUL: rDX:rAX = rAX * r/m. */
const multiply =
  (signed: boolean): Semantics =>
  (c) => {
    const { f, size } = c;
    const b = f.let(c.dst.read());
    const a = f.let(c.fixed(RAX, size).read());
    if (size === 8) {
      const low = f.let(i64.mul(a, b));
      const high = signed ? mulHighS(c, a, b) : mulHighU(c, a, b);
      c.fixed(RAX, 8).write(low);
      c.fixed(RDX, 8).write(high);
      flagsMultiply(c, low, 8, i64.ne(high, signed ? i64.shr_s(low, c64(63)) : c64(0)));
      return;
    }
    const extend = signed ? sext64 : zext64;
    const product = f.let(i64.mul(extend(a, size), extend(b, size)));
    const bits = size * 8;
    const low = f.let(i32.wrap(product));
    if (size === 1) c.fixed(RAX, 2).write(low);
    else {
      c.fixed(RAX, size).write(low);
      c.fixed(RDX, size).write(i32.wrap(i64.shr_u(product, c64(bits))));
    }
    const back = signed ? sext64(low, size) : zext64(low, size);
    flagsMultiply(c, low, size, i64.ne(product, back));
  };

/** IMUL with a truncated destination. */
function imulTruncated(c: Context, a: Expr, b: Expr): void {
  const { size } = c;
  const low = c.f.let(ops(size).mul(a, b));
  c.flagsLater("imul", a, b, low, size, () => imulFlags(c, a, b, size));
  c.dst.write(low);
}

/** Flags of an IMUL of `a` and `b` whose product is cut to their size. */
export function imulFlags(c: Context, a: Expr, b: Expr, size: Size): void {
  const { f } = c;
  if (size === 8) {
    const low = f.let(i64.mul(a, b));
    flagsMultiply(c, low, 8, i64.ne(mulHighS(c, a, b), i64.shr_s(low, c64(63))));
    return;
  }
  const product = f.let(i64.mul(sext64(a, size), sext64(b, size)));
  const low = f.let(i32.wrap(product));
  flagsMultiply(c, low, size, i64.ne(product, sext64(low, size)));
}
const imul2: Semantics = (c) => {
  const b = c.f.let(c.src.read());
  imulTruncated(c, c.f.let(c.dst.read()), b);
};
const imul3: Semantics = (c) => {
  const a = c.f.let(c.src.read());
  imulTruncated(c, a, c.f.let(c.operand(2).read()));
};

/** Flags are undefined after a divide and stay; #DE on zero and on overflow. */
const divide =
  (signed: boolean): Semantics =>
  (c) => {
    const { f, size } = c;
    const divisor = f.let(c.dst.read());
    const o = ops(size);
    f.if(o.eqz(zext(divisor, size)), () => c.raise(0));
    if (size === 8) return divide64(c, divisor, signed);
    const extend = signed ? sext64 : zext64;
    const d = f.let(extend(divisor, size));
    const dividend = f.let(
      size === 1
        ? extend(c.fixed(RAX, 2).read(), 2)
        : size === 2
          ? extend(i32.or(i32.shl(c.fixed(RDX, 2).read(), c32(16)), c.fixed(RAX, 2).read()), 4)
          : i64.or(i64.shl(c.gpr(RDX), c64(32)), i64.extend_u(c.fixed(RAX, 4).read())),
    );
    if (signed) {
      // The one quotient that overflows the wasm operator itself.
      f.if(i32.and(i64.eq(dividend, c64(-(1n << 63n))), i64.eq(d, c64(-1))), () => c.raise(0));
    }
    const q = f.let(signed ? i64.div_s(dividend, d) : i64.div_u(dividend, d));
    f.if(i64.ne(q, extend(i32.wrap(q), size)), () => c.raise(0));
    const r = f.let(i64.sub(dividend, i64.mul(q, d)));
    if (size === 1) {
      c.fixed(RAX, 1).write(i32.wrap(q));
      c.fixed(RAX + 1, 1).write(i32.wrap(r));
    } else {
      c.fixed(RAX, size).write(i32.wrap(q));
      c.fixed(RDX, size).write(i32.wrap(r));
    }
  };

/** 128 by 64 bits: the common case of a sign- or zero-extended dividend in wasm, the rest in a helper. */
function divide64(c: Context, divisor: Expr, signed: boolean): void {
  const { f } = c;
  const low = f.let(c.gpr(RAX));
  const high = f.let(c.gpr(RDX));
  const simple = signed
    ? i32.and(
        i64.eq(high, i64.shr_s(low, c64(63))),
        i32.or(i64.ne(low, c64(-(1n << 63n))), i64.ne(divisor, c64(-1))),
      )
    : i64.eqz(high);
  f.if(
    simple,
    () => {
      const q = f.let(signed ? i64.div_s(low, divisor) : i64.div_u(low, divisor));
      c.setGpr(RAX, q);
      c.setGpr(RDX, i64.sub(low, i64.mul(q, divisor)));
    },
    () => {
      f.store(8, zeroAddress, SCRATCH_DIVISOR, divisor);
      c.helper(signed ? HELPER.idiv128 : HELPER.div128);
    },
  );
}

/** Where the divide helper finds its divisor. */
export const SCRATCH_DIVISOR = 1536;

// --- shifts and rotates --------------------------------------------------------------------------

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
  return spec === "cb" ? c.fixed(RCX, 1).read() : spec === "1" ? c32(1) : c32Imm(c);
}
const c32Imm = (c: Context) => i32.and(c.immediate(1).read(), c32(0xff));

const narrow = (value: Expr, size: Size): Expr => (size === 8 ? value : i32.wrap(value));
const bit = (value: Expr, n: Expr | number): Expr =>
  i32.and(i32.wrap(i64.shr_u(value, typeof n === "number" ? c64(n) : n)), c32(1));

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
  else {
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
      i32.and(c.operands[2] === "cb" ? c.fixed(RCX, 1).read() : c32Imm(c), c32(size === 8 ? 63 : 31)),
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

// --- bits ------------------------------------------------------------------------------------------

/** BT, BTS, BTR, BTC. With a register index and a memory operand the index reaches beyond the operand. */
const bitTest =
  (change: "bt" | "bts" | "btr" | "btc"): Semantics =>
  (c) => {
    const { f, size } = c;
    const bits = size * 8;
    const o = ops(size);
    const index = f.let(c.src.read());
    const at = f.let(o.and(index, konst(size, bits - 1)));
    const mask = f.let(o.shl(konst(size, 1), at));
    let target: Operand = c.dst;
    if (c.mem && c.operands[1]![0] === "G") {
      const offset = i64.shl(
        i64.shr_s(sext64(index, size), c64(size === 8 ? 6 : size === 4 ? 5 : 4)),
        c64(Math.log2(size)),
      );
      const narrow = (v: Expr, is32: boolean): Expr => (is32 ? i64.and(v, c64(0xffff_ffffn)) : v);
      const ea = narrow(i64.add(c.effectiveAddress(), offset), c.variant.addr32);
      const base = c.segmentBase();
      const address = f.let(narrow(i64.add(ea, base), !c.variant.mode64));
      target = {
        read: () => c.load(address, size),
        write: (v) => c.store(address, size, v),
        modify: (m) => c.modify(address, size, m),
      };
    }
    const cf = f.local(I32);
    const test = (v: Expr) => {
      const hit = o.ne(o.and(v, mask), konst(size, 0));
      f.set(cf, hit);
    };
    if (change === "bt") test(target.read());
    else {
      target.modify((v) => {
        test(v);
        return change === "bts"
          ? o.or(v, mask)
          : change === "btr"
            ? o.and(v, o.xor(mask, konst(size, -1)))
            : o.xor(v, mask);
      });
    }
    // ZF is unaffected; OF, SF, AF and PF are undefined and stay.
    c.setCarryOverflow(cf, c.f.let(c.overflow()));
  };

/** BSF and BSR: ZF set and the destination unchanged when the source is 0 (as all processors do). */
const bitScan =
  (forward: boolean): Semantics =>
  (c) => {
    const { f, size } = c;
    const o = ops(size);
    const v = f.let(c.src.read());
    const source = zext(v, size);
    c.setFlagZ(zext64(v, size));
    f.if(o.ne(source, konst(size, 0)), () => {
      const width = size === 8 ? 63 : 31;
      c.dst.write(forward ? o.ctz(source) : o.sub(konst(size, width), o.clz(source)));
    });
  };

const popcnt: Semantics = (c) => {
  const v = c.f.let(c.src.read());
  const r = c.f.let(ops(c.size).popcnt(zext(v, c.size)));
  c.dst.write(r);
  c.setFlagZ(zext64(v, c.size));
  c.setFlagS(c64(1)); // PF = SF = 0
  c.setFlagC(c64(0));
  c.setFlagA(c32(0));
};

const bswap: Semantics = (c) => {
  const v = c.f.let(c.dst.read());
  if (c.size === 8) {
    const swapHalf = (x: Expr) => {
      const t = c.f.let(x);
      return i64.or(
        i64.shl(i64.and(t, c64(0x00ff00ff00ff00ffn)), c64(8)),
        i64.and(i64.shr_u(t, c64(8)), c64(0x00ff00ff00ff00ffn)),
      );
    };
    const bytes = c.f.let(swapHalf(v));
    const words = i64.or(
      i64.shl(i64.and(bytes, c64(0x0000ffff0000ffffn)), c64(16)),
      i64.and(i64.shr_u(bytes, c64(16)), c64(0x0000ffff0000ffffn)),
    );
    c.dst.write(i64.rotl(words, c64(32)));
  } else if (c.size === 4) {
    c.dst.write(
      i32.or(
        i32.and(i32.rotl(v, c32(8)), c32(0x00ff00ff)),
        i32.and(i32.rotl(v, c32(24)), c32(0xff00ff00 | 0)),
      ),
    );
  } else c.dst.write(c32(0)); // undefined for 16 bits; processors clear the register
};

// --- the rest --------------------------------------------------------------------------------------

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

export const integerInstructions = (): Insn[] => [
  ...arithmetic(),
  ...hints(),
  ...insn("inc", "fe /0", "Eb", incDec(1), { lock: true }),
  ...insn("inc", "ff /0", "Ev", incDec(1), { lock: true }),
  ...insn("dec", "fe /1", "Eb", incDec(-1), { lock: true }),
  ...insn("dec", "ff /1", "Ev", incDec(-1), { lock: true }),
  ...insn("inc", "40+r", "Zv", incDec(1), { only: "legacy" }),
  ...insn("dec", "48+r", "Zv", incDec(-1), { only: "legacy" }),
  ...insn("not", "f6 /2", "Eb", not, { lock: true }),
  ...insn("not", "f7 /2", "Ev", not, { lock: true }),
  ...insn("neg", "f6 /3", "Eb", neg, { lock: true }),
  ...insn("neg", "f7 /3", "Ev", neg, { lock: true }),
  ...insn("mul", "f6 /4", "Eb", multiply(false)),
  ...insn("mul", "f7 /4", "Ev", multiply(false)),
  ...insn("imul", "f6 /5", "Eb", multiply(true)),
  ...insn("imul", "f7 /5", "Ev", multiply(true)),
  ...insn("imul", "0f af /r", "Gv,Ev", imul2),
  ...insn("imul", "69 /r", "Gv,Ev,Iz", imul3),
  ...insn("imul", "6b /r", "Gv,Ev,Ib", imul3),
  ...insn("div", "f6 /6", "Eb", divide(false)),
  ...insn("div", "f7 /6", "Ev", divide(false)),
  ...insn("idiv", "f6 /7", "Eb", divide(true)),
  ...insn("idiv", "f7 /7", "Ev", divide(true)),
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
  ...insn("xadd", "0f c0 /r", "Eb,Gb", xadd, { lock: true }),
  ...insn("xadd", "0f c1 /r", "Ev,Gv", xadd, { lock: true }),
  ...insn("cmpxchg", "0f b0 /r", "Eb,Gb", cmpxchg, { lock: true }),
  ...insn("cmpxchg", "0f b1 /r", "Ev,Gv", cmpxchg, { lock: true }),
  ...insn("cmpxchg8b/16b", "0f c7 /1", "My", cmpxchgPair, { lock: true }),
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
  ...(["bt", "bts", "btr", "btc"] as const).flatMap((name, n) => [
    ...insn(
      name,
      `0f ${(0xa3 + 8 * n).toString(16)} /r`,
      "Ev,Gv",
      bitTest(name),
      name === "bt" ? {} : { lock: true },
    ),
    ...insn(name, `0f ba /${4 + n}`, "Ev,Ib", bitTest(name), name === "bt" ? {} : { lock: true }),
  ]),
  ...insn("bsf", "0f bc /r", "Gv,Ev", bitScan(true)),
  ...insn("bsr", "0f bd /r", "Gv,Ev", bitScan(false)),
  ...insn("popcnt", "f3 0f b8 /r", "Gv,Ev", popcnt),
  ...insn("bswap", "0f c8+r", "Zv", bswap),
  ...insn("cbw/cwde/cdqe", "98", "", convertA, { size: "v" }),
  ...insn("cwd/cdq/cqo", "99", "", convertD, { size: "v" }),
  ...insn("lea", "8d /r", "Gv,Mv", lea),
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
  ...insn("xlatb", "d7", "", xlat, { size: "b" }),
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
