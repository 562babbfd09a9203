/** The x87 FPU: opcodes D8 to DF and FWAIT (SDM vol. 1, chapter 8). */

import type { Float } from "./float.ts";
import { x87Operand } from "./x87-decode.ts";
import * as memory from "./x87-memory.ts";
import * as register from "./x87-register.ts";
import { FDP, FIP, FOP, FSW_ES, type X87Cpu, X87State } from "./x87-state.ts";

export { type X87Operand, x87Operand } from "./x87-decode.ts";
export type { X87Cpu } from "./x87-state.ts";

/** Exception vectors {@link X87.execute} can return. */
export const VECTOR_UD = 6;
export const VECTOR_MF = 16;

/** FSW bits FNCLEX clears: exceptions, SF, ES, B. */
const CLEARABLE = 0x80ff;
const EXCEPTION_MASKS = 0x3f;

export interface X87Options {
  /** The guest's CPUID has SSE3, so FISTTP exists. */
  readonly fisttp?: boolean;
}

export class X87 extends X87State {
  private readonly fisttp: boolean;

  constructor(view: DataView, cpu: X87Cpu, options: X87Options = {}) {
    super(view, cpu);
    this.fisttp = options.fisttp ?? false;
  }

  /**
   * FWAIT (9B): {@link VECTOR_MF} when an unmasked exception is pending, else 0. CR0.MP, EM and TS are the
   * caller's to check, here and before {@link execute}.
   */
  wait(): number {
    return this.fsw & FSW_ES ? VECTOR_MF : 0;
  }

  /**
   * Executes opcode `op` (0xD8 to 0xDF) with `modrm`. `operand` holds the memory operand from offset 0, as
   * sized by {@link x87Operand}: read already, or filled here for the caller to write if {@link stored}.
   * The caller must have checked that a written operand is writable, since the FPU state has changed on
   * return. `rip` and `memAddr` (segment offset) go to FIP and FDP.
   *
   * Returns 0, {@link VECTOR_UD}, or {@link VECTOR_MF} when a pending unmasked exception stops a waiting
   * instruction; in the last two cases nothing has changed. An unmasked exception raised by this
   * instruction shows at the next waiting one.
   */
  execute(
    op: number,
    modrm: number,
    operand: DataView,
    rip: bigint,
    memAddr: bigint,
    opsize16: boolean,
  ): number {
    if (!x87Operand(op, modrm, opsize16, this.fisttp)) return VECTOR_UD;
    this.stored = true;
    const inMemory = modrm < 0xc0;
    const reg = (modrm >>> 3) & 7;
    if (this.executeNonWaiting(op, modrm, operand, opsize16)) return 0;
    if (this.fsw & FSW_ES) return VECTOR_MF;
    if (inMemory && op === 0xd9 && reg === 5) {
      this.setFcw(operand.getUint16(0, true));
      return 0;
    }
    if (inMemory && op === 0xd9 && reg === 4) {
      this.loadEnvironment(operand, opsize16);
      return 0;
    }
    if (inMemory && op === 0xdd && reg === 4) {
      this.restore(operand, opsize16);
      return 0;
    }
    this.view.setUint16(FOP, ((op & 7) << 8) | modrm, true);
    this.view.setBigUint64(FIP, rip, true);
    if (inMemory) {
      this.view.setBigUint64(FDP, memAddr, true);
      this.executeMemory(op, reg, operand);
    } else this.executeRegister(op, modrm, reg, modrm & 7);
    return 0;
  }

  /** FNSTENV, FNSTCW, FNSAVE, FNSTSW, FNCLEX, FNINIT and the 8087 and 80287 no-ops; false for the rest. */
  private executeNonWaiting(op: number, modrm: number, operand: DataView, opsize16: boolean): boolean {
    const reg = (modrm >>> 3) & 7;
    if (modrm >= 0xc0) {
      if (op === 0xdf && modrm === 0xe0) {
        this.cpu.setAx(this.fsw);
        return true;
      }
      if (op !== 0xdb || reg !== 4) return false;
      if (modrm === 0xe2) this.fsw &= ~CLEARABLE;
      else if (modrm === 0xe3) this.reset();
      return true;
    }
    if (op === 0xd9 && reg === 6) {
      this.storeEnvironment(operand, opsize16);
      this.setFcw(this.fcw | EXCEPTION_MASKS);
    } else if (op === 0xd9 && reg === 7) operand.setUint16(0, this.fcw, true);
    else if (op === 0xdd && reg === 6) this.save(operand, opsize16);
    else if (op === 0xdd && reg === 7) operand.setUint16(0, this.fsw, true);
    else return false;
    return true;
  }

