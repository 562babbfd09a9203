/**
 * The fixed part of the interpreter module: entering it, finding the next block, and the pseudo-instructions
 * that end or guard blocks. Handlers of real instructions are added by interpreter.ts.
 */
import { Context, PLAIN, running } from "./context.ts";
import {
  BLOCK_ENTRIES,
  BLOCK_PROBES,
  BLOCK_TABLE,
  CURRENT,
  EXIT,
  JUMP_CACHE,
  JUMP_ENTRIES,
  MODE,
  MODE_TAG,
  RECORD,
  REG,
  RIP,
} from "./layout.ts";
import { incDecFlags } from "./table/arithmetic.ts";
import { imulFlags } from "./table/multiply.ts";
import { shiftFlags } from "./table/shift.ts";
import { ops, type Size, zeroAddress, zext64 } from "./values.ts";
import { buildWalker, executeEntry } from "./walker.ts";
import { F64, I32, I64 } from "./wasm/encoding.ts";
import { c32, c64, type Expr, i32, i64, select } from "./wasm/expr.ts";
import type { Func, FuncRef, Label } from "./wasm/func.ts";
import type { ModuleBuilder } from "./wasm/module.ts";

/** What handlers refer to. */
export interface Core {
  /** Signature index of a handler: (record) -> EXIT code. */
  readonly handlerType: number;
  /** (helper number and variant, record) -> 0 or EXIT code. */
  readonly helper: FuncRef;
  /** (linear low, linear high, size | kind << 8) -> host address, BOUNCE, or 0 after a fault. */
  readonly slow: FuncRef;
  /** (linear low, linear high, size): performs the write whose data lie in BOUNCE. */
  readonly commit: FuncRef;
  /** (linear low, linear high) -> 1 if the execute TLB has the page now, 0 if the full walk must be made. */
  readonly fetch: FuncRef;
  /** () -> host time in ms, as performance.now() has it. */
  readonly now: FuncRef;
  /** (RIP) -> EXIT code: goes on at RIP. */
  readonly dispatch: FuncRef;
  /** (record, taken) -> EXIT code: goes on at the record's direct target or at the next instruction. */
  readonly direct: FuncRef;
  /** (kind, a, b): stores the flags of an operation, see FLAG_OP. */
  readonly flags: FuncRef;
}

/** Table slots of the pseudo-instructions. */
export interface PseudoSlots {
  /** Ends a block that has no branch: goes on at `imm`, relative to vbase. */
  readonly fallthrough: number;
  /** Guards an instruction that crosses into a page which must still be the physical page in `imm`. */
  readonly crossing: number;
  /** A record of a dropped block. */
  readonly stale: number;
  /** Starts a block and counts its executions. */
  readonly count: number;
  /** Starts a block that is not to be compiled. */
  readonly skip: number;
}

/** Hash of a physical address in the block table; blocks.ts computes the same. */
function blockHash(address: Expr): Expr {
  return i32.and(
    i32.xor(i32.mul(address, c32(0x9e3779b1 | 0)), i32.shr_u(address, c32(12))),
    c32(BLOCK_ENTRIES - 1),
  );
}

function runRecord(f: Func, core: Core, record: Expr): void {
  f.returnCallIndirect(core.handlerType, i32.load(record), record);
}

export function buildCore(m: ModuleBuilder): { core: Core; pseudo: PseudoSlots } {
  const handlerType = m.signature([I32], [I32]);
  const helper = m.import("helper", [I32, I32], [I32]);
  const slowPath = m.import("slow", [I32, I32, I32], [I32]);
  const commit = m.import("commit", [I32, I32, I32], []);
  const now = m.import("now", [], [F64]);
  const dispatch = m.func("dispatch", [I64], [I32]);
  const direct = m.func("direct", [I32, I32], [I32]);
  const walker = buildWalker(m, slowPath);
  const slow = walker.miss;
  const flags = m.func("flags", [I32, I64, I64], []);
  const core: Core = {
    handlerType,
    helper,
    slow,
    commit,
    now,
    fetch: walker.fetch,
    dispatch: dispatch.ref,
    direct: direct.ref,
    flags: flags.ref,
  };
  buildFlags(flags, core);
  m.export("flags", flags);

  const pseudo = buildPseudo(m, core);
  const find = buildFind(m, pseudo.stale, walker.fetch);
  buildDispatch(dispatch, core, find);
  buildDirect(direct, core, find, pseudo.crossing);
  m.export("dispatch", dispatch);
  m.export("direct", direct);
  m.export("find", find);
  m.exportRef("miss", slow);
  m.exportRef("fetch", walker.fetch);

  const enter = m.func("enter", [I32], [I32]);
  runRecord(enter, core, enter.param(0));
  enter.unreachable();
  m.export("enter", enter);

  return { core, pseudo };
}

