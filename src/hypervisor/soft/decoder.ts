/** From instruction bytes to a table entry and its operands (SDM vol. 2A, chapter 2). */

import { FS, GS, MODE_32, MODE_64, REG, SS, X87, XMM } from "./layout.ts";
import { BY_OPCODE, INSTRUCTIONS, type Insn } from "./table/index.ts";
import type { Size } from "./values.ts";

/** Outcome of {@link Decoder.decode}. */
export const DECODED = 0;
/** No such instruction: #UD. */
export const UNDEFINED = 1;
/** The bytes given end inside the instruction. */
export const TRUNCATED = 2;
/** More than 15 bytes: #GP. */
export const TOO_LONG = 3;

/** Bytes of the longest instruction (SDM vol. 2A, 2.3.11). */
const MAX_LENGTH = 15;

/** Decodes one instruction at a time; the fields hold the last one. */
export class Decoder {
  insn: Insn = INSTRUCTIONS[0]!;
  index = 0;
  length = 0;
  size: Size = 4;
  mem = false;
  lock = false;
  rep: 0 | 0xf2 | 0xf3 = 0;
  addr32 = false;
  opcode = 0;
  modrm = 0;
  /** Register-file offsets. */
  reg = 0;
  rm = 0;
  base = 0;
  indexReg = 0;
  segment = 0;
  scale = 0;
  imm = 0;
  /** Displacement or 64-bit immediate, low and high word. */
  dispLow = 0;
  dispHigh = 0;
  /** The displacement counts from the next instruction (RIP-relative). */
  ripRelative = false;
  /** ModRM.reg with REX.R. */
  regNumber = 0;

  private bytes: Uint8Array = new Uint8Array(0);
  private at = 0;
  private end = 0;

  /** Decodes at `start`; bytes from `end` on may not be touched. */
  decode(bytes: Uint8Array, start: number, end: number, mode: number): number {
    this.bytes = bytes;
    this.at = start;
    const limit = Math.min(end, start + MAX_LENGTH);
    this.end = limit;
    const result = this.decodeBody(mode);
    this.length = this.at - start;
    if (result === TRUNCATED && limit < end) return TOO_LONG;
    return result;
  }

