/** Runs oracle cases on the software CPU: the same address space and records as the native runner. */

import {
  ATTENTION,
  BUDGET,
  CURRENT,
  EXIT,
  FAULT_CR2,
  FAULT_ERROR,
  FAULT_VECTOR,
  FS,
  GS,
  GUEST_BASE,
  MODE,
  MODE_TF,
  MXCSR,
  RECORD,
  REG,
  RIP,
  X87_OPERAND,
  XMM,
} from "../../src/hypervisor/soft/layout.ts";
import type { SoftVcpu } from "../../src/hypervisor/soft/vcpu.ts";
import { MmuPages, softMachine } from "../soft/machine.ts";
import { type CaseBatch, ResultBatch } from "./batch.ts";
import {
  CODE_PAGE,
  DATA_CROSS,
  DATA_FIRST,
  DATA_READ_ONLY,
  DATA_THIRD,
  END_EXCEPTION,
  END_FELL_THROUGH,
  END_HANG,
  FS_BASE,
  FX_BYTES,
  FX_ST,
  FX_XMM,
  GS_BASE,
  PAD,
  PAGE_SIZE,
  RECORD_GPRS,
  RESULT_CR2,
  RESULT_END,
  RESULT_ERROR,
  RESULT_RIP,
  RESULT_TRAP,
} from "./layout.ts";

/** Guest-physical pages of the case's memory. */
const DATA_PHYSICAL = 0x10_0000;
const CODE_PHYSICAL = 0x10_1000;
/** Steps after which a case counts as an endless loop. */
const MOST_STEPS = 5000;
const GPR_BYTES = 128;
const XMM_BYTES = 256;
const XMM_END = FX_XMM + XMM_BYTES;
/** RFLAGS of a user program: IF and the bit that is always 1. */
const RFLAGS_USER = 0x202;
const NO_EXECUTE = 1n << 63n;

const TRAP_BP = 3;
const TRAP_PF = 14;
/** What {@link SoftRunner.execute} answers besides a vector. */
const AT_END = -1;
const HANGS = -2;

export class SoftRunner {
  readonly vcpu: SoftVcpu;
  private readonly codePage: Uint8Array;
  private readonly dataPage: Uint8Array;
  private readonly image: DataView;

  constructor() {
    const { vcpu, pages } = softMachine();
    this.vcpu = vcpu;
    const { bytes, view } = vcpu.state;
    const data = NO_EXECUTE | BigInt(MmuPages.USER);
    for (const at of [DATA_FIRST, DATA_CROSS, DATA_THIRD]) {
      pages.map(at, DATA_PHYSICAL, data | BigInt(MmuPages.WRITE));
    }
    pages.map(DATA_READ_ONLY, DATA_PHYSICAL, data);
    pages.map(CODE_PAGE, CODE_PHYSICAL, MmuPages.USER | MmuPages.WRITE);
    pages.enterUser(vcpu);
    const page = (physical: number): Uint8Array =>
      bytes.subarray(GUEST_BASE + physical, GUEST_BASE + physical + PAGE_SIZE);
    this.codePage = page(CODE_PHYSICAL);
    this.dataPage = page(DATA_PHYSICAL);
    this.image = new DataView(view.buffer, X87_OPERAND, FX_BYTES);
  }

  /** Runs every case. Throws RangeError on a malformed one. */
  run(cases: CaseBatch): ResultBatch {
    cases.validate();
    const results = new ResultBatch(cases.count, cases);
    for (let i = 0; i < cases.count; i++) this.runCase(cases, results, i);
    return results;
  }

