/**
 * Lockstep: what ran with compiled code is undone, run again by the interpreter alone, and compared. A slice ends
 * before anything that cannot be undone (device accesses, most helpers), which then happens once. For finding
 * errors of the compiler. A device that writes memory between the two runs can make them differ: only what
 * differs again is one.
 */
import type { Blocks } from "../blocks.ts";
import { DECODED, Decoder } from "../decoder.ts";
import { HELPER } from "../helpers.ts";
import type { Interpreter } from "../interpreter.ts";
import {
  ATTENTION,
  BUDGET,
  CPL,
  CURRENT,
  EXIT,
  FAULT_CR2,
  FAULT_ERROR,
  FAULT_VECTOR,
  GUEST_BASE,
  KERNEL_GS_BASE,
  LDTR_BASE,
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
  SEG_SELECTOR,
  X87,
  XMM,
} from "../layout.ts";
import type { Mmu } from "../mmu.ts";
import type { State } from "../state.ts";
import { type Changes, compareChanges, firstDifference, Journal } from "./journal.ts";

/** Instructions between two comparisons at most, about: short enough to undo and to report. */
const SLICE = 4000;
/** Instructions listed in a report at most. */
const LISTED = 48;
const PAGE = 4096;
const PAGE_FAULT = 14;
/** CPU state that a slice may change: registers, flags, segments, RIP, mode and privilege, XMM and MXCSR, x87. */
const SAVED: readonly (readonly [from: number, to: number])[] = [
  [REG.gpr, BUDGET],
  [RIP, RIP + 8],
  [MODE_TAG, CPL + 4],
  [FAULT_VECTOR, FAULT_CR2 + 8],
  [XMM, MXCSR + 4],
  [X87, X87 + 160],
  [KERNEL_GS_BASE, KERNEL_GS_BASE + 8],
  [SEG_SELECTOR, LDTR_BASE],
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
  readonly changes: Changes;
}

export class Lockstep {
  /** A slice is under way: helpers that cannot be undone are to be refused. */
  active = false;
  /** Slices compared, and slices that could not be. */
  compared = 0;
  skipped = 0;
  private readonly journal: Journal;
  private readonly before = new Uint8Array(SAVED_BYTES);
  /** Time during a slice, which is the same both times. */
  private time = 0;

  constructor(
    private readonly state: State,
    private readonly mmu: Mmu,
    private readonly blocks: Blocks,
    private readonly interpreter: Interpreter,
  ) {
    this.journal = new Journal(state);
    // The page walk in WebAssembly finds nothing in RAM, so that every TLB miss comes to the watched path.
    state.set(RAM_SIZE, 0);
  }

  /** Host time for the guest, as performance.now(). */
  now(): number {
    return this.active ? this.time : performance.now();
  }

  /** True if helper `id` must not run now: its instruction is to be interpreted by itself. */
  refuses(id: number): boolean {
    return this.active && !UNDOABLE.has(id);
  }

  /**
   * As Interpreter.enter, with vbase, RIP and BUDGET set: runs a slice, compares it, and leaves the machine as the
   * compiled code has left it. Throws a report at the first difference.
   */
  enter(record: number): number {
    const { state } = this;
    const whole = state.get(BUDGET);
    this.time = performance.now();
    this.save(this.before);
    const compiled = this.compiledSlice(record, Math.min(whole, SLICE));
    const asked = Atomics.load(state.i32, ATTENTION >> 2) < 0;
    const somethingRan = compiled.count > 0 || compiled.code === EXIT.fault;
    if (this.journal.spoiled || asked || !somethingRan) this.skipped++;
    else {
      this.undo(compiled);
      const found = this.check(compiled);
      if (found === undefined) this.skipped++;
      else if (found.length === 0) this.compared++;
      else {
        // Once more: a device may have written what the slice has read.
        const again = this.compiledSlice(record, Math.min(whole, SLICE));
        this.undo(again);
        if (this.check(again)?.length) throw new Error(this.report(record, again.count));
        this.skipped++;
      }
      this.load(compiled.state);
      this.journal.redo(compiled.changes);
    }
    state.set(CURRENT, compiled.current);
    state.set(BUDGET, whole - compiled.count);
    return compiled.code;
  }

