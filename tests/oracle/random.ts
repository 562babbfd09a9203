/**
 * Seeded random machine state that favours the values where processors differ: sign boundaries, carries,
 * NaNs, denormals, halves. 64-bit values are two unsigned 32-bit halves, `low` and `high`; no BigInt.
 */

import type { CaseBatch } from "./batch.ts";
import { FX_ST, FX_XMM, RFLAGS_DF, RFLAGS_STATUS, RSP } from "./layout.ts";

/** x87 and SSE exception flags, IE to PE (SDM vol. 1, 8.1.3 and 10.2.3). */
const EXCEPTION_FLAGS = 0x3f;
const FCW_ALL_MASKED = 0x7f; // the six masks and bit 6, which always reads as 1
const FCW_CONTROL_SHIFT = 8; // precision and rounding control, 4 bits
const FSW_CONDITION_CODES = 0x4700;
const FSW_TOP_SHIFT = 11;
const MXCSR_DAZ = 0x40;
const MXCSR_ALL_MASKED = 0x1f80;
const MXCSR_RC_SHIFT = 13;
const MXCSR_FTZ = 0x8000;

/** Single-precision values worth trying, as bits; the sign is added at random. */
const FLOAT32 = Uint32Array.of(
  0x00000000, // 0
  0x00000001, // smallest denormal
  0x007fffff, // largest denormal
  0x00800000, // smallest normal
  0x7f7fffff, // largest normal
  0x7f800000, // infinity
  0x7fc00000, // QNaN
  0x7fc12345, // QNaN with payload
  0x7f800001, // SNaN
  0x7fa00000, // SNaN
  0x3f800000, // 1
  0x3f7fffff, // just below 1
  0x3f800001, // just above 1
  0x3f000000, // 0.5
  0x3effffff, // just below 0.5
  0x3f000001, // just above 0.5
  0x3fc00000, // 1.5
  0x40200000, // 2.5
  0x4b000000, // 2^23
  0x4afffffe, // 2^23 - 1
  0x4b800000, // 2^24
  0x4effffff, // largest below 2^31
  0x4f000000, // 2^31
  0x5effffff, // largest below 2^63
  0x5f000000, // 2^63
  0x40490fdb, // pi
);

/** High halves of double-precision values worth trying, with one of {@link FLOAT64_LOW} each. */
const FLOAT64_HIGH = Uint32Array.of(
  0x00000000, // 0, smallest denormals
  0x000fffff, // largest denormals
  0x00100000, // smallest normals
  0x7fefffff, // largest normals
  0x7ff00000, // infinity, SNaN
  0x7ff80000, // QNaN
  0x7ff40000, // SNaN
  0x3ff00000, // 1
  0x3fefffff, // below 1
  0x3fe00000, // 0.5
  0x3fdfffff, // below 0.5
  0x3ff80000, // 1.5
  0x40040000, // 2.5
  0x41dfffff, // below 2^31
  0x41e00000, // 2^31
  0x41efffff, // below 2^32
  0x43300000, // 2^52
  0x432fffff, // below 2^52
  0x43400000, // 2^53
  0x43dfffff, // below 2^63
  0x43e00000, // 2^63
  0x47efffff, // largest single
  0x36900000, // half of the smallest single denormal
  0x380fffff, // around the largest single denormal
  0x400921fb, // pi
);
const FLOAT64_LOW = Uint32Array.of(
  0,
  0,
  0,
  1,
  0xffffffff,
  0xffffffff,
  0xfffffffe,
  0x80000000,
  0xffc00000,
  0x20000000,
);

/** Exponents of 80-bit values worth trying. */
const FLOAT80_EXPONENT = Uint16Array.of(
  0,
  1,
  0x3bcd,
  0x3f81,
  0x3ffe,
  0x3fff,
  0x4000,
  0x401e,
  0x403e,
  0x43fe,
  0x7ffe,
  0x7fff,
);
const FLOAT80_HIGH = Uint32Array.of(
  0,
  0x40000000,
  0x80000000,
  0x80000000,
  0xa0000000,
  0xc0000000,
  0xffffffff,
);
const FLOAT80_LOW = Uint32Array.of(0, 0, 0, 1, 0x400, 0x7ff, 0x800, 0xffffffff);

const SIGN = 0x8000_0000;

/** xoshiro128** seeded by splitmix32. The same seed gives the same sequence on every host. */
export class Random {
  /** Halves of the last 64-bit value made, both unsigned. */
  low = 0;
  high = 0;
  private a: number;
  private b: number;
  private c: number;
  private d: number;

