/**
 * Writes a region as one WebAssembly function with structured control flow, from its dominator tree
 * (N. Ramsey, "Beyond Relooper", ICFP 2022): a block that retreating edges lead to opens a loop, a block
 * with several forward edges into it follows a block that the edges leave, all others are written in place.
 */
import { PLAIN, running } from "../context.ts";
import type { Core } from "../core.ts";
import { CURRENT, RECORD, REG } from "../layout.ts";
import type { State } from "../state.ts";
import { zeroAddress } from "../values.ts";
import { c32, c64, type Expr, i32, i64 } from "../wasm/expr.ts";
import type { Func, Label } from "../wasm/func.ts";
import { flagsUnobserved, JitContext, type JitInsn, RegionState } from "./context.ts";
import { dominates, type FindBlock, type Region, type RegionBlock } from "./region.ts";

/** `stale`: slot of the records of dropped blocks. */
export function emitRegion(
  f: Func,
  core: Core,
  state: State,
  region: Region,
  stale: number,
  find: FindBlock,
): void {
  new Emitter(f, core, state, region, stale, find).emit();
}

class Emitter {
  private readonly shared: RegionState;
  private readonly loops = new Map<RegionBlock, Label>();
  private readonly merges = new Map<RegionBlock, Label>();

  constructor(
    private readonly f: Func,
    core: Core,
    private readonly state: State,
    private readonly region: Region,
    stale: number,
    private readonly find: FindBlock,
  ) {
    this.shared = new RegionState(f, core, region.entry.start, stale);
  }

  emit(): void {
    const { f, shared } = this;
    f.block((miss) => {
    shared.miss = miss;
    f.block((fault) => {
      shared.fault = fault;
      f.block((leave) => {
        shared.leave = leave;
        shared.flags = { kind: "stored" };
        this.tree(this.region.entry);
        f.unreachable();
      });
      shared.writeRegisters();
      f.returnCall(shared.core.dispatch, shared.target);
      f.unreachable();
    });
    shared.flags = { kind: "dynamic" };
    shared.writeFlags();
    shared.writeRegisters();
    f.store(4, zeroAddress, CURRENT, shared.exitRecord);
    f.return(shared.exitCode);
    f.unreachable();
    });
    shared.flags = { kind: "dynamic" };
    shared.writeFlags();
    shared.writeRegisters();
    f.store(8, zeroAddress, REG.vbase, shared.vbase);
    f.returnCallIndirect(shared.core.handlerType, i32.load(shared.exitRecord), shared.exitRecord);
    f.unreachable();
    shared.finish();
  }

  /** Writes a block and all it dominates. */
  private tree(block: RegionBlock): void {
    const { f, shared } = this;
    // Late merge points enclose earlier ones, so that all stay reachable by a branch outwards.
    const merges = block.dominated.filter((b) => b.forwardEdges > 1).reverse();
    if (!block.isLoop) {
      this.within(block, merges);
      return;
    }
    this.enter(block);
    shared.flags = { kind: "dynamic" };
    f.loop((again) => {
      this.loops.set(block, again);
      this.within(block, merges);
    });
  }

  /** Prepares the flags for the start of a block that several edges lead to. */
  private enter(block: RegionBlock): void {
    if (!flagsUnobserved(block.insns)) this.shared.setDynamic();
  }

  private within(block: RegionBlock, merges: RegionBlock[]): void {
    const { f, shared } = this;
    const [outer, ...rest] = merges;
    if (outer === undefined) {
      this.body(block);
      return;
    }
    f.block((end) => {
      this.merges.set(outer, end);
      this.within(block, rest);
    });
    this.merges.delete(outer);
    shared.flags = { kind: "dynamic" };
    this.tree(outer);
  }

  private body(block: RegionBlock): void {
    const { f, shared, state, region } = this;
    for (const { record, insn, variant } of block.insns) {
      const mark = f.mark();
      const c = new JitContext(shared, state, record, insn, variant);
      c.branch = (taken) => this.branch(block, taken, c);
      c.blockAt = this.find;
      const next = block.fallthrough;
      if (insn.mnemonic === "call" && next !== undefined && region.byOffset.has(next)) {
        c.returns = () => this.go(block, next, next, c);
      }
      insn.semantics(c);
      f.releaseSince(mark);
    }
    const last = block.insns[block.insns.length - 1];
    if (last?.insn.end !== undefined) return;
    const c = new JitContext(shared, state, block.last, FALL, last?.variant ?? PLAIN);
    c.charge();
    this.branch(block, c32(1), c);
    f.unreachable();
  }

  private branch(block: RegionBlock, taken: Expr, c: JitContext): void {
    const { f, shared, state } = this;
    const yes = state.get(block.last + RECORD.imm);
    const no =
      state.view.getUint16(block.last + RECORD.offset, true) + state.bytes[block.last + RECORD.length]!;
    if (taken.const32 !== undefined) {
      this.go(block, taken.const32 ? yes : no, taken.const32 ? block.taken : block.fallthrough, c);
      return;
    }
    const condition = f.let(taken);
    const flags = shared.flags;
    f.if(condition, () => this.go(block, yes, block.taken, c));
    shared.flags = flags;
    this.go(block, no, block.fallthrough, c);
  }

  /** Goes from `block` to page offset `offset`; `inside` is that offset if the region may hold its block. */
  private go(block: RegionBlock, offset: number, inside: number | undefined, c: JitContext): void {
    const { f, shared, region } = this;
    const rip = i64.add(shared.vbase, c64(offset));
    const exit = () => c.exitTo(c.instructionPointer(rip));
    const target = inside === undefined ? undefined : region.byOffset.get(inside);
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
    const loop = this.loops.get(target);
    if (!loop || !dominates(target, block)) {
      exit();
      return;
    }
    // Going back is where interrupts and the end of the slice are noticed.
    f.if(
      running(shared.budget),
      () => {
        this.enter(target);
        f.br(loop);
      },
      undefined,
      true,
    );
    exit();
  }
}

/** A block that ends without a branch. */
const FALL: JitInsn = { mnemonic: "jmp", operands: [] };