/** find(rip) -> record of the block at RIP, or 0: execute TLB, then the block table. Never runs anything. */
function buildFind(m: ModuleBuilder, stale: number, fetch: FuncRef): Func {
  const f = m.func("find", [I64], [I32]);
  const rip = f.param(0);
  const entry = f.let(executeEntry(i32.wrap(rip)));
  f.ifRarely(i64.ne(i64.load(entry), i64.and(rip, c64(-4096))), () => {
    const there = f.call(fetch, i32.wrap(rip), i32.wrap(i64.shr_u(rip, c64(32))));
    f.ifRarely(i32.eqz(there), () => f.return(c32(0)));
  });
  const physical = f.let(i32.or(i32.load(entry, 8), i32.and(i32.wrap(rip), c32(4095))));
  const mode = f.let(i32.load(zeroAddress, MODE));
  const slot = f.local(I32);
  f.set(slot, blockHash(physical));
  const probes = f.local(I32);
  f.set(probes, c32(BLOCK_PROBES));
  f.loop((again) => {
    const at = f.let(i32.shl(slot, c32(4)));
    f.if(
      i32.and(i32.eq(i32.load(at, BLOCK_TABLE), physical), i32.eq(i32.load(at, BLOCK_TABLE + 4), mode)),
      () => {
        const record = f.let(i32.load(at, BLOCK_TABLE + 8));
        f.return(select(i32.eq(i32.load(record), c32(stale)), c32(0), record));
      },
    );
    f.set(slot, i32.and(i32.add(slot, c32(1)), c32(BLOCK_ENTRIES - 1)));
    f.set(probes, i32.sub(probes, c32(1)));
    f.brIf(again, probes);
  });
  f.return(c32(0));
  f.unreachable();
  return f;
}

/** What the jump cache has for a RIP. */
export interface JumpCacheEntry {
  readonly entry: Expr;
  /** The tag it has if it is that RIP's, and whether it is. */
  readonly tag: Expr;
  readonly hit: Expr;
  /** The block's record then. */
  readonly record: Expr;
}

export function jumpCacheEntry(f: Func, rip: Expr): JumpCacheEntry {
  const entry = f.let(
    i32.shl(i32.and(i32.wrap(i64.xor(rip, i64.shr_u(rip, c64(12)))), c32(JUMP_ENTRIES - 1)), c32(4)),
  );
  const tag = f.let(i64.xor(rip, i64.load(zeroAddress, MODE_TAG)));
  return {
    entry,
    tag,
    hit: i64.eq(i64.load(entry, JUMP_CACHE), tag),
    record: i32.load(entry, JUMP_CACHE + 8),
  };
}

function buildDispatch(f: Func, core: Core, find: Func): void {
  const rip = f.param(0);
  f.ifRarely(i32.eqz(running()), () => {
    f.store(8, zeroAddress, RIP, rip);
    f.return(c32(EXIT.attention));
  });
  const cached = jumpCacheEntry(f, rip);
  const { entry, tag } = cached;
  const record = f.local(I32);
  f.if(
    cached.hit,
    () => f.set(record, cached.record),
    () => {
      f.set(record, f.call(find.ref, rip));
      f.ifRarely(i32.eqz(record), () => {
        f.store(8, zeroAddress, RIP, rip);
        f.return(c32(EXIT.decode));
      });
      f.store(8, entry, JUMP_CACHE, tag);
      f.store(4, entry, JUMP_CACHE + 8, record);
    },
  );
  f.store(8, zeroAddress, REG.vbase, i64.and(rip, c64(-4096)));
  runRecord(f, core, record);
  f.unreachable();
}

function buildDirect(f: Func, core: Core, find: Func, crossing: number): void {
  const ip = f.param(0);
  const taken = f.param(1);
  const target = f.local(I64);
  f.if(
    taken,
    () => f.set(target, i64.load32_s(ip, RECORD.imm)),
    () => f.set(target, i64.add(i64.load16_u(ip, RECORD.offset), i64.load8_u(ip, RECORD.length))),
  );
  const linear = i64.add(i64.load(zeroAddress, REG.vbase), target);
  const rip = f.local(I64);
  f.set(rip, linear);
  f.if(i32.eqz(i32.and(i32.load(zeroAddress, MODE), c32(1))), () =>
    f.set(rip, i64.and(rip, c64(0xffff_ffffn))),
  );
  f.ifRarely(i64.ge_u(target, c64(4096)), () => f.returnCall(core.dispatch, rip));
  f.store(8, zeroAddress, RIP, rip);
  f.ifRarely(i32.eqz(running()), () => f.return(c32(EXIT.attention)));
  // Source and target share a page, virtual and physical: the link stays right whatever is mapped later.
  const record = f.let(f.call(find.ref, rip));
  f.ifRarely(i32.eqz(record), () => f.return(c32(EXIT.decode)));
  // All but a block that crosses into the next page: it may be dropped without this page's blocks.
  f.if(i32.ne(i32.load(record), c32(crossing)), () =>
    f.store(4, i32.add(ip, select(taken, c32(RECORD.taken), c32(RECORD.fallthrough))), 0, record),
  );
  runRecord(f, core, record);
  f.unreachable();
}

