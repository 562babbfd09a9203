/** Segment loads, far transfers, SYSCALL and friends (SDM vol. 2). */
import { EFER_BITS } from "./bits.ts";
import { ATTR, type Cpu, FLAT_CODE32, FLAT_CODE64, FLAT_DATA, setCpl, setRflags, updateMode } from "./cpu.ts";
import { canonical, dropPrivilegedSegments, readStack, returnStack } from "./exceptions.ts";
import { HELPER } from "./helpers.ts";
import {
  CR0,
  CS,
  CSTAR,
  EFER,
  EXIT,
  FAULT_VECTOR,
  FS,
  GS,
  LDTR,
  LSTAR,
  R11,
  RCX,
  RDX,
  RECORD,
  RSP,
  SEG_SELECTOR,
  SFMASK,
  SHADOW_RIP,
  SS,
  STAR,
  SYSENTER_CS,
  SYSENTER_EIP,
  SYSENTER_ESP,
  TR,
  X87_OPERAND,
} from "./layout.ts";
import {
  checkCode,
  type Descriptor,
  dpl,
  loadDataSegment,
  markAccessed,
  readDescriptor,
  readHighBase,
  setCode,
  setSegment,
} from "./segments.ts";
import { RFLAGS, RFLAGS_SYSRET } from "./state.ts";
import {
  aux,
  changed,
  fault,
  type Helper,
  type HelperCall,
  immediate,
  modrmReg,
  nextRip,
  privileged,
  readOperand,
  readRegister,
  readRm,
  regOffset,
  writeRegister,
  writeRm,
} from "./system.ts";

/** Flat code and data segments as SYSCALL and SYSRET load them, whatever the GDT says. */
function flat(cpu: Cpu, cs: number, ss: number, cpl: number, to64: boolean): void {
  const load = (segment: number, selector: number, attr: number) =>
    setSegment(cpu, segment, {
      selector: (selector & 0xfffc) | cpl,
      base: 0n,
      limit: 0xffff_ffff,
      attr: attr | (cpl << 5),
    });
  load(CS, cs, to64 ? FLAT_CODE64 : FLAT_CODE32);
  load(SS, ss, FLAT_DATA);
  setCpl(cpu, cpl);
}

const syscall: Helper = (c) => {
  const { cpu } = c;
  const { state } = cpu;
  if (!(state.get(EFER) & EFER_BITS.SCE) || !(state.get(EFER) & EFER_BITS.LMA)) return fault(c, 6);
  const flags = state.rflags;
  state.set64(RCX, nextRip(c));
  state.set64(R11, BigInt((flags & ~RFLAGS.RF) >>> 0));
  const star = state.get(STAR + 4) & 0xffff;
  const target = state.get64(c.mode64 ? LSTAR : CSTAR);
  flat(cpu, star & 0xfffc, (star & 0xfffc) + 8, 0, true);
  setRflags(cpu, flags & ~state.get(SFMASK) & ~RFLAGS.RF);
  updateMode(cpu);
  return changedWithNewTrapFlag(c, target);
};

/**
 * After SYSCALL and SYSRET the trap flag counts as they leave it: with TF masked by SFMASK the kernel's entry
 * is not trapped, and SYSRET with TF in R11 traps before the next user instruction, as if SYSCALL had just ended.
 */
function changedWithNewTrapFlag(c: HelperCall, rip: bigint): number {
  changed(c, rip);
  return c.cpu.state.rflags & RFLAGS.TF ? EXIT.changedTrap : EXIT.changedNoTrap;
}

const sysret: Helper = (c) => {
  const { cpu } = c;
  const { state } = cpu;
  if (!(state.get(EFER) & EFER_BITS.SCE)) return fault(c, 6);
  const star = state.get(STAR + 4) >>> 16;
  const to64 = c.size === 8;
  const target = to64 ? state.get64(RCX) : state.get64(RCX) & 0xffff_ffffn;
  if (!canonical(target)) return fault(c, 13, 0);
  flat(cpu, (to64 ? star + 16 : star) | 3, (star + 8) | 3, 3, to64);
  setRflags(cpu, (Number(state.get64(R11) & 0xffff_ffffn) & RFLAGS_SYSRET) | 2);
  updateMode(cpu);
  return changedWithNewTrapFlag(c, target);
};

