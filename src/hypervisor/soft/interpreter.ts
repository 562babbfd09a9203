/**
 * The interpreter: a WebAssembly module with one handler function for every instruction form, generated
 * from the instruction table. A handler ends by tail-calling the handler of the next record (measured
 * against a central br_table loop of the same size: equal or faster, and no function grows beyond what the
 * engine optimises well).
 */
import { Context, type Size, type Variant } from "./context.ts";
import { buildCore, type Core, type PseudoSlots } from "./core.ts";
import type { Decoder } from "./decoder.ts";
import { MODE_64 } from "./layout.ts";
import { INSTRUCTIONS } from "./table/index.ts";
import type { Insn } from "./table/insn.ts";
import { I32, I64 } from "./wasm/encoding.ts";
import { ModuleBuilder } from "./wasm/module.ts";

/** What the interpreter calls in TypeScript. 64-bit values travel as two 32-bit halves. */
export interface InterpreterImports {
  helper(descriptor: number, record: number): number;
  slow(low: number, high: number, descriptor: number): number;
  commit(low: number, high: number, size: number): void;
}

interface Exports {
  readonly enter: (record: number) => number;
  readonly find: (rip: bigint) => number;
  readonly dispatch: (rip: bigint) => number;
  readonly direct: (record: number, taken: number) => number;
  readonly table: WebAssembly.Table;
}

const TABLE_SLOTS = 1 << 13;
const MEMORY = { minPages: 512, maxPages: 65536 } as const;

/** Number of a variant within its instruction: 8 bits. */
function variantNumber(v: Variant): number {
  const size = v.size === 1 ? 0 : v.size === 2 ? 1 : v.size === 4 ? 2 : 3;
  const rep = v.rep === 0 ? 0 : v.rep === 0xf3 ? 1 : 2;
  // LOCK never meets a repeat prefix.
  const prefix = v.lock ? 3 : rep;
  return size | (Number(v.mem) << 2) | (prefix << 3) | (Number(v.mode64) << 5) | (Number(v.addr32) << 6);
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
  const memory = insn.immediateRule === "offset" ? [true] : !insn.modrm || insn.form === "reg" ? [false] : insn.form === "mem" ? [true] : [false, true];
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
  const directory = Uint32Array.of(pseudo.fallthrough, pseudo.crossing, pseudo.stale, m.slotCount, ...entries);
  m.customSection(DIRECTORY, new Uint8Array(directory.buffer));
  return m.encode() as Uint8Array<ArrayBuffer>;
}

export class Interpreter {
  readonly pseudo: PseudoSlots;
  private readonly exports: Exports;
  /** Slot by instruction and variant; 0: not built yet. */
  private readonly slots = new Uint16Array(INSTRUCTIONS.length << 7);
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
    this.pseudo = { fallthrough: directory[0]!, crossing: directory[1]!, stale: directory[2]! };
    this.used = directory[3]!;
    for (let i = 4; i < directory.length; i += 2) this.slots[directory[i]!] = directory[i + 1]!;
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
      this.pending.push({ insn: d.insn, variant, slot });
    }
    return slot;
  }

  /** Builds the handlers that decoding has asked for since the last call: rare forms, 32-bit code. */
  flush(): void {
    if (this.pending.length === 0) return;
    const m = new ModuleBuilder(MEMORY);
    const { imports } = this;
    const core: Core = {
      handlerType: m.signature([I32], [I32]),
      helper: m.import("helper", [I32, I32], [I32]),
      slow: m.import("slow", [I32, I32, I32], [I32]),
      commit: m.import("commit", [I32, I32, I32], []),
      dispatch: m.import("dispatch", [I64], [I32]),
      direct: m.import("direct", [I32, I32], [I32]),
    };
    m.importTable(TABLE_SLOTS);
    for (const { insn, variant, slot } of this.pending) emitHandler(m, core, insn, variant, slot);
    this.pending = [];
    const { dispatch, direct, table } = this.exports;
    new WebAssembly.Instance(new WebAssembly.Module(m.encode() as Uint8Array<ArrayBuffer>), {
      env: { memory: this.memory, ...imports, dispatch, direct, table },
    });
  }
}

/** LOOP and JRCXZ use the address size without a memory operand. */
function usesCounter(insn: Insn): boolean {
  return insn.map === 0 && ((insn.opcode >= 0xe0 && insn.opcode <= 0xe3) || insn.opcode === 0xd7);
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
