/**
 * The x87 register file: control, status and tag words, the eight registers, and their images in memory
 * (FNSTENV, FNSAVE, FXSAVE).
 *
 * It lives in bytes 0-159 of an area the CPU core owns, laid out as FXSAVE64 lays it out, with one
 * difference: the registers are in physical order (R0 at 32, R1 at 48, ...), not stack order, so a push or
 * a pop moves nothing and MMi is always the low 8 bytes at 32 + 16 * i. {@link X87State.fxsave} and
 * {@link X87State.fxrstor} convert.
 */
import {
  CLASS_FINITE,
  CLASS_ZERO,
  F80,
  F80_DOUBLE,
  F80_SINGLE,
  type Float,
  type Format,
  f80SignExponent,
  f80Significand,
  unpackF80,
} from "./float.ts";
import { FloatEnv, IE } from "./round.ts";

/** Offsets in the state area and in an FXSAVE image (SDM vol. 2, FXSAVE). */
export const FCW = 0;
export const FSW = 2;
export const FTW = 4;
export const FOP = 6;
export const FIP = 8;
export const FDP = 16;
export const ST = 32;
export const ST_STRIDE = 16;

/** Status word bits (SDM vol. 1, 8.1.3). */
export const FSW_SF = 1 << 6;
export const FSW_ES = 1 << 7;
export const FSW_C0 = 1 << 8;
export const FSW_C1 = 1 << 9;
export const FSW_C2 = 1 << 10;
export const FSW_C3 = 1 << 14;
export const FSW_B = 1 << 15;
const FSW_TOP_SHIFT = 11;
const FSW_TOP = 7 << FSW_TOP_SHIFT;

/** Control word: bits that can be set, and the one that always reads 1 (SDM vol. 1, 8.1.5). */
const FCW_WRITABLE = 0x1f3f;
const FCW_RESERVED_ONE = 0x0040;
const FCW_INIT = 0x037f;
const EXCEPTIONS = 0x3f;

/** Tags of the full tag word (SDM vol. 1, 8.1.7). */
const TAG_VALID = 0;
const TAG_ZERO = 1;
const TAG_SPECIAL = 2;
const TAG_EMPTY = 3;

/** Formats by FCW.PC; the reserved value 1 acts as 3. */
const PRECISION: readonly Format[] = [F80_SINGLE, F80, F80_DOUBLE, F80];

/** What the FPU needs of the rest of the CPU. */
export interface X87Cpu {
  flags: {
    /** The low 16 bits of RFLAGS or more. */
    get(): number;
    /** FCOMI and FUCOMI: sets ZF, PF and CF to 0 or 1; they clear OF, SF and AF too, which the CPU does. */
    set(zf: number, pf: number, cf: number): void;
  };
  /** FNSTSW AX: writes AX, 0-0xffff. */
  setAx(value: number): void;
}

/** Where FNSTENV puts each field, in the 32-bit and 16-bit protected-mode formats (SDM vol. 1, 8.1.10). */
const ENV32 = { fsw: 4, ftw: 8, fip: 12, fop: 18, fdp: 20, size: 28 } as const;
const ENV16 = { fsw: 2, ftw: 4, fip: 6, fdp: 10, size: 14 } as const;

export class X87State {
  /** Rounding and flags of the operation under way. */
  readonly env = new FloatEnv();
  /**
   * After {@link X87.execute} of an instruction that writes memory: whether it did. An unmasked exception
   * suppresses the store, and the operand bytes mean nothing.
   */
  stored = true;

  /** `view` starts at byte 0 of the state area. Nothing is initialized: call {@link reset} or fxrstor. */
  constructor(
    readonly view: DataView,
    readonly cpu: X87Cpu,
  ) {
    this.env.x87 = true;
  }

  get fcw(): number {
    return this.view.getUint16(FCW, true);
  }
  get fsw(): number {
    return this.view.getUint16(FSW, true);
  }
  set fsw(value: number) {
    this.view.setUint16(FSW, value, true);
  }
  get ftw(): number {
    return this.view.getUint8(FTW);
  }
  set ftw(value: number) {
    this.view.setUint8(FTW, value);
  }
  get top(): number {
    return (this.fsw & FSW_TOP) >>> FSW_TOP_SHIFT;
  }
  set top(value: number) {
    this.fsw = (this.fsw & ~FSW_TOP) | ((value & 7) << FSW_TOP_SHIFT);
  }

  /** FNINIT (SDM vol. 2). Register contents stay. */
  reset(): void {
    const { view } = this;
    view.setUint16(FCW, FCW_INIT, true);
    view.setUint16(FSW, 0, true);
    view.setUint16(FTW, 0, true);
    view.setUint16(FOP, 0, true);
    view.setBigUint64(FIP, 0n, true);
    view.setBigUint64(FDP, 0n, true);
  }

  /** Offset of ST(i) in the state area. */
  offset(i: number): number {
    return ST + ST_STRIDE * ((this.top + i) & 7);
  }

