/**
 * Regions: what is compiled as one function. A region is the decoded blocks that direct branches and calls lead to
 * from a hot block, over a few pages. It can be entered at several of them: at its first block, at each loop, and
 * where calls inside it return to. Edges are ordered so that the emitter can write structured control flow; a
 * retreating edge to a block that does not dominate its source goes through the function's dispatcher instead.
 */
import type { Variant } from "../context.ts";
import type { Interpreter } from "../interpreter.ts";
import { RECORD, RECORD_BYTES } from "../layout.ts";
import type { State } from "../state.ts";
import type { Insn } from "../table/index.ts";

/** Instructions of a region at most: what the engine still optimises well and quickly. */
const MAX_INSTRUCTIONS = 500;
const MAX_BLOCKS = 256;
/** Pages of a region at most: each is checked when it is entered. */
const MAX_PAGES = 4;
/** Entries of a region at most: their numbers are bytes. */
const MAX_ENTRIES = 255;

export interface RegionInsn {
  readonly record: number;
  readonly insn: Insn;
  readonly variant: Variant;
}

/** Places in a region are distances in bytes from the page of its first block. */
export interface RegionBlock {
  /** Where the first instruction is. */
  readonly at: number;
  /** Where its page is. */
  readonly page: number;
  /** First record: the one that counts executions, or guards an instruction that crosses pages. */
  readonly start: number;
  /** All instructions, the terminator included unless it is a plain fall-through. */
  readonly insns: readonly RegionInsn[];
  /** Record that ends the block. */
  readonly last: number;
  /** Where a direct branch or call goes; undefined when the block ends another way. */
  readonly taken: number | undefined;
  /** Where the block goes if it does not branch, or what its call returns to. */
  readonly fallthrough: number | undefined;
  readonly isCall: boolean;
  /** The call's function and what it returns to are both in the region: no other function is needed. */
  inner: boolean;
  /** Number in the dispatcher; undefined: not an entry. */
  entry: number | undefined;
  /** Place in reverse postorder, from 1; the dispatcher has 0. */
  order: number;
  /** Immediate dominator; undefined: the dispatcher. */
  dominator: RegionBlock | undefined;
  /** Blocks this one dominates directly, in reverse postorder. */
  dominated: RegionBlock[];
  /** Forward edges into the block, the dispatcher's included; more than one makes it a merge point. */
  forwardEdges: number;
  /** Target of a retreating edge from a block it dominates. */
  isLoop: boolean;
  /** Target of a retreating edge from another. */
  isReturnedTo: boolean;
}

export interface Region {
  /** In the order of their numbers; the block the region grew from is the first. */
  readonly entries: readonly RegionBlock[];
  /** In reverse postorder. */
  readonly blocks: readonly RegionBlock[];
  readonly byPlace: ReadonlyMap<number, RegionBlock>;
  /** Physical pages by their distance. */
  readonly pages: ReadonlyMap<number, number>;
  /** It runs at CPL 3. */
  readonly user: boolean;
  readonly instructions: number;
}

/** Decoded code as it is mapped around a block, in distances from its page. */
export interface CodeView {
  /** The code runs at CPL 3. */
  readonly user: boolean;
  /** The physical page (an address) at a distance, if it is known without a page walk. */
  page(distance: number): number | undefined;
  /** The decoded block at a distance; 0: none. */
  find(distance: number): number;
}

/** What has run, and what is compiled already. */
export interface Heat {
  /** False for the countdown of a block that has not run since it was decoded or compiled inside a region. */
  hasRun(countdown: number): boolean;
  /** A region stands in a record with this slot. */
  isCompiled(slot: number): boolean;
}

const pageOf = (distance: number): number => distance & ~0xfff;

class Finder {
  readonly byPlace = new Map<number, RegionBlock>();
  readonly pages = new Map<number, number>();
  instructions = 0;

  constructor(
    private readonly state: State,
    private readonly interpreter: Interpreter,
    private readonly code: CodeView,
    private readonly heat: Heat,
  ) {}

