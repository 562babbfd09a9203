/** Runs oracle cases on the software CPU: the same address space and records as the native runner. */
import { MmuPages, softMachine } from "../soft/machine.ts";
import {

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
  X87_OPERAND,
  XMM,
  ATTENTION,
  BUDGET,
} from "../../src/hypervisor/soft/layout.ts";
import type { SoftVcpu } from "../../src/hypervisor/soft/vcpu.ts";
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

export class SoftRunner {
  readonly vcpu: SoftVcpu;

  constructor() {
    const { vcpu, pages } = softMachine();
    this.vcpu = vcpu;
    const user = MmuPages.USER;
    for (const at of [DATA_FIRST, DATA_CROSS, DATA_THIRD]) pages.map(at, DATA_PHYSICAL, user | MmuPages.WRITE);
    pages.map(DATA_READ_ONLY, DATA_PHYSICAL, user);
    pages.map(CODE_PAGE, CODE_PHYSICAL, user | MmuPages.WRITE);
    pages.enterUser(vcpu);
  }

  run(cases: CaseBatch): ResultBatch {
    const results = new ResultBatch(cases.count, { withFpu: cases.withFpu, windowBytes: cases.windowBytes });
    for (let i = 0; i < cases.count; i++) this.runCase(cases, results, i);
    return results;
  }

  private runCase(cases: CaseBatch, results: ResultBatch, i: number): void {
    const { state, cpu } = this.vcpu;
    const { bytes } = state;
    cpu.blocks.drop(CODE_PHYSICAL / PAGE_SIZE);
    cases.codePage(i, bytes.subarray(GUEST_BASE + CODE_PHYSICAL, GUEST_BASE + CODE_PHYSICAL + PAGE_SIZE));
    cases.dataPage(i, bytes.subarray(GUEST_BASE + DATA_PHYSICAL, GUEST_BASE + DATA_PHYSICAL + PAGE_SIZE));
    const gprs = cases.at(i) + RECORD_GPRS;
    bytes.set(cases.bytes.subarray(gprs, gprs + 128), REG.gpr);
    state.rflags = cases.rflags(i) | 0x202;
    state.set64(REG.segBase + 8 * FS, BigInt(FS_BASE));
    state.set64(REG.segBase + 8 * GS, BigInt(GS_BASE));
    if (cases.withFpu) {
      const fx = cases.fx(i);
      bytes.set(fx, X87_OPERAND);
      cpu.x87.fxrstor(new DataView(bytes.buffer, X87_OPERAND, 512));
      bytes.set(fx.subarray(160, 416), XMM);
      state.set(MXCSR, cases.mxcsr(i));
    }
    const start = cases.codeAddress(i);
    const end = start + cases.code(i).length;
    state.rip = BigInt(start);
    const at = results.at(i);
    const trap = this.execute(end, cases.trapEnd(i));
    results.view.setUint16(at + RESULT_END, trap === -1 ? END_FELL_THROUGH : trap === -2 ? END_HANG : END_EXCEPTION, true);
    if (trap >= 0) {
      results.view.setUint16(at + RESULT_TRAP, trap, true);
      const error = state.get(FAULT_ERROR);
      results.view.setUint32(at + RESULT_ERROR, error === -1 ? 0 : error, true);
      if (trap === 14) results.view.setBigUint64(at + RESULT_CR2, state.get64(FAULT_CR2), true);
    }
    results.view.setBigUint64(at + RESULT_RIP, state.rip, true);
    const out = results.at(i) + RECORD_GPRS;
    results.bytes.set(bytes.subarray(REG.gpr, REG.gpr + 128), out);
    results.setRflags(i, state.rflags);
    const half = cases.windowBytes / 2;
    const window = results.window(i);
    const data = GUEST_BASE + DATA_PHYSICAL;
    window.set(bytes.subarray(data + PAGE_SIZE - half, data + PAGE_SIZE), 0);
    window.set(bytes.subarray(data, data + half), half);
    if (cases.withFpu) {
      cpu.x87.fxsave(new DataView(bytes.buffer, X87_OPERAND, 512));
      const fx = results.fx(i);
      fx.set(bytes.subarray(X87_OPERAND, X87_OPERAND + 160));
      fx.set(bytes.subarray(XMM, XMM + 256), 160);
      results.setMxcsr(i, state.get(MXCSR));
    }
  }

  /** Steps one instruction at a time. Returns a vector, -1 at the end of the code, -2 for an endless loop. */
  private execute(end: number, trapEnd: boolean): number {
    const { state, cpu } = this.vcpu;
    const { i32 } = state;
    for (let step = 0; step < MOST_STEPS; step++) {
      const rip = state.rip;
      if (rip === BigInt(end) && !trapEnd) return -1;
      const inCode = rip >= BigInt(CODE_PAGE) && rip < BigInt(CODE_PAGE + PAGE_SIZE);
      if (inCode && state.bytes[GUEST_BASE + CODE_PHYSICAL + (Number(rip) & 0xfff)] === PAD) {
        state.rip = rip + 1n;
        state.set(FAULT_ERROR, -1);
        return 3;
      }
      state.set(MODE, state.get(MODE) | MODE_TF);
      Atomics.store(i32, ATTENTION >> 2, -1);
      const record = cpu.blocks.at(Number(BigInt.asIntN(32, rip)), Number(BigInt.asIntN(32, rip >> 32n)));
      if (record === 0) return state.get(FAULT_VECTOR);
      state.set64(REG.vbase, rip & ~0xfffn);
      state.set(BUDGET, 1);
      const code = this.vcpu.interpreter.enter(record);
      if (code === EXIT.fault || code === EXIT.stale) {
        const offset = state.view.getUint16(state.get(CURRENT) + RECORD.offset, true);
        state.rip = state.get64(REG.vbase) | BigInt(offset);
        if (code === EXIT.fault) return state.get(FAULT_VECTOR);
      }
    }
    return -2;
  }
}
