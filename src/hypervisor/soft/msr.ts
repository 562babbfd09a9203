/** Model-specific registers (SDM vol. 4; AMD APM vol. 2, appendix A). */
import { EFER_BITS } from "./bits.ts";
import { type Cpu, updateMode } from "./cpu.ts";
import { canonical } from "./exceptions.ts";
import {
  CR0,
  CSTAR,
  EFER,
  FS,
  GS,
  KERNEL_GS_BASE,
  LSTAR,
  REG,
  SFMASK,
  STAR,
  SYSENTER_CS,
  SYSENTER_EIP,
  SYSENTER_ESP,
  TSC_AUX,
} from "./layout.ts";

const IA32_TSC = 0x10;
const IA32_APIC_BASE = 0x1b;
const IA32_TSC_DEADLINE = 0x6e0;
const X2APIC_EOI = 0x80b;
const MSR_EFER = 0xc000_0080;
const MSR_TSC_AUX = 0xc000_0103;
const KVM_WALL_CLOCK = 0x11;
const KVM_SYSTEM_TIME = 0x12;
const KVM_WALL_CLOCK_NEW = 0x4b56_4d00;
const KVM_SYSTEM_TIME_NEW = 0x4b56_4d01;
/** PAT after reset (SDM vol. 3A, 11.12.4). */
const PAT_RESET = 0x0007_0406_0007_0406n;

/** Registers that are one word of state each. */
const PLAIN: Record<number, number> = {
  372: SYSENTER_CS,
  373: SYSENTER_ESP,
  374: SYSENTER_EIP,
  3221225601: STAR,
  3221225602: LSTAR,
  3221225603: CSTAR,
  3221225604: SFMASK,
  3221225728: REG.segBase + 8 * FS,
  3221225729: REG.segBase + 8 * GS,
  3221225730: KERNEL_GS_BASE,
};
/** Of those, the ones that hold addresses: a non-canonical value is #GP. */
const ADDRESS = new Set([0x175, 0x176, 0xc0000082, 0xc0000083, 0xc0000100, 0xc0000101, 0xc0000102]);

/**
 * Registers that read as a constant and ignore writes: microcode revision, MISC_ENABLE (fast strings), and
 * AMD's SYSCFG, HWCR, NB_CFG, INT_PENDING, BU_CFG, which Linux touches on every AMD processor.
 */
const CONSTANT: Record<number, bigint> = {
  139: 0n,
  416: 1n,
  3221291024: 0n,
  3221291029: 0n,
  3221291039: 0n,
  3221291093: 0n,
  3221295138: 0n,
  3221295139: 0n,
  3221295145: 0n,
};

export class Msrs {
  private pat = PAT_RESET;

  constructor(private readonly cpu: Cpu) {}

  /** True for a register whose writing changes neither how code runs nor when a timer fires. */
  static onlyItself(msr: number): boolean {
    return msr in PLAIN || msr === X2APIC_EOI;
  }

  /** Undefined: no such register, #GP. */
  read(msr: number): bigint | undefined {
    const { state, apic, clock } = this.cpu;
    const plain = PLAIN[msr];
    if (plain !== undefined) return state.get64(plain);
    if (msr >= 0x800 && msr < 0x900) return apic.readMsr(msr);
    switch (msr) {
      case IA32_TSC:
        return BigInt.asUintN(64, clock.now());
      case IA32_APIC_BASE:
        return apic.base;
      case IA32_TSC_DEADLINE:
        return apic.tscDeadlineMsr;
      case MSR_EFER:
        return state.get64(EFER);
      case MSR_TSC_AUX:
        return BigInt(state.get(TSC_AUX) >>> 0);
      case 0x277:
        return this.pat;
      case KVM_WALL_CLOCK:
      case KVM_WALL_CLOCK_NEW:
        return clock.wallClock.msr;
      case KVM_SYSTEM_TIME:
      case KVM_SYSTEM_TIME_NEW:
        return clock.systemTime.msr;
      default:
        return CONSTANT[msr];
    }
  }

  /** False: #GP. */
  write(msr: number, value: bigint): boolean {
    const { state, apic, clock } = this.cpu;
    const plain = PLAIN[msr];
    if (plain !== undefined) {
      if (ADDRESS.has(msr) && !canonical(value)) return false;
      state.set64(plain, value);
      return true;
    }
    if (msr >= 0x800 && msr < 0x900) return apic.writeMsr(msr, value);
    switch (msr) {
      case IA32_TSC:
        clock.set(value);
        return true;
      case IA32_APIC_BASE:
        return apic.writeBase(value);
      case IA32_TSC_DEADLINE:
        apic.tscDeadlineMsr = value;
        return true;
      case MSR_EFER:
        return this.writeEfer(value);
      case MSR_TSC_AUX:
        if (value >> 32n !== 0n) return false;
        state.set(TSC_AUX, Number(value) | 0);
        return true;
      case 0x277:
        this.pat = value;
        return true;
      case KVM_WALL_CLOCK:
      case KVM_WALL_CLOCK_NEW:
        clock.writeWallClock(value);
        return true;
      case KVM_SYSTEM_TIME:
      case KVM_SYSTEM_TIME_NEW:
        clock.writeSystemTime(value);
        return true;
      default:
        return msr in CONSTANT;
    }
  }

  private writeEfer(value: bigint): boolean {
    const { state } = this.cpu;
    const old = state.get(EFER);
    const known = EFER_BITS.SCE | EFER_BITS.LME | EFER_BITS.LMA | EFER_BITS.NXE;
    if (value & ~BigInt(known)) return false;
    const next = Number(value);
    const paging = state.get(CR0) < 0; // PG is bit 31
    if (paging && (old ^ next) & EFER_BITS.LME) return false;
    // LMA follows LME and paging; a write cannot change it.
    state.set64(EFER, BigInt((next & ~EFER_BITS.LMA) | (old & EFER_BITS.LMA)));
    if ((old ^ next) & EFER_BITS.NXE) this.cpu.mmu.flushAll();
    updateMode(this.cpu);
    return true;
  }
}