  private runCase(cases: CaseBatch, results: ResultBatch, i: number): void {
    const { state, cpu } = this.vcpu;
    const { bytes } = state;
    cpu.blocks.drop(CODE_PHYSICAL / PAGE_SIZE);
    cases.codePage(i, this.codePage);
    cases.dataPage(i, this.dataPage);
    const gprs = cases.at(i) + RECORD_GPRS;
    bytes.set(cases.bytes.subarray(gprs, gprs + GPR_BYTES), REG.gpr);
    state.rflags = cases.rflags(i) | RFLAGS_USER;
    state.set64(REG.segBase + 8 * FS, BigInt(FS_BASE));
    state.set64(REG.segBase + 8 * GS, BigInt(GS_BASE));
    if (cases.withFpu) {
      const fx = cases.fx(i);
      bytes.set(fx, X87_OPERAND);
      cpu.x87.fxrstor(this.image);
      bytes.set(fx.subarray(FX_XMM, XMM_END), XMM);
      state.set(MXCSR, cases.mxcsr(i));
    }
    const start = cases.codeAddress(i);
    state.rip = BigInt(start);
    const trap = this.execute(start + cases.code(i).length, cases.trapEnd(i), i % 4 === 3);
    this.report(results, i, trap);
  }

  private report(results: ResultBatch, i: number, trap: number): void {
    const { state, cpu } = this.vcpu;
    const { bytes } = state;
    const { view } = results;
    const at = results.at(i);
    const end = trap === AT_END ? END_FELL_THROUGH : trap === HANGS ? END_HANG : END_EXCEPTION;
    view.setUint16(at + RESULT_END, end, true);
    if (trap >= 0) {
      view.setUint16(at + RESULT_TRAP, trap, true);
      view.setUint32(at + RESULT_ERROR, Math.max(0, state.get(FAULT_ERROR)), true);
      if (trap === TRAP_PF) view.setBigUint64(at + RESULT_CR2, state.get64(FAULT_CR2), true);
    }
    view.setBigUint64(at + RESULT_RIP, state.rip, true);
    results.bytes.set(bytes.subarray(REG.gpr, REG.gpr + GPR_BYTES), at + RECORD_GPRS);
    results.setRflags(i, state.rflags);
    const half = results.windowBytes / 2;
    const window = results.window(i);
    window.set(this.dataPage.subarray(PAGE_SIZE - half), 0);
    window.set(this.dataPage.subarray(0, half), half);
    if (!results.withFpu) return;
    cpu.x87.fxsave(this.image);
    const fx = results.fx(i);
    fx.set(bytes.subarray(X87_OPERAND, X87_OPERAND + FX_ST), 0);
    fx.set(bytes.subarray(X87_OPERAND + FX_ST, X87_OPERAND + FX_XMM), FX_ST);
    fx.set(bytes.subarray(XMM, XMM + XMM_BYTES), FX_XMM);
    results.setMxcsr(i, state.get(MXCSR));
  }

  /** Steps one instruction at a time. Returns the vector of an exception, {@link AT_END} or {@link HANGS}. */
  private execute(end: number, trapEnd: boolean, interrupted: boolean): number {
    const { state, cpu } = this.vcpu;
    const { i32 } = state;
    state.set(MODE, state.get(MODE) | MODE_TF);
    // With the budget used up, a block of one instruction is left behind it; a repeated one runs to its end,
    // or, in some cases, is left and resumed after every element.
    Atomics.store(i32, ATTENTION >> 2, interrupted ? -1 : 0);
    for (let step = 0; step < MOST_STEPS; step++) {
      const low = state.get(RIP);
      const high = state.get(RIP + 4);
      if (high === 0 && low >= CODE_PAGE && low < CODE_PAGE + PAGE_SIZE) {
        if (low === end && !trapEnd) return AT_END;
        if (this.codePage[low - CODE_PAGE] === PAD) {
          state.rip += 1n;
          state.set(FAULT_ERROR, 0);
          return TRAP_BP;
        }
      }
      const record = cpu.blocks.at(low, high);
      if (record === 0) return state.get(FAULT_VECTOR);
      state.set(REG.vbase, low & ~(PAGE_SIZE - 1));
      state.set(REG.vbase + 4, high);
      state.set(BUDGET, 0);
      const code = this.vcpu.interpreter.enter(record);
      if (code === EXIT.fault || code === EXIT.stale) {
        const offset = state.view.getUint16(state.get(CURRENT) + RECORD.offset, true);
        state.rip = state.get64(REG.vbase) | BigInt(offset);
        if (code === EXIT.fault) return state.get(FAULT_VECTOR);
      }
    }
    return HANGS;
  }
}