  isEmpty(i: number): boolean {
    return ((this.ftw >>> ((this.top + i) & 7)) & 1) === 0;
  }

  /** Value of ST(i), whatever its tag. */
  read(i: number): Float {
    const at = this.offset(i);
    return unpackF80(this.view.getUint16(at + 8, true), this.view.getBigUint64(at, true));
  }

  /** Writes ST(i) and tags it valid. `value` must be rounded to f80's range. */
  write(i: number, value: Float): void {
    this.writeRaw(i, f80SignExponent(value), f80Significand(value));
  }

  writeRaw(i: number, signExponent: number, significand: bigint): void {
    const register = (this.top + i) & 7;
    const at = ST + ST_STRIDE * register;
    this.view.setBigUint64(at, significand, true);
    this.view.setUint16(at + 8, signExponent, true);
    this.ftw |= 1 << register;
  }

  /** Decrements TOP and writes the new ST(0). The caller has checked that it is empty. */
  push(value: Float): void {
    this.top = this.top - 1;
    this.write(0, value);
  }

  /** Tags ST(0) empty and increments TOP. */
  pop(): void {
    this.free(0);
    this.top = this.top + 1;
  }

  free(i: number): void {
    this.ftw &= ~(1 << ((this.top + i) & 7));
  }

  /** Replaces the condition codes named in `mask` by `value` (FSW bits). */
  setConditions(mask: number, value: number): void {
    this.fsw = (this.fsw & ~mask) | (value & mask);
  }

  /** Recomputes ES and B from the flags and the masks. */
  updateSummary(): void {
    const pending = this.fsw & ~this.fcw & EXCEPTIONS;
    this.fsw = pending ? this.fsw | FSW_ES | FSW_B : this.fsw & ~(FSW_ES | FSW_B);
  }

  /** ORs exception flags (and SF) into FSW. */
  raise(flags: number): void {
    if (flags === 0) return;
    this.fsw |= flags;
    this.updateSummary();
  }

  /** Starts an operation: rounding and masks from FCW, no flags, C1 clear. */
  begin(): FloatEnv {
    const fcw = this.fcw;
    this.env.begin((fcw >>> 10) & 3, fcw & EXCEPTIONS);
    this.fsw &= ~FSW_C1;
    return this.env;
  }

  /** Format of FADD, FMUL, FDIV and FSQRT results, from FCW.PC. */
  get precision(): Format {
    return PRECISION[(this.fcw >>> 8) & 3];
  }

  /** Ends an operation: flags to FSW, C1 from the rounding. True when the destination may be written. */
  commit(): boolean {
    const { env } = this;
    this.raise(env.flags);
    if (env.faulted) return false;
    if (env.roundedUp) this.fsw |= FSW_C1;
    return true;
  }

  /** Stack underflow: IE, SF, C1 = 0. True when the masked response applies. */
  stackUnderflow(): boolean {
    this.fsw &= ~FSW_C1;
    this.raise(IE | FSW_SF);
    return (this.fcw & IE) !== 0;
  }

  /** Stack overflow: IE, SF, C1 = 1. True when the masked response applies. */
  stackOverflow(): boolean {
    this.fsw |= FSW_C1;
    this.raise(IE | FSW_SF);
    return (this.fcw & IE) !== 0;
  }

  setFcw(value: number): void {
    this.view.setUint16(FCW, (value & FCW_WRITABLE) | FCW_RESERVED_ONE, true);
    this.updateSummary();
  }

  /** The 16-bit tag word, two bits per physical register (SDM vol. 1, 8.1.7). */
  fullTags(): number {
    let tags = 0;
    for (let register = 0; register < 8; register++) tags |= this.fullTag(register) << (2 * register);
    return tags;
  }

  private fullTag(register: number): number {
    if (((this.ftw >>> register) & 1) === 0) return TAG_EMPTY;
    const at = ST + ST_STRIDE * register;
    const value = unpackF80(this.view.getUint16(at + 8, true), this.view.getBigUint64(at, true));
    if (value.cls === CLASS_ZERO) return TAG_ZERO;
    return value.cls === CLASS_FINITE && !value.denormal ? TAG_VALID : TAG_SPECIAL;
  }

  /** Takes a 16-bit tag word; only "empty or not" counts. */
  setFullTags(tags: number): void {
    let abridged = 0;
    for (let register = 0; register < 8; register++) {
      if (((tags >>> (2 * register)) & 3) !== TAG_EMPTY) abridged |= 1 << register;
    }
    this.ftw = abridged;
  }

