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
    const s = this.u64[FLAG_S >> 3]!;
    const c = this.u64[FLAG_C >> 3]!;
    let flags = this.i32[FLAGS_SYSTEM >> 2]! & ~ARITHMETIC;
    const cf = c >> 63n !== 0n;
    if (cf) flags |= RFLAGS.CF;
    if (cf !== (((c >> 62n) & 1n) !== 0n)) flags |= RFLAGS.OF;
    if (this.u64[FLAG_Z >> 3] === 0n) flags |= RFLAGS.ZF;
    if (s >> 63n !== 0n) flags |= RFLAGS.SF;
    let parity = Number(s & 0xffn);
    parity ^= parity >> 4;
    if (((0x9669 >> (parity & 15)) & 1) !== 0) flags |= RFLAGS.PF;
    if (this.i32[FLAG_A >> 2]! & 8) flags |= RFLAGS.AF;
    return flags | 2;
  }

  set rflags(value: number) {
    this.i32[FLAGS_SYSTEM >> 2] = (value & ~ARITHMETIC) | 2;
    const cf = (value & RFLAGS.CF) !== 0;
    const of = (value & RFLAGS.OF) !== 0;
    this.u64[FLAG_C >> 3] = (cf ? 1n << 63n : 0n) | (cf !== of ? 1n << 62n : 0n);
    this.u64[FLAG_Z >> 3] = value & RFLAGS.ZF ? 0n : 1n;
    this.u64[FLAG_S >> 3] = (value & RFLAGS.SF ? 1n << 63n : 0n) | (value & RFLAGS.PF ? 0n : 1n);
    this.i32[FLAG_A >> 2] = value & RFLAGS.AF ? 8 : 0;
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
