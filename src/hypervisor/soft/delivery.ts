/**
 * Delivery of interrupts and exceptions as it nearly always is: to flat 64-bit code of privilege 0, with gate,
 * descriptor, TSS and stack in plain memory. In 32-bit halves and through the TLB, which takes a quarter of what
 * exceptions.ts needs for all cases.
 */
import { EFER_BITS } from "./bits.ts";
import { PROBE } from "./context.ts";
import { type Cpu, updateMode } from "./cpu.ts";
import {
  BOUNCE,
  CPL,
  CS,
  EFER,
  FLAGS_SYSTEM,
  GDTR_BASE,
  GDTR_LIMIT,
  IDTR_BASE,
  IDTR_LIMIT,
  REG,
  RIP,
  RSP,
  SEG_ATTR,
  SEG_LIMIT,
  SEG_SELECTOR,
  SS,
  TLB_BYTES,
  TLB_ENTRIES,
  TLB_SUPERVISOR,
  TR,
  TR_BASE,
} from "./layout.ts";
import { RFLAGS } from "./state.ts";

/** A gate's type and what must be set in bits 8 to 15 of its second word (SDM vol. 3A, figure 6-8). */
const TYPE = 0x1f00;
const INTERRUPT_GATE = 0x0e00;
const TRAP_GATE = 0x0f00;
const PRESENT = 0x8000;

/** A flat 64-bit code segment of privilege 0 that is not conforming, as bits of the upper half and their values. */
const FLAT_LOW = 0x0000_ffff;
const CODE_BITS = 0xffef_fcff | 0;
const CODE_VALUES = 0x00af_9800;

/** Offsets in the 64-bit TSS (SDM vol. 3A, figure 7-11). */
const RSP0 = 4;
const IST1 = 36;

/** What is to be delivered, and the error code its frame gets; -1: none. */
export interface Delivery {
  readonly vector: number;
  readonly error: number;
  /** INT n and such: the gate's privilege counts. */
  readonly checked: boolean;
  /** A fault: RF is set in the frame. */
  readonly fault: boolean;
}

const isCanonical = (high: number): boolean => (high << 16) >> 16 === high;

/**
 * Address in the CPU's memory of `size` bytes, a multiple of 4, that the supervisor may read or write; 0: they are not
 * simply there. `low` and `high`: the linear address, plus `above`, which is not negative.
 */
function supervisor(
  cpu: Cpu,
  low: number,
  high: number,
  above: number,
  size: number,
  write: boolean,
): number {
  const { i32 } = cpu.state;
  const at = (low + above) | 0;
  const atHigh = at >>> 0 < low >>> 0 ? (high + 1) | 0 : high;
  if ((at & 3) !== 0 || (at & 0xfff) + size > 4096) return 0;
  const tlb = TLB_SUPERVISOR + (write ? TLB_BYTES : 0);
  const entry = (tlb + (((at >>> 12) & (TLB_ENTRIES - 1)) << 4)) >> 2;
  if (i32[entry] === (at & ~0xfff) && i32[entry + 1] === atHigh) return (at + i32[entry + 2]!) >>> 0;
  // The handler's own writes to its stack bring that page into the TLB, and watch (jit/lockstep.ts) what they do.
  if (write) return 0;
  const address = cpu.mmu.access(at, atHigh, size, PROBE, false, false);
  return address === BOUNCE ? 0 : address >>> 0;
}

