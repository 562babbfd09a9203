/**
 * Random encodings of one instruction form: prefixes, ModRM, SIB, displacement, immediate, and the registers
 * that make a memory operand lie where it should.
 */

import type { Size } from "../../src/hypervisor/soft/values.ts";
import type { CaseBatch } from "./batch.ts";
import type { Form } from "./forms.ts";
import { CODE_OFFSET, CODE_PAGE, FS_BASE, GS_BASE, RSP } from "./layout.ts";
import type { Random } from "./random.ts";

const PREFIX_OPERAND_SIZE = 0x66;
const PREFIX_ADDRESS_SIZE = 0x67;
const PREFIX_LOCK = 0xf0;
const PREFIX_REP = 0xf3;
const PREFIX_FS = 0x64;
const PREFIX_GS = 0x65;
/** CS, DS, ES and SS overrides, which 64-bit mode ignores. */
const IGNORED_SEGMENTS = Uint8Array.of(0x26, 0x2e, 0x36, 0x3e);
const REX = 0x40;
const REX_W = 8;
const REX_R = 4;
const REX_X = 2;
const REX_B = 1;
const MAX_LENGTH = 15;

const INT32_MIN = -(2n ** 31n);
const INT32_MAX = 2n ** 31n - 1n;

/** How an encoding finds its memory operand. */
export interface Placement {
  /** Linear address of the operand. */
  readonly address: bigint;
  /** Registers (bit n: register n) whose value is final. */
  readonly pinned: number;
  /** Registers that get their value later: they cannot be part of an address. */
  readonly forbidden: number;
}

/** Operand letters of ModRM.reg. */
const REG_LETTERS = "GSCDVPZ";

/** F3 means nothing before the form (before LOOPE and LOOPNE it changes the condition on some processors). */
const ignoresRep = ({ insn, lock }: Form): boolean =>
  insn.map === 0 && insn.prefix === undefined && !insn.string && !lock && !insn.mnemonic.startsWith("loop");

export class Encoder {
  readonly bytes: number[] = [];
  /** ModRM.reg and ModRM.rm with their REX bits; rm is -1 for a memory operand. */
  reg = 0;
  rm = -1;
  base = -1;
  index = -1;
  /** Linear address the memory operand got: {@link Placement.address} unless the form could not reach it. */
  address = 0n;
  /** FS or GS base, or 0. */
  segmentBase = 0n;
  addr32 = false;
  /** Where in the code page the instruction lies. */
  readonly offset = CODE_OFFSET;

  private rex = 0;
  private modrm: number[] = [];
  private displacement: number[] = [];
  private ripRelative = false;
  private prefixes: number[] = [];

  constructor(private readonly random: Random) {}

  /** Chooses prefixes; after this {@link segmentBase} and {@link addr32} say what an address must allow for. */
  begin(form: Form): void {
    const { random } = this;
    const { insn, size } = form;
    this.prefixes = [];
    this.modrm = [];
    this.displacement = [];
    this.ripRelative = false;
    this.rm = -1;
    this.base = -1;
    this.index = -1;
    this.reg = 0;
    this.segmentBase = 0n;
    this.addr32 = false;
    this.rex = random.oneIn(2) ? REX : 0;
    this.sizePrefixes(form);
    // Where LOCK is not allowed it is #UD; AMD's processors give it a meaning before moves to CR0.
    const refusesLock = !(insn.lock && form.mem) && !insn.system;
    if (form.lock || (refusesLock && random.oneIn(256))) this.prefixes.push(PREFIX_LOCK);
    if (form.rep !== 0) this.prefixes.push(form.rep);
    else if (insn.prefix !== undefined && insn.prefix !== 0) this.prefixes.push(insn.prefix);
    else if (ignoresRep(form) && random.oneIn(32)) {
      // As in the "rep ret" that compilers emit.
      this.prefixes.push(PREFIX_REP);
    }
    const takesAddress =
      form.mem || insn.string || insn.immediateRule === "offset" || insn.mnemonic === "xlatb";
    if (takesAddress && random.oneIn(8)) {
      const fs = random.oneIn(2);
      this.prefixes.push(fs ? PREFIX_FS : PREFIX_GS);
      this.segmentBase = BigInt(fs ? FS_BASE : GS_BASE);
    } else if (random.oneIn(32)) this.prefixes.push(random.pick(IGNORED_SEGMENTS));
    const usesAddressSize = takesAddress || insn.mnemonic.startsWith("loop") || insn.mnemonic === "jrcxz";
    if (random.oneIn(usesAddressSize ? 8 : 64)) {
      this.prefixes.push(PREFIX_ADDRESS_SIZE);
      this.addr32 = true;
    }
    if (size === 8 && insn.sizeRule !== "stack" && insn.sizeRule !== "q") this.rex |= REX | REX_W;
  }