  /** Compares a slice that has been undone with the interpreter; undefined if that is not possible. */
  private check(compiled: Outcome): string[] | undefined {
    const interpreted = this.replay(compiled);
    this.undo(interpreted);
    const interrupted = Atomics.load(this.state.i32, ATTENTION >> 2) < 0;
    return this.journal.spoiled || interrupted ? undefined : differences(compiled, interpreted);
  }

  /** Runs from `record` with whatever code there is. */
  private compiledSlice(record: number, budget: number): Outcome {
    const { state, interpreter } = this;
    state.set(BUDGET, budget);
    state.set(RETURN_DEPTH, 0);
    return this.outcome(() => interpreter.enter(record), budget);
  }

  /** Runs what ends with an exit code, watched. */
  private outcome(run: () => number, budget: number): Outcome {
    const { state, mmu, journal } = this;
    journal.start();
    mmu.watch = journal;
    this.active = true;
    const code = run();
    this.active = false;
    mmu.watch = undefined;
    const changes = journal.finish();
    const saved = new Uint8Array(SAVED_BYTES);
    this.save(saved);
    return {
      code,
      current: state.get(CURRENT),
      rip: this.rip(code),
      rflags: state.rflags,
      count: budget - state.get(BUDGET),
      state: saved,
      changes,
    };
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

  /** Makes the machine what it was before a slice. */
  private undo({ changes }: Outcome): void {
    this.load(this.before);
    this.journal.undo(changes);
  }

  /** Runs as many instructions as `compiled` by the interpreter alone. */
  private replay(compiled: Outcome): Outcome {
    const { state } = this;
    const mode = state.get(MODE);
    const tag = state.get(MODE_TAG);
    state.set(MODE, mode | MODE_REPLAY);
    // Addresses that differ in bit 0 alone have different places in the jump cache, so no other tag is like it.
    state.set(MODE_TAG, tag | 1);
    // A fault lies beyond the last instruction that is charged for; all other ends are that instruction's.
    const budget = compiled.code === EXIT.fault ? compiled.count : compiled.count - 1;
    state.set(BUDGET, budget);
    const interpreted = this.outcome(() => this.interpret(), budget);
    state.set(MODE, mode);
    state.set(MODE_TAG, tag);
    return interpreted;
  }

  /** Interprets until BUDGET is used up or something else than decoding is to be done. */
  private interpret(): number {
    const { state, blocks, interpreter } = this;
    let code: number = EXIT.decode;
    for (let rip = state.rip; ; rip = this.rip(code)) {
      const low = Number(BigInt.asIntN(32, rip));
      const high = Number(BigInt.asIntN(32, rip >> 32n));
      if (code === EXIT.crossing && !this.nextPage(low, high)) return code;
      const record = blocks.at(low, high);
      if (record === 0) return code;
      state.set(REG.vbase, low & ~0xfff);
      state.set(REG.vbase + 4, high);
      state.set(RETURN_DEPTH, 0);
      code = interpreter.enter(record);
      if (code === EXIT.attention || code === EXIT.fault) return code;
    }
  }

  /** Looks up the page that the instruction at a page's end goes on in. */
  private nextPage(low: number, high: number): boolean {
    const next = ((low & ~0xfff) + PAGE) | 0;
    const page = this.mmu.fetchPage(next, next === 0 ? (high + 1) | 0 : high);
    const current = this.state.get(CURRENT);
    if (page >= 0 && (page | 0) !== this.state.get(current + RECORD.imm)) this.blocks.dropRecordPage(current);
    return page >= 0;
  }

  /** Looks for the shortest slice from the same start that differs, and describes it. */
  private report(record: number, count: number): string {
    const { state } = this;
    for (let budget = 0; budget <= count; budget = Math.max(budget + 1, Math.min(2 * budget, count))) {
      const rip = state.rip;
      state.set64(REG.vbase, rip & ~0xfffn);
      const compiled = this.compiledSlice(record, budget);
      this.undo(compiled);
      if (compiled.count === 0 && compiled.code !== EXIT.fault) continue;
      const found = this.check(compiled);
      if (!found?.length) continue;
      const registers = REGISTERS.map((name, r) => `${name}=${state.get64(8 * r).toString(16)}`).join(" ");
      return [
        `compiled code differs from the interpreter after ${compiled.count} instructions:`,
        ...found.map((line) => `  ${line}`),
        `from rip=${rip.toString(16)} rflags=${state.rflags.toString(16)} ${registers}`,
        ...this.trace(compiled.code === EXIT.fault ? compiled.count + 1 : compiled.count),
      ].join("\n");
    }
    return `compiled code differs from the interpreter in ${count} instructions from rip=${state.rip.toString(16)}`;
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
      const hex = hexOf(state.bytes.subarray(at, at + (decoded ? decoder.length : 15)));
      const row = decoded ? `${decoder.insn.mnemonic} [${decoder.insn.text}] size ${decoder.size}` : "";
      lines.push(`  ${rip.toString(16)}  ${hex.padEnd(24)}  ${row}`);
      state.set(REG.vbase, low & ~0xfff);
      state.set(REG.vbase + 4, high);
      state.set(BUDGET, 0);
      const { code, rip: next } = this.outcome(() => interpreter.enter(record), 0);
      if (code !== EXIT.attention && code !== EXIT.decode) break;
      rip = next;
    }
    state.set(MODE, mode);
    return lines.length > LISTED ? ["  ...", ...lines.slice(-LISTED)] : lines;
  }
}

