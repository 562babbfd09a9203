/**
 * The helpers behind rare and system instructions. Each gets what the decoded record says and returns 0 to
 * go on with the next instruction, or an EXIT code; a fault leaves the machine as it was.
 */

import { CR0_BITS, CR4_BITS, EFER_BITS } from "./bits.ts";
import { type Cpu, newGeneration, setRflags, updateMode } from "./cpu.ts";
import { cpuid } from "./cpuid.ts";
import { canonical, changeableFlags, debugCause, deliverOnce, iret, readStack } from "./exceptions.ts";
import { HELPER } from "./helpers.ts";
import {
  ATTENTION,
  CR0,
  CR2,
  CR3,
  CR4,
  DR,
  EFER,
  EXIT,
  FLAGS_SYSTEM,
  GDTR_BASE,
  GDTR_LIMIT,
  IDTR_BASE,
  IDTR_LIMIT,
  IRQ_WAITING,
  LINEAR,
  RAX,
  RBP,
  RBX,
  RCX,
  RDX,
  RECORD,
  REG,
  RSP,
  SCRATCH,
  SHADOW_RIP,
  SS,
  X87_OPERAND,
} from "./layout.ts";
import { Msrs } from "./msr.ts";
import { RFLAGS } from "./state.ts";
import { fpuHelpers } from "./system-fpu.ts";
import { portHelpers } from "./system-io.ts";
import { segmentHelpers } from "./system-segments.ts";

/** One call of a helper: the record and the variant it was compiled for. */
export interface HelperCall {
  readonly cpu: Cpu;
  readonly msrs: Msrs;
  /** Address of the record. */
  record: number;
  /** Operand size in bytes. */
  size: number;
  /** The r/m operand is in memory at LINEAR. */
  mem: boolean;
  addr32: boolean;
  mode64: boolean;
  /** 0, 0xf2 or 0xf3. */
  rep: number;
}

export type Helper = (c: HelperCall) => number;

export const aux = (c: HelperCall): number => c.cpu.state.bytes[c.record + RECORD.aux]!;
export const immediate = (c: HelperCall): number => c.cpu.state.get(c.record + RECORD.imm);
/** ModRM.reg, without REX.R. */
export const modrmReg = (c: HelperCall): number => (aux(c) >> 3) & 7;
export const instructionRip = (c: HelperCall): bigint =>
  c.cpu.state.get64(REG.vbase) + BigInt(c.cpu.state.view.getUint16(c.record + RECORD.offset, true));
export const nextRip = (c: HelperCall): bigint =>
  BigInt.asUintN(64, instructionRip(c) + BigInt(c.cpu.state.bytes[c.record + RECORD.length]!));

/** Notes an exception and ends the instruction. */
export function fault(c: HelperCall, vector: number, error = -1): number {
  c.cpu.state.fault(vector, error);
  return EXIT.fault;
}

/** The machine has changed: goes on at `rip` through the run loop. */
export function changed(c: HelperCall, rip: bigint): number {
  c.cpu.state.rip = rip;
  return EXIT.changed;
}

/** Reads a general register by register-file offset. */
export function readRegister(c: HelperCall, offset: number, size: number): bigint {
  const { view } = c.cpu.state;
  if (size === 8) return view.getBigUint64(offset, true);
  return BigInt(
    size === 4
      ? view.getUint32(offset, true)
      : size === 2
        ? view.getUint16(offset, true)
        : view.getUint8(offset),
  );
}

/** Writes a general register as an instruction does: 4 bytes clear the upper half. */
export function writeRegister(c: HelperCall, offset: number, size: number, value: bigint): void {
  const { view } = c.cpu.state;
  if (size === 8) view.setBigUint64(offset, value, true);
  else if (size === 4) view.setBigUint64(offset, value & 0xffff_ffffn, true);
  else if (size === 2) view.setUint16(offset, Number(value & 0xffffn), true);
  else view.setUint8(offset, Number(value & 0xffn));
}