  private decodeBody(mode: number): number {
    const mode64 = (mode & MODE_64) !== 0;
    let rex = 0;
    let operand16 = !mode64 && (mode & MODE_32) === 0;
    let address67 = false;
    let segment = -1;
    let repeat: 0 | 0xf2 | 0xf3 = 0;
    let prefix66 = false;
    let lock = false;
    let byte: number;
    for (;;) {
      if (this.at >= this.end) return TRUNCATED;
      byte = this.bytes[this.at++]!;
      if (byte === 0x66) prefix66 = true;
      else if (byte === 0x67) address67 = true;
      else if (byte === 0xf0) lock = true;
      else if (byte === 0xf2 || byte === 0xf3) repeat = byte;
      else if (byte === 0x64) segment = FS;
      else if (byte === 0x65) segment = GS;
      else if (byte === 0x26 || byte === 0x2e || byte === 0x36 || byte === 0x3e) {
        if (!mode64) segment = (byte >> 3) & 3;
      } else if (mode64 && (byte & 0xf0) === 0x40) {
        // REX counts only directly before the opcode.
        rex = byte;
        continue;
      } else break;
      rex = 0;
    }
    if (prefix66) operand16 = !operand16;
    let map = 0;
    if (byte === 0x0f) {
      if (this.at >= this.end) return TRUNCATED;
      byte = this.bytes[this.at++]!;
      map = 1;
    }
    this.opcode = byte;
    let list = BY_OPCODE[map * 256 + byte]!;
    // 90 is NOP, but with REX.B an exchange of r8 and rAX.
    if (map === 0 && byte === 0x90 && (rex & 1) !== 0) list = BY_OPCODE[0x91]!;

    let modrm = -1;
    let found: Insn | undefined;
    for (const i of list) {
      const insn = INSTRUCTIONS[i]!;
      if (insn.prefix !== undefined) {
        const actual = repeat !== 0 ? repeat : prefix66 ? 0x66 : 0;
        if (insn.prefix !== actual) continue;
      }
      if (insn.only !== undefined && (insn.only === "64") !== mode64) continue;
      if (insn.modrm) {
        if (modrm < 0) {
          if (this.at >= this.end) return TRUNCATED;
          modrm = this.bytes[this.at]!;
        }
        if (insn.form === "mem" ? modrm >= 0xc0 : insn.form === "reg" && modrm < 0xc0) continue;
        if (insn.regField !== undefined && insn.regField !== ((modrm >> 3) & 7)) continue;
        if (insn.rmField !== undefined && insn.rmField !== (modrm & 7)) continue;
      }
      found = insn;
      this.index = i;
      break;
    }
    if (!found) return UNDEFINED;
    this.insn = found;
    this.rep = found.string ? repeat : 0;
    this.addr32 = mode64 ? address67 : !address67;
    if (!mode64 && address67) return UNDEFINED; // 16-bit addressing
    this.size = this.operandSize(found, rex, operand16, mode64);
    this.mem = false;
    this.modrm = modrm < 0 ? byte : modrm;
    this.base = REG.zero;
    this.indexReg = REG.zero;
    this.scale = 0;
    this.dispLow = 0;
    this.dispHigh = 0;
    this.ripRelative = false;
    this.imm = 0;
    this.segment = segment >= 0 ? REG.segBase + 8 * segment : mode64 ? REG.zero : REG.segBase + 8 * 3;
    if (found.modrm) {
      this.at++;
      const status = this.decodeModrm(modrm, rex, mode64, segment);
      if (status !== DECODED) return status;
      this.regNumber = ((modrm >> 3) & 7) | ((rex & 4) << 1);
      this.assignRegisters(found, rex, modrm);
    } else {
      const n = (byte & 7) | ((rex & 1) << 3);
      this.reg = this.gpr(n, found.operands[0] === "Zb" ? 1 : this.size, rex);
    }
    const status = this.decodeImmediate(found, mode64);
    if (status !== DECODED) return status;
    this.lock = lock;
    if (lock && !(found.lock && this.mem)) return UNDEFINED;
    return DECODED;
  }

  private operandSize(insn: Insn, rex: number, operand16: boolean, mode64: boolean): Size {
    switch (insn.sizeRule) {
      case "b":
        return 1;
      case "w":
        return 2;
      case "d":
        return 4;
      case "q":
        return 8;
      case "y":
        return rex & 8 ? 8 : 4;
      case "v":
        return rex & 8 ? 8 : operand16 ? 2 : 4;
      case "stack":
        if (!mode64) return operand16 ? 2 : 4;
        // Near branches have 64-bit operands whatever the prefix (Intel; AMD differs with 66).
        return operand16 && !(rex & 8) && insn.end === undefined ? 2 : 8;
    }
  }

  /** Register-file offset of general register `n` for an operand of `size` bytes. */
  private gpr(n: number, size: number, rex: number): number {
    if (size === 1 && rex === 0 && n >= 4 && n < 8) return REG.gpr + (n - 4) * 8 + 1;
    return REG.gpr + n * 8;
  }

  private assignRegisters(insn: Insn, rex: number, modrm: number): void {
    const regNumber = this.regNumber;
    const rmNumber = (modrm & 7) | ((rex & 1) << 3);
    this.reg = this.gpr(regNumber, 8, 1);
    this.rm = this.gpr(rmNumber, 8, 1);
    for (const o of insn.operands) {
      const size = o[1] === "b" ? 1 : o[1] === "w" ? 2 : this.size;
      switch (o[0]) {
        case "G":
          this.reg = this.gpr(regNumber, size, rex);
          break;
        case "E":
        case "R":
          this.rm = this.gpr(rmNumber, size, rex);
          break;
        case "V":
          this.reg = XMM + 16 * regNumber;
          break;
        case "W":
        case "U":
          this.rm = XMM + 16 * rmNumber;
          break;
        case "P":
          this.reg = X87 + 32 + 16 * (regNumber & 7);
          break;
        case "Q":
        case "N":
          this.rm = X87 + 32 + 16 * (rmNumber & 7);
          break;
      }
    }
  }

