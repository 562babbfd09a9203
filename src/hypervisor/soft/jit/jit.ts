/** Compiling hot blocks: when, into what, and how compiled code goes away again. */
import type { Interpreter } from "../interpreter.ts";
import { RECORD, REGION_CHECKED, REGION_LIVE, TABLE_SLOTS } from "../layout.ts";
import type { State } from "../state.ts";
import { I32 } from "../wasm/encoding.ts";
import { ENTRY_NUMBER, ENTRY_PAGE, emitRegion } from "./emit.ts";
import { type CodeView, findRegion, type Region } from "./region.ts";

/**
 * Executions of a block before it is compiled, for kernel code that is decoded before the first program runs, and for
 * all other. A boot is fastest around this value: half as many regions compiled save no interpreted time worth their
 * compilation, twice as many cost more than they save. What runs later runs for longer, and what the kernel does once
 * for each frame or disk request would take 20,000 of them to be compiled.
 */
const HOT_IN_BOOT = 20_000;
const HOT = 2_000;
/**
 * Regions compiled as one module. The engine compiles modules on threads that also optimise earlier code, so
 * each one waits about a millisecond for its turn: together they wait once.
 */
const BATCH = 12;
/** Instructions with which a batch is full: writing that much takes the vCPU some 7 ms. */
const BATCH_INSTRUCTIONS = 1500;
/** Milliseconds between the end of a batch and the next, unless that is full. */
const PATIENCE = 6;

/**
 * Compiled regions at most. They share the interpreter's table with its handlers, which are some 2,100 and up to
 * 6,800 with every form of 32-bit code; 16,384 slots hold both.
 */
export const MAX_REGIONS = 8192;

interface Compiled {
  readonly region: Region;
  readonly slot: number;
  /** In how many of its entries it stands; a later region may have taken its place in some. */
  standing: number;
}

export class Jit {
  private requests: Region[] = [];
  /** When the last batch was done. */
  private compiledAt = 0;
  /** Code of a program has been decoded. */
  private booted = false;
  private readonly live = new Map<number, Compiled>();
  /** By the address of a physical page: what has code of it. */
  private readonly byPage = new Map<number, Set<Compiled>>();
  /** Statistics. */
  regions = 0;
  instructions = 0;
  failed = 0;
  /** Times that everything compiled was dropped because there was too much. */
  evictions = 0;
  /** Milliseconds that the vCPU has waited for compiled code, in all and at most at once. */
  time = 0;
  longest = 0;

  constructor(
    private readonly state: State,
    private readonly interpreter: Interpreter,
    /** Executions of any block before it is compiled. Tests set 1. */
    private readonly fixed?: number,
    private readonly maxRegions = MAX_REGIONS,
  ) {}

  /**
   * Asks for the region around the block whose counting record is `record`, which goes on uncounted. `code`: how
   * code is mapped around it now.
   */
  request(record: number, code: CodeView): void {
    const { state, interpreter, requests } = this;
    state.set(record + RECORD.slot, interpreter.pseudo.skip);
    const region = findRegion(state, interpreter, record, code, this);
    if (!region) {
      this.failed++;
      return;
    }
    requests.push(region);
    const instructions = requests.reduce((sum, { instructions }) => sum + instructions, 0);
    // Tests that compile at once are not to wait for more.
    const most = (this.fixed ?? HOT) < BATCH ? 1 : BATCH;
    if (requests.length >= most || instructions >= BATCH_INSTRUCTIONS) this.compile();
  }

  /** Executions of a block that is decoded now before it is compiled. */
  executions(user: boolean): number {
    this.booted ||= user;
    return this.fixed ?? (this.booted ? HOT : HOT_IN_BOOT);
  }

  hasRun(countdown: number): boolean {
    const { fixed } = this;
    return fixed === undefined ? countdown !== HOT && countdown !== HOT_IN_BOOT : countdown !== fixed;
  }

  isCompiled(slot: number): boolean {
    return this.live.has(slot);
  }

  /** Called at every exit to the run loop: compiles what has been asked for if the last batch is long ago. */
  tick(): void {
    if (this.requests.length > 0 && performance.now() - this.compiledAt >= PATIENCE) this.compile();
  }

