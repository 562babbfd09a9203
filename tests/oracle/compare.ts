/** Compares what the software CPU made of a batch with what a real processor made of it. */

import type { CaseBatch, RecordBatch, ResultBatch } from "./batch.ts";
import { DecodedCase } from "./decoded-case.ts";
import {
  END_EXCEPTION,
  FX_FCW,
  FX_FSW,
  FX_FTW,
  FX_MXCSR,
  FX_ST,
  FX_XMM,
  PAGE_SIZE,
  RECORD_GPRS,
  RECORD_WINDOW,
  RFLAGS_AC,
  RFLAGS_DF,
  RFLAGS_ID,
  RFLAGS_NT,
  RFLAGS_STATUS,
  RFLAGS_TF,
} from "./layout.ts";
import { undefinedFlags } from "./undefined-flags.ts";

/** RF is the exception's own, and bit 1, IF and IOPL are the system's. */
const RFLAGS_COMPARED = RFLAGS_STATUS | RFLAGS_DF | RFLAGS_TF | RFLAGS_NT | RFLAGS_AC | RFLAGS_ID;
const TRAP_BP = 3;
const TRAP_PF = 14;
const PF_PRESENT = 1;
const TWO_47 = 1n << 47n;

const FSW_C1 = 0x200;
const FSW_PE = 0x20;
/** Instructions whose result may be the neighbour of the host's: transcendental ones (D9 /6 and /7, register). */
const TRANSCENDENTAL = new Set([0xf0, 0xf1, 0xf2, 0xf3, 0xf9, 0xfb, 0xfe, 0xff]);

/** Bytes of an image in memory that no two processors agree on: pointers to the last x87 instruction. */
interface Ignored {
  readonly from: number;
  readonly to: number;
}
const ENVIRONMENT_32: readonly Ignored[] = [{ from: 12, to: 28 }];
const ENVIRONMENT_16: readonly Ignored[] = [{ from: 6, to: 14 }];
/** FOP, FIP and FDP; MXCSR_MASK; what FXSAVE reserves. */
const FXSAVE_IMAGE: readonly Ignored[] = [
  { from: 6, to: 24 },
  { from: 28, to: 32 },
];

export class Comparison {
  private readonly decoded = new DecodedCase();
  private readonly same: Uint8Array;

  constructor(
    private readonly cases: CaseBatch,
    private readonly soft: ResultBatch,
    private readonly native: ResultBatch,
  ) {
    this.same = new Uint8Array(cases.windowBytes);
  }

  /** What differs in case `i`, one line each; empty if nothing does. */
  differences(i: number): string[] {
    const { cases, soft, native } = this;
    this.decoded.decode(cases, i);
    const out: string[] = [];
    const field = (name: string, a: number | bigint, b: number | bigint): void => {
      if (a !== b) out.push(`${name}: soft 0x${a.toString(16)}, host 0x${b.toString(16)}`);
    };
    field("end", soft.end(i), native.end(i));
    field("trap", soft.trap(i), native.trap(i));
    // Which of the two pages of a large image is looked at first is the processor's own business.
    if (!this.isImage() || native.trap(i) !== TRAP_PF) {
      field("error code", errorCode(soft, i), errorCode(native, i));
      field("cr2", soft.cr2(i), native.cr2(i));
    }
    field("rip", soft.rip(i), native.rip(i));
    this.compareGprs(i, out);
    const mask = RFLAGS_COMPARED & ~this.undefinedFlags(i);
    field("rflags", soft.rflags(i) & mask, native.rflags(i) & mask);
    this.compareWindow(i, out);
    if (cases.withFpu) this.compareFpu(i, out, field);
    return out;
  }

  /** A report of case `i`: instruction, input, and both outcomes. */
  describe(i: number): string {
    this.decoded.decode(this.cases, i);
    const { insn } = this.decoded;
    return [
      insn ? `${insn.mnemonic} [${insn.text}] size ${this.decoded.size}` : "no instruction",
      this.cases.describe(i),
      `soft: ${this.soft.describe(i)}`,
      `host: ${this.native.describe(i)}`,
    ].join("\n    ");
  }

  /** True if the case ended in an exception that its instruction raised. */
  private faulted(i: number): boolean {
    return this.native.end(i) === END_EXCEPTION && this.native.trap(i) !== TRAP_BP;
  }

  private undefinedFlags(i: number): number {
    const { decoded } = this;
    if (!decoded.insn || this.faulted(i)) return 0;
    return undefinedFlags(decoded.insn.mnemonic, decoded.flagsSize, decoded.count(this.cases, i));
  }

  private compareGprs(i: number, out: string[]): void {
    const { soft, native } = this;
    const at = (soft.at(i) + RECORD_GPRS) >>> 2;
    for (let word = 0; word < 32; word++) {
      if (soft.u32[at + word] === native.u32[at + word]) continue;
      const reg = word >>> 1;
      out.push(`r${reg}: soft 0x${soft.gpr(i, reg).toString(16)}, host 0x${native.gpr(i, reg).toString(16)}`);
      word |= 1;
    }
  }

