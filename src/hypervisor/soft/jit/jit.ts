/** Compiling hot blocks: when, into what, and how compiled code goes away again. */
import type { Interpreter } from "../interpreter.ts";
import { RECORD } from "../layout.ts";
import type { State } from "../state.ts";
import { I32 } from "../wasm/encoding.ts";
import { emitRegion } from "./emit.ts";
import { type FindBlock, findRegion } from "./region.ts";

/** Executions of a block before it is compiled. */
export const HOT = 1500;

export class Jit {
  /** Slots of compiled regions. */
  private readonly live = new Set<number>();
  /** Statistics. */
  regions = 0;
  instructions = 0;
  failed = 0;
  /** Milliseconds spent. */
  time = 0;

  constructor(
    private readonly state: State,
    private readonly interpreter: Interpreter,
  ) {}

  /** Compiles the region around the block whose counting record is `record`, and puts it in its place. */
  compile(record: number, find: FindBlock): void {
    const { state, interpreter } = this;
    const started = performance.now();
    const region = findRegion(state, interpreter, record, find);
    const slot = region ? interpreter.allocate() : undefined;
    if (!region || slot === undefined) {
      state.set(record + RECORD.slot, interpreter.pseudo.skip);
      this.failed++;
      return;
    }
    const { m, core } = interpreter.extension();
    const f = m.func("region", [I32], [I32]);
    emitRegion(f, core, state, region, interpreter.pseudo.stale);
    m.slot(f, slot);
    interpreter.instantiate(m);
    state.set(record + RECORD.slot, slot);
    this.live.add(slot);
    this.regions++;
    this.instructions += region.blocks.reduce((n, b) => n + b.insns.length, 0);
    this.time += performance.now() - started;
  }

  /** Frees the compiled code that a record of a dropped block stood for, if it did. */
  drop(slot: number): void {
    if (this.live.delete(slot)) this.interpreter.release(slot);
  }

  /** Frees everything. */
  clear(): void {
    for (const slot of this.live) this.interpreter.release(slot);
    this.live.clear();
  }
}