const rmOffset = (c: HelperCall): number => c.cpu.state.view.getUint16(c.record + RECORD.rm, true);
export const regOffset = (c: HelperCall): number => c.cpu.state.view.getUint16(c.record + RECORD.reg, true);

const user = (c: HelperCall): boolean => c.cpu.state.cpl === 3;

/** Ends an access to the memory operand: if it failed, the exception is the one of its segment. */
function accessed(c: HelperCall, done: boolean): boolean {
  const { state, mmu } = c.cpu;
  const segment = state.view.getUint16(c.record + RECORD.segment, true);
  if (!done && segment === REG.segBase + 8 * SS) mmu.stackFault();
  return done;
}

/** Reads `size` bytes of the memory operand into X87_OPERAND. False after a fault. */
export const readOperand = (c: HelperCall, size: number): boolean =>
  accessed(c, c.cpu.mmu.readLinear(c.cpu.state.get64(LINEAR), size, X87_OPERAND, user(c)));
/** Writes `size` bytes from X87_OPERAND to the memory operand. */
export const writeOperand = (c: HelperCall, size: number): boolean =>
  accessed(c, c.cpu.mmu.writeLinear(c.cpu.state.get64(LINEAR), size, X87_OPERAND, user(c)));
/** Checks that `size` bytes of the memory operand can be written. */
export const probeOperand = (c: HelperCall, size: number): boolean =>
  accessed(c, c.cpu.mmu.probeWrite(c.cpu.state.get64(LINEAR), size, user(c)));

/** The r/m operand as a value; undefined after a fault. */
export function readRm(c: HelperCall, size: number): bigint | undefined {
  if (!c.mem) return readRegister(c, rmOffset(c), size);
  if (!readOperand(c, size)) return undefined;
  return readRegister(c, X87_OPERAND, size);
}

/** Writes the r/m operand. False after a fault. */
export function writeRm(c: HelperCall, size: number, value: bigint): boolean {
  if (!c.mem) {
    writeRegister(c, rmOffset(c), size, value);
    return true;
  }
  c.cpu.state.view.setBigUint64(X87_OPERAND, BigInt.asUintN(64, value), true);
  return writeOperand(c, size);
}

/** Wraps a helper that only privilege level 0 may run: #GP(0) otherwise. */
export const privileged =
  (helper: Helper): Helper =>
  (c) =>
    c.cpu.state.cpl === 0 ? helper(c) : fault(c, 13, 0);

// --- arithmetic ----------------------------------------------------------------------------------

/** 128-by-64-bit division; the divisor, not zero, lies in SCRATCH. */
const divide =
  (signed: boolean): Helper =>
  (c) => {
    const { state } = c.cpu;
    const raw = (state.get64(RDX) << 64n) | state.get64(RAX);
    const dividend = signed ? BigInt.asIntN(128, raw) : raw;
    const divisor = signed ? BigInt.asIntN(64, state.get64(SCRATCH)) : state.get64(SCRATCH);
    const q = dividend / divisor;
    if (signed ? BigInt.asIntN(64, q) !== q : BigInt.asUintN(64, q) !== q) return fault(c, 0);
    state.set64(RAX, BigInt.asUintN(64, q));
    state.set64(RDX, BigInt.asUintN(64, dividend % divisor));
    return 0;
  };

// --- identification and MSRs --------------------------------------------------------------------

const cpuidHelper: Helper = (c) => {
  const { state, apic } = c.cpu;
  const r = cpuid(state.get(RAX), state.get(RCX), apic.id);
  writeRegister(c, RAX, 4, BigInt(r.eax >>> 0));
  writeRegister(c, RBX, 4, BigInt(r.ebx >>> 0));
  writeRegister(c, RCX, 4, BigInt(r.ecx >>> 0));
  writeRegister(c, RDX, 4, BigInt(r.edx >>> 0));
  return 0;
};

