/** Interrupt and exception delivery, and IRET (SDM vol. 3A, chapter 6). */

import { EFER_BITS } from "./bits.ts";
import { ATTR, type Cpu, setCpl, setRflags, updateMode } from "./cpu.ts";
import { deliverSimply } from "./delivery.ts";
import {
  CPL,
  CR2,
  CS,
  DR,
  DS,
  EFER,
  ES,
  FAULT_CR2,
  FAULT_ERROR,
  FAULT_VECTOR,
  FS,
  GS,
  IDTR_BASE,
  IDTR_LIMIT,
  MODE,
  MODE_64,
  RSP,
  SEG_ATTR,
  SEG_LIMIT,
  SEG_SELECTOR,
  SS,
  TR,
  TR_BASE,
  X87_OPERAND,
} from "./layout.ts";
import {
  checkCode,
  type Descriptor,
  dpl,
  privilegeSupported,
  readDescriptor,
  selectorFault,
  setCode,
  setSegment,
} from "./segments.ts";
import { RFLAGS } from "./state.ts";

const DOUBLE_FAULT = 8;
const PAGE_FAULT = 14;

/** Vectors that push an error code. */
const HAS_ERROR = new Set([8, 10, 11, 12, 13, 14, 17, 21]);
const CONTRIBUTORY = new Set([0, 10, 11, 12, 13]);
/** Fault-class vectors: the pushed RFLAGS has RF set so that the instruction's breakpoint does not repeat. */
const isFault = (vector: number) =>
  vector !== 1 && vector !== 3 && vector !== 4 && vector !== 8 && vector !== 18;

export interface Interrupt {
  vector: number;
  /** -1: none. */
  error: number;
  /** INT n, INT1, INT3, INTO: RIP is past the instruction. Gate privilege is checked, but for INT1. */
  software: boolean;
  /** From outside the instruction stream. */
  external: boolean;
  /** INT1: the gate's privilege does not matter (SDM vol. 2A, INT n). */
  anyGate?: boolean;
}

/** Error-code bit EXT: the fault came up while something else than INT n was delivered (SDM vol. 3A, 6.13). */
const ext = (i: Interrupt): number => (i.software && !i.anyGate ? 0 : 1);

const gateError = (i: Interrupt): number => (i.vector << 3) | 2 | ext(i);

/**
 * Delivers an interrupt or exception at the state's RIP. Faults on the way become double faults by SDM
 * vol. 3A, table 6-5. False: triple fault, the processor shuts down.
 */
export function deliver(cpu: Cpu, first: Interrupt): boolean {
  let current = first;
  for (let depth = 0; ; depth++) {
    if (deliverOnce(cpu, current)) return true;
    const vector = cpu.state.get(FAULT_VECTOR);
    const error = cpu.state.get(FAULT_ERROR);
    if (current.vector === DOUBLE_FAULT || depth > 4) return false;
    const wasException = !current.external && !current.software;
    const double =
      wasException &&
      ((CONTRIBUTORY.has(current.vector) && CONTRIBUTORY.has(vector)) ||
        (current.vector === PAGE_FAULT && (vector === PAGE_FAULT || CONTRIBUTORY.has(vector))));
    current = double
      ? { vector: DOUBLE_FAULT, error: 0, software: false, external: false }
      : { vector, error, software: false, external: false };
  }
}

/** Delivers without regard to faults on the way. False: the fault is noted, and nothing else has changed. */
export function deliverOnce(cpu: Cpu, i: Interrupt): boolean {
  const { state } = cpu;
  // CR2 changes as soon as a page fault is found, even one that ends as a double fault (SDM vol. 3A, 6.15).
  if (i.vector === PAGE_FAULT && !i.external && !i.software) noteCr2(cpu);
  const exception = !i.software && !i.external;
  const simple = deliverSimply(cpu, {
    vector: i.vector,
    error: i.error >= 0 && exception && HAS_ERROR.has(i.vector) ? i.error : -1,
    checked: i.software && !i.anyGate,
    fault: exception && isFault(i.vector),
  });
  if (simple) return true;
  const done = deliverThroughGate(cpu, i);
  if (!done && state.get(FAULT_VECTOR) === PAGE_FAULT) noteCr2(cpu);
  return done;
}

