/**
 * Lockstep: what ran with compiled code is undone, run again by the interpreter alone, and compared. A slice ends
 * before anything that cannot be undone (device accesses, most helpers), which then happens once. For finding
 * errors of the compiler; guests whose devices write memory by themselves may differ for that reason.
 */
import type { Blocks } from "../blocks.ts";
import { DECODED, Decoder } from "../decoder.ts";
import { HELPER } from "../helpers.ts";
import type { Interpreter } from "../interpreter.ts";
import {
  ATTENTION,
  BUDGET,
  CURRENT,
  EXIT,
  FAULT_CR2,
  FAULT_ERROR,
  FAULT_VECTOR,
  GUEST_BASE,
  MODE,
  MODE_REPLAY,
  MODE_TAG,
  MODE_TF,
  MXCSR,
  RAM_SIZE,
  RECORD,
  REG,
  RETURN_DEPTH,
  RIP,
  X87,
  XMM,
} from "../layout.ts";
import type { Mmu, WriteWatch } from "../mmu.ts";
import type { State } from "../state.ts";

/** Instructions between two comparisons at most, about: short enough to undo and to report. */
const SLICE = 4000;
/** Instructions listed in a report at most. */
const LISTED = 48;
const PAGE = 4096;
const PAGE_FAULT = 14;
/** CPU state that a slice may change: registers, flags and segment bases, RIP, XMM and MXCSR, x87. */
const SAVED: readonly (readonly [from: number, to: number])[] = [
  [REG.gpr, BUDGET],
  [RIP, RIP + 8],
  [FAULT_VECTOR, FAULT_CR2 + 8],
  [XMM, MXCSR + 4],
  [X87, X87 + 160],
];
const SAVED_BYTES = SAVED.reduce((sum, [from, to]) => sum + to - from, 0);
const REGISTERS = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split(" ");

/** Helpers that change only what {@link SAVED} and the log of pages can undo. */
const UNDOABLE = new Set<number>([
  HELPER.div128,
  HELPER.idiv128,
  HELPER.x87,
  HELPER.fwait,
  HELPER.sseScalar,
  HELPER.ldmxcsr,
  HELPER.enter,
  HELPER.fxsave,
]);

/** How a slice ended. */
interface Outcome {
  readonly code: number;
  readonly current: number;
  readonly rip: bigint;
  readonly rflags: number;
  /** Instructions charged for. */
  readonly count: number;
  readonly state: Uint8Array;
  /** What the touched pages hold, by page number. */
  readonly pages: ReadonlyMap<number, Uint8Array>;
}

export class Lockstep implements WriteWatch {
  /** A slice is under way: helpers that cannot be undone are to be refused. */
  active = false;
  /** Slices compared, and slices that could not be. */
  compared = 0;
  skipped = 0;
  /** Something happened that cannot be undone. */
  private spoiled = false;
  /** Pages as they were before the slice. */
  private readonly old = new Map<number, Uint8Array>();
  /** Write TLB entries made since the pages' log began. */
  private entries: number[] = [];
  private readonly before = new Uint8Array(SAVED_BYTES);

  constructor(
    private readonly state: State,
    private readonly mmu: Mmu,
    private readonly blocks: Blocks,
    private readonly interpreter: Interpreter,
  ) {
    // The page walk in WebAssembly finds nothing in RAM, so that every TLB miss comes to the watched path.
    state.set(RAM_SIZE, 0);
  }

  /** True if helper `id` must not run now: its instruction is to be interpreted by itself. */
  refuses(id: number): boolean {
    return this.active && !UNDOABLE.has(id);
  }

  touch(physical: number): void {
    const page = Math.floor(physical / PAGE);
    if (!this.old.has(page)) this.old.set(page, this.page(page).slice());
  }
  filled(entry: number): void {
    this.entries.push(entry);
  }
  spoil(): void {
    this.spoiled = true;
  }

  private page(page: number): Uint8Array {
    return this.state.bytes.subarray(GUEST_BASE + page * PAGE, GUEST_BASE + (page + 1) * PAGE);
  }

  /**
   * As Interpreter.enter, with vbase, RIP and BUDGET set: runs a slice, compares it, and leaves the machine as the
   * compiled code has left it. Throws a report at the first difference.
   */
  enter(record: number): number {
    const { state } = this;
    const whole = state.get(BUDGET);
    this.old.clear();
    this.save(this.before);
    const compiled = this.compiledSlice(record, Math.min(whole, SLICE));
    const asked = Atomics.load(state.i32, ATTENTION >> 2) < 0;
    const somethingRan = compiled.count > 0 || compiled.code === EXIT.fault;
    if (this.spoiled || asked || !somethingRan) this.skipped++;
    else {
      this.compared++;
      const interpreted = this.replay(compiled);
      const found = interpreted ? this.differences(compiled, interpreted) : [];
      if (found.length > 0) throw new Error(this.report(record, compiled.count));
      this.put(compiled);
    }
    state.set(CURRENT, compiled.current);
    state.set(BUDGET, whole - compiled.count);
    return compiled.code;
  }