/** Delivers at the state's RIP. False: not that simple, and nothing has been done. */
export function deliverSimply(cpu: Cpu, d: Delivery): boolean {
  const { i32 } = cpu.state;
  const get = (at: number): number => i32[at >>> 2]!;
  const set = (at: number, value: number): void => {
    i32[at >>> 2] = value;
  };
  const gateAt = d.vector * 16;
  if ((get(EFER) & EFER_BITS.LMA) === 0 || gateAt + 15 > get(IDTR_LIMIT) >>> 0) return false;
  const gate = supervisor(cpu, get(IDTR_BASE), get(IDTR_BASE + 4), gateAt, 16, false);
  if (gate === 0) return false;
  const w0 = get(gate);
  const w1 = get(gate + 4);
  const targetHigh = get(gate + 8);
  const type = w1 & (TYPE | PRESENT);
  const cpl = get(CPL);
  if (
    (type !== (INTERRUPT_GATE | PRESENT) && type !== (TRAP_GATE | PRESENT)) ||
    (d.checked && ((w1 >> 13) & 3) < cpl) ||
    !isCanonical(targetHigh)
  ) {
    return false;
  }

  const selector = w0 >>> 16;
  const index = selector & 0xfff8;
  if (index === 0 || (selector & 4) !== 0 || index + 7 > get(GDTR_LIMIT) >>> 0) return false;
  const descriptor = supervisor(cpu, get(GDTR_BASE), get(GDTR_BASE + 4), index, 8, false);
  if (descriptor === 0) return false;
  const codeHigh = get(descriptor + 4);
  if (get(descriptor) !== FLAT_LOW || (codeHigh & CODE_BITS) !== CODE_VALUES) return false;

  let stack = get(RSP);
  let stackHigh = get(RSP + 4);
  const ist = w1 & 7;
  if (ist !== 0 || cpl !== 0) {
    const offset = ist === 0 ? RSP0 : IST1 + 8 * (ist - 1);
    if (offset + 7 > get(SEG_LIMIT + 4 * TR) >>> 0) return false;
    const pointer = supervisor(cpu, get(TR_BASE), get(TR_BASE + 4), offset, 8, false);
    if (pointer === 0) return false;
    stack = get(pointer);
    stackHigh = get(pointer + 4);
  }
  const size = d.error === -1 ? 40 : 48;
  const top = stack & ~15;
  const rsp = (top - size) | 0;
  const rspHigh = top >>> 0 < size ? (stackHigh - 1) | 0 : stackHigh;
  if (!isCanonical(rspHigh)) return false;
  const frame = supervisor(cpu, rsp, rspHigh, 0, size, true);
  if (frame === 0) return false;

  // Nothing fails from here on.
  const flags = cpu.state.rflags;
  let at = frame;
  const push = (low: number, high: number): void => {
    set(at, low);
    set(at + 4, high);
    at += 8;
  };
  if (d.error !== -1) push(d.error, 0);
  push(get(RIP), get(RIP + 4));
  push(get(SEG_SELECTOR + 4 * CS), 0);
  push(d.fault ? flags | RFLAGS.RF : flags, 0);
  push(get(RSP), get(RSP + 4));
  push(get(SEG_SELECTOR + 4 * SS), 0);

  const load = (segment: number, value: number, attr: number, limit: number): void => {
    set(SEG_SELECTOR + 4 * segment, value);
    set(SEG_ATTR + 4 * segment, attr);
    set(SEG_LIMIT + 4 * segment, limit);
    set(REG.segBase + 8 * segment, 0);
    set(REG.segBase + 8 * segment + 4, 0);
  };
  load(CS, selector & 0xfffc, (codeHigh >> 8) & 0xf0ff, -1);
  if (cpl !== 0) load(SS, 0, 0, 0);
  set(CPL, 0);
  set(RSP, rsp);
  set(RSP + 4, rspHigh);
  set(RIP, (w0 & 0xffff) | (w1 & 0xffff_0000));
  set(RIP + 4, targetHigh);
  const cleared = RFLAGS.TF | RFLAGS.NT | RFLAGS.RF | RFLAGS.VM;
  const masked = (type & TYPE) === INTERRUPT_GATE ? cleared | RFLAGS.IF : cleared;
  set(FLAGS_SYSTEM, get(FLAGS_SYSTEM) & ~masked);
  updateMode(cpu);
  return true;
}