function noteCr2({ state }: Cpu): void {
  state.set(CR2, state.get(FAULT_CR2));
  state.set(CR2 + 4, state.get(FAULT_CR2 + 4));
}

/** As {@link deliverOnce}, in all cases. */
export function deliverThroughGate(cpu: Cpu, i: Interrupt): boolean {
  const { state, mmu } = cpu;
  if (!(state.get(EFER) & EFER_BITS.LMA)) {
    cpu.log(`exception ${i.vector} outside long mode: not supported by the software CPU`);
    state.fault(DOUBLE_FAULT, 0);
    return false;
  }
  const at = i.vector * 16;
  if (at + 15 > state.get(IDTR_LIMIT) >>> 0) {
    state.fault(13, gateError(i));
    return false;
  }
  if (!mmu.readLinear(BigInt.asUintN(64, state.get64(IDTR_BASE) + BigInt(at)), 16, X87_OPERAND, false))
    return false;
  const w0 = state.view.getUint32(X87_OPERAND, true);
  const w1 = state.view.getUint32(X87_OPERAND + 4, true);
  const w2 = state.view.getUint32(X87_OPERAND + 8, true);
  const type = (w1 >> 8) & 0x1f;
  if (type !== 0xe && type !== 0xf) {
    state.fault(13, gateError(i));
    return false;
  }
  if (i.software && !i.anyGate && dpl((w1 >> 8) & 0xff) < state.cpl) {
    state.fault(13, gateError(i));
    return false;
  }
  if (!((w1 >> 8) & ATTR.P)) {
    state.fault(11, gateError(i));
    return false;
  }
  const target = (BigInt(w2) << 32n) | (BigInt((w0 & 0xffff) | (w1 & 0xffff_0000)) & 0xffff_ffffn);
  const selector = w0 >>> 16;
  const code = gateCode(cpu, selector, ext(i));
  if (!code) return false;
  const cpl = code.attr & ATTR.DC ? state.cpl : dpl(code.attr);
  if (!privilegeSupported(cpu, selector, cpl)) return false;
  const ist = w1 & 7;
  const outer = state.cpl;
  let rsp: bigint;
  if (ist !== 0 || cpl < outer) {
    const from = readTss(cpu, ist !== 0 ? 36 + (ist - 1) * 8 : 4 + cpl * 8, ext(i));
    if (from === undefined) return false;
    rsp = from;
  } else rsp = state.get64(RSP);
  rsp = BigInt.asUintN(64, (rsp & ~15n) - 40n);
  const error = i.error >= 0 && HAS_ERROR.has(i.vector) && !i.software && !i.external;
  if (error) rsp = BigInt.asUintN(64, rsp - 8n);
  let flags = state.rflags;
  const pushed = isFault(i.vector) && !i.software && !i.external ? flags | RFLAGS.RF : flags;
  let slot = X87_OPERAND;
  const put = (value: bigint) => {
    state.view.setBigUint64(slot, value, true);
    slot += 8;
  };
  if (error) put(BigInt(i.error >>> 0));
  put(state.rip);
  put(BigInt(state.get(SEG_SELECTOR + 4 * CS)));
  put(BigInt(pushed >>> 0));
  put(state.get64(RSP));
  put(BigInt(state.get(SEG_SELECTOR + 4 * SS)));
  if (!canonical(rsp) || !canonical(target)) {
    state.fault(canonical(rsp) ? 13 : 12, ext(i));
    return false;
  }
  if (!mmu.writeLinear(rsp, slot - X87_OPERAND, X87_OPERAND, cpl === 3)) {
    mmu.stackFault();
    return false;
  }
  if (cpl < outer) setSegment(cpu, SS, { selector: cpl, base: 0n, limit: 0, attr: 0 });
  setCode(cpu, code, cpl);
  setCpl(cpu, cpl);
  state.set64(RSP, rsp);
  state.rip = target;
  flags &= ~(RFLAGS.TF | RFLAGS.NT | RFLAGS.RF | RFLAGS.VM);
  if (type === 0xe) flags &= ~RFLAGS.IF;
  state.rflags = flags;
  updateMode(cpu);
  return true;
}