/** Operations whose flags compiled code computes only when somebody looks: kind = operation * 4 + log2(size). */
export const FLAG_OP = { add: 1, sub: 2, logic: 3, shl: 4, shr: 5, sar: 6, imul: 7, inc: 8, dec: 9 } as const;

/** Emits the flags of a pending operation: all follow from its operands. */
export function pendingFlags(c: Context, op: number, a: Expr, b: Expr, size: Size): void {
  const o = ops(size);
  switch (op) {
    case FLAG_OP.add:
      c.flagsAdd(a, b, c.f.let(o.add(a, b)), size);
      break;
    case FLAG_OP.sub:
      c.flagsSub(a, b, c.f.let(o.sub(a, b)), size);
      break;
    case FLAG_OP.logic:
      c.flagsLogic(a, size);
      break;
    case FLAG_OP.imul:
      imulFlags(c, a, b, size);
      break;
    case FLAG_OP.inc:
    case FLAG_OP.dec:
      incDecFlags(c, op === FLAG_OP.inc ? "inc" : "dec", a, b, size);
      break;
    default: {
      const name = op === FLAG_OP.shl ? "shl" : op === FLAG_OP.shr ? "shr" : "sar";
      shiftFlags(c, name, c.f.let(zext64(a, size)), zext64(b, size), size);
    }
  }
}

/** Stores FLAG_Z, FLAG_S, FLAG_C and FLAG_A for a pending operation. */
function buildFlags(f: Func, core: Core): void {
  const c = new Context(core, f, c32(0), PLAIN, []);
  const [kind, a, b] = [f.param(0), f.param(1), f.param(2)];
  // By kind, from the first one on.
  const cases = Object.values(FLAG_OP).flatMap((op) => ([1, 2, 4, 8] as const).map((size) => ({ op, size })));
  const labels: Label[] = [];
  const choose = (n: number): void => {
    if (n < 0) {
      f.brTable(i32.sub(kind, c32(FLAG_OP.add * 4)), labels);
      return;
    }
    f.block((label) => {
      labels[n] = label;
      choose(n - 1);
    });
    const { op, size } = cases[n]!;
    const at = (value: Expr) => (size === 8 ? value : i32.wrap(value));
    pendingFlags(c, op, at(a), at(b), size);
    f.return();
  };
  choose(cases.length - 1);
}

function buildPseudo(m: ModuleBuilder, core: Core): PseudoSlots {
  const handler = (name: string, body: (c: Context, f: Func) => void): number => {
    const f = m.func(name, [I32], [I32]);
    body(new Context(core, f, f.param(0), PLAIN, []), f);
    return m.slot(f);
  };
  const fallthrough = handler("fallthrough", (c) => c.jumpDirect(c32(1)));
  const crossing = handler("crossing", (c, f) => {
    const page = f.let(i64.add(i64.load(zeroAddress, REG.vbase), c64(4096)));
    const entry = f.let(executeEntry(i32.wrap(page)));
    f.ifRarely(
      i32.or(i64.ne(i64.load(entry), page), i32.ne(i32.load(entry, 8), i32.load(c.ip, RECORD.imm))),
      () => c.leave(EXIT.crossing),
    );
    c.next();
    f.unreachable();
  });
  const stale = handler("stale", (c, f) => {
    f.store(4, zeroAddress, CURRENT, c.ip);
    f.return(c32(EXIT.stale));
    f.unreachable();
  });
  const count = handler("count", (c, f) => {
    const left = f.let(i32.sub(i32.load(c.ip, RECORD.countdown), c32(1)));
    f.store(4, c.ip, RECORD.countdown, left);
    f.ifRarely(i32.le_s(left, c32(0)), () => c.leave(EXIT.hot));
    c.next();
    f.unreachable();
  });
  const skip = handler("skip", (c, f) => {
    c.next();
    f.unreachable();
  });
  return { fallthrough, crossing, stale, count, skip };
}
