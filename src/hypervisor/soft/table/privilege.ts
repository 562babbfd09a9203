/**
 * Changes of privilege that a kernel makes all the time, in their ordinary cases: SYSCALL, SYSRET, IRETQ, SWAPGS. All
 * other cases, and whatever faults, are the TypeScript helpers' (system-segments.ts, exceptions.ts).
 */
import { EFER_BITS } from "../bits.ts";
import type { Context } from "../context.ts";
import { ATTR, FLAT_CODE64, FLAT_DATA } from "../cpu.ts";
import { HELPER } from "../helpers.ts";
import {
  ATTENTION,
  CPL,
  CS,
  DS,
  EFER,
  ES,
  FLAGS_SYSTEM,
  FS,
  GDTR_BASE,
  GDTR_LIMIT,
  GS,
  IRQ_WAITING,
  KERNEL_GS_BASE,
  LSTAR,
  MODE,
  MODE_TAG,
  MODE_USER,
  R11,
  RCX,
  REG,
  RETURN_BARRIER,
  RETURN_DEPTH,
  RETURN_LIMIT,
  RETURN_STACK,
  RSP,
  SEG_ATTR,
  SEG_LIMIT,
  SEG_SELECTOR,
  SFMASK,
  SS,
  STAR,
  TLB_CURRENT,
  TLB_SUPERVISOR,
  TLB_USER,
} from "../layout.ts";
import { RFLAGS, RFLAGS_SYSRET } from "../state.ts";
import { zeroAddress } from "../values.ts";
import { c32, c64, type Expr, i32, i64 } from "../wasm/expr.ts";
import { lowFlags, setLowFlags } from "./flags.ts";
import { type Insn, insn, type Semantics } from "./insn.ts";

/** Flags that IRETQ loads at privilege 0, RF aside: that would hold off instruction breakpoints, and there are none. */
const RETURNED_FLAGS =
  RFLAGS.CF |
  RFLAGS.PF |
  RFLAGS.AF |
  RFLAGS.ZF |
  RFLAGS.SF |
  RFLAGS.TF |
  RFLAGS.IF |
  RFLAGS.DF |
  RFLAGS.OF |
  RFLAGS.IOPL |
  RFLAGS.NT |
  RFLAGS.AC |
  RFLAGS.ID;
const ARITHMETIC = RFLAGS.CF | RFLAGS.PF | RFLAGS.AF | RFLAGS.ZF | RFLAGS.SF | RFLAGS.OF;

/**
 * Upper halves of the GDT's descriptors for flat user segments, with base 0 and limit 4 GiB, as bits that count and
 * their values (SDM vol. 3A, figure 3-8): non-conforming 64-bit code, and writable data that grows upwards. The
 * accessed bit does not count, nor do readable on code, and L, D/B on data.
 */
const FLAT_LOW = 0x0000_ffff;
const USER_CODE = { bits: 0xffef_fcff, values: 0x00af_f800 };
const USER_DATA = { bits: 0xff8f_feff, values: 0x008f_f200 };

const word = (offset: number): Expr => i32.load(zeroAddress, offset);
const noneOf = (value: Expr, bits: number): Expr => i32.eqz(i32.and(value, c32(bits)));
const canonical = (rip: Expr): Expr => i64.eq(i64.shr_s(i64.shl(rip, c64(16)), c64(16)), rip);

/** RFLAGS as they are. */
const rflags = (c: Context): Expr =>
  c.f.let(i32.or(i32.or(lowFlags(c), i32.shl(c.overflow(), c32(11))), word(FLAGS_SYSTEM)));

/** Loads RFLAGS, TF staying clear. A waiting interrupt comes before the next instruction if IF lets it in. */
function loadFlags(c: Context, value: Expr): void {
  const { f } = c;
  const flags = f.let(value);
  setLowFlags(c, flags, i32.and(i32.shr_u(flags, c32(11)), c32(1)));
  f.store(4, zeroAddress, FLAGS_SYSTEM, i32.or(i32.and(flags, c32(~ARITHMETIC)), c32(2)));
  const waiting = i32.and(word(IRQ_WAITING), i32.shr_u(flags, c32(9)));
  f.ifRarely(i32.and(waiting, c32(1)), () => f.store(4, zeroAddress, ATTENTION, c32(-1)));
}

/** Loads a segment register with a flat segment. */
function loadFlat(c: Context, segment: number, selector: Expr, attributes: Expr): void {
  const { f } = c;
  f.store(4, zeroAddress, SEG_SELECTOR + 4 * segment, selector);
  f.store(4, zeroAddress, SEG_ATTR + 4 * segment, attributes);
  f.store(4, zeroAddress, SEG_LIMIT + 4 * segment, c32(-1));
  f.store(8, zeroAddress, REG.segBase + 8 * segment, c64(0));
}

