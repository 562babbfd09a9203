/** The parts of one software vCPU, as its system code shares them, and the state that follows from others. */
import type { Apic } from "./apic.ts";
import { CR0_BITS, CR4_BITS, EFER_BITS } from "./bits.ts";
import type { Blocks } from "./blocks.ts";
import type { Clock } from "./clock.ts";
import type { X87 } from "./float/x87.ts";
import {
  ATTENTION,
  CPL,
  CR0,
  CR4,
  CS,
  EFER,
  FLAGS_SYSTEM,
  IRQ_WAITING,
  MODE,
  MODE_32,
  MODE_64,
  MODE_FPU_OFF,
  MODE_TAG,
  MODE_TF,
  MODE_USER,
  SEG_ATTR,
  TLB_CURRENT,
  TLB_SUPERVISOR,
  TLB_USER,
} from "./layout.ts";
import type { Mmu } from "./mmu.ts";
import type { SseSlow } from "./sse-slow.ts";
import { RFLAGS, type State } from "./state.ts";

/** Descriptor attribute bits, as in Segment.flags (hypervisor/types.ts). */
export const ATTR = {
  A: 1,
  RW: 2,
  DC: 4,
  CODE: 8,
  S: 0x10,
  DPL: 0x60,
  P: 0x80,
  L: 0x2000,
  DB: 0x4000,
  G: 0x8000,
} as const;

/** Attributes of the flat segments that SYSCALL loads, those of privilege 0. */
export const FLAT_CODE64 = ATTR.G | ATTR.L | ATTR.P | ATTR.S | ATTR.CODE | ATTR.RW | ATTR.A;
export const FLAT_CODE32 = (FLAT_CODE64 & ~ATTR.L) | ATTR.DB;
export const FLAT_DATA = ATTR.G | ATTR.DB | ATTR.P | ATTR.S | ATTR.RW | ATTR.A;

/** Port I/O and memory-mapped I/O of the machine. Values are unsigned; sizes 1, 2 or 4. */
export interface SoftBus {
  pioRead(port: number, size: number): number;
  pioWrite(port: number, size: number, value: number): void;
  mmioRead(gpa: number, size: number): number;
  mmioWrite(gpa: number, size: number, value: number): void;
}

export interface Cpu {
  readonly state: State;
  readonly mmu: Mmu;
  readonly blocks: Blocks;
  readonly apic: Apic;
  readonly clock: Clock;
  readonly bus: SoftBus;
  readonly x87: X87;
  readonly sse: SseSlow;
  /** Address-space generation: part of every jump-cache tag, so a new one empties the cache. */
  generation: number;
  log(message: string): void;
}

/** Generations that a jump-cache tag can tell apart: MODE has 6 bits, a tag 16. */
const GENERATIONS = 0x3ff;

/** Recomputes MODE, the current TLB and the jump-cache tag after CS, CPL, EFER, CR0, CR4 or TF changed. */
export function updateMode(cpu: Cpu): void {
  const { state } = cpu;
  const attr = state.get(SEG_ATTR + 4 * CS);
  const lma = (state.get(EFER) & EFER_BITS.LMA) !== 0;
  let mode = lma && attr & ATTR.L ? MODE_64 : attr & ATTR.DB ? MODE_32 : 0;
  if (state.get(FLAGS_SYSTEM) & RFLAGS.TF) mode |= MODE_TF;
  if (state.get(CR0) & (CR0_BITS.EM | CR0_BITS.TS) || !(state.get(CR4) & CR4_BITS.OSFXSR))
    mode |= MODE_FPU_OFF;
  const user = state.cpl === 3;
  if (user) mode |= MODE_USER;
  state.set(MODE, mode);
  state.set(TLB_CURRENT, user ? TLB_USER : TLB_SUPERVISOR);
  const tag = mode | ((cpu.generation & GENERATIONS) << 6);
  state.set(MODE_TAG, 0);
  state.set(MODE_TAG + 4, tag << 16);
}

/** Forgets which blocks virtual addresses lead to. */
export function newGeneration(cpu: Cpu): void {
  cpu.generation++;
  if ((cpu.generation & GENERATIONS) === 0) cpu.mmu.flushJumpCache();
  updateMode(cpu);
}

export function setCpl(cpu: Cpu, cpl: number): void {
  cpu.state.set(CPL, cpl);
}

/** Sets RFLAGS; TF changes the mode, and a newly set IF lets a waiting interrupt in. */
export function setRflags(cpu: Cpu, value: number): void {
  const { state } = cpu;
  const before = state.get(FLAGS_SYSTEM);
  state.rflags = value;
  if ((before ^ value) & RFLAGS.TF) updateMode(cpu);
  if (value & RFLAGS.IF && state.get(IRQ_WAITING)) Atomics.store(state.i32, ATTENTION >> 2, -1);
}
