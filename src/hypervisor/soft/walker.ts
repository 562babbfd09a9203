/**
 * The page walk in WebAssembly: what nearly every TLB miss needs. It gives up, changing nothing, whenever
 * something is out of the ordinary (a fault, a bit to set in an entry, an address outside RAM), and mmu.ts
 * does the same walk in full.
 */
import { CR0_BITS, CR4_BITS, EFER_BITS, PTE, PTE_LARGE_RESERVED } from "./bits.ts";
import { LOCKED, PROBE, READ } from "./context.ts";
import {
  CODE_LINES,
  CPL,
  CR0,
  CR3,
  CR4,
  EFER,
  GUEST_BASE,
  LARGE_SLOTS,
  RAM_SIZE,
  TLB_BYTES,
  TLB_ENTRIES,
  TLB_LARGE,
  TLB_LISTED,
  TLB_LOG,
  TLB_LOG_COUNT,
  TLB_MISSES,
  TLB_SUPERVISOR,
  TLB_USER,
  XTLB_ENTRIES,
  XTLB_SUPERVISOR,
  XTLB_USER,
} from "./layout.ts";
import { zeroAddress } from "./values.ts";
import { I32, I64 } from "./wasm/encoding.ts";
import { c32, c64, type Expr, i32, i64, select } from "./wasm/expr.ts";
import type { Func, FuncRef } from "./wasm/func.ts";
import type { ModuleBuilder } from "./wasm/module.ts";

const { P, RW, US, A, D, PS, G } = PTE;
/** Bits 32 to 51: an address above 4 GiB or a reserved bit, which RAM never has. */
const HIGH = 0x000f_ffff_0000_0000n;
const XD = 1n << 63n;

/** Access of a walk. */
const DATA_READ = 0;
const DATA_WRITE = 1;
const FETCH = 2;

/** Result of a walk besides the page address, in its low bits; 0: it gave up. */
const FOUND = 1;
const GLOBAL = 2;
const LEVEL_SHIFT = 2;

const isUser = (): Expr => i32.load(zeroAddress, CPL);

/** Address of the execute TLB's entry for the low word of a linear address, at the current privilege. */
export const executeEntry = (low: Expr): Expr =>
  i32.add(
    i32.and(i32.shr_u(low, c32(8)), c32((XTLB_ENTRIES - 1) << 4)),
    select(isUser(), c32(XTLB_USER), c32(XTLB_SUPERVISOR)),
  );

