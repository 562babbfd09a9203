/** x87, FXSAVE and the slow path of SSE arithmetic, between records and src/.../float. */
import { CR0_BITS, CR4_BITS } from "./bits.ts";
import { canonical } from "./exceptions.ts";
import { x87Operand } from "./float/x87.ts";
import { HELPER } from "./helpers.ts";
import { CR0, CR4, EXIT, LINEAR, MXCSR, X87_OPERAND, XMM } from "./layout.ts";
import {
  aux,
  fault,
  type Helper,
  type HelperCall,
  immediate,
  instructionRip,
  probeOperand,
  readOperand,
  writeOperand,
} from "./system.ts";

/** MXCSR bits that exist: DAZ is supported, so 0xffff (SDM vol. 1, 11.6.6). */
const MXCSR_MASK = 0xffff;

/** What an instruction that needs the FPU raises while it is off (SDM vol. 1, 9.5; vol. 3A, table 9-1). */
const unavailable: Helper = (c) => {
  const cr0 = c.cpu.state.get(CR0);
  const isX87 = immediate(c) === 1;
  if (!isX87 && (cr0 & CR0_BITS.EM || !(c.cpu.state.get(CR4) & CR4_BITS.OSFXSR))) return fault(c, 6);
  return fault(c, 7);
};

const x87: Helper = (c) => {
  const { cpu } = c;
  const op = immediate(c) & 0xff;
  const modrm = aux(c);
  const short = c.size === 2;
  const operand = x87Operand(op, modrm, short);
  if (!operand) return fault(c, 6);
  const { size, access } = operand;
  // A pending exception is reported before the operand is touched, except by what does not wait: FNSTENV,
  // FNSTCW, FNSAVE and FNSTSW.
  const waits = !((op === 0xd9 || op === 0xdd) && ((modrm >> 3) & 7) >= 6);
  if (c.mem && waits && cpu.x87.wait() !== 0) return fault(c, cpu.x87.wait());
  if (access === "read" && !readOperand(c, size)) return EXIT.fault;
  if (access === "write" && !probeOperand(c, size)) return EXIT.fault;
  const view = operandView(c);
  const vector = cpu.x87.execute(
    op,
    modrm,
    view,
    instructionRip(c),
    c.mem ? cpu.state.get64(LINEAR) : 0n,
    short,
  );
  if (vector !== 0) return fault(c, vector);
  if (access === "write" && cpu.x87.stored && !writeOperand(c, size)) return EXIT.fault;
  return 0;
};

const views = new WeakMap<object, DataView>();

/** A view of the operand area, one for each CPU. */
function operandView(c: HelperCall): DataView {
  const { state } = c.cpu;
  let view = views.get(state);
  if (!view) {
    view = new DataView(state.memory.buffer, X87_OPERAND, 512);
    views.set(state, view);
  }
  return view;
}

const fwait: Helper = (c) => {
  const { cpu } = c;
  if ((cpu.state.get(CR0) & (CR0_BITS.MP | CR0_BITS.TS)) === (CR0_BITS.MP | CR0_BITS.TS)) return fault(c, 7);
  const vector = cpu.x87.wait();
  return vector ? fault(c, vector) : 0;
};

/** An FXSAVE image must be aligned; an address that is not canonical faults as such first. */
const misaligned = (c: HelperCall): boolean => {
  const linear = c.cpu.state.get64(LINEAR);
  return (linear & 15n) !== 0n && canonical(linear);
};

const fxsave: Helper = (c) => {
  const { cpu } = c;
  const { state } = cpu;
  if (misaligned(c)) return fault(c, 13, 0);
  if (!readOperand(c, 512)) return EXIT.fault;
  // Bytes 464-511 belong to software and stay as they are in memory, and so do the reserved bytes.
  cpu.x87.fxsave(operandView(c));
  state.view.setUint32(X87_OPERAND + 24, state.get(MXCSR), true);
  state.view.setUint32(X87_OPERAND + 28, MXCSR_MASK, true);
  const registers = c.mode64 ? 16 : 8;
  state.bytes.copyWithin(X87_OPERAND + 160, XMM, XMM + registers * 16);
  return writeOperand(c, 512) ? 0 : EXIT.fault;
};

const fxrstor: Helper = (c) => {
  const { cpu } = c;
  const { state } = cpu;
  if (misaligned(c)) return fault(c, 13, 0);
  if (!readOperand(c, 512)) return EXIT.fault;
  const mxcsr = state.view.getUint32(X87_OPERAND + 24, true);
  if (mxcsr & ~MXCSR_MASK) return fault(c, 13, 0);
  cpu.x87.fxrstor(operandView(c));
  state.set(MXCSR, mxcsr);
  const registers = c.mode64 ? 16 : 8;
  state.bytes.copyWithin(XMM, X87_OPERAND + 160, X87_OPERAND + 160 + registers * 16);
  return 0;
};

const sse: Helper = (c) => {
  if (c.cpu.sse.run() === 0) return 0;
  return c.cpu.state.get(CR4) & CR4_BITS.OSXMMEXCPT ? fault(c, 19) : fault(c, 6);
};

export function fpuHelpers(set: (id: number, helper: Helper) => void): void {
  set(HELPER.fpuUnavailable, unavailable);
  set(HELPER.x87, x87);
  set(HELPER.fwait, fwait);
  set(HELPER.fxsave, fxsave);
  set(HELPER.fxrstor, fxrstor);
  set(HELPER.sseScalar, sse);
}