  private compile(): void {
    const { state, interpreter } = this;
    const started = performance.now();
    if (this.live.size + this.requests.length > this.maxRegions) this.evict();
    const { m, core } = interpreter.extension();
    const done: { region: Region; slot: number }[] = [];
    const covered = new Set<number>();
    for (const region of this.requests) {
      if (covered.has(region.entries[0]!.start)) continue;
      const slot = this.isGood(region) ? interpreter.allocate() : undefined;
      if (slot === undefined) {
        this.failed++;
        continue;
      }
      const f = m.func("region", [I32], [I32]);
      emitRegion(f, core, state, region, slot);
      m.slot(f, slot);
      done.push({ region, slot });
      for (const block of region.blocks) covered.add(block.start);
      this.instructions += region.instructions;
    }
    this.requests = [];
    if (done.length > 0) interpreter.instantiate(m);
    for (const { region, slot } of done) this.install(region, slot);
    this.regions += done.length;
    this.compiledAt = performance.now();
    const time = this.compiledAt - started;
    this.time += time;
    this.longest = Math.max(this.longest, time);
  }

  /** False if code of the region has been dropped since it was asked for, or its memory used for something else. */
  private isGood(region: Region): boolean {
    const { state, interpreter } = this;
    const { skip } = interpreter.pseudo;
    return (
      state.get(region.entries[0]!.start + RECORD.slot) === skip &&
      region.blocks.every((b) => this.isDecoded(b.start))
    );
  }

  /** A record with `slot` gets another: frees the region that stood there if it stands nowhere else. */
  private replace(slot: number): void {
    const compiled = this.live.get(slot);
    if (compiled && --compiled.standing === 0) this.free(compiled);
  }

  private isDecoded(start: number): boolean {
    return this.state.get(start + RECORD.slot) !== this.interpreter.pseudo.stale;
  }

  private install(region: Region, slot: number): void {
    const { state } = this;
    const compiled = { region, slot, standing: region.entries.length };
    this.live.set(slot, compiled);
    state.bytes[REGION_LIVE + slot] = 1;
    // No page is where this says.
    state.set(REGION_CHECKED + 16 * slot, 1);
    region.entries.forEach(({ start, page }, number) => {
      this.replace(state.get(start + RECORD.slot));
      state.set(start + RECORD.slot, slot);
      state.bytes[start + ENTRY_NUMBER] = number;
      state.set(start + ENTRY_PAGE, page);
    });
    for (const page of region.pages.values()) {
      const others = this.byPage.get(page);
      if (others) others.add(compiled);
      else this.byPage.set(page, new Set([compiled]));
    }
    for (const block of region.blocks) if (block.entry === undefined) this.postpone(block.start, region.user);
  }

  /** A block inside a region is compiled as an entry of its own only if it is entered often from elsewhere. */
  private postpone(record: number, user: boolean): void {
    const { state, interpreter } = this;
    const { count, skip } = interpreter.pseudo;
    const slot = state.get(record + RECORD.slot);
    if (slot !== count && slot !== skip) return;
    state.set(record + RECORD.slot, count);
    state.set(record + RECORD.countdown, this.executions(user));
  }

  /** Frees the compiled code that has code of a physical page (its address). */
  dropPage(page: number): void {
    for (const compiled of this.byPage.get(page) ?? []) this.free(compiled);
  }

  private free(compiled: Compiled): void {
    const { state, interpreter } = this;
    const { region, slot } = compiled;
    this.live.delete(slot);
    for (const page of region.pages.values()) this.byPage.get(page)?.delete(compiled);
    state.bytes[REGION_LIVE + slot] = 0;
    for (const { start } of region.entries) {
      if (state.get(start + RECORD.slot) !== slot) continue;
      state.set(start + RECORD.slot, interpreter.pseudo.count);
      // It has been hot before.
      state.set(start + RECORD.countdown, Math.floor(this.executions(region.user) / 2));
    }
    interpreter.release(slot);
  }

  /** Drops all that is compiled: what is still hot comes back soon, and the rest is the larger part by far. */
  private evict(): void {
    for (const compiled of this.live.values()) this.free(compiled);
    this.evictions++;
  }

  /** Frees everything and forgets what was asked for. */
  clear(): void {
    for (const slot of this.live.keys()) this.interpreter.release(slot);
    this.live.clear();
    this.byPage.clear();
    this.state.bytes.fill(0, REGION_LIVE, REGION_LIVE + TABLE_SLOTS);
    this.requests = [];
  }
}
