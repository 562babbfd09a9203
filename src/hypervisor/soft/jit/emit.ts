/**
 * Writes a region as one WebAssembly function with structured control flow, from its dominator tree
 * (N. Ramsey, "Beyond Relooper", ICFP 2022): a block that retreating edges lead to opens a loop, a block
 * with several forward edges into it follows a block that the edges leave, all others are written in place.
 * The root of the tree is the dispatcher, a loop around everything that goes to the entry whose number it finds.
 */
import { PLAIN, running } from "../context.ts";
import { type Core, jumpCacheEntry } from "../core.ts";
import {
  CURRENT,
  RECORD,
  RECORD_BYTES,
  REG,
  REGION_CHECKED,
  TLB_EPOCH,
  TLB_SUPERVISOR,
  TLB_USER,
} from "../layout.ts";
import type { State } from "../state.ts";
import { zeroAddress } from "../values.ts";
import { executeEntry } from "../walker.ts";
import { I32 } from "../wasm/encoding.ts";
import { c32, c64, type Expr, i32, i64, type Local } from "../wasm/expr.ts";
import type { Func, Label } from "../wasm/func.ts";
import { flagsUnobserved, JitContext, type JitInsn } from "./context.ts";
import { dominates, type Region, type RegionBlock } from "./region.ts";
import { RegionState } from "./region-state.ts";

/** Fields of the counting record of an entry: its number, and the distance of its page from the region's first. */
export const ENTRY_NUMBER = RECORD.aux;
export const ENTRY_PAGE = RECORD.disp;

/** `slot`: where the function will be in the interpreter's table. */
export function emitRegion(f: Func, core: Core, state: State, region: Region, slot: number): void {
  new Emitter(f, core, state, region, slot).emit();
}

class Emitter {
  private readonly shared: RegionState;
  private readonly loops = new Map<RegionBlock, Label>();
  private readonly merges = new Map<RegionBlock, Label>();
  /** Number of the entry to go to. */
  private readonly next: Local;
  private dispatcher: Label | undefined;

  constructor(
    private readonly f: Func,
    private readonly core: Core,
    private readonly state: State,
    private readonly region: Region,
    private readonly slot: number,
  ) {
    this.shared = new RegionState(f, core, slot, region.user ? TLB_USER : TLB_SUPERVISOR);
    this.next = f.permanent(I32);
  }

  emit(): void {
    const { f, shared, core } = this;
    f.block((miss) => {
      shared.miss = miss;
      f.block((fault) => {
        shared.fault = fault;
        f.block((leave) => {
          shared.leave = leave;
          this.root();
          f.unreachable();
        });
        shared.writeRegisters();
        this.leave();
      });
      this.writeBack();
      f.store(4, zeroAddress, CURRENT, shared.exitRecord);
      f.return(shared.exitCode);
      f.unreachable();
    });
    this.writeBack();
    f.returnCallIndirect(core.handlerType, i32.load(shared.exitRecord), shared.exitRecord);
    f.unreachable();
    shared.finish((out) => this.prologue(out));
  }

  private writeBack(): void {
    const { f, shared } = this;
    shared.flags = { kind: "dynamic" };
    shared.writeFlags();
    shared.writeRegisters();
    f.store(8, zeroAddress, REG.vbase, shared.exitPage);
  }

  /** Goes to `target`, all else being written back: to compiled code straight away. */
  private leave(): void {
    const { f, shared, core } = this;
    const cached = jumpCacheEntry(f, shared.target);
    f.if(i32.and(cached.hit, running(shared.budget)), () => {
      f.store(8, zeroAddress, REG.vbase, i64.and(shared.target, c64(-4096)));
      const record = f.let(cached.record);
      f.returnCallIndirect(core.handlerType, i32.load(record), record);
    });
    f.returnCall(core.dispatch, shared.target);
    f.unreachable();
  }

  /** Finds out where the function has been entered, and makes sure that its pages are where they were. */
  private prologue(out: Func): void {
    const { shared, region, core } = this;
    const record = out.param(0);
    if (region.entries.length > 1) out.set(this.next, i32.load8_u(record, ENTRY_NUMBER));
    if (region.pages.size === 1) return;
    out.set(shared.vbase, i64.sub(shared.vbase, i64.load32_s(record, ENTRY_PAGE)));
    const checked = REGION_CHECKED + 16 * this.slot;
    const epoch = i32.load(zeroAddress, TLB_EPOCH);
    const unknown = i32.or(
      i64.ne(i64.load(zeroAddress, checked), shared.vbase),
      i32.ne(i32.load(zeroAddress, checked + 8), epoch),
    );
    out.ifRarely(unknown, () => {
      for (const [distance, physical] of region.pages) {
        const page = i64.add(shared.vbase, c64(distance));
        const low = i32.wrap(page);
        const entry = executeEntry(low);
        const moved = i32.or(i64.ne(i64.load(entry), page), i32.ne(i32.load(entry, 8), c32(physical)));
        out.if(moved, () => {
          out.perform(core.fetch, low, i32.wrap(i64.shr_u(page, c64(32))));
          out.if(moved, () => {
            const first = i32.add(record, c32(RECORD_BYTES));
            out.returnCallIndirect(core.handlerType, i32.load(record, RECORD_BYTES), first);
          });
        });
      }
      out.store(8, zeroAddress, checked, shared.vbase);
      out.store(4, zeroAddress, checked + 8, epoch);
    });
  }

