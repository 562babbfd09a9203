/**
 * Random instructions without control flow for random programs: any row of the instruction table, with operands
 * that keep a program together. Programs own RSP, the data pointers RBX and RBP, and R12 to R15.
 */
import { DECODED, Decoder } from "../../src/hypervisor/soft/decoder.ts";
import { MODE_64 } from "../../src/hypervisor/soft/layout.ts";
import { CaseBatch } from "../oracle/batch.ts";
import { Encoder, immediateBytes, littleEndian } from "../oracle/encoder.ts";
import { allForms, type Form, isX87Row } from "../oracle/forms.ts";
import {
  CODE_PAGE,
  DATA_CROSS,
  DATA_END,
  DATA_READ_ONLY,
  DATA_THIRD,
  RAX,
  RBP,
  RBX,
  RCX,
  RDI,
  RDX,
  RSI,
} from "../oracle/layout.ts";
import type { Random } from "../oracle/random.ts";
import { undefinedFlags } from "../oracle/undefined-flags.ts";
import { DATA_REACH, RBP_VALUE, RBX_VALUE } from "./memory-map.ts";

/** Registers that random instructions may change. */
export const FREE: readonly number[] = [RAX, RCX, RDX, RSI, RDI, 8, 9, 10, 11];
const isFree = (reg: number): boolean => FREE.includes(reg);

/** Operand letters that name a general register, in ModRM.reg or the opcode, and in ModRM.rm. */
const GENERAL_REG = "GZ";
const GENERAL_RM = "EMR";
/** Bits of the status flags without AF. */
const ALL_BUT_AF = ~0x10;
/** Table letters of widths, in bytes, for choosing addresses; the widest there is covers the rest. */
const MOST_BYTES = 16;

const NOT_HERE = new Set(
  // Control of the FPU, stack frames, POPF: program.ts writes those that make sense. POP is written with PUSH.
  "enter leave popf pop push pushf fxsave fxrstor ldmxcsr lahf ud0 ud1 ud2 cpuid".split(" "),
);
/** D9 and DD rows, memory form: FLDENV, FLDCW, FNSTENV, FRSTOR, FNSAVE. */
const isX87Control = (f: Form): boolean =>
  isX87Row(f.insn) &&
  f.mem &&
  ((f.insn.opcode === 0xd9 && (f.regField === 4 || f.regField === 5 || f.regField === 6)) ||
    (f.insn.opcode === 0xdd && (f.regField === 4 || f.regField === 6)));
/** D9 /6 and /7, register: results may be a neighbour of the host's. */
const isTranscendental = (f: Form): boolean => f.insn.opcode === 0xd9 && !f.mem && f.regField >= 6;
/** Approximations with a result of the machine's own. */
const isApproximation = (f: Form): boolean => /^r(cp|sqrt)[sp]s$/.test(f.insn.mnemonic);
const SSE_ELSEWHERE = "tested in sse.test.ts";

/** One or more instructions that stay together. */
export interface Unit {
  readonly bytes: readonly number[];
  /** A RIP-relative displacement in them: position of its 4 bytes, of the instruction's end, and its target. */
  readonly rip?: { readonly at: number; readonly end: number; readonly target: number };
}

export interface StraightOptions {
  /** The host's processor must agree: nothing undefined is left to be seen. */
  native: boolean;
  /** One memory operand in so many may fault. */
  faultOneIn: number;
}

type Group = "integer" | "string" | "divide" | "x87" | "sse";

export class Straight {
  private readonly groups: Record<Group, Form[]> = { integer: [], string: [], divide: [], x87: [], sse: [] };
  private readonly encoder: Encoder;
  private readonly cases = new CaseBatch(1);
  private readonly decoder = new Decoder();

  constructor(
    private readonly random: Random,
    private readonly options: StraightOptions,
  ) {
    this.encoder = new Encoder(random);
    this.cases.setGpr(0, RBX, RBX_VALUE);
    this.cases.setGpr(0, RBP, RBP_VALUE);
    for (const form of allForms()) {
      const group = this.groupOf(form);
      if (group) this.groups[group].push(form);
    }
  }