  /** Runs from `record` with whatever code there is. */
  private compiledSlice(record: number, budget: number): Outcome {
    const { state, interpreter } = this;
    state.set(BUDGET, budget);
    state.set(RETURN_DEPTH, 0);
    this.spoiled = false;
    const code = this.watched(() => interpreter.enter(record));
    return this.outcome(code, budget - state.get(BUDGET));
  }

  private watched(run: () => number): number {
    const { mmu, state } = this;
    mmu.watch = this;
    this.active = true;
    const code = run();
    this.active = false;
    mmu.watch = undefined;
    // The next write to a page must come by here again.
    for (const at of this.entries) state.i32.fill(-1, at, at + 2);
    this.entries = [];
    return code;
  }

  private outcome(code: number, count: number): Outcome {
    const { state } = this;
    const saved = new Uint8Array(SAVED_BYTES);
    this.save(saved);
    const pages = new Map<number, Uint8Array>();
    for (const page of this.old.keys()) pages.set(page, this.page(page).slice());
    return { code, current: state.get(CURRENT), rip: this.rip(code), rflags: state.rflags, count, state: saved, pages };
  }

  /** RIP after an exit. */
  private rip(code: number): bigint {
    const { state } = this;
    if (code === EXIT.attention || code === EXIT.decode) return state.rip;
    const offset = state.view.getUint16(state.get(CURRENT) + RECORD.offset, true);
    return BigInt.asUintN(64, state.get64(REG.vbase) + BigInt(offset));
  }

  private save(into: Uint8Array): void {
    let at = 0;
    for (const [from, to] of SAVED) {
      into.set(this.state.bytes.subarray(from, to), at);
      at += to - from;
    }
  }

  private load(saved: Uint8Array): void {
    let at = 0;
    for (const [from, to] of SAVED) {
      this.state.bytes.set(saved.subarray(at, at + to - from), from);
      at += to - from;
    }
  }

  /** Makes the machine what it was before the slice. */
  private undo(): void {
    this.load(this.before);
    for (const [page, bytes] of this.old) this.page(page).set(bytes);
  }

  /** Makes the machine what a slice has left. */
  private put({ state, pages }: Outcome): void {
    this.load(state);
    for (const [page, bytes] of this.old) this.page(page).set(pages.get(page) ?? bytes);
  }

  /** Runs as many instructions by the interpreter alone; undefined if it could not be done. */
  private replay(compiled: Outcome): Outcome | undefined {
    const { state, blocks, interpreter } = this;
    this.undo();
    const mode = state.get(MODE);
    const tag = state.get(MODE_TAG);
    state.set(MODE, mode | MODE_REPLAY);
    // Addresses that differ in bit 0 alone have different places in the jump cache, so no other tag is like it.
    state.set(MODE_TAG, tag | 1);
    // A fault lies beyond the last instruction that is charged for; all other ends are that instruction's.
    const budget = compiled.code === EXIT.fault ? compiled.count : compiled.count - 1;
    state.set(BUDGET, budget);
    let code: number = EXIT.decode;
    for (let rip = state.rip; ; rip = this.rip(code)) {
      const low = Number(BigInt.asIntN(32, rip));
      const high = Number(BigInt.asIntN(32, rip >> 32n));
      if (code === EXIT.crossing && !this.nextPage(low, high)) break;
      const record = blocks.at(low, high);
      if (record === 0) break;
      state.set(REG.vbase, low & ~0xfff);
      state.set(REG.vbase + 4, high);
      state.set(RETURN_DEPTH, 0);
      code = this.watched(() => interpreter.enter(record));
      if (code === EXIT.attention || code === EXIT.fault) break;
    }
    const interpreted = this.outcome(code, budget - state.get(BUDGET));
    state.set(MODE, mode);
    state.set(MODE_TAG, tag);
    if (!this.spoiled && Atomics.load(state.i32, ATTENTION >> 2) >= 0) return interpreted;
    this.skipped++;
    return undefined;
  }

  /** Looks up the page that the instruction at a page's end goes on in. */
  private nextPage(low: number, high: number): boolean {
    const next = ((low & ~0xfff) + PAGE) | 0;
    const page = this.mmu.fetchPage(next, next === 0 ? (high + 1) | 0 : high);
    const current = this.state.get(CURRENT);
    if (page >= 0 && (page | 0) !== this.state.get(current + RECORD.imm)) this.blocks.dropRecordPage(current);
    return page >= 0;
  }