/** walk(low, high, access) -> physical page | FOUND | GLOBAL | level << 2, or 0. */
function buildWalk(m: ModuleBuilder): Func {
  const f = m.func("walk", [I32, I32, I32], [I32]);
  const [low, high, access] = [f.param(0), f.param(1), f.param(2)];
  const giveUpIf = (cond: Expr) => f.ifRarely(cond, () => f.return(c32(0)));
  giveUpIf(i32.ge_s(i32.load(zeroAddress, CR0), c32(0)));
  giveUpIf(i32.ne(i32.shr_s(i32.shl(high, c32(16)), c32(16)), high));
  giveUpIf(i32.load(zeroAddress, CR3 + 4));
  const table = f.local(I32);
  f.set(table, i32.and(i32.load(zeroAddress, CR3), c32(~0xfff)));
  const rights = f.local(I32);
  f.set(rights, c32(RW | US));
  const denied = f.local(I64);
  f.set(denied, c64(0));
  const entry = f.local(I64);
  const word = f.local(I32);
  const leaf = (level: 0 | 1 | 2) => {
    if (level > 0) giveUpIf(i32.and(word, c32(PTE_LARGE_RESERVED[level as 1 | 2])));
    const user = f.let(isUser());
    giveUpIf(i32.and(user, i32.eqz(i32.and(rights, c32(US)))));
    const writes = i32.eq(access, c32(DATA_WRITE));
    f.if(writes, () => {
      const wp = i32.and(i32.load(zeroAddress, CR0), c32(CR0_BITS.WP));
      giveUpIf(i32.and(i32.eqz(i32.and(rights, c32(RW))), i32.ne(i32.or(user, wp), c32(0))));
    });
    f.if(i32.eq(access, c32(FETCH)), () => giveUpIf(i64.ne(i64.and(denied, c64(XD)), c64(0))));
    // Accessed and dirty bits still to be set are the other walk's business.
    const want = f.let(select(i32.eq(access, c32(DATA_WRITE)), c32(A | D), c32(A)));
    giveUpIf(i32.ne(i32.and(word, want), want));
    const mask = level === 0 ? 0xfff : level === 1 ? 0x1f_ffff : 0x3fff_ffff;
    const page = f.let(i32.or(i32.and(word, c32(~mask & ~0xfff)), i32.and(low, c32(mask & ~0xfff))));
    giveUpIf(i32.ge_u(page, i32.load(zeroAddress, RAM_SIZE)));
    const global = i32.and(
      i32.ne(i32.and(word, c32(G)), c32(0)),
      i32.ne(i32.and(i32.load(zeroAddress, CR4), c32(CR4_BITS.PGE)), c32(0)),
    );
    f.return(i32.or(i32.or(page, c32(FOUND | (level << LEVEL_SHIFT))), i32.shl(global, c32(1))));
  };
  for (let level = 3; level >= 0; level--) {
    const index =
      level === 3
        ? i32.and(i32.shr_u(high, c32(7)), c32(0x1ff))
        : level === 2
          ? i32.or(i32.shl(i32.and(high, c32(0x7f)), c32(2)), i32.shr_u(low, c32(30)))
          : level === 1
            ? i32.and(i32.shr_u(low, c32(21)), c32(0x1ff))
            : i32.and(i32.shr_u(low, c32(12)), c32(0x1ff));
    giveUpIf(i32.ge_u(table, i32.load(zeroAddress, RAM_SIZE)));
    f.set(entry, i64.load(i32.add(table, i32.shl(index, c32(3))), GUEST_BASE));
    f.set(word, i32.wrap(entry));
    giveUpIf(i32.eqz(i32.and(word, c32(P))));
    giveUpIf(i64.ne(i64.and(entry, c64(HIGH)), c64(0)));
    giveUpIf(
      i32.and(i64.lt_s(entry, c64(0)), i32.eqz(i32.and(i32.load(zeroAddress, EFER), c32(EFER_BITS.NXE)))),
    );
    f.set(rights, i32.and(rights, word));
    f.set(denied, i64.or(denied, entry));
    if (level === 0) leaf(0);
    else {
      if (level < 3) f.if(i32.and(word, c32(PS)), () => leaf(level as 1 | 2));
      else giveUpIf(i32.and(word, c32(PS)));
      giveUpIf(i32.eqz(i32.and(word, c32(A))));
      f.set(table, i32.and(word, c32(~0xfff)));
    }
  }
  f.unreachable();
  return f;
}

/** fill(entry address, low, high, third word, walk result): writes a TLB entry and what flushes must know of it. */
function buildFill(m: ModuleBuilder): Func {
  const f = m.func("fill", [I32, I32, I32, I32, I32], []);
  const [at, low, high, word, found] = [f.param(0), f.param(1), f.param(2), f.param(3), f.param(4)];
  f.store(4, at, 0, i32.and(low, c32(~0xfff)));
  f.store(4, at, 4, high);
  f.store(4, at, 8, word);
  const level = f.let(i32.and(i32.shr_u(found, c32(LEVEL_SHIFT)), c32(3)));
  f.if(level, () => {
    const region = select(
      i32.eq(level, c32(1)),
      i32.or(i32.shl(high, c32(11)), i32.shr_u(low, c32(21))),
      i32.or(i32.shl(high, c32(2)), i32.shr_u(low, c32(30))),
    );
    const slot = f.let(
      i32.and(i32.shr_u(i32.mul(region, c32(0x9e37_79b1 | 0)), c32(18)), c32(LARGE_SLOTS - 1)),
    );
    f.store(1, slot, TLB_LARGE, i32.or(i32.load8_u(slot, TLB_LARGE), level));
  });
  f.if(i32.and(found, c32(GLOBAL)), () => f.return());
  const number = f.let(i32.shr_u(i32.sub(at, c32(TLB_SUPERVISOR)), c32(4)));
  f.if(i32.load8_u(number, TLB_LISTED), () => f.return());
  f.store(1, number, TLB_LISTED, c32(1));
  const count = f.let(i32.load(zeroAddress, TLB_LOG_COUNT));
  f.store(4, i32.shl(count, c32(2)), TLB_LOG, i32.shr_u(at, c32(2)));
  f.store(4, zeroAddress, TLB_LOG_COUNT, i32.add(count, c32(1)));
  return f;
}

