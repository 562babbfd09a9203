/** Local APIC (xAPIC registers and x2APIC MSRs) with its timer, for one vCPU (SDM vol. 3A, chapter 11). */
import type { Clock } from "./clock.ts";
import { IoApic } from "./ioapic.ts";
import { ATTENTION } from "./layout.ts";
import type { State } from "./state.ts";

export const LAPIC_BASE = 0xfee0_0000;

/** IA32_APIC_BASE bits. */
const BSP = 0x100n;
const EXTD = 0x400n;
const ENABLE = 0x800n;

/** Register offsets in the xAPIC page; an x2APIC MSR is 0x800 + offset / 16. */
const REGISTER = {
  ID: 0x20,
  VERSION: 0x30,
  TPR: 0x80,
  PPR: 0xa0,
  EOI: 0xb0,
  LDR: 0xd0,
  DFR: 0xe0,
  SVR: 0xf0,
  ISR: 0x100,
  TMR: 0x180,
  IRR: 0x200,
  ESR: 0x280,
  ICR: 0x300,
  ICR_HIGH: 0x310,
  LVT_TIMER: 0x320,
  LVT_THERMAL: 0x330,
  LVT_PERF: 0x340,
  LVT_LINT0: 0x350,
  LVT_LINT1: 0x360,
  LVT_ERROR: 0x370,
  TIMER_INITIAL: 0x380,
  TIMER_CURRENT: 0x390,
  TIMER_DIVIDE: 0x3e0,
  SELF_IPI: 0x3f0,
} as const;

/** Registers an x2APIC MSR may read, besides ISR, TMR and IRR (0x100 to 0x270) and the LVT (SDM vol. 3A, table 11-6). */
const X2APIC_READABLE: ReadonlySet<number> = new Set([
  REGISTER.ID,
  REGISTER.VERSION,
  REGISTER.TPR,
  REGISTER.PPR,
  REGISTER.LDR,
  REGISTER.SVR,
  REGISTER.ESR,
  REGISTER.TIMER_INITIAL,
  REGISTER.TIMER_CURRENT,
  REGISTER.TIMER_DIVIDE,
]);
/** Highest value that may be written to each, besides the LVT. */
const X2APIC_WRITABLE: ReadonlyMap<number, number> = new Map([
  [REGISTER.TPR, 0xff],
  [REGISTER.EOI, 0],
  [REGISTER.SVR, 0xffff_ffff],
  [REGISTER.ESR, 0],
  [REGISTER.TIMER_INITIAL, 0xffff_ffff],
  [REGISTER.TIMER_DIVIDE, 0xffff_ffff],
  [REGISTER.SELF_IPI, 0xff],
]);

/** Bits of IA32_APIC_BASE that must be 0: 7-0, 9, and those above the physical addresses. */
const BASE_RESERVED = 0xffff_ff00_0000_02ffn;

const SVR_ENABLE = 0x100;
const LVT_MASKED = 0x1_0000;
const LVT_DELIVERY_MODE = 0x700;
const LVT_NMI = 0x400;
const LVT_EXTINT = 0x700;
const TIMER_MODE = 0x6_0000;
const TIMER_PERIODIC = 0x2_0000;
const TIMER_TSC_DEADLINE = 0x4_0000;
/** Version 0x14, six LVT entries after the first. */
const VERSION_VALUE = 0x0005_0014;

export class Apic {
  /** The one that sends its interrupts here. */
  readonly ioapic = new IoApic((vector, level) => this.raise(vector, level));
  base = BigInt(LAPIC_BASE) | ENABLE | BSP;
  private readonly irr = new Uint32Array(8);
  private readonly isr = new Uint32Array(8);
  private readonly tmr = new Uint32Array(8);
  private tpr = 0;
  private svr = 0xff;
  private ldr = 0;
  private dfr = 0xffff_ffff;
  private esr = 0;
  private icrHigh = 0;
  private icr = 0;
  private readonly lvt = new Map<number, number>();
  private initialCount = 0;
  private divide = 0;
  /** TSC at which the running count started, and at which it ends; undefined: stopped. */
  private countStart = 0n;
  private deadline: bigint | undefined;
  private tscDeadline = 0n;