const sysenter: Helper = (c) => {
  const { cpu } = c;
  const { state } = cpu;
  const cs = state.get(SYSENTER_CS) & 0xfffc;
  if (cs === 0) return fault(c, 13, 0);
  const long = (state.get(EFER) & EFER_BITS.LMA) !== 0;
  flat(cpu, cs, cs + 8, 0, long);
  setRflags(cpu, state.rflags & ~(RFLAGS.IF | RFLAGS.VM | RFLAGS.RF));
  state.set64(RSP, state.get64(SYSENTER_ESP));
  updateMode(cpu);
  return changed(c, state.get64(SYSENTER_EIP));
};
const sysexit: Helper = (c) => {
  const { cpu } = c;
  const { state } = cpu;
  const cs = state.get(SYSENTER_CS) & 0xfffc;
  if (cs === 0) return fault(c, 13, 0);
  const to64 = c.size === 8;
  const target = to64 ? state.get64(RDX) : state.get64(RDX) & 0xffff_ffffn;
  const stack = to64 ? state.get64(RCX) : state.get64(RCX) & 0xffff_ffffn;
  if (!canonical(target) || !canonical(stack)) return fault(c, 13, 0);
  flat(cpu, (cs + (to64 ? 32 : 16)) | 3, (cs + (to64 ? 40 : 24)) | 3, 3, to64);
  state.set64(RSP, stack);
  updateMode(cpu);
  return changed(c, target);
};

// --- moves -----------------------------------------------------------------------------------------

/** MOV SS and POP SS hold off interrupts and single-step traps for one instruction (SDM vol. 3A, 6.8.3). */
function segmentLoaded(c: HelperCall, segment: number): number {
  if (segment !== SS) return 0;
  const next = nextRip(c);
  changed(c, next);
  c.cpu.state.set64(SHADOW_RIP, next);
  return EXIT.changedNoTrap;
}

const movToSeg: Helper = (c) => {
  const segment = modrmReg(c);
  if (segment === CS || segment > GS) return fault(c, 6);
  const selector = readRm(c, 2);
  if (selector === undefined) return EXIT.fault;
  if (!loadDataSegment(c.cpu, segment, Number(selector))) return EXIT.fault;
  return segmentLoaded(c, segment);
};

/** Segment of PUSH/POP by opcode byte: 06 0E 16 1E, or 0F A0/A1 (FS), 0F A8/A9 (GS). */
const segmentOf = (c: HelperCall): number => {
  const opcode = aux(c);
  return opcode >= 0xa0 ? (opcode & 8 ? GS : FS) : (opcode >> 3) & 3;
};

const pushSeg: Helper = (c) => {
  const { state, mmu } = c.cpu;
  const mask = c.mode64 ? ~0n : 0xffff_ffffn;
  const rsp = BigInt.asUintN(64, state.get64(RSP) - BigInt(c.size)) & mask;
  state.view.setBigUint64(X87_OPERAND, BigInt(state.get(SEG_SELECTOR + 4 * segmentOf(c)) & 0xffff), true);
  if (!mmu.writeLinear(rsp, c.size, X87_OPERAND, state.cpl === 3)) {
    mmu.stackFault();
    return EXIT.fault;
  }
  state.set64(RSP, rsp);
  return 0;
};

const popSeg: Helper = (c) => {
  const { state } = c.cpu;
  const words = readStack(c.cpu, c.size, 1);
  if (!words) return EXIT.fault;
  const segment = segmentOf(c);
  if (!loadDataSegment(c.cpu, segment, Number(words[0]! & 0xffffn))) return EXIT.fault;
  state.set64(RSP, BigInt.asUintN(64, state.get64(RSP) + BigInt(c.size)));
  return segmentLoaded(c, segment);
};

/** LSS, LFS, LGS. */
const loadFarPointer =
  (segment: number): Helper =>
  (c) => {
    if (!readOperand(c, c.size + 2)) return EXIT.fault;
    const offset = readRegister(c, X87_OPERAND, c.size);
    const selector = c.cpu.state.view.getUint16(X87_OPERAND + c.size, true);
    if (!loadDataSegment(c.cpu, segment, selector)) return EXIT.fault;
    writeRegister(c, regOffset(c), c.size, offset);
    return 0;
  };

// --- system segments -------------------------------------------------------------------------------