  /** FNSTENV into 28 bytes (14 for `opsize16`): the protected-mode formats, selectors 0. */
  storeEnvironment(out: DataView, opsize16: boolean): void {
    const { view } = this;
    if (opsize16) {
      out.setUint16(0, this.fcw, true);
      out.setUint16(ENV16.fsw, this.fsw, true);
      out.setUint16(ENV16.ftw, this.fullTags(), true);
      out.setUint32(ENV16.fip, view.getUint16(FIP, true), true);
      out.setUint32(ENV16.fdp, view.getUint16(FDP, true), true);
      return;
    }
    out.setUint32(0, 0xffff_0000 | this.fcw, true);
    out.setUint32(ENV32.fsw, 0xffff_0000 | this.fsw, true);
    out.setUint32(ENV32.ftw, 0xffff_0000 | this.fullTags(), true);
    out.setUint32(ENV32.fip, view.getUint32(FIP, true), true);
    out.setUint32(ENV32.fop - 2, view.getUint16(FOP, true) << 16, true);
    out.setUint32(ENV32.fdp, view.getUint32(FDP, true), true);
    out.setUint32(ENV32.fdp + 4, 0xffff_0000, true);
  }

  /** FLDENV. */
  loadEnvironment(source: DataView, opsize16: boolean): void {
    const layout = opsize16 ? ENV16 : ENV32;
    const { view } = this;
    const short = (offset: number): bigint => BigInt(source.getUint16(offset, true));
    const long = (offset: number): bigint => BigInt(source.getUint32(offset, true));
    const pointer = opsize16 ? short : long;
    view.setBigUint64(FIP, pointer(layout.fip), true);
    view.setBigUint64(FDP, pointer(layout.fdp), true);
    view.setUint16(FOP, opsize16 ? 0 : source.getUint16(ENV32.fop, true) & 0x7ff, true);
    this.fsw = source.getUint16(layout.fsw, true);
    this.setFullTags(source.getUint16(layout.ftw, true));
    this.setFcw(source.getUint16(0, true));
  }

  /** FNSAVE into 108 bytes (94 for `opsize16`), then FNINIT. */
  save(out: DataView, opsize16: boolean): void {
    this.storeEnvironment(out, opsize16);
    const base = opsize16 ? ENV16.size : ENV32.size;
    for (let i = 0; i < 8; i++) this.copyOut(i, out, base + 10 * i);
    this.reset();
  }

  /** FRSTOR. */
  restore(source: DataView, opsize16: boolean): void {
    this.loadEnvironment(source, opsize16);
    const base = opsize16 ? ENV16.size : ENV32.size;
    for (let i = 0; i < 8; i++) this.copyIn(i, source, base + 10 * i);
  }

  /**
   * Bytes 0-23 and 32-159 of an FXSAVE64 image; MXCSR and the XMM registers are the caller's. For FXSAVE
   * without REX.W the caller clears bytes 12-15 and 20-23, where that form has selectors.
   */
  fxsave(out: DataView): void {
    for (let at = 0; at < 24; at += 8) out.setBigUint64(at, this.view.getBigUint64(at, true), true);
    for (let i = 0; i < 8; i++) {
      const at = ST + ST_STRIDE * i;
      this.copyOut(i, out, at);
      out.setUint16(at + 10, 0, true);
      out.setUint32(at + 12, 0, true);
    }
  }

  /** Takes bytes 0-23 and 32-159 of an FXSAVE64 image. ES and B follow from the flags and masks. */
  fxrstor(source: DataView): void {
    const { view } = this;
    for (let at = 8; at < 24; at += 8) view.setBigUint64(at, source.getBigUint64(at, true), true);
    view.setUint16(FOP, source.getUint16(FOP, true) & 0x7ff, true);
    view.setUint16(FTW, source.getUint8(FTW), true);
    this.fsw = source.getUint16(FSW, true);
    this.setFcw(source.getUint16(FCW, true));
    for (let i = 0; i < 8; i++) this.copyIn(i, source, ST + ST_STRIDE * i);
  }

  private copyOut(i: number, out: DataView, at: number): void {
    const from = this.offset(i);
    out.setBigUint64(at, this.view.getBigUint64(from, true), true);
    out.setUint16(at + 8, this.view.getUint16(from + 8, true), true);
  }

  private copyIn(i: number, source: DataView, at: number): void {
    const to = this.offset(i);
    this.view.setBigUint64(to, source.getBigUint64(at, true), true);
    this.view.setUint16(to + 8, source.getUint16(at + 8, true), true);
  }

  /** What every MMX instruction but EMMS does first: TOP = 0, all registers valid (SDM vol. 1, 9.5.1). */
  mmxEnter(): void {
    this.top = 0;
    this.ftw = 0xff;
  }

  /** EMMS: TOP = 0, all registers empty. */
  emms(): void {
    this.top = 0;
    this.ftw = 0;
  }

  readMmx(register: number): bigint {
    return this.view.getBigUint64(ST + ST_STRIDE * (register & 7), true);
  }

  /** Writes MMi and sets the exponent and sign of the register it shares to ones. */
  writeMmx(register: number, value: bigint): void {
    const at = ST + ST_STRIDE * (register & 7);
    this.view.setBigUint64(at, value, true);
    this.view.setUint16(at + 8, 0xffff, true);
  }
}
