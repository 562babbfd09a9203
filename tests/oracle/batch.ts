/** Test cases and their results as flat binary records: no object per case. */

import {
  CASE_CODE,
  CASE_CODE_LENGTH,
  CASE_CODE_OFFSET,
  CASE_FLAGS,
  CASE_TRAP_END,
  CODE_OFFSET,
  CODE_PAGE,
  CONTINUATION,
  DATA_CROSS,
  END_EXCEPTION,
  END_FELL_THROUGH,
  END_HANG,
  FX_BYTES,
  FX_FCW,
  FX_FSW,
  FX_FTW,
  FX_MXCSR,
  FX_XMM,
  MAX_CODE_BYTES,
  PAD,
  PAGE_SIZE,
  RECORD_GPRS,
  RECORD_RFLAGS,
  RECORD_WINDOW,
  RESULT_CR2,
  RESULT_END,
  RESULT_ERROR,
  RESULT_RIP,
  RESULT_TRAP,
  RFLAGS_INPUT,
  RSP,
} from "./layout.ts";

const DEFAULT_WINDOW_BYTES = 256;
const DEFAULT_FCW = 0x37f;
const DEFAULT_MXCSR = 0x1f80;
/** MXCSR bits every x86-64 processor has; setting another raises #GP (SDM vol. 1, 10.2.3). */
const MXCSR_BITS = 0xffff;
const REGISTER_NAMES = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split(" ");

export interface BatchOptions {
  /** Load the FXSAVE image before and store it after each case. Without it FPU and SSE state is undefined. */
  withFpu?: boolean;
  /** Bytes of data a case sees: a multiple of 128, 128 to 4096, default 256. */
  windowBytes?: number;
}

/** What case and result records have in common: registers, window and FXSAVE image. */
export class RecordBatch {
  /** Bytes per record. */
  readonly stride: number;
  readonly withFpu: boolean;
  readonly windowBytes: number;
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly u32: Uint32Array<ArrayBuffer>;
  readonly view: DataView<ArrayBuffer>;

  /** `count` zeroed records. Throws RangeError on a count below 1 or a bad window size. */
  constructor(
    readonly count: number,
    options: BatchOptions = {},
  ) {
    this.withFpu = options.withFpu ?? false;
    this.windowBytes = options.windowBytes ?? DEFAULT_WINDOW_BYTES;
    if (!Number.isInteger(count) || count < 1) throw new RangeError(`count is ${count}: must be at least 1`);
    if (this.windowBytes < 128 || this.windowBytes > PAGE_SIZE || this.windowBytes % 128 !== 0) {
      throw new RangeError(`windowBytes is ${this.windowBytes}: must be a multiple of 128, 128 to 4096`);
    }
    this.stride = RECORD_WINDOW + this.windowBytes + (this.withFpu ? FX_BYTES : 0);
    const buffer = new ArrayBuffer(this.stride * count);
    this.bytes = new Uint8Array(buffer);
    this.u32 = new Uint32Array(buffer);
    this.view = new DataView(buffer);
  }

  /** Byte offset of record `i`. */
  at(i: number): number {
    return i * this.stride;
  }

  /** Index in {@link u32} of the low half of a GPR; the high half follows it. */
  gprIndex(i: number, reg: number): number {
    return (this.at(i) + RECORD_GPRS + 8 * reg) >>> 2;
  }

  gpr(i: number, reg: number): bigint {
    return this.view.getBigUint64(this.at(i) + RECORD_GPRS + 8 * reg, true);
  }

  setGpr(i: number, reg: number, low: number, high = 0): void {
    const index = this.gprIndex(i, reg);
    this.u32[index] = low;
    this.u32[index + 1] = high;
  }

  setGpr64(i: number, reg: number, value: bigint): void {
    this.view.setBigUint64(this.at(i) + RECORD_GPRS + 8 * reg, BigInt.asUintN(64, value), true);
  }

  /** RFLAGS, bits 0 to 31. */
  rflags(i: number): number {
    return this.u32[(this.at(i) + RECORD_RFLAGS) >>> 2]!;
  }

  setRflags(i: number, value: number): void {
    this.u32[(this.at(i) + RECORD_RFLAGS) >>> 2] = value;
  }

  /** The window; its first byte is at guest address {@link windowAddress}. Aliases the batch. */
  window(i: number): Uint8Array<ArrayBuffer> {
    const start = this.at(i) + RECORD_WINDOW;
    return this.bytes.subarray(start, start + this.windowBytes);
  }

  /** Guest address of the window's first byte. */
  get windowAddress(): number {
    return DATA_CROSS - this.windowBytes / 2;
  }