  private decodeModrm(modrm: number, rex: number, mode64: boolean, segment: number): number {
    const mod = modrm >> 6;
    if (mod === 3) return DECODED;
    this.mem = true;
    let rm = modrm & 7;
    let stackBased = false;
    if (rm === 4) {
      if (this.at >= this.end) return TRUNCATED;
      const sib = this.bytes[this.at++]!;
      const index = ((sib >> 3) & 7) | ((rex & 2) << 2);
      if (index !== 4) {
        this.indexReg = REG.gpr + index * 8;
        this.scale = sib >> 6;
      }
      rm = sib & 7;
      if (rm === 5 && mod === 0) return this.displacement(4);
      const base = rm | ((rex & 1) << 3);
      this.base = REG.gpr + base * 8;
      stackBased = base === 4 || base === 5;
    } else if (rm === 5 && mod === 0) {
      if (mode64) {
        this.base = REG.vbase;
        this.ripRelative = true;
      }
      return this.displacement(4);
    } else {
      const base = rm | ((rex & 1) << 3);
      this.base = REG.gpr + base * 8;
      stackBased = base === 5;
    }
    // The base of SS is 0 in 64-bit mode, but a fault is then the stack's.
    if (stackBased && segment < 0) this.segment = REG.segBase + 8 * SS;
    return mod === 0 ? DECODED : this.displacement(mod === 1 ? 1 : 4);
  }

  private displacement(size: 1 | 4): number {
    if (this.at + size > this.end) {
      this.at = this.end;
      return TRUNCATED;
    }
    this.dispLow = size === 1 ? (this.bytes[this.at]! << 24) >> 24 : this.word(this.at);
    this.dispHigh = this.dispLow >> 31;
    this.at += size;
    return DECODED;
  }

  private word(at: number): number {
    const b = this.bytes;
    return b[at]! | (b[at + 1]! << 8) | (b[at + 2]! << 16) | (b[at + 3]! << 24);
  }

  private decodeImmediate(insn: Insn, mode64: boolean): number {
    let size: number;
    switch (insn.immediateRule) {
      case "":
        return DECODED;
      case "b":
        size = 1;
        break;
      case "w":
        size = 2;
        break;
      case "wb":
        size = 3;
        break;
      case "z":
        size = this.size === 2 ? 2 : 4;
        break;
      case "v":
        size = this.size === 1 ? 1 : this.size;
        break;
      case "far":
        size = this.size === 2 ? 4 : 6;
        break;
      case "offset":
        size = mode64 && !this.addr32 ? 8 : 4;
        break;
    }
    const at = this.at;
    if (at + size > this.end) {
      this.at = this.end;
      return TRUNCATED;
    }
    this.at += size;
    const b = this.bytes;
    if (insn.immediateRule === "offset") {
      this.mem = true;
      this.dispLow = this.word(at);
      this.dispHigh = size === 8 ? this.word(at + 4) : 0;
    } else if (insn.immediateRule === "far") {
      this.imm = size === 6 ? this.word(at) : b[at]! | (b[at + 1]! << 8);
      this.dispLow = b[at + size - 2]! | (b[at + size - 1]! << 8);
    } else if (size === 1) this.imm = (b[at]! << 24) >> 24;
    else if (size === 2) {
      // RET and ENTER take theirs unsigned, everything else is as wide as its operand.
      this.imm = b[at]! | (b[at + 1]! << 8);
    } else if (size === 3) this.imm = b[at]! | (b[at + 1]! << 8) | (b[at + 2]! << 16);
    else if (size === 4) this.imm = this.word(at);
    else {
      this.imm = this.word(at);
      this.dispLow = this.imm;
      this.dispHigh = this.word(at + 4);
    }
    return DECODED;
  }
}