  /** `seed`: any number; its low 32 bits count. */
  constructor(seed: number) {
    let state = seed | 0;
    const splitmix = (): number => {
      state = (state + 0x9e3779b9) | 0;
      let z = state;
      z = Math.imul(z ^ (z >>> 16), 0x85ebca6b);
      z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35);
      return z ^ (z >>> 16);
    };
    this.a = splitmix();
    this.b = splitmix();
    this.c = splitmix();
    this.d = splitmix();
  }

  /** 32 random bits, unsigned. */
  u32(): number {
    const x = Math.imul(this.b, 5);
    const result = Math.imul((x << 7) | (x >>> 25), 9);
    const t = this.b << 9;
    this.c ^= this.a;
    this.d ^= this.b;
    this.b ^= this.c;
    this.a ^= this.d;
    this.c ^= t;
    this.d = (this.d << 11) | (this.d >>> 21);
    return result >>> 0;
  }

  /** An integer from 0 to `limit - 1`; limit 1 to 2^32. */
  below(limit: number): number {
    return Math.floor((this.u32() / 0x1_0000_0000) * limit);
  }

  /** True once in `n` times on average. */
  oneIn(n: number): boolean {
    return this.below(n) === 0;
  }

  /** One element of a list that is not empty. */
  pick<T>(list: ArrayLike<T>): T {
    return list[this.below(list.length)]!;
  }

  /** 64 random bits into {@link low} and {@link high}. */
  next64(): void {
    this.low = this.u32();
    this.high = this.u32();
  }

  /**
   * A 64-bit integer at which instructions go wrong, into {@link low} and {@link high}: 0, -1, powers of two
   * and their neighbours, the sign boundaries of 8, 16, 32 and 64 bits, small, repeated bytes, random.
   */
  interesting64(): void {
    switch (this.below(8)) {
      case 0:
        this.small(this.below(3) - 1);
        return;
      case 1:
        this.small(this.below(512) - 256);
        return;
      case 2: {
        this.powerOfTwo(this.below(64));
        this.addSmall(this.below(3) - 1);
        return;
      }
      case 3: {
        this.powerOfTwo((8 << this.below(4)) - this.below(2));
        this.addSmall(this.below(5) - 2);
        if (this.oneIn(2)) this.negate();
        return;
      }
      case 4: {
        // A sign-extended 32-bit value and one with garbage above its low 32 bits.
        this.low = this.u32();
        this.high = this.oneIn(2) ? ((this.low | 0) < 0 ? 0xffff_ffff : 0) : this.u32();
        return;
      }
      case 5: {
        this.low = Math.imul(this.below(256), 0x0101_0101) >>> 0;
        this.high = this.low;
        return;
      }
      default:
        this.next64();
    }
  }

  /** Bits of a single-precision value: special, near an integer or half, or random. */
  float32(): number {
    const sign = this.u32() & SIGN;
    switch (this.below(4)) {
      case 0:
        return this.u32();
      case 1: {
        // A mantissa of few bits and an exponent near 1: sums and products round to halves.
        const exponent = 127 + this.below(32) - 4;
        return (sign | (exponent << 23) | (this.u32() & 0x7e0000)) >>> 0;
      }
      default:
        return (sign | this.pick(FLOAT32)) >>> 0;
    }
  }

  /** Bits of a double-precision value into {@link low} and {@link high}, as {@link float32}. */
  float64(): void {
    const sign = this.u32() & SIGN;
    switch (this.below(4)) {
      case 0:
        this.next64();
        return;
      case 1: {
        const exponent = 1023 + this.below(70) - 4;
        this.low = this.oneIn(2) ? 0 : (this.u32() & 0xe000_0000) >>> 0;
        this.high = (sign | (exponent << 20) | (this.u32() & 0xfc000)) >>> 0;
        return;
      }
      default:
        this.low = this.pick(FLOAT64_LOW);
        this.high = (sign | this.pick(FLOAT64_HIGH)) >>> 0;
    }
  }

  /** Fills every GPR of case `i` but RSP. */
  fillGprs(cases: CaseBatch, i: number): void {
    let index = cases.gprIndex(i, 0);
    for (let reg = 0; reg < 16; reg++, index += 2) {
      if (reg === RSP) continue;
      this.interesting64();
      cases.u32[index] = this.low;
      cases.u32[index + 1] = this.high;
    }
  }

  /** Random status flags; DF too, once in eight times, if `direction`. */
  fillRflags(cases: CaseBatch, i: number, direction = false): void {
    const df = direction && this.oneIn(8) ? RFLAGS_DF : 0;
    cases.setRflags(i, (this.u32() & RFLAGS_STATUS) | df);
  }

  /** Fills the window of case `i` with integers as {@link interesting64}, or floats if `floats`. */
  fillWindow(cases: CaseBatch, i: number, floats = false): void {
    const window = cases.window(i);
    const words = new Uint32Array(window.buffer, window.byteOffset, window.length / 4);
    for (let at = 0; at < words.length; at += 2) this.laneInto(words, at, floats);
  }

  /**
   * Fills the XMM registers of case `i`: integers, or floats if `floats`. MXCSR gets a random rounding mode
   * and now and then FTZ, DAZ, old exception flags or, if `unmask`, exceptions that trap.
   */
  fillSse(cases: CaseBatch, i: number, floats: boolean, unmask = false): void {
    const start = cases.fxAt(i) + FX_XMM;
    const words = new Uint32Array(cases.bytes.buffer, start, 64);
    for (let at = 0; at < 64; at += 2) this.laneInto(words, at, floats);
    let mxcsr = MXCSR_ALL_MASKED | (this.oneIn(2) ? this.below(4) << MXCSR_RC_SHIFT : 0);
    if (this.oneIn(8)) mxcsr |= MXCSR_FTZ;
    if (this.oneIn(8)) mxcsr |= MXCSR_DAZ;
    if (this.oneIn(4)) mxcsr |= this.u32() & EXCEPTION_FLAGS;
    if (unmask && this.oneIn(4)) mxcsr &= ~(this.u32() & MXCSR_ALL_MASKED);
    cases.setMxcsr(i, mxcsr);
  }

  /**
   * Fills the x87 state of case `i`: eight values (special, denormal, unsupported encodings, random), control
   * word, status word and tags. An exception flag that is already set is always masked.
   */
  fillX87(cases: CaseBatch, i: number, unmask = false): void {
    const start = cases.fxAt(i) + FX_ST;
    for (let reg = 0; reg < 8; reg++) this.float80Into(cases, start + 16 * reg);
    let control = FCW_ALL_MASKED | 0x300;
    if (this.oneIn(2)) control = FCW_ALL_MASKED | (this.below(16) << FCW_CONTROL_SHIFT);
    if (unmask && this.oneIn(4)) control &= ~(this.u32() & EXCEPTION_FLAGS);
    const flags = this.oneIn(4) ? this.u32() & control & EXCEPTION_FLAGS : 0;
    cases.setFcw(i, control);
    cases.setFsw(i, flags | (this.below(8) << FSW_TOP_SHIFT) | (this.u32() & FSW_CONDITION_CODES));
    cases.setFtw(i, this.oneIn(2) ? 0xff : this.u32() & 0xff);
  }

  private laneInto(words: Uint32Array, at: number, floats: boolean): void {
    if (!floats) {
      this.interesting64();
    } else if (this.oneIn(2)) {
      this.float64();
    } else {
      this.low = this.float32();
      this.high = this.float32();
    }
    words[at] = this.low;
    words[at + 1] = this.high;
  }

  private float80Into(cases: CaseBatch, at: number): void {
    const sign = this.u32() & 0x8000;
    let exponent = this.pick(FLOAT80_EXPONENT);
    if (this.oneIn(2)) exponent = 0x3fff + this.below(80) - 8;
    let high = this.pick(FLOAT80_HIGH);
    let low = this.pick(FLOAT80_LOW);
    if (this.oneIn(2)) {
      high = this.u32();
      low = this.u32();
    }
    // Most values are proper: the integer bit is set unless the value is zero or denormal.
    if (exponent !== 0 && !this.oneIn(8)) high |= SIGN;
    cases.view.setUint32(at, low, true);
    cases.view.setUint32(at + 4, high, true);
    cases.view.setUint16(at + 8, exponent | sign, true);
  }

  private small(value: number): void {
    this.low = value >>> 0;
    this.high = value < 0 ? 0xffff_ffff : 0;
  }

  /** 2^bit; 2^64 becomes 0. */
  private powerOfTwo(bit: number): void {
    this.low = bit < 32 ? (1 << bit) >>> 0 : 0;
    this.high = bit >= 32 && bit < 64 ? (1 << (bit - 32)) >>> 0 : 0;
  }

  private addSmall(value: number): void {
    const sum = this.low + value;
    if (sum < 0) this.high = (this.high - 1) >>> 0;
    else if (sum > 0xffff_ffff) this.high = (this.high + 1) >>> 0;
    this.low = sum >>> 0;
  }

  private negate(): void {
    this.high = ~this.high >>> 0;
    this.low = ~this.low >>> 0;
    this.addSmall(1);
  }
}