const loadSystem =
  (segment: number, type: number): Helper =>
  (c) => {
    const { cpu } = c;
    const word = readRm(c, 2);
    if (word === undefined) return EXIT.fault;
    const selector = Number(word);
    if ((selector & 0xfffc) === 0) {
      if (segment === TR) return fault(c, 13, 0);
      setSegment(cpu, LDTR, { selector, base: 0n, limit: 0, attr: 0 });
      return 0;
    }
    if (selector & 4) return fault(c, 13, selector & 0xfffc);
    const d = readDescriptor(cpu, selector);
    if (!d) return EXIT.fault;
    if ((d.attr & 0x1f) !== type) return fault(c, 13, selector & 0xfffc);
    if (!(d.attr & ATTR.P)) return fault(c, 11, selector & 0xfffc);
    if (cpu.state.get(EFER) & EFER_BITS.LMA) {
      const base = readHighBase(cpu, d);
      if (base === undefined) return EXIT.fault;
      if (!canonical(base)) return fault(c, 13, selector & 0xfffc);
      d.base = base;
    }
    if (segment === TR) {
      // A loaded task is marked busy.
      d.attr |= 2;
      cpu.state.bytes[X87_OPERAND] = d.attr & 0xff;
      if (!cpu.mmu.writeLinear(d.address + 5n, 1, X87_OPERAND, false)) return EXIT.fault;
    }
    setSegment(cpu, segment, d);
    return 0;
  };
const storeSystem =
  (segment: number): Helper =>
  (c) =>
    writeRm(c, c.mem ? 2 : c.size, BigInt(c.cpu.state.get(SEG_SELECTOR + 4 * segment) & 0xffff))
      ? 0
      : EXIT.fault;

// --- LAR, LSL, VERR, VERW --------------------------------------------------------------------------

/** The descriptor if it exists and the current privilege may see it; null otherwise; undefined after #PF. */
function visible(c: HelperCall, system: (type: number) => boolean): Descriptor | null | undefined {
  const word = readRm(c, 2);
  if (word === undefined) return undefined;
  const selector = Number(word);
  if ((selector & 0xfffc) === 0) return null;
  const d = readDescriptor(c.cpu, selector);
  if (!d) return c.cpu.state.get(FAULT_VECTOR) === 14 ? undefined : null;
  if (!(d.attr & ATTR.S)) {
    if (!system(d.attr & 15)) return null;
  }
  const conforming = (d.attr & (ATTR.S | ATTR.CODE | ATTR.DC)) === (ATTR.S | ATTR.CODE | ATTR.DC);
  if (!conforming && (dpl(d.attr) < c.cpu.state.cpl || dpl(d.attr) < (selector & 3))) return null;
  return d;
}

function setZeroFlag(c: HelperCall, on: boolean): number {
  const { state } = c.cpu;
  state.rflags = on ? state.rflags | RFLAGS.ZF : state.rflags & ~RFLAGS.ZF;
  return 0;
}

const inspect =
  (kind: "lar" | "lsl"): Helper =>
  (c) => {
    const long = (c.cpu.state.get(EFER) & EFER_BITS.LMA) !== 0;
    const d = visible(
      c,
      (type) =>
        type === 2 ||
        type === 9 ||
        type === 11 ||
        (!long && (type === 1 || type === 3)) ||
        (kind === "lar" && (type === 12 || (!long && (type === 4 || type === 5)))),
    );
    if (d === undefined) return EXIT.fault;
    if (d === null) return setZeroFlag(c, false);
    const value = kind === "lsl" ? d.limit : ((d.attr & 0xff) << 8) | ((d.attr & 0xf000) << 8);
    writeRegister(c, regOffset(c), c.size, BigInt(value >>> 0));
    return setZeroFlag(c, true);
  };

const verify =
  (write: boolean): Helper =>
  (c) => {
    const d = visible(c, () => false);
    if (d === undefined) return EXIT.fault;
    if (d === null) return setZeroFlag(c, false);
    const code = (d.attr & ATTR.CODE) !== 0;
    const rw = (d.attr & ATTR.RW) !== 0;
    return setZeroFlag(c, write ? !code && rw : !code || rw);
  };

// --- far transfers ---------------------------------------------------------------------------------

/** Offset and selector of a far JMP or CALL. */
function farTarget(c: HelperCall): { offset: bigint; selector: number } | undefined {
  const { state } = c.cpu;
  if (!c.mem) {
    // EA carries offset and selector as its immediate, kept in the displacement field.
    return {
      offset: BigInt(immediate(c) >>> 0),
      selector: state.view.getUint16(c.record + RECORD.disp, true),
    };
  }
  if (!readOperand(c, c.size + 2)) return undefined;
  return {
    offset: readRegister(c, X87_OPERAND, c.size),
    selector: state.view.getUint16(X87_OPERAND + c.size, true),
  };
}

