/**
 * The interpreter: a WebAssembly module with one handler function for every instruction form, generated
 * from the instruction table. A handler ends by tail-calling the handler of the next record (measured
 * against a central br_table loop of the same size: equal or faster, and no function grows beyond what the
 * engine optimises well).
 */
import { Context, type Variant } from "./context.ts";
import { buildCore, type Core, type PseudoSlots } from "./core.ts";
import type { Decoder } from "./decoder.ts";
import { MODE_64, TABLE_SLOTS } from "./layout.ts";
import { INSTRUCTIONS } from "./table/index.ts";
import type { Insn } from "./table/insn.ts";
import type { Size } from "./values.ts";
import { F64, I32, I64 } from "./wasm/encoding.ts";
import { ModuleBuilder } from "./wasm/module.ts";

/** What the interpreter calls in TypeScript. 64-bit values travel as two 32-bit halves. */
export interface InterpreterImports {
  helper(descriptor: number, record: number): number;
  slow(low: number, high: number, descriptor: number): number;
  commit(low: number, high: number, size: number): void;
  /** Host time in ms, as performance.now() has it. */
  now(): number;
}

interface Exports {
  readonly enter: (record: number) => number;
  readonly find: (rip: bigint) => number;
  readonly dispatch: (rip: bigint) => number;
  readonly direct: (record: number, taken: number) => number;
  readonly miss: (low: number, high: number, descriptor: number) => number;
  readonly flags: (kind: number, a: bigint, b: bigint) => void;
  readonly fetch: (low: number, high: number) => number;
  readonly table: WebAssembly.Table;
}

const MEMORY = { minPages: 768, maxPages: 65536 } as const;

/** Number of a variant within its instruction: 8 bits. */
function variantNumber(v: Variant): number {
  const size = v.size === 1 ? 0 : v.size === 2 ? 1 : v.size === 4 ? 2 : 3;
  const rep = v.rep === 0 ? 0 : v.rep === 0xf3 ? 1 : 2;
  // LOCK never meets a repeat prefix.
  const prefix = v.lock ? 3 : rep;
  return size | (Number(v.mem) << 2) | (prefix << 3) | (Number(v.mode64) << 5) | (Number(v.addr32) << 6);
}

/** The variant of a {@link variantNumber}. */
function variantOf(n: number): Variant {
  const prefix = (n >> 3) & 3;
  return {
    size: ([1, 2, 4, 8] as const)[n & 3]!,
    mem: (n & 4) !== 0,
    lock: prefix === 3,
    rep: prefix === 1 ? 0xf3 : prefix === 2 ? 0xf2 : 0,
    mode64: (n & 32) !== 0,
    addr32: (n & 64) !== 0,
  };
}

/** Every variant of an entry in 64-bit mode with 64-bit addresses. */
export function variants64(insn: Insn): Variant[] {
  if (insn.only === "legacy") return [];
  const sizes: Size[] =
    insn.sizeRule === "b"
      ? [1]
      : insn.sizeRule === "w"
        ? [2]
        : insn.sizeRule === "d"
          ? [4]
          : insn.sizeRule === "q"
            ? [8]
            : insn.sizeRule === "y"
              ? [4, 8]
              : insn.sizeRule === "stack"
                ? insn.end
                  ? [8]
                  : [2, 8]
                : [2, 4, 8];
  const memory =
    insn.immediateRule === "offset"
      ? [true]
      : !insn.modrm || insn.form === "reg"
        ? [false]
        : insn.form === "mem"
          ? [true]
          : [false, true];
  const out: Variant[] = [];
  for (const size of sizes) {
    for (const mem of memory) {
      const one = { size, mem, lock: false, rep: 0, mode64: true, addr32: false } as const;
      out.push(one);
      if (insn.lock && mem) out.push({ ...one, lock: true });
      if (insn.string) out.push({ ...one, rep: 0xf2 }, { ...one, rep: 0xf3 });
    }
  }
  return out;
}

/** Custom section of the module that says which slot holds which handler. */
const DIRECTORY = "sparkler.handlers";
/** Words of the directory before its (instruction and variant, slot) pairs. */
const HEADER_WORDS = 6;

/**
 * The interpreter module's bytes: handlers of every form in 64-bit mode, and a directory of them. Building
 * takes some 100 ms and 60 MiB of garbage, so callers keep the result (see SoftVcpuOptions.interpreter).
 */
export function buildInterpreter(): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder(MEMORY);
  const { core, pseudo } = buildCore(m);
  m.ownTable(TABLE_SLOTS);
  const entries: number[] = [];
  INSTRUCTIONS.forEach((insn, index) => {
    for (const v of variants64(insn)) {
      entries.push((index << 7) | variantNumber(v), emitHandler(m, core, insn, v));
    }
  });
  const { fallthrough, crossing, stale, count, skip } = pseudo;
  const directory = Uint32Array.of(fallthrough, crossing, stale, count, skip, m.slotCount, ...entries);
  m.customSection(DIRECTORY, new Uint8Array(directory.buffer));
  return m.encode() as Uint8Array<ArrayBuffer>;
}

export class Interpreter {
  readonly pseudo: PseudoSlots;
  private readonly exports: Exports;
  /** Slot by instruction and variant; 0: not built yet. */
  private readonly slots = new Uint16Array(INSTRUCTIONS.length << 7);
  /** Instruction and variant by slot; all ones: none. */
  private readonly keys = new Uint32Array(TABLE_SLOTS).fill(0xffff_ffff);
  private readonly freeSlots: number[] = [];
  private used: number;
  private pending: { insn: Insn; variant: Variant; slot: number }[] = [];