const rdmsr: Helper = (c) => {
  const value = c.msrs.read(c.cpu.state.get(RCX) >>> 0);
  if (value === undefined) return fault(c, 13, 0);
  writeRegister(c, RAX, 4, value);
  writeRegister(c, RDX, 4, value >> 32n);
  return 0;
};
const wrmsr: Helper = (c) => {
  const { state } = c.cpu;
  const value = (BigInt(state.get(RDX) >>> 0) << 32n) | BigInt(state.get(RAX) >>> 0);
  const msr = state.get(RCX) >>> 0;
  if (!c.msrs.write(msr, value)) return fault(c, 13, 0);
  return Msrs.onlyItself(msr) && !interruptMayWait(c) ? 0 : changed(c, nextRip(c));
};

const rdrand: Helper = (c) => {
  const { state } = c.cpu;
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  writeRegister(c, rmOffset(c), c.size, new DataView(bytes.buffer).getBigUint64(0, true));
  state.rflags = (state.rflags & ~0x8d5) | RFLAGS.CF;
  return 0;
};

// --- flags and interrupts --------------------------------------------------------------------------

/** True if an interrupt that IF has just let in must come before what follows in the block, which may be CLI. */
const interruptMayWait = (c: HelperCall): boolean =>
  c.cpu.state.get(IRQ_WAITING) !== 0 || Atomics.load(c.cpu.state.i32, ATTENTION >> 2) < 0;

const setInterruptFlag =
  (on: boolean): Helper =>
  (c) => {
    const { state } = c.cpu;
    const flags = state.get(FLAGS_SYSTEM);
    if (state.cpl > (flags & RFLAGS.IOPL) >> 12) return fault(c, 13, 0);
    if (!on) {
      setRflags(c.cpu, state.rflags & ~RFLAGS.IF);
      return 0;
    }
    if (!(flags & RFLAGS.IF)) state.set64(SHADOW_RIP, nextRip(c));
    setRflags(c.cpu, state.rflags | RFLAGS.IF);
    return interruptMayWait(c) ? changed(c, nextRip(c)) : 0;
  };

const popf: Helper = (c) => {
  const { state } = c.cpu;
  const words = readStack(c.cpu, c.size, 1);
  if (!words) return EXIT.fault;
  const mask = changeableFlags(c.cpu, c.size);
  const value = Number(words[0]! & 0xffff_ffffn);
  state.set64(RSP, BigInt.asUintN(64, state.get64(RSP) + BigInt(c.size)));
  const before = state.rflags;
  setRflags(c.cpu, (before & ~mask & ~RFLAGS.RF) | (value & mask));
  const turned = before ^ state.rflags;
  const interrupted = (turned & RFLAGS.IF) !== 0 && interruptMayWait(c);
  return turned & RFLAGS.TF || interrupted ? changed(c, nextRip(c)) : 0;
};

/** INT n and its one-byte forms push the address of the next instruction. */
const softwareInterrupt =
  (vector: (c: HelperCall) => number, anyGate = false): Helper =>
  (c) => {
    const { state } = c.cpu;
    // A fault on the way is one of the INT instruction itself, so the run loop delivers it from there.
    state.rip = nextRip(c);
    const i = { vector: vector(c), error: -1, software: true, external: false, anyGate };
    return deliverOnce(c.cpu, i) ? EXIT.changedNoTrap : EXIT.fault;
  };

const int1: Helper = (c) => {
  debugCause(c.cpu, 0n);
  return softwareInterrupt(() => 1, true)(c);
};

const into: Helper = (c) =>
  c.cpu.state.rflags & RFLAGS.OF ? softwareInterrupt(() => 4)(c) : changed(c, nextRip(c));

const iretHelper: Helper = (c) => (iret(c.cpu, c.size) ? EXIT.changed : EXIT.fault);

const hlt: Helper = (c) => {
  c.cpu.state.rip = nextRip(c);
  return EXIT.halt;
};

// --- control registers -----------------------------------------------------------------------------

/** Control or debug register number, with REX.R. */
const controlNumber = (c: HelperCall): number => (regOffset(c) - REG.gpr) / 8;

const CONTROL: Record<number, number> = { 0: CR0, 2: CR2, 3: CR3, 4: CR4 };