  constructor(
    private readonly state: State,
    private readonly clock: Clock,
    readonly id: number,
  ) {
    for (const r of [
      REGISTER.LVT_TIMER,
      REGISTER.LVT_THERMAL,
      REGISTER.LVT_PERF,
      REGISTER.LVT_LINT0,
      REGISTER.LVT_LINT1,
      REGISTER.LVT_ERROR,
    ]) {
      this.lvt.set(r, LVT_MASKED);
    }
  }

  get x2apic(): boolean {
    return (this.base & EXTD) !== 0n;
  }
  private get enabled(): boolean {
    return (this.base & ENABLE) !== 0n && (this.svr & SVR_ENABLE) !== 0;
  }

  /**
   * As firmware leaves it (MultiProcessor Specification 1.4, 3.6.2.2, virtual wire mode): the PIC's interrupts come
   * through LINT0, NMIs through LINT1.
   */
  virtualWire(): void {
    this.lvt.set(REGISTER.LVT_LINT0, LVT_EXTINT);
    this.lvt.set(REGISTER.LVT_LINT1, LVT_NMI);
  }

  /** True if the PIC's INTR reaches the processor: through LINT0, or past a local APIC that is off. */
  get acceptsExtInt(): boolean {
    if ((this.base & ENABLE) === 0n) return true;
    return (this.lvt.get(REGISTER.LVT_LINT0)! & (LVT_MASKED | LVT_DELIVERY_MODE)) === LVT_EXTINT;
  }

  // --- priorities ------------------------------------------------------------------------------

  private static highest(words: Uint32Array): number {
    for (let i = 7; i >= 0; i--) {
      const w = words[i]!;
      if (w) return i * 32 + 31 - Math.clz32(w);
    }
    return -1;
  }

  private get ppr(): number {
    const inService = Math.max(0, Apic.highest(this.isr)) & 0xf0;
    return (this.tpr & 0xf0) >= inService ? this.tpr : inService;
  }

  /** The vector to deliver now, or -1. */
  pending(): number {
    if (!this.enabled) return -1;
    const vector = Apic.highest(this.irr);
    return vector >= 0 && (vector & 0xf0) > (this.ppr & 0xf0) ? vector : -1;
  }

  /** The CPU takes `vector`: IRR to ISR. */
  acknowledge(vector: number): void {
    this.irr[vector >> 5]! &= ~(1 << (vector & 31));
    this.isr[vector >> 5]! |= 1 << (vector & 31);
  }

  /** A fixed interrupt arrives. Vectors below 16 are illegal. */
  raise(vector: number, level = false): void {
    if (vector < 16) {
      this.esr |= 0x40;
      return;
    }
    if (!this.enabled) return;
    this.irr[vector >> 5]! |= 1 << (vector & 31);
    if (level) this.tmr[vector >> 5]! |= 1 << (vector & 31);
    else this.tmr[vector >> 5]! &= ~(1 << (vector & 31));
    Atomics.store(this.state.i32, ATTENTION >> 2, -1);
  }

  private eoi(): void {
    const vector = Apic.highest(this.isr);
    if (vector < 0) return;
    this.isr[vector >> 5]! &= ~(1 << (vector & 31));
    if (this.tmr[vector >> 5]! & (1 << (vector & 31))) this.ioapic.eoi(vector);
    // A lower one may have become deliverable.
    if (this.pending() >= 0) Atomics.store(this.state.i32, ATTENTION >> 2, -1);
  }

  // --- registers -------------------------------------------------------------------------------

  private readRegister(offset: number): number {
    if (offset >= REGISTER.ISR && offset < REGISTER.ESR) {
      const words = offset < REGISTER.TMR ? this.isr : offset < REGISTER.IRR ? this.tmr : this.irr;
      return words[(offset & 0x70) >> 4]!;
    }
    switch (offset) {
      case REGISTER.ID:
        return this.x2apic ? this.id : this.id << 24;
      case REGISTER.VERSION:
        return VERSION_VALUE;
      case REGISTER.TPR:
        return this.tpr;
      case REGISTER.PPR:
        return this.ppr;
      case REGISTER.LDR:
        return this.x2apic ? ((this.id >> 4) << 16) | (1 << (this.id & 15)) : this.ldr;
      case REGISTER.DFR:
        return this.dfr;
      case REGISTER.SVR:
        return this.svr;
      case REGISTER.ESR:
        return this.esr;
      case REGISTER.ICR:
        return this.icr;
      case REGISTER.ICR_HIGH:
        return this.icrHigh;
      case REGISTER.TIMER_INITIAL:
        return this.initialCount;
      case REGISTER.TIMER_CURRENT:
        return this.currentCount();
      case REGISTER.TIMER_DIVIDE:
        return this.divide;
      default:
        return this.lvt.get(offset) ?? 0;
    }
  }