/** From 64-bit code at privilege 3 to such at 0, or back; then goes on at `rip`. See updateMode in cpu.ts. */
function goOn(c: Context, user: boolean, rip: Expr): void {
  const { f } = c;
  const mode = (value: Expr, bit: number) => (user ? i32.or(value, c32(bit)) : i32.and(value, c32(~bit)));
  f.store(4, zeroAddress, CPL, c32(user ? 3 : 0));
  f.store(4, zeroAddress, TLB_CURRENT, c32(user ? TLB_USER : TLB_SUPERVISOR));
  f.store(4, zeroAddress, MODE, mode(word(MODE), MODE_USER));
  f.store(4, zeroAddress, MODE_TAG + 4, mode(word(MODE_TAG + 4), MODE_USER << 16));
  holdBackReturns(c);
  c.jumpTo(rip);
}

/**
 * Keeps RETs at the new privilege from returning to compiled calls that wait at the old one: a barrier goes onto the
 * return stack, or the one of the change the other way comes off.
 */
function holdBackReturns(c: Context): void {
  const { f } = c;
  const depth = f.let(word(RETURN_DEPTH));
  f.if(depth, () => {
    const top = f.let(i32.shl(depth, c32(3)));
    const setDepth = (by: number) => f.store(4, zeroAddress, RETURN_DEPTH, i32.add(depth, c32(by)));
    f.if(
      i64.eq(i64.load(top, RETURN_STACK - 8), c64(RETURN_BARRIER)),
      () => setDepth(-1),
      () =>
        f.if(
          i32.lt_u(depth, c32(RETURN_LIMIT)),
          () => {
            f.store(8, top, RETURN_STACK, c64(RETURN_BARRIER));
            setDepth(1);
          },
          // No room: by way of the run loop, whom no calls wait for.
          () => f.store(4, zeroAddress, ATTENTION, c32(-1)),
        ),
    );
  });
}

const syscall: Semantics = (c) => {
  const { f } = c;
  if (c.variant.mode64) {
    const ordinary = i32.and(
      i32.and(word(CPL), i32.and(word(EFER), c32(EFER_BITS.SCE))),
      noneOf(word(FLAGS_SYSTEM), RFLAGS.TF),
    );
    f.if(ordinary, () => {
      const flags = rflags(c);
      c.setGpr(RCX, c.nextRip());
      c.setGpr(R11, i64.extend_u(i32.and(flags, c32(~RFLAGS.RF))));
      loadFlags(c, i32.and(flags, i32.xor(i32.or(word(SFMASK), c32(RFLAGS.RF)), c32(-1))));
      const selector = f.let(i32.and(i32.load16_u(zeroAddress, STAR + 4), c32(0xfffc)));
      loadFlat(c, CS, selector, c32(FLAT_CODE64));
      loadFlat(c, SS, i32.and(i32.add(selector, c32(8)), c32(0xfffc)), c32(FLAT_DATA));
      goOn(c, false, i64.load(zeroAddress, LSTAR));
    });
  }
  c.endWithHelper(HELPER.syscall);
};

const sysret: Semantics = (c) => {
  const { f } = c;
  if (c.variant.mode64 && c.size === 8) {
    const rip = f.let(c.gpr(RCX));
    const flags = f.let(i32.wrap(c.gpr(R11)));
    const ordinary = i32.and(
      i32.and(i32.eqz(word(CPL)), i32.ne(i32.and(word(EFER), c32(EFER_BITS.SCE)), c32(0))),
      i32.and(noneOf(i32.or(word(FLAGS_SYSTEM), flags), RFLAGS.TF), canonical(rip)),
    );
    f.if(ordinary, () => {
      loadFlags(c, i32.and(flags, c32(RFLAGS_SYSRET)));
      const star = f.let(i32.load16_u(zeroAddress, STAR + 6));
      const selector = (above: number) => i32.or(i32.and(i32.add(star, c32(above)), c32(0xfffc)), c32(3));
      loadFlat(c, CS, selector(16), c32(FLAT_CODE64 | ATTR.DPL));
      loadFlat(c, SS, selector(8), c32(FLAT_DATA | ATTR.DPL));
      goOn(c, true, rip);
    });
  }
  c.endWithHelper(HELPER.sysret);
};

/** In 64-bit mode at privilege 0, neither from a nested task nor into single-stepping. */
const iret: Semantics = (c) => {
  const { f } = c;
  if (c.variant.mode64 && c.size === 8) {
    const ordinary = i32.and(i32.eqz(word(CPL)), noneOf(word(FLAGS_SYSTEM), RFLAGS.NT | RFLAGS.TF));
    f.if(ordinary, () => {
      const rip = c.peek(8);
      const selector = f.let(i32.and(i32.wrap(c.peek(8, 8)), c32(0xffff)));
      const flags = f.let(i32.wrap(c.peek(8, 16)));
      f.if(i32.and(canonical(rip), noneOf(flags, RFLAGS.TF)), () => {
        f.if(i32.eq(selector, word(SEG_SELECTOR + 4 * CS)), () => iretSame(c, rip, flags));
        f.if(i32.eq(i32.and(selector, c32(7)), c32(3)), () => iretToUser(c, rip, selector, flags));
      });
    });
  }
  c.endWithHelper(HELPER.iret);
};