  /** Byte offset of the FXSAVE image of record `i`. Throws if the batch has none. */
  fxAt(i: number): number {
    if (!this.withFpu) throw new Error("the batch has no FPU state: create it with withFpu");
    return this.at(i) + RECORD_WINDOW + this.windowBytes;
  }

  /** The FXSAVE image (512 bytes). Aliases the batch. */
  fx(i: number): Uint8Array<ArrayBuffer> {
    const start = this.fxAt(i);
    return this.bytes.subarray(start, start + FX_BYTES);
  }

  /** One 32-bit lane (0 to 3) of an XMM register. */
  xmm(i: number, reg: number, lane: number): number {
    return this.u32[(this.fxAt(i) + FX_XMM + 16 * reg + 4 * lane) >>> 2]!;
  }

  setXmm(i: number, reg: number, lanes: ArrayLike<number>): void {
    const index = (this.fxAt(i) + FX_XMM + 16 * reg) >>> 2;
    for (let lane = 0; lane < 4; lane++) this.u32[index + lane] = lanes[lane] ?? 0;
  }

  fcw(i: number): number {
    return this.view.getUint16(this.fxAt(i) + FX_FCW, true);
  }
  setFcw(i: number, value: number): void {
    this.view.setUint16(this.fxAt(i) + FX_FCW, value, true);
  }
  fsw(i: number): number {
    return this.view.getUint16(this.fxAt(i) + FX_FSW, true);
  }
  setFsw(i: number, value: number): void {
    this.view.setUint16(this.fxAt(i) + FX_FSW, value, true);
  }
  /** Abridged tag word: bit n set if physical register n is not empty. */
  ftw(i: number): number {
    return this.bytes[this.fxAt(i) + FX_FTW]!;
  }
  setFtw(i: number, value: number): void {
    this.bytes[this.fxAt(i) + FX_FTW] = value;
  }
  mxcsr(i: number): number {
    return this.view.getUint32(this.fxAt(i) + FX_MXCSR, true);
  }
  setMxcsr(i: number, value: number): void {
    this.view.setUint32(this.fxAt(i) + FX_MXCSR, value, true);
  }

  /** Registers of record `i` for a failure report. */
  describeRegisters(i: number): string {
    const lines = REGISTER_NAMES.map((name, reg) => `${name}=${hex(this.gpr(i, reg))}`);
    return `${lines.join(" ")} rflags=${hex(this.rflags(i))}`;
  }
}

/** Inputs. A new batch has empty code, zero registers, RSP on the window's middle and a reset FPU. */
export class CaseBatch extends RecordBatch {
  constructor(count: number, options: BatchOptions = {}) {
    super(count, options);
    for (let i = 0; i < count; i++) {
      this.u32[(this.at(i) + CASE_CODE_OFFSET) >>> 2] = CODE_OFFSET;
      this.setGpr(i, RSP, DATA_CROSS);
      if (this.withFpu) {
        this.setFcw(i, DEFAULT_FCW);
        this.setMxcsr(i, DEFAULT_MXCSR);
      }
    }
  }

  /**
   * Sets the code of case `i`: at most 32 bytes, at `offset` in the code page. With `trapEnd` an INT3 follows
   * it at once; without, a jump of 14 bytes (cut off at the end of the page) that ends the case quickly, so
   * that a branch 1 to 13 bytes past the end does nothing that makes sense.
   *
   * The caller keeps out system calls, far branches, segment register loads, instructions whose result is
   * not reproducible (RDTSC, RDRAND, CPUID) and those Linux emulates (SGDT, SIDT, SMSW). Throws RangeError on code that does not fit.
   */
  setCode(i: number, code: ArrayLike<number>, options: { offset?: number; trapEnd?: boolean } = {}): void {
    const offset = options.offset ?? CODE_OFFSET;
    if (code.length > MAX_CODE_BYTES) {
      throw new RangeError(`code of case ${i} has ${code.length} bytes: at most ${MAX_CODE_BYTES} fit`);
    }
    if (!Number.isInteger(offset) || offset < 0 || offset + code.length > PAGE_SIZE) {
      throw new RangeError(`code of case ${i} at page offset ${offset} leaves the code page: move it`);
    }
    const at = this.at(i);
    this.u32[at >>> 2] = code.length;
    this.u32[(at + CASE_CODE_OFFSET) >>> 2] = offset;
    this.u32[(at + CASE_FLAGS) >>> 2] = options.trapEnd ? CASE_TRAP_END : 0;
    this.bytes.set(code, at + CASE_CODE);
  }