  /** 66 and REX.W as the form's size asks for, or at random where they mean nothing. */
  private sizePrefixes(form: Form): void {
    const { random } = this;
    const { insn, size } = form;
    const rule = insn.sizeRule;
    if (rule === "v" || rule === "y" || rule === "stack") {
      // 66 changes near branches on AMD's processors, and REX.W beats it elsewhere.
      const harmless = rule === "v" && size === 8 && insn.prefix === undefined;
      if ((size === 2 && rule !== "y") || (harmless && random.oneIn(8)))
        this.prefixes.push(PREFIX_OPERAND_SIZE);
      if (rule === "stack" && size === 8 && random.oneIn(8)) this.rex |= REX | REX_W;
      return;
    }
    if (insn.prefix === undefined && insn.end === undefined && random.oneIn(32)) {
      this.prefixes.push(PREFIX_OPERAND_SIZE);
    }
    if (rule === "b" && random.oneIn(16)) this.rex |= REX | REX_W;
  }

  /** Chooses ModRM, and registers for the memory operand if the form has one. Call for forms with ModRM. */
  operands(form: Form, cases: CaseBatch, i: number, placement: Placement): void {
    const { random } = this;
    this.reg = form.regField >= 0 ? form.regField : random.below(this.rex ? 16 : 8);
    if (form.regField >= 0 && this.rex && random.oneIn(2)) this.rex |= REX_R;
    if (form.regField < 0 && !form.insn.operands.some((o) => REG_LETTERS.includes(o[0]!))) this.reg &= 7;
    if (this.reg > 7) this.rex |= REX_R;
    if (!form.mem) {
      this.rm = form.rmField >= 0 ? form.rmField : random.below(this.rex ? 16 : 8);
      if (this.rm > 7) this.rex |= REX_B;
      this.modrm = [0xc0 | ((this.reg & 7) << 3) | (this.rm & 7)];
      return;
    }
    for (let attempt = 0; attempt < 8; attempt++) if (this.tryMemory(cases, i, placement)) return;
    // Any base register that is free reaches any address.
    let base = 0;
    while (base === (RSP & 7) || base === 5 || ((placement.pinned | placement.forbidden) >> base) & 1) base++;
    this.encodeBase(base, -1, 0, 0n, 0);
    this.solveBase(cases, i, placement.address, 0n);
  }

  private tryMemory(cases: CaseBatch, i: number, placement: Placement): boolean {
    const { random } = this;
    this.base = -1;
    this.index = -1;
    this.rex &= ~(REX_X | REX_B);
    this.ripRelative = false;
    const kind = random.below(16);
    const target = placement.address - this.segmentBase;
    this.address = placement.address;
    const registers = this.rex ? 16 : 8;
    const allowed = (reg: number): boolean => ((placement.forbidden >> reg) & 1) === 0;
    if (kind < 2) {
      this.modrm = [((this.reg & 7) << 3) | 5];
      this.displacement = [0, 0, 0, 0];
      this.ripRelative = true;
      // The real distance is known when the length is.
      return this.reaches(target - BigInt(CODE_PAGE));
    }
    let index = -1;
    let scale = 0;
    if (kind < 9) {
      index = random.below(registers);
      scale = random.below(4);
      if (index === RSP || !allowed(index)) index = -1;
    }
    const shifted = (reg: number): bigint =>
      reg < 0
        ? 0n
        : (this.addr32 ? BigInt.asUintN(32, cases.gpr(i, reg)) : cases.gpr(i, reg)) << BigInt(scale);
    if (kind < 4) {
      if (index >= 0 && ((placement.pinned >> index) & 1) === 0)
        cases.setGpr64(i, index, BigInt(random.below(4096) - 2048));
      const displacement = target - shifted(index);
      if (!this.fits(displacement)) return false;
      this.encodeBase(-1, index, scale, displacement, 4);
      return true;
    }
    const base = random.below(registers);
    if (!allowed(base)) return false;
    const solvable = ((placement.pinned >> base) & 1) === 0 && base !== index;
    if (solvable) {
      const bytes = (base & 7) === 5 ? 1 + 3 * random.below(2) : random.pick([0, 1, 1, 4]);
      random.interesting64();
      const displacement =
        bytes === 0 ? 0n : bytes === 1 ? BigInt((random.low << 24) >> 24) : BigInt(random.low | 0);
      this.encodeBase(base, index, scale, displacement, bytes);
      this.solveBase(cases, i, placement.address, shifted(index) + displacement);
      return true;
    }
    if (base === index && ((placement.pinned >> base) & 1) === 0) {
      cases.setGpr64(i, base, BigInt(random.below(4096) - 2048));
    }
    const displacement = target - shifted(index) - cases.gpr(i, base);
    if (!this.fits(displacement)) return false;
    this.encodeBase(base, index, scale, displacement, 4);
    return true;
  }