export const canonical = (address: bigint): boolean =>
  BigInt.asIntN(48, address) === BigInt.asIntN(64, address);

/** The code segment a gate names: 64-bit, present, not less privileged than now. */
function gateCode(cpu: Cpu, selector: number, ext: number): Descriptor | undefined {
  if ((selector & 0xfffc) === 0) {
    cpu.state.fault(13, ext);
    return undefined;
  }
  const d = readDescriptor(cpu, selector);
  if (!d) {
    if (cpu.state.get(FAULT_VECTOR) === 13) cpu.state.fault(13, (selector & 0xfffc) | ext);
    return undefined;
  }
  if (
    (d.attr & (ATTR.S | ATTR.CODE)) !== (ATTR.S | ATTR.CODE) ||
    dpl(d.attr) > cpu.state.get(CPL) ||
    !(d.attr & ATTR.L) ||
    d.attr & ATTR.DB
  ) {
    cpu.state.fault(13, (selector & 0xfffc) | ext);
    return undefined;
  }
  if (!(d.attr & ATTR.P)) {
    cpu.state.fault(11, (selector & 0xfffc) | ext);
    return undefined;
  }
  return d;
}

function readTss(cpu: Cpu, offset: number, ext: number): bigint | undefined {
  const { state, mmu } = cpu;
  if (offset + 7 > state.get(SEG_LIMIT + 4 * TR) >>> 0) {
    state.fault(10, (state.get(SEG_SELECTOR + 4 * TR) & 0xfffc) | ext);
    return undefined;
  }
  if (!mmu.readLinear(BigInt.asUintN(64, state.get64(TR_BASE) + BigInt(offset)), 8, X87_OPERAND, false))
    return undefined;
  return state.view.getBigUint64(X87_OPERAND, true);
}

/** Reads `count` stack words of `size` bytes from RSP. Undefined after a fault. */
export function readStack(cpu: Cpu, size: number, count: number): bigint[] | undefined {
  const { state, mmu } = cpu;
  let rsp = state.get64(RSP);
  if (!(state.get(MODE) & MODE_64)) rsp &= 0xffff_ffffn;
  if (!mmu.readLinear(rsp, size * count, X87_OPERAND, state.cpl === 3)) {
    mmu.stackFault();
    return undefined;
  }
  const out: bigint[] = [];
  for (let i = 0; i < count; i++) {
    const at = X87_OPERAND + i * size;
    out.push(
      size === 8
        ? state.view.getBigUint64(at, true)
        : BigInt(size === 4 ? state.view.getUint32(at, true) : state.view.getUint16(at, true)),
    );
  }
  return out;
}

/** Flags IRET and POPF may change, by privilege (SDM vol. 2, IRET, POPF). */
export function changeableFlags(cpu: Cpu, size: number): number {
  const { state } = cpu;
  const iopl = (state.rflags & RFLAGS.IOPL) >> 12;
  let mask = 0xd5 | RFLAGS.TF | RFLAGS.DF | RFLAGS.OF | RFLAGS.NT;
  if (size > 2) mask |= RFLAGS.AC | RFLAGS.ID;
  if (state.cpl === 0) mask |= RFLAGS.IOPL;
  if (state.cpl <= iopl) mask |= RFLAGS.IF;
  return mask;
}