  code(i: number): Uint8Array<ArrayBuffer> {
    const at = this.at(i);
    return this.bytes.subarray(at + CASE_CODE, at + CASE_CODE + this.u32[(at + CASE_CODE_LENGTH) >>> 2]!);
  }

  /** Guest address of the first code byte. */
  codeAddress(i: number): number {
    return CODE_PAGE + this.u32[(this.at(i) + CASE_CODE_OFFSET) >>> 2]!;
  }

  trapEnd(i: number): boolean {
    return this.u32[(this.at(i) + CASE_FLAGS) >>> 2] === CASE_TRAP_END;
  }

  /** Writes the code page of case `i`, as the native processor sees it, into `page` (4096 bytes). */
  codePage(i: number, page: Uint8Array): void {
    const code = this.code(i);
    const start = this.codeAddress(i) - CODE_PAGE;
    const end = start + code.length;
    page.fill(PAD);
    page.set(code, start);
    if (!this.trapEnd(i)) page.set(CONTINUATION.subarray(0, PAGE_SIZE - end), end);
  }

  /** Writes the data page of case `i` into `page` (4096 bytes): the window, and zeros between its halves. */
  dataPage(i: number, page: Uint8Array): void {
    const window = this.window(i);
    const half = this.windowBytes / 2;
    page.fill(0);
    page.set(window.subarray(0, half), PAGE_SIZE - half);
    page.set(window.subarray(half), 0);
  }

  /** Throws RangeError, naming the case, if a record would make the runner itself fault. */
  validate(): void {
    for (let i = 0; i < this.count; i++) {
      const at = this.at(i) >>> 2;
      const length = this.u32[at]!;
      const offset = this.u32[at + 1]!;
      if (length > MAX_CODE_BYTES || offset + length > PAGE_SIZE) {
        throw new RangeError(`case ${i}: ${length} code bytes at ${offset} do not fit: use setCode`);
      }
      if ((this.rflags(i) & ~(RFLAGS_INPUT | 2)) !== 0 || this.u32[at + 15] !== 0) {
        throw new RangeError(
          `case ${i}: rflags ${hex(this.rflags(i))} has bits outside RFLAGS_INPUT: clear them`,
        );
      }
      if (this.withFpu && (this.mxcsr(i) & ~MXCSR_BITS) !== 0) {
        throw new RangeError(`case ${i}: mxcsr ${hex(this.mxcsr(i))} has reserved bits: clear bits 16 to 31`);
      }
    }
  }

  /** Code and registers of case `i` for a failure report. */
  describe(i: number): string {
    const code = Array.from(this.code(i), (b) => b.toString(16).padStart(2, "0")).join(" ");
    return `case ${i}: code [${code}] at ${hex(this.codeAddress(i))} ${this.describeRegisters(i)}`;
  }
}

/** Outcomes, one for each case of a {@link CaseBatch} and of the same record size. */
export class ResultBatch extends RecordBatch {
  /** END_FELL_THROUGH, END_EXCEPTION, END_HANG or END_SYSTEM_CALL. */
  end(i: number): number {
    return this.view.getUint16(this.at(i) + RESULT_END, true);
  }

  /** Exception number, 0 unless the case ended in an exception (where 0 is #DE). */
  trap(i: number): number {
    return this.view.getUint16(this.at(i) + RESULT_TRAP, true);
  }

  /**
   * Error code of the exception, 0 if it has none. For a page fault on an address above 2^47 Linux always
   * sets bit 0 (P), to hide what is mapped there.
   */
  errorCode(i: number): number {
    return this.u32[(this.at(i) + RESULT_ERROR) >>> 2]!;
  }

  /** Faulting address of a page fault, otherwise 0. */
  cr2(i: number): bigint {
    return this.view.getBigUint64(this.at(i) + RESULT_CR2, true);
  }

  /**
   * RIP at the end: of the faulting instruction, of the next one for a trap (#BP, #DB), of the end of the
   * code for a case that fell through.
   */
  rip(i: number): bigint {
    return this.view.getBigUint64(this.at(i) + RESULT_RIP, true);
  }

  /** One line for a failure report. */
  describe(i: number): string {
    const end = this.end(i);
    let how = "made a system call";
    if (end === END_FELL_THROUGH) how = "fell through";
    else if (end === END_HANG) how = "hung";
    else if (end === END_EXCEPTION) {
      how = `trap ${this.trap(i)} error ${hex(this.errorCode(i))} cr2=${hex(this.cr2(i))}`;
    }
    return `${how} rip=${hex(this.rip(i))} ${this.describeRegisters(i)}`;
  }
}

function hex(value: number | bigint): string {
  return `0x${value.toString(16)}`;
}