  private writeRegister(offset: number, value: number): void {
    switch (offset) {
      case REGISTER.TPR:
        this.tpr = value & 0xff;
        Atomics.store(this.state.i32, ATTENTION >> 2, -1);
        return;
      case REGISTER.EOI:
        this.eoi();
        return;
      case REGISTER.LDR:
        this.ldr = value & 0xff00_0000;
        return;
      case REGISTER.DFR:
        this.dfr = value | 0x0fff_ffff;
        return;
      case REGISTER.SVR:
        this.svr = value & 0x1ff;
        if (!(value & SVR_ENABLE)) for (const [r, v] of this.lvt) this.lvt.set(r, v | LVT_MASKED);
        return;
      case REGISTER.ESR:
        this.esr = 0;
        return;
      case REGISTER.ICR:
        this.icr = value & ~0x1000;
        this.sendIpi(value, this.icrHigh >>> 24);
        return;
      case REGISTER.ICR_HIGH:
        this.icrHigh = value;
        return;
      case REGISTER.LVT_TIMER:
        this.writeTimerLvt(value);
        return;
      case REGISTER.TIMER_INITIAL:
        this.initialCount = value >>> 0;
        this.startCount();
        return;
      case REGISTER.TIMER_DIVIDE:
        this.divide = value & 0xb;
        return;
      case REGISTER.SELF_IPI:
        this.raise(value & 0xff);
        return;
      default:
        if (this.lvt.has(offset)) {
          this.lvt.set(offset, this.svr & SVR_ENABLE ? value : value | LVT_MASKED);
          // LINT0 may let the PIC's interrupts in.
          Atomics.store(this.state.i32, ATTENTION >> 2, -1);
        }
    }
  }

  /** Only this vCPU exists: an IPI reaches it or nobody. */
  private sendIpi(command: number, destination: number): void {
    const shorthand = (command >> 18) & 3;
    const logical = (command & 0x800) !== 0;
    const broadcast = destination === (this.x2apic ? 0xffff_ffff : 0xff);
    const self =
      shorthand === 1 ||
      shorthand === 2 ||
      (shorthand === 0 &&
        (broadcast ||
          (logical
            ? this.x2apic
              ? destination >>> 16 === this.id >> 4 && ((destination >> (this.id & 15)) & 1) !== 0
              : (destination & (this.ldr >>> 24)) !== 0
            : destination === this.id)));
    const mode = (command >> 8) & 7;
    // Fixed and lowest priority; INIT and SIPI to oneself are ignored by a running processor.
    if (self && (mode === 0 || mode === 1)) this.raise(command & 0xff);
  }

  /** Task priority, as CR8 sees it in its bits 7-4. */
  readTpr(): number {
    return this.tpr;
  }
  writeTpr(value: number): void {
    this.writeRegister(REGISTER.TPR, value);
  }

  /** x2APIC MSR read; undefined: #GP. */
  readMsr(msr: number): bigint | undefined {
    if (!this.x2apic) return undefined;
    const offset = (msr - 0x800) << 4;
    if (offset === REGISTER.ICR) return (BigInt(this.icrHigh >>> 0) << 32n) | BigInt(this.icr >>> 0);
    const isBitmap = offset >= REGISTER.ISR && offset < REGISTER.ESR;
    if (!isBitmap && !X2APIC_READABLE.has(offset) && !this.lvt.has(offset)) return undefined;
    return BigInt(this.readRegister(offset) >>> 0);
  }

  /** x2APIC MSR write; false: #GP. */
  writeMsr(msr: number, value: bigint): boolean {
    if (!this.x2apic) return false;
    const offset = (msr - 0x800) << 4;
    if (offset === REGISTER.ICR) {
      this.icrHigh = Number(value >> 32n);
      this.icr = Number(value & 0xffff_ffffn);
      this.sendIpi(this.icr, this.icrHigh);
      return true;
    }
    const most = this.lvt.has(offset) ? 0xffff_ffff : X2APIC_WRITABLE.get(offset);
    if (most === undefined || value > BigInt(most)) return false;
    this.writeRegister(offset, Number(value));
    return true;
  }