/** A register that does not exist is #UD at every privilege level; the rest is privileged. */
const controlRegister =
  (helper: Helper): Helper =>
  (c) => {
    const n = controlNumber(c);
    return n === 8 || n in CONTROL ? privileged(helper)(c) : fault(c, 6);
  };
const debugRegister =
  (helper: Helper): Helper =>
  (c) => {
    const n = controlNumber(c);
    const missing = n > 7 || ((n === 4 || n === 5) && c.cpu.state.get(CR4) & CR4_BITS.DE);
    return missing ? fault(c, 6) : privileged(helper)(c);
  };

const readCr: Helper = (c) => {
  const n = controlNumber(c);
  const at = CONTROL[n];
  const value = at === undefined ? (c.cpu.apic.readTpr() >> 4) & 15 : 0;
  writeRegister(c, rmOffset(c), c.mode64 ? 8 : 4, at === undefined ? BigInt(value) : c.cpu.state.get64(at));
  return 0;
};

const writeCr: Helper = (c) => {
  const { state, mmu, apic } = c.cpu;
  const value = readRegister(c, rmOffset(c), c.mode64 ? 8 : 4);
  switch (controlNumber(c)) {
    case 0:
      if (!writeCr0(c, value)) return fault(c, 13, 0);
      break;
    case 2:
      state.set64(CR2, value);
      break;
    case 3:
      if (value >> BigInt(40) !== 0n) return fault(c, 13, 0);
      state.set64(CR3, value);
      mmu.flushNonGlobal();
      newGeneration(c.cpu);
      break;
    case 4:
      if (!writeCr4(c, value)) return fault(c, 13, 0);
      break;
    case 8:
      if (value > 15n) return fault(c, 13, 0);
      apic.writeTpr(Number(value) << 4);
      break;
  }
  return changed(c, nextRip(c));
};

function writeCr0(c: HelperCall, value: bigint): boolean {
  const { state, mmu } = c.cpu;
  const old = state.get(CR0);
  if (value >> 32n !== 0n) return false;
  const next = Number(BigInt.asIntN(32, value)) | CR0_BITS.ET;
  const { PG } = CR0_BITS;
  const CD = 0x4000_0000;
  const NW = 0x2000_0000;
  if ((next & PG && !(next & CR0_BITS.PE)) || (next & NW && !(next & CD))) return false;
  if ((old ^ next) & PG) {
    const efer = state.get(EFER);
    if (next & PG) {
      if (efer & EFER_BITS.LME) {
        if (!(state.get(CR4) & CR4_BITS.PAE)) return false;
        state.set(EFER, efer | EFER_BITS.LMA);
      } else {
        c.cpu.log("paging without long mode is not supported by the software CPU");
        return false;
      }
    } else {
      if (c.mode64) return false;
      state.set(EFER, efer & ~EFER_BITS.LMA);
    }
  }
  state.set64(CR0, BigInt(next >>> 0));
  if ((old ^ next) & (PG | CR0_BITS.WP | CR0_BITS.PE)) {
    mmu.flushAll();
    newGeneration(c.cpu);
  }
  updateMode(c.cpu);
  return true;
}

const CR4_KNOWN =
  CR4_BITS.TSD |
  CR4_BITS.DE |
  CR4_BITS.PSE |
  CR4_BITS.PAE |
  CR4_BITS.MCE |
  CR4_BITS.PGE |
  CR4_BITS.PCE |
  CR4_BITS.OSFXSR |
  CR4_BITS.OSXMMEXCPT;

function writeCr4(c: HelperCall, value: bigint): boolean {
  const { state, mmu } = c.cpu;
  if (value & ~BigInt(CR4_KNOWN)) return false;
  const old = state.get(CR4);
  const next = Number(value);
  if (state.get(EFER) & EFER_BITS.LMA && !(next & CR4_BITS.PAE)) return false;
  state.set64(CR4, value);
  if ((old ^ next) & (CR4_BITS.PGE | CR4_BITS.PAE | CR4_BITS.PSE)) {
    mmu.flushAll();
    newGeneration(c.cpu);
  }
  updateMode(c.cpu);
  return true;
}