/** IRET with operand size `size` in IA-32e mode. False with the fault noted. */
export function iret(cpu: Cpu, size: number): boolean {
  const { state } = cpu;
  if (!(state.get(EFER) & EFER_BITS.LMA)) {
    cpu.log("iret outside long mode: not supported by the software CPU");
    state.fault(13, 0);
    return false;
  }
  if (state.rflags & RFLAGS.NT) {
    state.fault(13, 0);
    return false;
  }
  const in64 = (state.get(MODE) & MODE_64) !== 0;
  const frame = readStack(cpu, size, 3);
  if (!frame) return false;
  const [rip, csWord, flagsWord] = frame as [bigint, bigint, bigint];
  const selector = Number(csWord & 0xffffn);
  const d = checkCode(cpu, selector, "return");
  if (!d) return false;
  const rpl = selector & 3;
  const outer = rpl > state.cpl;
  const to64 = (d.attr & ATTR.L) !== 0;
  const target = to64 ? rip : rip & 0xffff_ffffn;
  if (!canonical(target)) {
    state.fault(13, 0);
    return false;
  }
  let rsp = state.get64(RSP) + BigInt(3 * size);
  let stack: Omit<Descriptor, "address"> | undefined;
  if (in64 || outer) {
    const full = readStack(cpu, size, 5);
    if (!full) return false;
    rsp = full[3]!;
    stack = returnStack(cpu, Number(full[4]! & 0xffffn), rpl, to64);
    if (!stack) return false;
  }
  // RF would hold off instruction breakpoints for one instruction; there are none, so it never stays set.
  const mask = changeableFlags(cpu, size);
  const flags = (state.rflags & ~mask & ~RFLAGS.RF) | (Number(flagsWord & 0xffff_ffffn) & mask);
  if (!setCode(cpu, d, rpl)) return false;
  if (stack) setSegment(cpu, SS, stack);
  if (outer) dropPrivilegedSegments(cpu, rpl);
  setCpl(cpu, rpl);
  state.set64(RSP, to64 || in64 ? rsp : rsp & 0xffff_ffffn);
  state.rip = target;
  setRflags(cpu, flags);
  updateMode(cpu);
  return true;
}

/** The SS of an IRET or far RET; a null one is allowed when returning to 64-bit code below privilege 3. */
export function returnStack(
  cpu: Cpu,
  selector: number,
  rpl: number,
  to64: boolean,
): Omit<Descriptor, "address"> | undefined {
  if ((selector & 0xfffc) === 0) {
    if (to64 && rpl !== 3) return { selector, base: 0n, limit: 0, attr: 0 };
    cpu.state.fault(13, 0);
    return undefined;
  }
  const d = readDescriptor(cpu, selector);
  if (!d) return undefined;
  if (
    (selector & 3) !== rpl ||
    (d.attr & (ATTR.S | ATTR.CODE | ATTR.RW)) !== (ATTR.S | ATTR.RW) ||
    dpl(d.attr) !== rpl
  ) {
    return selectorFault(cpu, 13, selector);
  }
  if (!(d.attr & ATTR.P)) return selectorFault(cpu, 12, selector);
  return d;
}

/** A return to less privilege empties data segments that the new level may not use. */
export function dropPrivilegedSegments(cpu: Cpu, cpl: number): void {
  const { state } = cpu;
  for (const s of [ES, DS, FS, GS]) {
    const attr = state.get(SEG_ATTR + 4 * s);
    const conforming = (attr & (ATTR.CODE | ATTR.DC)) === (ATTR.CODE | ATTR.DC);
    if (attr & ATTR.S && !conforming && dpl(attr) < cpl) {
      setSegment(cpu, s, { selector: 0, base: 0n, limit: 0, attr: 0 });
    }
  }
}

/** Notes a debug exception's cause in DR6. */
export function debugCause(cpu: Cpu, bits: bigint): void {
  cpu.state.set64(DR + 32, cpu.state.get64(DR + 32) | bits);
}