  /** `module` was compiled from {@link buildInterpreter}'s bytes. */
  constructor(
    module: WebAssembly.Module,
    private readonly memory: WebAssembly.Memory,
    private readonly imports: InterpreterImports,
  ) {
    const section = WebAssembly.Module.customSections(module, DIRECTORY)[0];
    if (!section) throw new Error("not an interpreter module");
    const directory = new Uint32Array(section);
    const [fallthrough, crossing, stale, count, skip, used] = directory;
    this.pseudo = {
      fallthrough: fallthrough!,
      crossing: crossing!,
      stale: stale!,
      count: count!,
      skip: skip!,
    };
    this.used = used!;
    for (let i = HEADER_WORDS; i < directory.length; i += 2) {
      this.slots[directory[i]!] = directory[i + 1]!;
      this.keys[directory[i + 1]!] = directory[i]!;
    }
    const instance = new WebAssembly.Instance(module, { env: { memory, ...imports } });
    this.exports = instance.exports as unknown as Exports;
  }

  /** Runs from `record` (vbase must be set) until an exit; see EXIT in layout.ts. */
  enter(record: number): number {
    return this.exports.enter(record);
  }

  /** Table slot of the handler for what `d` decoded. Call {@link flush} before it runs. */
  slotFor(d: Decoder, mode: number): number {
    const variant: Variant = {
      size: d.size,
      mem: d.mem,
      lock: d.lock,
      rep: d.rep,
      mode64: (mode & MODE_64) !== 0,
      addr32: d.addr32 && (d.mem || d.insn.string === true || usesCounter(d.insn)),
    };
    const key = (d.index << 7) | variantNumber(variant);
    let slot = this.slots[key]!;
    if (slot === 0) {
      slot = ++this.used;
      if (slot >= TABLE_SLOTS) throw new Error("interpreter: handler table is full");
      this.slots[key] = slot;
      this.keys[slot] = key;
      this.pending.push({ insn: d.insn, variant, slot });
    }
    return slot;
  }

  /** Builds the handlers that decoding has asked for since the last call: rare forms, 32-bit code. */
  flush(): void {
    if (this.pending.length === 0) return;
    const { m, core } = this.extension();
    for (const { insn, variant, slot } of this.pending) emitHandler(m, core, insn, variant, slot);
    this.pending = [];
    this.instantiate(m);
  }

  /** What a record's handler does: its table entry and variant. Undefined for pseudo-instructions. */
  describe(slot: number): { insn: Insn; variant: Variant } | undefined {
    const key = this.keys[slot];
    if (key === undefined || key === 0xffff_ffff) return undefined;
    return { insn: INSTRUCTIONS[key >>> 7]!, variant: variantOf(key & 127) };
  }

  /** A free table slot; undefined when the table is full. */
  allocate(): number | undefined {
    const reused = this.freeSlots.pop();
    if (reused !== undefined) return reused;
    return this.used + 1 < TABLE_SLOTS ? ++this.used : undefined;
  }

  /** Gives a slot back and drops its function. */
  release(slot: number): void {
    this.exports.table.set(slot, null);
    this.freeSlots.push(slot);
  }

  /** A module under construction that can put functions into the interpreter's table. */
  extension(): { m: ModuleBuilder; core: Core } {
    const m = new ModuleBuilder(MEMORY);
    const core: Core = {
      handlerType: m.signature([I32], [I32]),
      helper: m.import("helper", [I32, I32], [I32]),
      slow: m.import("miss", [I32, I32, I32], [I32]),
      commit: m.import("commit", [I32, I32, I32], []),
      now: m.import("now", [], [F64]),
      fetch: m.import("fetch", [I32, I32], [I32]),
      dispatch: m.import("dispatch", [I64], [I32]),
      direct: m.import("direct", [I32, I32], [I32]),
      flags: m.import("flags", [I32, I64, I64], []),
    };
    m.importTable(TABLE_SLOTS);
    return { m, core };
  }

  /** Compiles an {@link extension} and puts its functions into the table. */
  instantiate(m: ModuleBuilder): void {
    const { dispatch, direct, flags, miss, fetch, table } = this.exports;
    new WebAssembly.Instance(new WebAssembly.Module(m.encode() as Uint8Array<ArrayBuffer>), {
      env: { memory: this.memory, ...this.imports, dispatch, direct, flags, miss, fetch, table },
    });
  }
}

/** LOOP, JRCXZ, XLATB and MASKMOV use the address size without a memory operand. */
function usesCounter(insn: Insn): boolean {
  if (insn.map === 1) return insn.opcode === 0xf7;
  return (insn.opcode >= 0xe0 && insn.opcode <= 0xe3) || insn.opcode === 0xd7;
}

function emitHandler(m: ModuleBuilder, core: Core, insn: Insn, variant: Variant, slot?: number): number {
  const f = m.func(`${insn.mnemonic}.${variant.size}${variant.mem ? "m" : ""}`, [I32], [I32]);
  const c = new Context(core, f, f.param(0), variant, insn.operands);
  insn.semantics(c);
  if (insn.end === undefined) {
    c.next();
    f.unreachable();
  }
  return m.slot(f, slot);
}
