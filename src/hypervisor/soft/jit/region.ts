/**
 * Regions: what is compiled as one function. A region is the decoded blocks of one code page that are
 * reachable from a hot block by direct branches. Edges are ordered so that the emitter can write structured
 * control flow: a retreating edge to a block that does not dominate its source leaves the region instead.
 */
import type { Variant } from "../context.ts";
import type { Interpreter } from "../interpreter.ts";
import { RECORD, RECORD_BYTES } from "../layout.ts";
import type { State } from "../state.ts";
import type { Insn } from "../table/index.ts";

/** Instructions of a region at most: what the engine still optimises well and quickly. */
const MAX_INSTRUCTIONS = 300;
const MAX_BLOCKS = 64;

export interface RegionInsn {
  readonly record: number;
  readonly insn: Insn;
  readonly variant: Variant;
}

export interface RegionBlock {
  /** Page offset of the first instruction. */
  readonly offset: number;
  /** First record: the one that counts executions. */
  readonly start: number;
  /** All instructions, the terminator included unless it is a plain fall-through. */
  readonly insns: readonly RegionInsn[];
  /** Instructions the block charges for. */
  readonly count: number;
  /** Record that ends the block. */
  readonly last: number;
  /** Page offsets the block can go to inside the page; undefined when it ends another way. */
  readonly taken: number | undefined;
  readonly fallthrough: number | undefined;
  /** Place in reverse postorder. */
  order: number;
  /** Immediate dominator. */
  dominator: RegionBlock | undefined;
  /** Blocks this one dominates directly, in reverse postorder. */
  dominated: RegionBlock[];
  /** Forward edges into the block; more than one makes it a merge point. */
  forwardEdges: number;
  /** Target of a retreating edge. */
  isLoop: boolean;
}

export interface Region {
  readonly entry: RegionBlock;
  /** In reverse postorder. */
  readonly blocks: readonly RegionBlock[];
  /** By page offset. */
  readonly byOffset: ReadonlyMap<number, RegionBlock>;
}

/** Finds a decoded block by page offset in the region's page; 0: none. */
export type FindBlock = (offset: number) => number;

/** Reads the block whose first record is `start`. Undefined if it holds what regions cannot. */
function readBlock(state: State, interpreter: Interpreter, start: number): RegionBlock | undefined {
  const { pseudo } = interpreter;
  if (state.get(start + RECORD.slot) === pseudo.crossing) return undefined;
  const slotOf = (record: number) => state.get(record + RECORD.slot);
  const offsetOf = (record: number) => state.view.getUint16(record + RECORD.offset, true);
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
  const end = insns[insns.length - 1]?.insn.end;
  const plain = slotOf(record) === pseudo.fallthrough;
  const imm = state.get(record + RECORD.imm);
  const next = offsetOf(record) + state.bytes[record + RECORD.length]!;
  const direct = plain || end === "direct";
  const inPage = (offset: number) => (offset >= 0 && offset < 4096 ? offset : undefined);
  const lastInsn = insns[insns.length - 1]?.insn;
  const conditional = !plain && end === "direct" && isConditional(lastInsn!);
  return {
    offset: offsetOf(start),
    start,
    insns,
    count: state.bytes[record + RECORD.count]!,
    last: record,
    // A call's target is another function: it stays outside. Its return comes back to the next instruction.
    taken: direct && (plain || !isCall(lastInsn)) ? inPage(imm) : undefined,
    fallthrough: conditional || (!plain && isCall(lastInsn)) ? inPage(next) : undefined,
    order: 0,
    dominator: undefined,
    dominated: [],
    forwardEdges: 0,
    isLoop: false,
  };
}

const isCall = (insn: Insn | undefined): boolean => insn?.mnemonic === "call";
const isConditional = (insn: Insn): boolean => insn.mnemonic !== "jmp" && insn.mnemonic !== "call";

/** Builds the region around the block at `start`; undefined if that block cannot be compiled. */
export function findRegion(
  state: State,
  interpreter: Interpreter,
  start: number,
  find: FindBlock,
): Region | undefined {
  const byOffset = new Map<number, RegionBlock>();
  const entry = readBlock(state, interpreter, start);
  if (!entry) return undefined;
  let instructions = entry.insns.length;
  byOffset.set(entry.offset, entry);
  const queue = [entry];
  for (let at = 0; at < queue.length; at++) {
    for (const target of [queue[at]!.fallthrough, queue[at]!.taken]) {
      if (target === undefined || byOffset.has(target) || queue.length >= MAX_BLOCKS) continue;
      const found = find(target);
      const block = found === 0 ? undefined : readBlock(state, interpreter, found);
      if (!block || instructions + block.insns.length > MAX_INSTRUCTIONS) continue;
      instructions += block.insns.length;
      byOffset.set(target, block);
      queue.push(block);
    }
  }
  return order(entry, byOffset);
}

function successors(block: RegionBlock, byOffset: Map<number, RegionBlock>): RegionBlock[] {
  const out: RegionBlock[] = [];
  for (const target of [block.taken, block.fallthrough]) {
    const b = target === undefined ? undefined : byOffset.get(target);
    if (b && !out.includes(b)) out.push(b);
  }
  return out;
}

/** Reverse postorder, dominators (Cooper, Harvey and Kennedy's iteration), loops and merge points. */
function order(entry: RegionBlock, byOffset: Map<number, RegionBlock>): Region {
  const postorder: RegionBlock[] = [];
  const seen = new Set<RegionBlock>();
  const visit = (b: RegionBlock): void => {
    seen.add(b);
    for (const s of successors(b, byOffset)) if (!seen.has(s)) visit(s);
    postorder.push(b);
  };
  visit(entry);
  const blocks = postorder.reverse();
  blocks.forEach((b, i) => {
    b.order = i;
  });
  const predecessors = new Map<RegionBlock, RegionBlock[]>(blocks.map((b) => [b, []]));
  for (const b of blocks) for (const s of successors(b, byOffset)) predecessors.get(s)!.push(b);
  const common = (x: RegionBlock, y: RegionBlock): RegionBlock => {
    let a = x;
    let b = y;
    while (a !== b) {
      while (a.order > b.order) a = a.dominator!;
      while (b.order > a.order) b = b.dominator!;
    }
    return a;
  };
  entry.dominator = entry;
  for (let changed = true; changed; ) {
    changed = false;
    for (const b of blocks) {
      if (b === entry) continue;
      let dominator: RegionBlock | undefined;
      for (const p of predecessors.get(b)!) {
        if (p.dominator) dominator = dominator ? common(dominator, p) : p;
      }
      if (dominator !== b.dominator) {
        b.dominator = dominator;
        changed = true;
      }
    }
  }
  entry.dominator = undefined;
  for (const b of blocks) b.dominator?.dominated.push(b);
  for (const b of blocks) {
    // Both edges of a branch to its own next instruction: each is written, so the target must be a merge point.
    for (const target of [b.taken, b.fallthrough]) {
      const s = target === undefined ? undefined : byOffset.get(target);
      if (!s) continue;
      if (s.order > b.order) s.forwardEdges++;
      else if (dominates(s, b)) s.isLoop = true;
    }
  }
  return { entry, blocks, byOffset };
}

/** True if every way to `b` leads through `a`. */
export function dominates(a: RegionBlock, b: RegionBlock): boolean {
  let at: RegionBlock | undefined = b;
  while (at && at.order > a.order) at = at.dominator;
  return at === a;
}