  /** A displacement can be this, counting modulo the address size. */
  private fits(value: bigint): boolean {
    return this.addr32 || this.reaches(this.addr32 ? BigInt.asIntN(32, value) : BigInt.asIntN(64, value));
  }

  private reaches(value: bigint): boolean {
    return value >= INT32_MIN && value <= INT32_MAX;
  }

  /** ModRM, SIB and displacement; base or index -1: none. `bytes`: of displacement, 0, 1 or 4. */
  private encodeBase(base: number, index: number, scale: number, displacement: bigint, bytes: number): void {
    this.base = base;
    this.index = index;
    const field = (this.reg & 7) << 3;
    const mod = base < 0 ? 0 : bytes === 0 ? 0 : bytes === 1 ? 0x40 : 0x80;
    if (base < 0 || index >= 0 || (base & 7) === RSP || this.random.oneIn(8)) {
      const sib = (scale << 6) | ((index < 0 ? RSP : index & 7) << 3) | (base < 0 ? 5 : base & 7);
      this.modrm = [mod | field | 4, sib];
      if (index > 7) this.rex |= REX_X;
    } else this.modrm = [mod | field | (base & 7)];
    if (base > 7) this.rex |= REX_B;
    const value = Number(BigInt.asIntN(32, displacement));
    this.displacement = bytes === 0 ? [] : bytes === 1 ? [value & 0xff] : littleEndian(value, 4);
  }

  /** Gives the base register the value that makes `base + rest` the operand's address. */
  private solveBase(cases: CaseBatch, i: number, address: bigint, rest: bigint): void {
    let value = BigInt.asUintN(64, address - this.segmentBase - rest);
    if (this.addr32) {
      this.random.next64();
      value = BigInt.asUintN(32, value) | (BigInt(this.random.high) << 32n);
    }
    cases.setGpr64(i, this.base, value);
    this.address = address;
  }

  /** The register in the opcode's low bits. */
  opcodeRegister(form: Form): void {
    const n = form.insn.opcode & 7;
    this.rm = this.rex && this.random.oneIn(2) ? n + 8 : n;
    // 90 is NOP, but with REX.B an exchange.
    if (form.insn.mnemonic === "nop") this.rm = n;
    if (this.rm > 7) this.rex |= REX_B;
  }

  /** Sets the 8-byte (4 with 67) address of a MOV with an offset. */
  offsetOperand(address: bigint): number[] {
    const value = address - this.segmentBase;
    this.address = address;
    const bytes = this.addr32 ? 4 : 8;
    return bigLittleEndian(BigInt.asUintN(64, value), bytes);
  }

  /** Puts the instruction together. `immediate`: its bytes. False if it came out too long: begin again. */
  finish(form: Form, immediate: readonly number[]): boolean {
    const { bytes, prefixes, random } = this;
    bytes.length = 0;
    for (let left = prefixes.length; left > 0; left--) {
      const pick = random.below(left);
      bytes.push(prefixes[pick]!);
      prefixes[pick] = prefixes[left - 1]!;
    }
    if (this.rex) bytes.push(REX | this.rex);
    if (form.insn.map === 1) bytes.push(0x0f);
    bytes.push(form.insn.opcode, ...this.modrm);
    const at = bytes.length;
    bytes.push(...this.displacement, ...immediate);
    if (bytes.length > MAX_LENGTH) return false;
    if (this.ripRelative) {
      const next = BigInt(CODE_PAGE + this.offset + bytes.length);
      const distance = Number(BigInt.asIntN(32, this.address - this.segmentBase - next));
      littleEndian(distance, 4).forEach((byte, n) => {
        bytes[at + n] = byte;
      });
    }
    return true;
  }

  /** Encoded byte registers 4 to 7 mean AH, CH, DH and BH. */
  get legacyBytes(): boolean {
    return this.rex === 0;
  }
}

export function littleEndian(value: number, bytes: number): number[] {
  return Array.from({ length: bytes }, (_, n) => (value >>> (8 * n)) & 0xff);
}

export function bigLittleEndian(value: bigint, bytes: number): number[] {
  return Array.from({ length: bytes }, (_, n) => Number((value >> BigInt(8 * n)) & 0xffn));
}

/** Bytes of a form's immediate in 64-bit mode, offsets and branch displacements included. */
export function immediateBytes(form: Form, addr32: boolean): number {
  const size: Size = form.size;
  switch (form.insn.immediateRule) {
    case "":
      return 0;
    case "b":
      return 1;
    case "w":
      return 2;
    case "wb":
      return 3;
    case "z":
      return size === 2 ? 2 : 4;
    case "v":
      return size;
    case "offset":
      return addr32 ? 4 : 8;
    case "far":
      return size === 2 ? 4 : 6;
  }
}