  /** IA32_APIC_BASE write; false: #GP (an illegal transition, SDM vol. 3A, 11.12.5). */
  writeBase(value: bigint): boolean {
    if (value & BASE_RESERVED) return false;
    const enabled = (value & ENABLE) !== 0n;
    const extended = (value & EXTD) !== 0n;
    // x2APIC mode is entered from xAPIC mode alone, and left only by disabling the APIC.
    if (extended && (!enabled || (this.base & ENABLE) === 0n)) return false;
    if (this.x2apic && enabled && !extended) return false;
    this.base = (value & 0xff_ffff_f000n) | (value & (EXTD | ENABLE)) | BSP;
    Atomics.store(this.state.i32, ATTENTION >> 2, -1);
    return true;
  }

  // --- timer -----------------------------------------------------------------------------------

  private get timerMode(): number {
    return this.lvt.get(REGISTER.LVT_TIMER)! & TIMER_MODE;
  }

  /** Divide configuration: bits 3, 1, 0 give 2, 4, ... 128, and 111b gives 1. The bus runs at 1 GHz. */
  private get divisor(): bigint {
    const code = (this.divide & 3) | ((this.divide >> 1) & 4);
    return 1n << BigInt((code + 1) & 7);
  }

  private writeTimerLvt(value: number): void {
    const before = this.timerMode;
    this.lvt.set(REGISTER.LVT_TIMER, this.svr & SVR_ENABLE ? value : value | LVT_MASKED);
    if (before !== this.timerMode) {
      this.deadline = undefined;
      this.tscDeadline = 0n;
    }
  }

  private startCount(): void {
    if (this.timerMode === TIMER_TSC_DEADLINE) return;
    if (this.initialCount === 0) {
      this.deadline = undefined;
      return;
    }
    this.countStart = this.clock.now();
    this.deadline = this.countStart + BigInt(this.initialCount) * this.divisor;
  }

  private currentCount(): number {
    if (this.deadline === undefined || this.timerMode === TIMER_TSC_DEADLINE) return 0;
    const left = (this.deadline - this.clock.now()) / this.divisor;
    return left > 0n ? Number(left) : 0;
  }

  get tscDeadlineMsr(): bigint {
    return this.tscDeadline;
  }

  /** IA32_TSC_DEADLINE: 0 disarms. Ignored in the other timer modes. */
  set tscDeadlineMsr(value: bigint) {
    if (this.timerMode !== TIMER_TSC_DEADLINE) return;
    this.tscDeadline = value;
    this.deadline = value === 0n ? undefined : value;
  }

  /** TSC at which the timer fires next, if it runs. */
  get nextTimer(): bigint | undefined {
    return this.deadline;
  }

  /** Fires the timer if it is due. */
  poll(): void {
    if (this.deadline === undefined) return;
    const now = this.clock.now();
    if (now < this.deadline) return;
    const lvt = this.lvt.get(REGISTER.LVT_TIMER)!;
    if (this.timerMode === TIMER_PERIODIC) {
      const period = BigInt(this.initialCount) * this.divisor;
      // Ticks missed while the host was busy are not made up for.
      const missed = (now - this.deadline) / period;
      this.deadline += (missed + 1n) * period;
    } else {
      this.deadline = undefined;
      this.tscDeadline = 0n;
    }
    if (!(lvt & LVT_MASKED)) this.raise(lvt & 0xff);
  }

  // --- memory-mapped registers -----------------------------------------------------------------

  /** True if `gpa` belongs to the local APIC's page as IA32_APIC_BASE places it. */
  ownsLapic(gpa: number): boolean {
    return (this.base & (ENABLE | EXTD)) === ENABLE && Math.floor(gpa / 4096) === Number(this.base >> 12n);
  }

  mmioRead(gpa: number): number {
    return gpa & 15 ? 0 : this.readRegister(gpa & 0xff0);
  }

  mmioWrite(gpa: number, value: number): void {
    if ((gpa & 15) === 0) this.writeRegister(gpa & 0xff0, value | 0);
  }
}