  private compareWindow(i: number, out: string[]): void {
    const { soft, native, cases } = this;
    const words = cases.windowBytes >>> 2;
    const at = (soft.at(i) + RECORD_WINDOW) >>> 2;
    let equal = true;
    for (let word = 0; word < words && equal; word++) equal = soft.u32[at + word] === native.u32[at + word];
    if (equal) return;
    this.ignoredBytes(i);
    const a = soft.window(i);
    const b = native.window(i);
    for (let byte = 0; byte < a.length; byte++) {
      if (a[byte] === b[byte] || this.same[byte] === 1) continue;
      const hex = (bytes: Uint8Array): string => Buffer.from(bytes.subarray(byte, byte + 16)).toString("hex");
      out.push(`window + ${byte}: soft ${hex(a)}, host ${hex(b)}`);
      return;
    }
  }

  /** Marks the bytes of the window that need not be equal. */
  private ignoredBytes(i: number): void {
    const { same, decoded, cases } = this;
    same.fill(0);
    const ranges = this.ignoredRanges();
    if (ranges.length === 0) return;
    const address = Number(BigInt.asUintN(32, decoded.address(cases, i)));
    const half = cases.windowBytes / 2;
    for (const { from, to } of ranges) {
      for (let offset = from; offset < to; offset++) {
        // Every mapping shows the same page, and the window is its two ends.
        const inPage = (address + offset) % PAGE_SIZE;
        if (inPage < half) same[half + inPage] = 1;
        else if (inPage >= PAGE_SIZE - half) same[half - (PAGE_SIZE - inPage)] = 1;
      }
    }
  }

  /** The memory operand is an FXSAVE, FNSAVE or FNSTENV image. */
  private isImage(): boolean {
    const { insn, opcode, modrm, mem } = this.decoded;
    if (!insn || !mem) return false;
    if (insn.mnemonic === "fxsave" || insn.mnemonic === "fxrstor") return true;
    const reg = (modrm >> 3) & 7;
    return insn.fpu === "x87" && (opcode === 0xd9 || opcode === 0xdd) && (reg === 4 || reg === 6);
  }

  private ignoredRanges(): readonly Ignored[] {
    const { insn, opcode, modrm, size, mem } = this.decoded;
    if (!insn || !mem) return [];
    if (insn.mnemonic === "fxsave") return FXSAVE_IMAGE;
    if ((opcode === 0xd9 || opcode === 0xdd) && insn.fpu === "x87" && ((modrm >> 3) & 7) === 6) {
      return size === 2 ? ENVIRONMENT_16 : ENVIRONMENT_32;
    }
    return [];
  }

  private compareFpu(
    i: number,
    out: string[],
    field: (name: string, a: number | bigint, b: number | bigint) => void,
  ): void {
    const { soft, native, decoded } = this;
    const a = soft.fxAt(i);
    const b = native.fxAt(i);
    const inexact =
      decoded.opcode === 0xd9 && TRANSCENDENTAL.has(decoded.modrm) && decoded.insn?.fpu === "x87";
    field("fcw", soft.view.getUint16(a + FX_FCW, true), native.view.getUint16(b + FX_FCW, true));
    const fsw = inexact ? ~(FSW_C1 | FSW_PE) : -1;
    field("fsw", soft.view.getUint16(a + FX_FSW, true) & fsw, native.view.getUint16(b + FX_FSW, true) & fsw);
    field("ftw", soft.view.getUint8(a + FX_FTW), native.view.getUint8(b + FX_FTW));
    field("mxcsr", soft.view.getUint32(a + FX_MXCSR, true), native.view.getUint32(b + FX_MXCSR, true));
    for (let reg = 0; reg < 8; reg++)
      this.compareSt(a + FX_ST + 16 * reg, b + FX_ST + 16 * reg, reg, inexact, out);
    for (let at = 0; at < 256; at += 8) {
      const x = soft.view.getBigUint64(a + FX_XMM + at, true);
      const y = native.view.getBigUint64(b + FX_XMM + at, true);
      field(`xmm${at >>> 4}${at & 8 ? " high" : ""}`, x, y);
    }
  }

  private compareSt(a: number, b: number, reg: number, inexact: boolean, out: string[]): void {
    const { soft, native } = this;
    const word = (batch: RecordBatch, at: number): number => batch.u32[at >>> 2]!;
    const x = soft.view.getUint16(a + 8, true);
    const y = native.view.getUint16(b + 8, true);
    if (word(soft, a) === word(native, b) && word(soft, a + 4) === word(native, b + 4) && x === y) return;
    const p = soft.view.getBigUint64(a, true);
    const q = native.view.getBigUint64(b, true);
    if (inexact && ulps(x, p, y, q) <= 1n) return;
    out.push(`st${reg}: soft ${x.toString(16)}:${p.toString(16)}, host ${y.toString(16)}:${q.toString(16)}`);
  }
}

/** Steps between two 80-bit values of the same sign; huge if the signs differ. */
function ulps(x: number, p: bigint, y: number, q: bigint): bigint {
  if ((x ^ y) & 0x8000) return 1n << 80n;
  const ordinal = (exponent: number, significand: bigint): bigint =>
    (BigInt(exponent & 0x7fff) << 63n) + BigInt.asUintN(63, significand);
  const distance = ordinal(x, p) - ordinal(y, q);
  return distance < 0n ? -distance : distance;
}

/** Linux reports every page fault above user space as one of a present page. */
function errorCode(results: ResultBatch, i: number): number {
  const code = results.errorCode(i);
  return results.trap(i) === TRAP_PF && results.cr2(i) >= TWO_47 ? code | PF_PRESENT : code;
}