const clts: Helper = (c) => {
  const { state } = c.cpu;
  if (!(state.get(CR0) & CR0_BITS.TS)) return 0;
  state.set(CR0, state.get(CR0) & ~CR0_BITS.TS);
  updateMode(c.cpu);
  return changed(c, nextRip(c));
};
const smsw: Helper = (c) => (writeRm(c, c.mem ? 2 : c.size, c.cpu.state.get64(CR0)) ? 0 : EXIT.fault);
/** LMSW sets the low four bits of CR0 and cannot clear PE. */
const lmsw: Helper = (c) => {
  const value = readRm(c, 2);
  if (value === undefined) return EXIT.fault;
  const old = c.cpu.state.get64(CR0);
  const next = (old & ~15n) | (value & 15n) | (old & 1n);
  return writeCr0(c, next) ? changed(c, nextRip(c)) : fault(c, 13, 0);
};

/** Debug registers are kept; hardware breakpoints do not fire (they need a trap per access). */
const readDr: Helper = (c) => {
  const n = controlNumber(c);
  const at = DR + 8 * (n < 4 ? n : n & 1 ? 5 : 4);
  writeRegister(c, rmOffset(c), c.mode64 ? 8 : 4, c.cpu.state.get64(at));
  return 0;
};
const writeDr: Helper = (c) => {
  const n = controlNumber(c);
  const value = readRegister(c, rmOffset(c), c.mode64 ? 8 : 4);
  if (n >= 4 && value >> 32n !== 0n) return fault(c, 13, 0);
  const at = DR + 8 * (n < 4 ? n : n & 1 ? 5 : 4);
  const fixed = n < 4 ? value : n & 1 ? (value & 0xffff_2fffn) | 0x400n : (value & 0xe00fn) | 0xffff_0ff0n;
  if (at === DR + 40 && (fixed & 0xffn) !== 0n) {
    c.cpu.log(`hardware breakpoints (DR7 0x${fixed.toString(16)}) do not fire on the software CPU`);
  }
  c.cpu.state.set64(at, fixed);
  return changed(c, nextRip(c));
};

const invlpg: Helper = (c) => {
  const { state, mmu } = c.cpu;
  mmu.flushPage(state.get(LINEAR), state.get(LINEAR + 4));
  newGeneration(c.cpu);
  return changed(c, nextRip(c));
};

const loadTable =
  (base: number, limit: number): Helper =>
  (c) => {
    const { state } = c.cpu;
    const size = c.mode64 ? 10 : 6;
    if (!readOperand(c, size)) return EXIT.fault;
    const address = c.mode64
      ? state.view.getBigUint64(X87_OPERAND + 2, true)
      : BigInt(state.view.getUint32(X87_OPERAND + 2, true));
    if (!canonical(address)) return fault(c, 13, 0);
    state.set(limit, state.view.getUint16(X87_OPERAND, true));
    state.set64(base, address);
    return 0;
  };
const storeTable =
  (base: number, limit: number): Helper =>
  (c) => {
    const { state } = c.cpu;
    state.view.setUint16(X87_OPERAND, state.get(limit), true);
    state.view.setBigUint64(X87_OPERAND + 2, state.get64(base), true);
    return writeOperand(c, c.mode64 ? 10 : 6) ? 0 : EXIT.fault;
  };

const ud: Helper = (c) => {
  const vector = immediate(c);
  return vector === 13 ? fault(c, 13, 0) : fault(c, 6);
};

/** KVM hypercalls: none is offered, so all answer -KVM_ENOSYS (Linux Documentation/virt/kvm/x86/hypercalls.rst). */
const vmcall: Helper = (c) => {
  writeRegister(c, RAX, 8, BigInt.asUintN(64, -1000n));
  return 0;
};