  /** Takes in the block whose first record is `start` and all it leads to. False if that cannot be compiled. */
  grow(start: number): boolean {
    const offset = this.state.view.getUint16(start + RECORD.offset, true);
    const first = this.add(offset, start);
    if (!first) return false;
    const queue = [first];
    for (let n = 0; n < queue.length; n++) {
      const { fallthrough, taken } = queue[n]!;
      for (const target of [fallthrough, taken]) {
        if (target === undefined || this.byPlace.has(target) || queue.length >= MAX_BLOCKS) continue;
        const record = this.code.find(target);
        const block = record !== 0 && this.belongs(record) ? this.add(target, record) : undefined;
        if (block) queue.push(block);
      }
    }
    return true;
  }

  /** False for a block that has not run, and for one that a region begins with. */
  private belongs(start: number): boolean {
    const { state, heat } = this;
    const slot = state.get(start + RECORD.slot);
    if (heat.isCompiled(slot)) return false;
    return slot !== this.interpreter.pseudo.count || heat.hasRun(state.get(start + RECORD.countdown));
  }

  private add(at: number, start: number): RegionBlock | undefined {
    const page = pageOf(at);
    if (!this.takePage(page)) return undefined;
    const block = this.read(at, page, start);
    if (!block || this.instructions + block.insns.length > MAX_INSTRUCTIONS) return undefined;
    this.instructions += block.insns.length;
    this.byPlace.set(at, block);
    return block;
  }

  private takePage(page: number): boolean {
    if (this.pages.has(page)) return true;
    const physical = this.code.page(page);
    if (physical === undefined || this.pages.size >= MAX_PAGES) return false;
    this.pages.set(page, physical);
    return true;
  }

  /** Reads a decoded block. Undefined if it holds what regions cannot. */
  private read(at: number, page: number, start: number): RegionBlock | undefined {
    const { state, interpreter } = this;
    const { pseudo } = interpreter;
    const slotOf = (record: number) => state.get(record + RECORD.slot);
    if (slotOf(start) === pseudo.crossing) {
      const next = page + 4096;
      if (!this.takePage(next) || (this.pages.get(next)! | 0) !== state.get(start + RECORD.imm))
        return undefined;
    }
    const insns: RegionInsn[] = [];
    let record = start + RECORD_BYTES;
    for (;;) {
      const slot = slotOf(record);
      if (slot === pseudo.fallthrough) break;
      const what = interpreter.describe(slot);
      if (!what) return undefined;
      insns.push({ record, ...what });
      if (what.insn.end !== undefined) break;
      record += RECORD_BYTES;
    }
    const plain = slotOf(record) === pseudo.fallthrough;
    const insn = insns[insns.length - 1]?.insn;
    const isCall = !plain && insn?.mnemonic === "call";
    const direct = plain || insn?.end === "direct";
    const conditional = !plain && direct && !isCall && insn?.mnemonic !== "jmp";
    const next =
      page + state.view.getUint16(record + RECORD.offset, true) + state.bytes[record + RECORD.length]!;
    return {
      at,
      page,
      start,
      insns,
      last: record,
      taken: direct ? page + state.get(record + RECORD.imm) : undefined,
      fallthrough: conditional || isCall ? next : undefined,
      isCall,
      inner: false,
      entry: undefined,
      order: 0,
      dominator: undefined,
      dominated: [],
      forwardEdges: 0,
      isLoop: false,
      isReturnedTo: false,
    };
  }
}

