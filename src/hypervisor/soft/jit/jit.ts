/** Compiling hot blocks: when, into what, and how compiled code goes away again. */
import type { Interpreter } from "../interpreter.ts";
import { RECORD } from "../layout.ts";
import type { State } from "../state.ts";
import { I32 } from "../wasm/encoding.ts";
import { emitRegion } from "./emit.ts";
import { type FindBlock, findRegion } from "./region.ts";

/**
 * Executions of a block before it is compiled. A boot is fastest around this value: half as many regions
 * compiled save no interpreted time worth their compilation, twice as many cost more than they save.
 */
export const HOT = 20_000;
/**
 * Regions compiled as one module. The engine compiles modules on threads that also optimise earlier code, so
 * each one waits about a millisecond for its turn: together they wait once.
 */
const BATCH = 12;
/** Milliseconds after which an incomplete batch is compiled. */
const PATIENCE = 4;

/**
 * Compiled regions at most. They share the interpreter's table with its handlers, which are some 2,100 and up to
 * 6,800 with every form of 32-bit code; 16,384 slots hold both.
 */
export const MAX_REGIONS = 8192;

/** How many times HOT a block inside a compiled region must run before it gets a region of its own. */
const POSTPONED = 8;

interface Request {
  readonly record: number;
  readonly find: FindBlock;
}

export class Jit {
  private requests: Request[] = [];
  /** When the oldest request came. */
  private since = 0;
  /** Slots of compiled regions, and the records that they stand in. */
  private readonly live = new Map<number, number>();
  /** Statistics. */
  regions = 0;
  instructions = 0;
  failed = 0;
  /** Times that everything compiled was dropped because there was too much. */
  evictions = 0;
  /** Milliseconds spent. */
  time = 0;

  constructor(
    private readonly state: State,
    private readonly interpreter: Interpreter,
    /** Executions of a block before it is compiled. Tests set 1. */
    readonly hot = HOT,
    private readonly maxRegions = MAX_REGIONS,
  ) {}

  /** Asks for the region around the block whose counting record is `record`, which goes on uncounted. */
  request(record: number, find: FindBlock): void {
    this.state.set(record + RECORD.slot, this.interpreter.pseudo.skip);
    if (this.requests.length === 0) this.since = performance.now();
    this.requests.push({ record, find });
    // Tests that compile at once are not to wait for more.
    if (this.requests.length >= (this.hot < BATCH ? 1 : BATCH)) this.compile();
  }

  /** Called at every exit to the run loop: compiles what has waited long enough. */
  tick(): void {
    if (this.requests.length > 0 && performance.now() - this.since >= PATIENCE) this.compile();
  }

  private compile(): void {
    const { state, interpreter } = this;
    const { skip, stale } = interpreter.pseudo;
    const started = performance.now();
    if (this.live.size + this.requests.length > this.maxRegions) this.evict();
    const { m, core } = interpreter.extension();
    const done: { record: number; slot: number }[] = [];
    const covered = new Set<number>();
    for (const { record, find } of this.requests) {
      // Dropped, or its memory used for something else, since it was asked for.
      if (state.get(record + RECORD.slot) !== skip || covered.has(record)) continue;
      const region = findRegion(state, interpreter, record, find);
      const slot = region ? interpreter.allocate() : undefined;
      if (!region || slot === undefined) {
        this.failed++;
        continue;
      }
      const f = m.func("region", [I32], [I32]);
      emitRegion(f, core, state, region, stale, find);
      m.slot(f, slot);
      done.push({ record, slot });
      for (const block of region.blocks) if (block !== region.entry) covered.add(block.start);
      this.instructions += region.blocks.reduce((n, b) => n + b.insns.length, 0);
    }
    this.requests = [];
    if (done.length > 0) interpreter.instantiate(m);
    for (const { record, slot } of done) {
      state.set(record + RECORD.slot, slot);
      this.live.set(slot, record);
    }
    for (const record of covered) this.postpone(record);
    this.regions += done.length;
    this.time += performance.now() - started;
  }

  /** A block inside a region is compiled as an entry of its own only if it is entered often from elsewhere. */
  private postpone(record: number): void {
    const { state, interpreter } = this;
    const { count, skip } = interpreter.pseudo;
    const slot = state.get(record + RECORD.slot);
    if (slot !== count && slot !== skip) return;
    state.set(record + RECORD.slot, count);
    state.set(record + RECORD.countdown, this.hot * POSTPONED);
  }

  /** Frees the compiled code that a record of a dropped block stood for, if it did. */
  drop(slot: number): void {
    if (this.live.delete(slot)) this.interpreter.release(slot);
  }

  /** Drops all that is compiled: what is still hot comes back soon, and the rest is the larger part by far. */
  private evict(): void {
    const { count } = this.interpreter.pseudo;
    for (const [slot, record] of this.live) {
      this.state.set(record + RECORD.slot, count);
      this.state.set(record + RECORD.countdown, this.hot);
      this.interpreter.release(slot);
    }
    this.live.clear();
    this.evictions++;
  }

  /** Frees everything and forgets what was asked for. */
  clear(): void {
    for (const slot of this.live.keys()) this.interpreter.release(slot);
    this.live.clear();
    this.requests = [];
  }
}