const returnFlags = (c: Context, flags: Expr): void =>
  loadFlags(
    c,
    i32.or(
      i32.and(word(FLAGS_SYSTEM), c32(~(RETURNED_FLAGS | RFLAGS.RF))),
      i32.and(flags, c32(RETURNED_FLAGS)),
    ),
  );

/** To the segments that are loaded: how a kernel returns to itself, and how Linux serialises after patching code. */
function iretSame(c: Context, rip: Expr, flags: Expr): void {
  const { f } = c;
  const rsp = c.peek(8, 24);
  const stack = i32.and(i32.wrap(c.peek(8, 32)), c32(0xffff));
  f.if(i32.eq(stack, word(SEG_SELECTOR + 4 * SS)), () => {
    c.setGpr(RSP, rsp);
    returnFlags(c, flags);
    c.jumpTo(rip);
  });
}

/** To privilege 3 with flat segments, when no data segment register holds what privilege 3 may not have. */
function iretToUser(c: Context, rip: Expr, selector: Expr, flags: Expr): void {
  const { f } = c;
  const isThere = (s: Expr) =>
    i32.and(
      i32.ne(i32.and(s, c32(0xfff8)), c32(0)),
      i32.le_u(i32.add(i32.and(s, c32(0xfff8)), c32(7)), word(GDTR_LIMIT)),
    );
  const descriptor = (s: Expr) =>
    c.load(f.let(i64.add(i64.load(zeroAddress, GDTR_BASE), i64.extend_u(i32.and(s, c32(0xfff8))))), 8);
  const high = (d: Expr) => f.let(i32.wrap(i64.shr_u(d, c64(32))));
  const isFlat = (d: Expr, dHigh: Expr, { bits, values }: typeof USER_CODE) =>
    i32.and(i32.eq(i32.wrap(d), c32(FLAT_LOW)), i32.eq(i32.and(dHigh, c32(bits | 0)), c32(values)));
  const attributes = (dHigh: Expr) => i32.and(i32.shr_u(dHigh, c32(8)), c32(0xf0ff));
  /** 1 if a register holds a segment of privilege 0 to 2; at times also if that is a conforming one, which may stay. */
  const privileged = (segment: number) => {
    const attr = i32.and(word(SEG_ATTR + 4 * segment), c32(ATTR.S | ATTR.DPL));
    return i32.lt_u(i32.sub(attr, c32(ATTR.S)), c32(ATTR.DPL));
  };
  f.if(isThere(selector), () => {
    const code = descriptor(selector);
    const codeHigh = high(code);
    f.if(isFlat(code, codeHigh, USER_CODE), () => {
      const rsp = c.peek(8, 24);
      const stackSelector = f.let(i32.and(i32.wrap(c.peek(8, 32)), c32(0xffff)));
      f.if(i32.and(i32.eq(i32.and(stackSelector, c32(7)), c32(3)), isThere(stackSelector)), () => {
        const data = descriptor(stackSelector);
        const dataHigh = high(data);
        const dropped = [ES, DS, FS, GS].map(privileged).reduce((a, b) => i32.or(a, b));
        f.if(i32.and(isFlat(data, dataHigh, USER_DATA), i32.eqz(dropped)), () => {
          loadFlat(c, CS, selector, attributes(codeHigh));
          loadFlat(c, SS, stackSelector, attributes(dataHigh));
          c.setGpr(RSP, rsp);
          returnFlags(c, flags);
          goOn(c, true, rip);
        });
      });
    });
  });
}

const swapgs: Semantics = (c) => {
  const { f } = c;
  f.ifRarely(word(CPL), () => c.raise(13, 0));
  const at = REG.segBase + 8 * GS;
  const old = f.let(i64.load(zeroAddress, at));
  f.store(8, zeroAddress, at, i64.load(zeroAddress, KERNEL_GS_BASE));
  f.store(8, zeroAddress, KERNEL_GS_BASE, old);
};

const end = { end: "indirect", system: true } as const;

export const privilegeInstructions = (): Insn[] => [
  ...insn("syscall", "0f 05", "", syscall, end),
  ...insn("sysret", "0f 07", "", sysret, { ...end, size: "y" }),
  ...insn("iret", "cf", "", iret, { ...end, size: "v" }),
  ...insn("swapgs", "0f 01 f8", "", swapgs, { system: true, only: "64" }),
];