const far =
  (call: boolean): Helper =>
  (c) => {
    const { cpu } = c;
    const { state, mmu } = cpu;
    const t = farTarget(c);
    if (!t) return EXIT.fault;
    if (!(state.get(CR0) & 1)) {
      cpu.log("far transfer in real mode: not supported by the software CPU");
      return fault(c, 13, 0);
    }
    if ((t.selector & 0xfffc) !== 0) {
      const raw = readDescriptor(cpu, t.selector);
      if (!raw) return EXIT.fault;
      if (!(raw.attr & ATTR.S)) {
        cpu.log("call gates and task switches are not supported by the software CPU");
        return fault(c, 13, t.selector & 0xfffc);
      }
    }
    const d = checkCode(cpu, t.selector, "jump");
    if (!d) return EXIT.fault;
    const to64 = (d.attr & ATTR.L) !== 0 && (state.get(EFER) & EFER_BITS.LMA) !== 0;
    const target = to64 ? t.offset : t.offset & 0xffff_ffffn;
    if (!canonical(target)) return fault(c, 13, 0);
    if (call) {
      const size = c.size;
      const mask = c.mode64 ? ~0n : 0xffff_ffffn;
      const rsp = BigInt.asUintN(64, state.get64(RSP) - BigInt(2 * size)) & mask;
      writeRegister(c, X87_OPERAND, size === 4 ? 4 : size, nextRip(c));
      writeRegister(c, X87_OPERAND + size, size, BigInt(state.get(SEG_SELECTOR + 4 * CS) & 0xffff));
      if (!mmu.writeLinear(rsp, 2 * size, X87_OPERAND, state.cpl === 3)) {
        mmu.stackFault();
        return EXIT.fault;
      }
      state.set64(RSP, rsp);
    }
    if (!markAccessed(cpu, d)) return EXIT.fault;
    if (!setCode(cpu, d, state.cpl)) return EXIT.fault;
    updateMode(cpu);
    return changed(c, target);
  };

const retFar: Helper = (c) => {
  const { cpu } = c;
  const { state } = cpu;
  const words = readStack(cpu, c.size, 2);
  if (!words) return EXIT.fault;
  const selector = Number(words[1]! & 0xffffn);
  const d = checkCode(cpu, selector, "return");
  if (!d) return EXIT.fault;
  const rpl = selector & 3;
  const to64 = (d.attr & ATTR.L) !== 0 && (state.get(EFER) & EFER_BITS.LMA) !== 0;
  const target = to64 ? words[0]! : words[0]! & 0xffff_ffffn;
  if (!canonical(target)) return fault(c, 13, 0);
  const extra = BigInt(aux(c) === 0xca ? immediate(c) & 0xffff : 0);
  let rsp = state.get64(RSP) + BigInt(2 * c.size) + extra;
  let stack: Omit<Descriptor, "address"> | undefined;
  const outward = rpl > state.cpl;
  if (outward) {
    const saved = state.get64(RSP);
    state.set64(RSP, rsp);
    const outer = readStack(cpu, c.size, 2);
    state.set64(RSP, saved);
    if (!outer) return EXIT.fault;
    stack = returnStack(cpu, Number(outer[1]! & 0xffffn), rpl, to64);
    if (!stack) return EXIT.fault;
    rsp = outer[0]! + extra;
  }
  if (!setCode(cpu, d, rpl)) return EXIT.fault;
  if (stack) setSegment(cpu, SS, stack);
  if (outward) dropPrivilegedSegments(cpu, rpl);
  setCpl(cpu, rpl);
  state.set64(RSP, BigInt.asUintN(64, to64 || c.mode64 ? rsp : rsp & 0xffff_ffffn));
  updateMode(cpu);
  return changed(c, target);
};

export function segmentHelpers(set: (id: number, helper: Helper) => void): void {
  set(HELPER.syscall, syscall);
  set(HELPER.sysret, privileged(sysret));
  set(HELPER.sysenter, sysenter);
  set(HELPER.sysexit, privileged(sysexit));
  set(HELPER.movToSeg, movToSeg);
  set(HELPER.pushSeg, pushSeg);
  set(HELPER.popSeg, popSeg);
  set(HELPER.lss, loadFarPointer(SS));
  set(HELPER.lfs, loadFarPointer(FS));
  set(HELPER.lgs, loadFarPointer(GS));
  set(HELPER.lldt, privileged(loadSystem(LDTR, 2)));
  set(HELPER.ltr, privileged(loadSystem(TR, 9)));
  set(HELPER.sldt, storeSystem(LDTR));
  set(HELPER.str, storeSystem(TR));
  set(HELPER.lar, inspect("lar"));
  set(HELPER.lsl, inspect("lsl"));
  set(HELPER.verr, verify(false));
  set(HELPER.verw, verify(true));
  set(HELPER.jmpFar, far(false));
  set(HELPER.callFar, far(true));
  set(HELPER.retFar, retFar);
}