/** Builds the region around the block at `start`; undefined if that block cannot be compiled. */
export function findRegion(
  state: State,
  interpreter: Interpreter,
  start: number,
  code: CodeView,
  heat: Heat,
): Region | undefined {
  const finder = new Finder(state, interpreter, code, heat);
  if (!finder.grow(start)) return undefined;
  const { byPlace, pages, instructions } = finder;
  const [first] = byPlace.values();
  const entries = [first!];
  const countsExecutions = (b: RegionBlock) =>
    state.get(b.start + RECORD.slot) !== interpreter.pseudo.crossing;
  const enterAt = (b: RegionBlock | undefined) => {
    if (!b || entries.includes(b) || entries.length >= MAX_ENTRIES || !countsExecutions(b)) return false;
    entries.push(b);
    return true;
  };
  for (const b of byPlace.values()) {
    if (!b.isCall || b.taken === undefined || !byPlace.has(b.taken)) continue;
    const back = byPlace.get(b.fallthrough!);
    b.inner = back !== undefined && (enterAt(back) || entries.includes(back));
  }
  let blocks = order(entries, byPlace);
  // After a TLB miss the interpreter goes on: each loop is a place to come back at. New entries are new edges.
  while (blocks.filter((b) => (b.isLoop || b.isReturnedTo) && enterAt(b)).length > 0) {
    blocks = order(entries, byPlace);
  }
  entries.forEach((b, n) => {
    b.entry = n;
  });
  return { entries, blocks, byPlace, pages, user: code.user, instructions };
}

/** Where a block's own edges lead inside the region. Another function's call returns to the next instruction. */
export function targets(block: RegionBlock): (number | undefined)[] {
  if (!block.isCall) return [block.taken, block.fallthrough];
  return [block.inner ? block.taken : block.fallthrough];
}

function successors(block: RegionBlock, byPlace: ReadonlyMap<number, RegionBlock>): RegionBlock[] {
  const out: RegionBlock[] = [];
  for (const target of targets(block)) {
    const b = target === undefined ? undefined : byPlace.get(target);
    if (b && !out.includes(b)) out.push(b);
  }
  return out;
}

/** Reverse postorder, dominators (Cooper, Harvey and Kennedy's iteration), loops and merge points. */
function order(entries: readonly RegionBlock[], byPlace: ReadonlyMap<number, RegionBlock>): RegionBlock[] {
  const postorder: RegionBlock[] = [];
  const seen = new Set<RegionBlock>();
  const visit = (b: RegionBlock): void => {
    seen.add(b);
    for (const s of successors(b, byPlace)) if (!seen.has(s)) visit(s);
    postorder.push(b);
  };
  for (const b of entries.toReversed()) if (!seen.has(b)) visit(b);
  const blocks = postorder.reverse();
  // undefined stands for the dispatcher, whose order is 0.
  const predecessors = new Map<RegionBlock, (RegionBlock | undefined)[]>();
  blocks.forEach((b, i) => {
    b.order = i + 1;
    b.dominator = undefined;
    b.dominated = [];
    b.forwardEdges = 0;
    b.isLoop = false;
    b.isReturnedTo = false;
    predecessors.set(b, entries.includes(b) ? [undefined] : []);
  });
  for (const b of blocks) for (const s of successors(b, byPlace)) predecessors.get(s)!.push(b);
  const common = (x: RegionBlock | undefined, y: RegionBlock | undefined): RegionBlock | undefined => {
    let a = x;
    let b = y;
    while (a !== b) {
      if ((a?.order ?? 0) > (b?.order ?? 0)) a = a!.dominator;
      else b = b!.dominator;
    }
    return a;
  };
  const reached = new Set<RegionBlock>();
  for (let changed = true; changed; ) {
    changed = false;
    for (const b of blocks) {
      const known = predecessors.get(b)!.filter((p) => p === undefined || reached.has(p));
      const dominator = known.reduce((a, p) => common(a, p));
      if (dominator !== b.dominator || !reached.has(b)) changed = true;
      b.dominator = dominator;
      reached.add(b);
    }
  }
  for (const b of blocks) b.dominator?.dominated.push(b);
  for (const b of entries) b.forwardEdges++;
  for (const b of blocks) {
    // Both edges of a branch to its own next instruction: each is written, so the target must be a merge point.
    for (const target of targets(b)) {
      const s = target === undefined ? undefined : byPlace.get(target);
      if (!s) continue;
      if (s.order > b.order) s.forwardEdges++;
      else if (dominates(s, b)) s.isLoop = true;
      else s.isReturnedTo = true;
    }
  }
  return blocks;
}

/** True if every way to `b` leads through `a`. */
export function dominates(a: RegionBlock, b: RegionBlock): boolean {
  let at: RegionBlock | undefined = b;
  while (at && at.order > a.order) at = at.dominator;
  return at === a;
}