  private groupOf(form: Form): Group | undefined {
    const { insn } = form;
    if (form.excluded !== undefined && form.excluded !== SSE_ELSEWHERE) return undefined;
    if (!form.mayRun || insn.end !== undefined || NOT_HERE.has(insn.mnemonic)) return undefined;
    if (isX87Control(form)) return undefined;
    if (this.options.native) {
      if (form.followsAmd || isApproximation(form) || (isX87Row(insn) && isTranscendental(form))) {
        return undefined;
      }
    }
    if (insn.string) return "string";
    if (insn.mnemonic === "div" || insn.mnemonic === "idiv") return "divide";
    if (isX87Row(insn) || insn.mnemonic === "fwait") return "x87";
    return insn.fpu ? "sse" : "integer";
  }

  /** A random unit. `registersOnly`: without memory operands. */
  next(registersOnly = false): Unit {
    const { random } = this;
    const kind = random.below(32);
    const group: Group =
      kind < 22 ? "integer" : kind < 25 ? "string" : kind < 26 ? "divide" : kind < 28 ? "x87" : "sse";
    if (registersOnly && group === "string") return this.next(true);
    for (;;) {
      const form = random.pick(this.groups[group]);
      if (registersOnly && (form.mem || form.insn.immediateRule === "offset")) continue;
      const unit = this.encode(form);
      if (unit) return unit;
    }
  }

  /** A unit of `form`; undefined if the random choices do not fit a program. */
  private encode(form: Form): Unit | undefined {
    const { encoder, random, cases } = this;
    const { insn } = form;
    encoder.begin(form);
    const before: number[] = [];
    // An index register that the instructions before it bring into a small range.
    const index = random.oneIn(4) ? random.pick(FREE) : -1;
    if (insn.modrm) {
      if (index >= 0) cases.setGpr(0, index, 0);
      const allowed = (1 << RBX) | (1 << RBP) | (index >= 0 ? 1 << index : 0);
      const address = form.mem ? this.address(form) : 0n;
      encoder.operands(form, cases, 0, { address, pinned: 0xffff, forbidden: 0xffff & ~allowed });
      if (encoder.base > 15) return undefined;
      const used = form.mem && index >= 0 && (encoder.base === index || encoder.index === index);
      if (used) before.push(...and32(index, random.pick([1, 3, 7, 15, 31])));
      if (used && encoder.base === index && encoder.addr32) return undefined;
    } else if (insn.operands[0]?.[0] === "Z") encoder.opcodeRegister(form);
    if (!this.registersAllowed(form)) return undefined;
    // RBX is its base, whatever the segment.
    if (insn.mnemonic === "xlatb" && encoder.segmentBase !== 0n) return undefined;
    if (insn.string) before.push(...this.stringOperands(form));
    if (/^bt[src]?$/.test(insn.mnemonic) && form.mem && insn.operands[1]?.[0] === "G") {
      if (encoder.base === encoder.reg || encoder.index === encoder.reg) return undefined;
      before.push(...and32(encoder.reg, 0x3f));
    }
    if (insn.mnemonic === "maskmovq" || insn.mnemonic === "maskmovdqu") {
      before.push(...mov32(RDI, Number(this.address(form)) & ~15));
    }
    if (insn.fpu === undefined && (insn.mnemonic === "div" || insn.mnemonic === "idiv")) {
      if (!this.tameDivision(form, before)) return undefined;
    }
    if (!encoder.finish(form, this.immediate(form))) return undefined;
    return this.unit(form, before);
  }

  private unit(form: Form, before: number[]): Unit | undefined {
    const { encoder, decoder, random } = this;
    const code = Uint8Array.from(encoder.bytes);
    if (decoder.decode(code, 0, code.length, MODE_64) !== DECODED || decoder.length !== code.length) {
      return undefined;
    }
    if (decoder.insn.end !== undefined) return undefined;
    const bytes = [...before, ...code];
    let rip: Unit["rip"];
    if (decoder.ripRelative) {
      const end = before.length + code.length;
      const target = decoder.dispLow + CODE_PAGE + encoder.offset + code.length;
      rip = { at: end - immediateBytes(form, encoder.addr32) - 4, end, target };
    }
    // CMP gives flags that nobody defines a value again: r32 with itself or with a number.
    if (this.options.native && this.leavesUndefined(form))
      bytes.push(0x83, 0xf8 | random.pick([0, 1, 2, 6, 7]), random.below(256));
    return rip ? { bytes, rip } : { bytes };
  }