  private executeMemory(op: number, reg: number, operand: DataView): void {
    switch (op) {
      case 0xd8:
      case 0xdc:
        this.operate(reg, memory.realOperand(operand, op === 0xd8 ? 32 : 64), 0);
        break;
      case 0xda:
      case 0xde:
        this.operate(reg, memory.integerOperand(operand, op === 0xda ? 32 : 16), 0);
        break;
      case 0xd9:
      case 0xdd: {
        const width = op === 0xd9 ? 32 : 64;
        if (reg === 0) memory.loadReal(this, operand, width);
        else if (reg === 1) memory.storeInteger(this, operand, 64, true, true);
        else memory.storeReal(this, operand, width, reg === 3);
        break;
      }
      default:
        this.executeIntegerMemory(op, reg, operand);
    }
  }

  /** DB and DF with a memory operand. */
  private executeIntegerMemory(op: number, reg: number, operand: DataView): void {
    const width = op === 0xdb ? 32 : 16;
    if (reg === 0) memory.loadInteger(this, operand, width);
    else if (reg <= 3) memory.storeInteger(this, operand, width, reg === 1, reg !== 2);
    else if (reg === 4) memory.loadDecimal(this, operand);
    else if (reg === 6) memory.storeDecimal(this, operand);
    else if (op === 0xdb) {
      if (reg === 5) memory.loadExtended(this, operand);
      else memory.storeExtended(this, operand);
    } else if (reg === 5) memory.loadInteger(this, operand, 64);
    else memory.storeInteger(this, operand, 64, false, true);
  }

  /** The eight operations of D8 by ModRM.reg: arithmetic into ST(`target`), FCOM or FCOMP. */
  private operate(reg: number, b: Float | undefined, target: number): void {
    if (reg === register.OP_COM || reg === register.OP_COMP) {
      register.compareToConditions(this, b, true, reg - register.OP_COM);
    } else register.arithmetic(this, reg, b, target, false);
  }

  private executeRegister(op: number, modrm: number, reg: number, i: number): void {
    switch (op) {
      case 0xd8:
      case 0xdc:
        // DC D0 and DC D8 are undocumented second names of FCOM and FCOMP.
        this.operate(reg, register.operandRegister(this, i), op === 0xd8 ? 0 : i);
        break;
      case 0xd9:
        if (reg === 0) register.loadRegister(this, i);
        else if (reg === 1) register.exchange(this, i);
        else if (reg === 3) register.storeRegisterQuietly(this, i);
        else if (reg >= 4) register.special(this, modrm);
        break;
      case 0xda:
        if (reg < 4) register.conditionalMove(this, reg, i, false);
        else register.compareToConditions(this, register.operandRegister(this, 1), false, 2);
        break;
      case 0xdb:
        if (reg < 4) register.conditionalMove(this, reg, i, true);
        else register.compareToFlags(this, i, reg === 6, false);
        break;
      case 0xdd:
        if (reg === 0) register.free(this, i, false);
        else if (reg === 1) register.exchange(this, i);
        else if (reg < 4) register.storeRegister(this, i, reg === 3);
        else register.compareToConditions(this, register.operandRegister(this, i), false, reg - 4);
        break;
      case 0xde: {
        const b = register.operandRegister(this, i);
        // DE D0 is an undocumented FCOMP; DE D9 is FCOMPP.
        if (reg === register.OP_COM || reg === register.OP_COMP) {
          register.compareToConditions(this, b, true, reg - register.OP_COM + 1);
        } else register.arithmetic(this, reg, b, i, true);
        break;
      }
      default:
        // DF C0 (FFREEP), DF C8, DF D0 and DF D8 are undocumented but work on every CPU.
        if (reg === 0) register.free(this, i, true);
        else if (reg === 1) register.exchange(this, i);
        else if (reg < 4) register.storeRegister(this, i, true);
        else register.compareToFlags(this, i, reg === 6, true);
    }
  }
}