  private differences(compiled: Outcome, interpreted: Outcome): string[] {
    const out: string[] = [];
    const field = (name: string, a: number | bigint, b: number | bigint) => {
      if (a !== b) out.push(`${name}: compiled 0x${a.toString(16)}, interpreted 0x${b.toString(16)}`);
    };
    field("fault", Number(compiled.code === EXIT.fault), Number(interpreted.code === EXIT.fault));
    field("instructions", compiled.count, interpreted.count);
    field("rip", compiled.rip, interpreted.rip);
    field("rflags", compiled.rflags, interpreted.rflags);
    const [a, b] = [view(compiled.state), view(interpreted.state)];
    REGISTERS.forEach((name, r) => {
      field(name, a.getBigUint64(8 * r, true), b.getBigUint64(8 * r, true));
    });
    if (compiled.code === EXIT.fault && interpreted.code === EXIT.fault) {
      const at = offsetOf(FAULT_VECTOR);
      const vector = a.getInt32(at, true);
      field("vector", vector, b.getInt32(at, true));
      const error = at + FAULT_ERROR - FAULT_VECTOR;
      field("error code", a.getInt32(error, true), b.getInt32(error, true));
      const cr2 = at + FAULT_CR2 - FAULT_VECTOR;
      if (vector === PAGE_FAULT) field("cr2", a.getBigUint64(cr2, true), b.getBigUint64(cr2, true));
    }
    for (const [name, from, to] of [
      ["xmm", XMM, MXCSR + 4],
      ["x87", X87, X87 + 160],
    ] as const) {
      const at = offsetOf(from);
      bytes(name, compiled.state.subarray(at, at + to - from), interpreted.state.subarray(at, at + to - from), out);
    }
    for (const [page, old] of this.old) {
      bytes(
        `physical 0x${(page * PAGE).toString(16)}`,
        compiled.pages.get(page) ?? old,
        interpreted.pages.get(page) ?? old,
        out,
      );
    }
    return out;
  }

  /** Looks for the shortest slice from the same start that differs, and describes it. */
  private report(record: number, count: number): string {
    let report = "the difference did not show a second time";
    const { state } = this;
    for (let budget = count; budget >= 0; budget = budget > 16 ? budget >> 1 : budget - 1) {
      this.undo();
      const rip = state.rip;
      state.set64(REG.vbase, rip & ~0xfffn);
      const compiled = this.compiledSlice(record, budget);
      const interpreted = this.replay(compiled);
      const found = interpreted ? this.differences(compiled, interpreted) : [];
      if (found.length === 0) break;
      this.undo();
      const registers = REGISTERS.map((name, r) => `${name}=${state.get64(8 * r).toString(16)}`).join(" ");
      report = [
        `compiled code differs from the interpreter after ${compiled.count} instructions:`,
        ...found.map((line) => `  ${line}`),
        `from rip=${rip.toString(16)} rflags=${state.rflags.toString(16)} ${registers}`,
        ...this.trace(compiled.count + 1),
      ].join("\n");
    }
    return report;
  }

  /** Steps through the instructions from the start of the slice and lists them. */
  private trace(count: number): string[] {
    const { state, blocks, interpreter } = this;
    const decoder = new Decoder();
    const lines: string[] = [];
    const mode = state.get(MODE);
    state.set(MODE, mode | MODE_REPLAY | MODE_TF);
    for (let n = 0, rip = state.rip; n < count; n++) {
      const low = Number(BigInt.asIntN(32, rip));
      const high = Number(BigInt.asIntN(32, rip >> 32n));
      const record = blocks.at(low, high);
      if (record === 0) break;
      const at = GUEST_BASE + this.mmu.fetchPage(low, high) + (low & 0xfff);
      const decoded = decoder.decode(state.bytes, at, at + 16, mode) === DECODED;
      const hex = Buffer.from(state.bytes.slice(at, at + (decoded ? decoder.length : 15))).toString("hex");
      const row = decoded ? `${decoder.insn.mnemonic} [${decoder.insn.text}] size ${decoder.size}` : "";
      lines.push(`  ${rip.toString(16)}  ${hex.padEnd(24)}  ${row}`);
      state.set(REG.vbase, low & ~0xfff);
      state.set(REG.vbase + 4, high);
      state.set(BUDGET, 0);
      const code = this.watched(() => interpreter.enter(record));
      if (code !== EXIT.attention && code !== EXIT.decode) break;
      rip = this.rip(code);
    }
    state.set(MODE, mode);
    return lines.length > LISTED ? ["  ...", ...lines.slice(-LISTED)] : lines;
  }
}

const view = (b: Uint8Array): DataView => new DataView(b.buffer, b.byteOffset, b.length);

/** Where in a saved state the CPU state's byte `address` is. */
function offsetOf(address: number): number {
  let at = 0;
  for (const [from, to] of SAVED) {
    if (address >= from && address < to) return at + address - from;
    at += to - from;
  }
  throw new Error(`byte ${address} of the CPU state is not saved`);
}

function bytes(name: string, a: Uint8Array, b: Uint8Array, out: string[]): void {
  const at = a.findIndex((byte, i) => byte !== b[i]);
  if (at < 0) return;
  const hex = (x: Uint8Array) => Buffer.from(x.subarray(at, at + 16)).toString("hex");
  out.push(`${name} + 0x${at.toString(16)}: compiled ${hex(a)}, interpreted ${hex(b)}`);
}