  private leavesUndefined(form: Form): boolean {
    const { insn, size } = form;
    if (/^(sh[lr]d?|sar|ro[lr]|rc[lr])$/.test(insn.mnemonic)) return true;
    return (undefinedFlags(insn.mnemonic, size, 1) & ALL_BUT_AF) !== 0;
  }

  /** False if the instruction would change a register that the program needs. */
  private registersAllowed(form: Form): boolean {
    const { encoder } = this;
    const { operands } = form.insn;
    const general = (reg: number, width: string | undefined): boolean =>
      isFree(width === "b" && encoder.legacyBytes && reg >= 4 && reg < 8 ? reg - 4 : reg);
    for (const o of operands) {
      if (o[0] === "Z" && !general(encoder.rm, o[1])) return false;
      if (GENERAL_REG.includes(o[0]!) && o[0] !== "Z" && !general(encoder.reg, o[1])) return false;
      if (GENERAL_RM.includes(o[0]!) && !form.mem && !general(encoder.rm, o[1])) return false;
    }
    return true;
  }

  private immediate(form: Form): number[] {
    const { random, encoder } = this;
    const bytes = immediateBytes(form, encoder.addr32);
    if (form.insn.immediateRule === "offset") return encoder.offsetOperand(this.address(form));
    random.interesting64();
    const low = littleEndian(random.oneIn(2) ? random.low : random.below(256), Math.min(bytes, 4));
    return bytes === 8 ? [...low, ...littleEndian(random.high, 4)] : low;
  }

  /** Where a memory operand goes: near a page boundary, and sometimes where it faults. */
  private address(form: Form): bigint {
    const { random, options } = this;
    if (random.oneIn(options.faultOneIn)) {
      return BigInt(random.pick([DATA_END - 1, DATA_END + 8, DATA_READ_ONLY + 8, DATA_READ_ONLY - 3]));
    }
    const boundary = random.oneIn(4) ? DATA_THIRD + DATA_REACH : DATA_CROSS;
    const offset = random.below(2 * DATA_REACH - 2 * MOST_BYTES) - DATA_REACH;
    const aligned = form.insn.fpu === "sse" ? !random.oneIn(16) : random.oneIn(2);
    return BigInt(boundary + (aligned ? offset & ~15 : offset));
  }

  private stringOperands(form: Form): number[] {
    const { random, encoder } = this;
    const base = Number(encoder.segmentBase);
    const count = random.oneIn(4) ? random.below(3) : random.below(1 + 64 / form.size);
    const from = Number(this.address(form)) - base;
    const to = random.oneIn(4) ? from + base + random.below(32) - 16 : Number(this.address(form));
    // Overlapping through different mappings of the page: real processors do not go element by element.
    const near = (((to - from - base) % 4096) + 4096) % 4096;
    const apart = Math.abs(to - from - base) < 4096 || (near > 256 && near < 4096 - 256);
    return [
      ...mov32(RSI, from),
      ...mov32(RDI, apart ? to : from + base),
      ...(form.rep ? mov32(RCX, count) : []),
      ...(random.oneIn(4) ? [0xfd] : random.oneIn(2) ? [0xfc] : []),
    ];
  }

  /** Makes most divisions possible: a small dividend, a divisor that is not 0. */
  private tameDivision(form: Form, before: number[]): boolean {
    const { encoder, random } = this;
    if (random.oneIn(this.options.faultOneIn)) return true;
    if (form.mem || encoder.rm === RAX || encoder.rm === RDX || encoder.rm === 4) return false;
    if (form.size === 1)
      before.push(0x0f, 0xb6, 0xc0); // movzx eax, al
    else before.push(0x31, 0xd2); // xor edx, edx
    if (encoder.rm > 7) before.push(0x41);
    else if (form.size === 1 && encoder.rm > 3) return false;
    // or r32, 0x7f
    before.push(0x83, 0xc8 | (encoder.rm & 7), 0x7f);
    // and eax, mask
    before.push(0x25, ...littleEndian(form.size === 1 ? 0x3f : 0x7fff, 4));
    return true;
  }
}

/** `and r32, imm8` */
export function and32(reg: number, mask: number): number[] {
  return [...(reg > 7 ? [0x41] : []), 0x83, 0xe0 | (reg & 7), mask];
}

/** `mov r32, imm32` */
export function mov32(reg: number, value: number): number[] {
  return [...(reg > 7 ? [0x41] : []), 0xb8 | (reg & 7), ...littleEndian(value, 4)];
}