export interface Walker {
  /** As Core.slow. */
  readonly miss: FuncRef;
  /** (low, high) -> 1 if the execute TLB has the page now, 0 if the full walk must be made. */
  readonly fetch: FuncRef;
}

/** Adds the walker to the interpreter's module; `slow` is the access path in TypeScript. */
export function buildWalker(m: ModuleBuilder, slow: FuncRef): Walker {
  const walk = buildWalk(m);
  const fill = buildFill(m);
  const pageOf = (found: Expr) => i32.and(found, c32(~0xfff));
  const count = (f: Func) =>
    f.store(8, zeroAddress, TLB_MISSES, i64.add(i64.load(zeroAddress, TLB_MISSES), c64(1)));

  const miss = m.func("miss", [I32, I32, I32], [I32]);
  {
    const f = miss;
    const [low, high, descriptor] = [f.param(0), f.param(1), f.param(2)];
    count(f);
    const full = () => f.returnCall(slow, low, high, descriptor);
    const size = i32.and(descriptor, c32(0xff));
    f.ifRarely(i32.gt_u(i32.add(i32.and(low, c32(0xfff)), size), c32(4096)), full);
    f.ifRarely(i32.and(descriptor, c32(LOCKED << 8)), full);
    const kind = f.let(i32.and(i32.shr_u(descriptor, c32(8)), c32(0x3f)));
    const reads = i32.or(i32.eq(kind, c32(READ)), i32.eq(kind, c32(PROBE)));
    const writes = f.let(i32.eqz(reads));
    const found = f.let(f.call(walk.ref, low, high, select(writes, c32(DATA_WRITE), c32(DATA_READ))));
    f.ifRarely(i32.eqz(found), full);
    const page = f.let(pageOf(found));
    // A page with decoded code takes no write entry: each write there is looked at.
    f.if(writes, () => {
      const lines = i64.load(i32.shr_u(page, c32(9)), CODE_LINES);
      f.ifRarely(i64.ne(lines, c64(0)), full);
    });
    const entry = f.let(
      i32.add(
        i32.and(i32.shr_u(low, c32(8)), c32((TLB_ENTRIES - 1) << 4)),
        select(isUser(), c32(TLB_USER), c32(TLB_SUPERVISOR)),
      ),
    );
    const host = f.let(i32.add(page, c32(GUEST_BASE)));
    const addend = f.let(i32.sub(host, i32.and(low, c32(~0xfff))));
    f.if(writes, () => f.call(fill.ref, i32.add(entry, c32(TLB_BYTES)), low, high, addend, found));
    f.call(fill.ref, entry, low, high, addend, found);
    f.return(i32.or(host, i32.and(low, c32(0xfff))));
    f.unreachable();
  }

  const fetch = m.func("fetch", [I32, I32], [I32]);
  {
    const f = fetch;
    const [low, high] = [f.param(0), f.param(1)];
    count(f);
    const found = f.let(f.call(walk.ref, low, high, c32(FETCH)));
    f.if(i32.eqz(found), () => f.return(c32(0)));
    f.call(fill.ref, executeEntry(low), low, high, pageOf(found), found);
    f.return(c32(1));
    f.unreachable();
  }
  return { miss: miss.ref, fetch: fetch.ref };
}