/** Where two slices from the same start differ, one line each. */
function differences(compiled: Outcome, interpreted: Outcome): string[] {
  const out: string[] = [];
  const field = (name: string, a: number | bigint, b: number | bigint) => {
    if (a !== b) out.push(`${name}: compiled 0x${a.toString(16)}, interpreted 0x${b.toString(16)}`);
  };
  field("fault", Number(compiled.code === EXIT.fault), Number(interpreted.code === EXIT.fault));
  field("instructions", compiled.count, interpreted.count);
  field("rip", compiled.rip, interpreted.rip);
  field("rflags", compiled.rflags, interpreted.rflags);
  const [a, b] = [view(compiled.state), view(interpreted.state)];
  field("cpl", a.getInt32(offsetOf(CPL), true), b.getInt32(offsetOf(CPL), true));
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
    ["segment bases", REG.segBase, REG.segBase + 48],
    ["kernel gs base", KERNEL_GS_BASE, KERNEL_GS_BASE + 8],
    ["segments", SEG_SELECTOR, LDTR_BASE],
  ] as const) {
    const at = offsetOf(from);
    bytes(
      name,
      compiled.state.subarray(at, at + to - from),
      interpreted.state.subarray(at, at + to - from),
      out,
    );
  }
  out.push(...compareChanges(compiled.changes, interpreted.changes));
  return out;
}

const hexOf = (b: Uint8Array): string => Array.from(b, (x) => x.toString(16).padStart(2, "0")).join("");
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

/** Both a multiple of 4 bytes long, and their buffers aligned so. */
function bytes(name: string, a: Uint8Array, b: Uint8Array, out: string[]): void {
  const words = (x: Uint8Array) => new Int32Array(x.buffer, x.byteOffset, x.length >> 2);
  const at = 4 * firstDifference(words(a), words(b), a.length >> 2);
  if (at < 0) return;
  const hex = (x: Uint8Array) => hexOf(x.subarray(at, at + 16));
  out.push(`${name} + 0x${at.toString(16)}: compiled ${hex(a)}, interpreted ${hex(b)}`);
}
