/** One instruction, executed as it always is and by a reference, on the same state of the CPU. */
import { expect } from "bun:test";
import {
  ATTENTION,
  BUDGET,
  CR0,
  CURRENT,
  DR,
  EXIT,
  FAULT_VECTOR,
  GUEST_BASE,
  LINEAR,
  RECORD,
  RECORD_BYTES,
  REG,
  RETURN_DEPTH,
  RIP,
  SCRATCH,
  SEG_ATTR,
  SEG_LIMIT,
  SEG_SELECTOR,
  TLB_LOG_COUNT,
  XMM,
} from "../../src/hypervisor/soft/layout.ts";
import { Msrs } from "../../src/hypervisor/soft/msr.ts";
import type { State } from "../../src/hypervisor/soft/state.ts";
import { buildHelpers } from "../../src/hypervisor/soft/system.ts";
import { code } from "./code.ts";
import { CODE, GDT, Guest } from "./guest.ts";

const HELPERS = buildHelpers();
const NEXT_BRANCH = code("eb 00 | jmp $+2");

/** The part of the CPU state that both ways must leave alike, but for what says how code has run. */
const STATE_BYTES = DR;
const LEFT_OUT: readonly (readonly [from: number, to: number])[] = [
  [REG.vbase, REG.vbase + 8],
  [BUDGET, BUDGET + 4],
  [CURRENT, RIP + 8],
  [LINEAR, RETURN_DEPTH + 4],
  [TLB_LOG_COUNT, XMM],
  // The exception is compared when there is one.
  [FAULT_VECTOR, FAULT_VECTOR + 16],
  [SCRATCH, CR0],
];

export interface Outcome {
  /** A fault's vector and error code; -1: none. */
  vector: number;
  error: number;
  rip: bigint;
  attention: number;
  /** It has left code for the run loop with another reason than that the slice is over. */
  left: boolean;
  state: Int32Array;
}

/** Where two outcomes differ; who has left for the run loop does not count. */
export function differences(fast: Outcome, slow: Outcome): string[] {
  const out: string[] = [];
  for (const name of ["vector", "error", "rip", "attention"] as const) {
    if (fast[name] !== slow[name])
      out.push(`${name}: ${fast[name].toString(16)} / ${slow[name].toString(16)}`);
  }
  fast.state.forEach((word, n) => {
    const other = slow.state[n]!;
    if (word !== other)
      out.push(`state + ${4 * n}: ${(word >>> 0).toString(16)} / ${(other >>> 0).toString(16)}`);
  });
  return out;
}

export class BothWays {
  readonly guest: Guest;
  private readonly state: State;
  private readonly msrs: Msrs;

  /** `compiled`: the instruction is compiled before it runs. */
  constructor(private readonly compiled: boolean) {
    this.guest = new Guest(compiled ? 1 : false);
    this.state = this.guest.state;
    this.msrs = new Msrs(this.guest.vcpu.cpu);
  }

  /** Puts the CPU at CODE with nothing decoded but `bytes`, at privilege `cpl`. */
  prepare(bytes: number[], cpl: 0 | 3): void {
    const { guest, state } = this;
    guest.run({ code: [], cpl });
    guest.poke(CODE, [...bytes, ...NEXT_BRANCH]);
    guest.vcpu.cpu.blocks.flush();
    state.rip = BigInt(CODE);
    state.set(RETURN_DEPTH, 0);
    Atomics.store(state.i32, ATTENTION >> 2, 0);
  }

  /** Loads a segment register with a flat segment; `attr` 0: a null one. */
  segment(number: number, selector: number, attr: number): void {
    const { state } = this;
    state.set(SEG_SELECTOR + 4 * number, selector);
    state.set(SEG_ATTR + 4 * number, attr);
    state.set(SEG_LIMIT + 4 * number, attr === 0 ? 0 : -1);
  }

  /** The instruction's record at RIP, after the block's counting record or its region. */
  decode(): { block: number; record: number } {
    const { guest, state } = this;
    const { cpu, interpreter } = guest.vcpu;
    const block = cpu.blocks.at(state.get(RIP), state.get(RIP + 4));
    // Single-stepped code is not compiled.
    const counts = state.get(block + RECORD.slot) === interpreter.pseudo.count;
    if (!this.compiled || !counts) return { block, record: block };
    cpu.blocks.compile(block, guest.physical(CODE));
    return { block, record: block + RECORD_BYTES };
  }

  private outcome(code: number): Outcome {
    const { state } = this;
    const bytes = state.bytes.slice(0, STATE_BYTES);
    for (const [from, to] of LEFT_OUT) bytes.fill(0, from, to);
    const fault = code === EXIT.fault;
    return {
      vector: fault ? state.get(FAULT_VECTOR) : -1,
      error: fault ? state.get(FAULT_VECTOR + 4) : -1,
      rip: fault ? BigInt(CODE) : state.rip,
      attention: Atomics.load(state.i32, ATTENTION >> 2),
      left: !fault && code !== EXIT.attention && code !== 0,
      state: new Int32Array(bytes.buffer),
    };
  }

  /**
   * What the instruction at CODE does here, and what `reference` does on the same state. `reference` returns an EXIT
   * code, or 0 to go on with the next instruction.
   */
  both(reference: (record: number) => number): { fast: Outcome; slow: Outcome } {
    const { state } = this;
    const { block, record } = this.decode();
    state.set64(REG.vbase, BigInt(CODE & ~0xfff));
    state.set(BUDGET, 0);
    const before = state.bytes.slice(0, STATE_BYTES);
    const memory = state.bytes.slice(GUEST_BASE + GDT, GUEST_BASE + GDT + 0x100);
    const code = reference(record);
    // The branch behind it is part of what runs.
    const length = BigInt(state.bytes[record + RECORD.length]! + 2);
    if (code === 0) state.rip = BigInt(CODE) + length;
    const slow = this.outcome(code);
    state.bytes.set(before, 0);
    state.bytes.set(memory, GUEST_BASE + GDT);
    const fast = this.outcome(this.guest.vcpu.interpreter.enter(block));
    if (fast.vector >= 0) expect(state.get(CURRENT)).toBe(record);
    return { fast, slow };
  }

  /** What helper `id` does, as a reference. */
  helper(id: number, size: number): (record: number) => number {
    const { cpu } = this.guest.vcpu;
    const variant = { size, mem: false, addr32: false, mode64: true, rep: 0 };
    return (record) => HELPERS[id]!({ cpu, msrs: this.msrs, record, ...variant });
  }
}
