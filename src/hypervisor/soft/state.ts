/** Typed access to the CPU state at the bottom of the memory; offsets are those of layout.ts. */
import {
  CPL,
  FAULT_CR2,
  FAULT_ERROR,
  FAULT_VECTOR,
  FLAG_A,
  FLAG_C,
  FLAG_S,
  FLAG_Z,
  FLAGS_SYSTEM,
  RIP,
} from "./layout.ts";

/** RFLAGS bits (SDM vol. 1, 3.4.3). */
export const RFLAGS = {
  CF: 0x1,
  PF: 0x4,
  AF: 0x10,
  ZF: 0x40,
  SF: 0x80,
  TF: 0x100,
  IF: 0x200,
  DF: 0x400,
  OF: 0x800,
  IOPL: 0x3000,
  NT: 0x4000,
  RF: 0x1_0000,
  VM: 0x2_0000,
  AC: 0x4_0000,
  VIF: 0x8_0000,
  VIP: 0x10_0000,
  ID: 0x20_0000,
} as const;

/** Flags that SYSRET takes from R11 (SDM vol. 2B, SYSRET): all but RF, VM and what is reserved. */
export const RFLAGS_SYSRET = 0x3c_7fd7;

const ARITHMETIC = RFLAGS.CF | RFLAGS.PF | RFLAGS.AF | RFLAGS.ZF | RFLAGS.SF | RFLAGS.OF;

export class State {
  readonly i32: Int32Array;
  readonly u64: BigUint64Array;
  readonly bytes: Uint8Array;
  readonly view: DataView;

  constructor(readonly memory: WebAssembly.Memory) {
    const buffer = memory.buffer;
    this.i32 = new Int32Array(buffer);
    this.u64 = new BigUint64Array(buffer);
    this.bytes = new Uint8Array(buffer);
    this.view = new DataView(buffer);
  }

  get(offset: number): number {
    return this.i32[offset >> 2]!;
  }
  set(offset: number, value: number): void {
    this.i32[offset >> 2] = value;
  }
  get64(offset: number): bigint {
    return this.u64[offset >> 3]!;
  }
  set64(offset: number, value: bigint): void {
    this.u64[offset >> 3] = value;
  }

  get rip(): bigint {
    return this.u64[RIP >> 3]!;
  }
  set rip(value: bigint) {
    this.u64[RIP >> 3] = value;
  }
  get cpl(): number {
    return this.i32[CPL >> 2]!;
  }

  /** RFLAGS composed from the lazily kept arithmetic flags and the rest. */
  get rflags(): number {
    const { i32 } = this;
    const c = i32[(FLAG_C + 4) >> 2]!;
    let flags = i32[FLAGS_SYSTEM >> 2]! & ~ARITHMETIC;
    if (c < 0) flags |= RFLAGS.CF;
    if ((c ^ (c << 1)) < 0) flags |= RFLAGS.OF;
    if ((i32[FLAG_Z >> 2]! | i32[(FLAG_Z + 4) >> 2]!) === 0) flags |= RFLAGS.ZF;
    if (i32[(FLAG_S + 4) >> 2]! < 0) flags |= RFLAGS.SF;
    let parity = i32[FLAG_S >> 2]! & 0xff;
    parity ^= parity >> 4;
    if (((0x9669 >> (parity & 15)) & 1) !== 0) flags |= RFLAGS.PF;
    if (i32[FLAG_A >> 2]! & 8) flags |= RFLAGS.AF;
    return flags | 2;
  }

  set rflags(value: number) {
    const { i32 } = this;
    i32[FLAGS_SYSTEM >> 2] = (value & ~ARITHMETIC) | 2;
    const cf = (value & RFLAGS.CF) !== 0;
    const of = (value & RFLAGS.OF) !== 0;
    i32[FLAG_C >> 2] = 0;
    i32[(FLAG_C + 4) >> 2] = (cf ? 1 << 31 : 0) | (cf !== of ? 1 << 30 : 0);
    i32[FLAG_Z >> 2] = value & RFLAGS.ZF ? 0 : 1;
    i32[(FLAG_Z + 4) >> 2] = 0;
    i32[FLAG_S >> 2] = value & RFLAGS.PF ? 0 : 1;
    i32[(FLAG_S + 4) >> 2] = value & RFLAGS.SF ? 1 << 31 : 0;
    i32[FLAG_A >> 2] = value & RFLAGS.AF ? 8 : 0;
  }

  /** Notes the exception to deliver; `error` -1 for none. */
  fault(vector: number, error = -1): void {
    this.i32[FAULT_VECTOR >> 2] = vector;
    this.i32[FAULT_ERROR >> 2] = error;
  }

  /** Notes a page fault at a linear address given in two halves. */
  pageFault(low: number, high: number, error: number): void {
    this.fault(14, error);
    this.i32[FAULT_CR2 >> 2] = low;
    this.i32[(FAULT_CR2 >> 2) + 1] = high;
  }
}