  private root(): void {
    const { f, shared, region } = this;
    const [first, ...others] = region.entries;
    shared.flags = { kind: "stored" };
    if (others.length === 0) {
      this.tree(first!);
      return;
    }
    shared.setDynamic();
    const merges = region.blocks.filter((b) => b.dominator === undefined).reverse();
    f.loop((again) => {
      this.dispatcher = again;
      this.within(merges, () =>
        f.brTable(
          this.next,
          region.entries.map((b) => this.merges.get(b)!),
        ),
      );
    });
  }

  /** Writes a block and all it dominates. */
  private tree(block: RegionBlock): void {
    const { f, shared } = this;
    // Late merge points enclose earlier ones, so that all stay reachable by a branch outwards.
    const merges = block.dominated.filter((b) => b.forwardEdges > 1).reverse();
    const body = () => this.within(merges, () => this.body(block));
    if (!block.isLoop) {
      body();
      return;
    }
    this.enter(block);
    shared.flags = { kind: "dynamic" };
    f.loop((again) => {
      this.loops.set(block, again);
      body();
    });
  }

  /** Prepares the flags for the start of a block that several edges lead to. */
  private enter(block: RegionBlock): void {
    if (!flagsUnobserved(block.insns)) this.shared.setDynamic();
  }

  /** Writes `inner` so that it can go to each of the merge points, which follow. */
  private within(merges: RegionBlock[], inner: () => void): void {
    const { f, shared } = this;
    const [outer, ...rest] = merges;
    if (outer === undefined) {
      inner();
      return;
    }
    f.block((end) => {
      this.merges.set(outer, end);
      this.within(rest, inner);
    });
    this.merges.delete(outer);
    shared.flags = { kind: "dynamic" };
    this.tree(outer);
  }

  private body(block: RegionBlock): void {
    const { f, state } = this;
    for (const { record, insn, variant } of block.insns) {
      const mark = f.mark();
      const c = this.context(block, record, insn, variant);
      c.branch = (taken) => this.branch(block, taken, c);
      c.within = (rip) => this.goInside(rip);
      if (block.isCall && record === block.last) this.call(block, c);
      insn.semantics(c);
      f.releaseSince(mark);
    }
    const last = block.insns[block.insns.length - 1];
    if (last?.insn.end !== undefined) return;
    const c = this.context(block, block.last, FALL, last?.variant ?? PLAIN);
    c.charge();
    this.go(block, block.page + state.get(block.last + RECORD.imm), c);
    f.unreachable();
  }

  private context(block: RegionBlock, record: number, insn: JitInsn, variant: typeof PLAIN): JitContext {
    return new JitContext(
      this.shared,
      this.state,
      record,
      block.page,
      this.region.pages.size > 1,
      insn,
      variant,
    );
  }

  /** Says how the call at the end of a block is made. */
  private call(block: RegionBlock, c: JitContext): void {
    if (block.inner) {
      c.callInside = () => this.go(block, block.taken!, c);
      return;
    }
    const back = block.fallthrough!;
    if (this.region.byPlace.has(back)) c.returns = () => this.go(block, back, c);
  }

  private branch(block: RegionBlock, taken: Expr, c: JitContext): void {
    const { f, shared } = this;
    const yes = block.taken!;
    if (taken.const32 !== undefined) {
      this.go(block, taken.const32 ? yes : block.fallthrough!, c);
      return;
    }
    const condition = f.let(taken);
    const { flags } = shared;
    f.if(condition, () => this.go(block, yes, c));
    shared.flags = flags;
    this.go(block, block.fallthrough!, c);
  }

  /** Goes from `block` to a place. */
  private go(block: RegionBlock, place: number, c: JitContext): void {
    const { f, shared, region } = this;
    const exit = () => c.exitTo(c.instructionPointer(i64.add(shared.vbase, c64(place))));
    const target = region.byPlace.get(place);
    if (!target) {
      exit();
      return;
    }
    if (target.order > block.order) {
      const label = this.merges.get(target);
      if (label) {
        this.enter(target);
        f.br(label);
      } else this.tree(target);
      return;
    }
    const loop = dominates(target, block) ? this.loops.get(target) : undefined;
    if (!loop && (target.entry === undefined || !this.dispatcher)) {
      exit();
      return;
    }
    // Going back is where interrupts and the end of the slice are noticed.
    f.if(
      running(shared.budget),
      () => {
        if (loop) {
          this.enter(target);
          f.br(loop);
          return;
        }
        f.set(this.next, c32(target.entry!));
        this.dispatch();
      },
      undefined,
      true,
    );
    exit();
  }

  private dispatch(): void {
    const { shared } = this;
    const flags = shared.flags;
    shared.setDynamic();
    this.f.br(this.dispatcher!);
    shared.flags = flags;
  }

  /** Goes to `rip` if that is an entry of this region, and on otherwise. */
  private goInside(rip: Expr): void {
    const { f, shared, region } = this;
    if (!this.dispatcher) return;
    const cached = jumpCacheEntry(f, rip);
    f.if(i32.and(cached.hit, running(shared.budget)), () => {
      const record = f.let(cached.record);
      const distance = region.pages.size > 1 ? i64.load32_s(record, ENTRY_PAGE) : c64(0);
      const page = i64.add(shared.vbase, distance);
      const ours = i32.eq(i32.load(record), c32(this.slot));
      f.if(i32.and(ours, i64.eq(i64.and(rip, c64(-4096)), page)), () => {
        f.set(this.next, i32.load8_u(record, ENTRY_NUMBER));
        this.dispatch();
      });
    });
  }
}

/** A block that ends without a branch. */
const FALL: JitInsn = { mnemonic: "jmp", operands: [] };