/** ENTER: `imm` holds the frame size in its low 16 bits and the nesting level above. */
const enter: Helper = (c) => {
  const { state, mmu } = c.cpu;
  const imm = immediate(c);
  const frame = BigInt(imm & 0xffff);
  const level = (imm >> 16) & 31;
  const size = BigInt(c.size);
  const mask = c.mode64 ? ~0n : 0xffff_ffffn;
  let sp = state.get64(RSP);
  const onStack = (done: boolean): boolean => {
    if (!done) mmu.stackFault();
    return done;
  };
  const put = (value: bigint): boolean => {
    sp = BigInt.asUintN(64, sp - size) & mask;
    state.view.setBigUint64(X87_OPERAND, BigInt.asUintN(64, value), true);
    return onStack(mmu.writeLinear(sp & mask, c.size, X87_OPERAND, user(c)));
  };
  if (!put(state.get64(RBP))) return EXIT.fault;
  const framePointer = sp;
  if (level > 0) {
    let bp = state.get64(RBP);
    for (let i = 1; i < level; i++) {
      bp = BigInt.asUintN(64, bp - size) & mask;
      if (!onStack(mmu.readLinear(bp, c.size, X87_OPERAND + 64, user(c)))) return EXIT.fault;
      if (!put(readRegister(c, X87_OPERAND + 64, c.size))) return EXIT.fault;
    }
    if (!put(framePointer)) return EXIT.fault;
  }
  sp = BigInt.asUintN(64, sp - frame) & mask;
  // The instruction faults if the new top of the stack cannot be written.
  if (!onStack(mmu.probeWrite(sp, 1, user(c)))) return EXIT.fault;
  writeRegister(c, RBP, c.size, framePointer);
  state.set64(RSP, sp);
  return 0;
};

const nothing: Helper = () => 0;

/** Helpers by number. */
export function buildHelpers(): (Helper | undefined)[] {
  const table: (Helper | undefined)[] = [];
  const set = (id: number, helper: Helper) => {
    table[id] = helper;
  };
  set(HELPER.div128, divide(false));
  set(HELPER.idiv128, divide(true));
  set(HELPER.cpuid, cpuidHelper);
  set(HELPER.rdmsr, privileged(rdmsr));
  set(HELPER.wrmsr, privileged(wrmsr));
  set(HELPER.rdpmc, (c) => fault(c, 13, 0));
  set(HELPER.rdrand, rdrand);
  set(HELPER.cli, setInterruptFlag(false));
  set(HELPER.sti, setInterruptFlag(true));
  set(HELPER.popf, popf);
  set(
    HELPER.int,
    softwareInterrupt((c) => immediate(c) & 0xff),
  );
  set(
    HELPER.int3,
    softwareInterrupt(() => 3),
  );
  set(HELPER.int1, int1);
  set(HELPER.into, into);
  set(HELPER.iret, iretHelper);
  set(HELPER.hlt, privileged(hlt));
  set(HELPER.readCr, controlRegister(readCr));
  set(HELPER.writeCr, controlRegister(writeCr));
  set(HELPER.readDr, debugRegister(readDr));
  set(HELPER.writeDr, debugRegister(writeDr));
  set(HELPER.clts, privileged(clts));
  set(HELPER.smsw, smsw);
  set(HELPER.lmsw, privileged(lmsw));
  set(HELPER.invlpg, privileged(invlpg));
  set(HELPER.wbinvd, privileged(nothing));
  set(HELPER.lgdt, privileged(loadTable(GDTR_BASE, GDTR_LIMIT)));
  set(HELPER.lidt, privileged(loadTable(IDTR_BASE, IDTR_LIMIT)));
  set(HELPER.sgdt, storeTable(GDTR_BASE, GDTR_LIMIT));
  set(HELPER.sidt, storeTable(IDTR_BASE, IDTR_LIMIT));
  set(HELPER.ud, ud);
  set(HELPER.vmcall, vmcall);
  set(HELPER.enter, enter);
  segmentHelpers(set);
  portHelpers(set);
  fpuHelpers(set);
  return table;
}
