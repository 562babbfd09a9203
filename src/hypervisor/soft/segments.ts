/** Segment registers and descriptors (SDM vol. 3A, 3.4, 5.5 to 5.8). Segment limits are not enforced. */
import { ATTR, type Cpu } from "./cpu.ts";
import {
  CS,
  EFER,
  GDTR_BASE,
  GDTR_LIMIT,
  LDTR,
  LDTR_BASE,
  MODE,
  MODE_64,
  REG,
  SEG_ATTR,
  SEG_LIMIT,
  SEG_SELECTOR,
  SS,
  TR,
  TR_BASE,
  X87_OPERAND,
} from "./layout.ts";

export interface Descriptor {
  selector: number;
  /** Linear address of the descriptor. */
  address: bigint;
  base: bigint;
  limit: number;
  /** As Segment.flags in hypervisor/types.ts. */
  attr: number;
}

/** Raises `vector` with the selector as error code, and returns undefined or false for it. */
export function selectorFault(cpu: Cpu, vector: number, selector: number): undefined {
  cpu.state.fault(vector, selector & 0xfffc);
  return undefined;
}

/** Reads the descriptor `selector` names; undefined with the fault noted (`vector`, normally #GP). */
export function readDescriptor(cpu: Cpu, selector: number, vector = 13): Descriptor | undefined {
  const { state, mmu } = cpu;
  const index = selector & 0xfff8;
  let table: bigint;
  let limit: number;
  if (selector & 4) {
    if ((state.get(SEG_SELECTOR + 4 * LDTR) & 0xfffc) === 0) return selectorFault(cpu, vector, selector);
    table = state.get64(LDTR_BASE);
    limit = state.get(SEG_LIMIT + 4 * LDTR);
  } else {
    table = state.get64(GDTR_BASE);
    limit = state.get(GDTR_LIMIT);
  }
  if (index + 7 > limit >>> 0) return selectorFault(cpu, vector, selector);
  const address = BigInt.asUintN(64, table + BigInt(index));
  if (!mmu.readLinear(address, 8, X87_OPERAND, false)) return undefined;
  const low = state.view.getUint32(X87_OPERAND, true);
  const high = state.view.getUint32(X87_OPERAND + 4, true);
  const attr = (high >> 8) & 0xf0ff;
  let size = (low & 0xffff) | (high & 0xf_0000);
  if (attr & ATTR.G) size = (size << 12) | 0xfff;
  return {
    selector,
    address,
    base: BigInt((low >>> 16) | ((high & 0xff) << 16) | (high & 0xff00_0000)) & 0xffff_ffffn,
    limit: size >>> 0,
    attr,
  };
}

/** The upper half of a 16-byte system descriptor's base. Undefined after a fault. */
export function readHighBase(cpu: Cpu, d: Descriptor): bigint | undefined {
  if (!cpu.mmu.readLinear(d.address + 8n, 4, X87_OPERAND, false)) return undefined;
  return (BigInt(cpu.state.view.getUint32(X87_OPERAND, true)) << 32n) | d.base;
}

/** Sets the accessed bit of a code or data descriptor in its table. */
export function markAccessed(cpu: Cpu, d: Descriptor): boolean {
  if (d.attr & ATTR.A) return true;
  d.attr |= ATTR.A;
  cpu.state.bytes[X87_OPERAND] = d.attr & 0xff;
  return cpu.mmu.writeLinear(d.address + 5n, 1, X87_OPERAND, false);
}

export const dpl = (attr: number): number => (attr >> 5) & 3;

/** Writes a segment register, hidden part included. */
export function setSegment(cpu: Cpu, segment: number, d: Omit<Descriptor, "address">): void {
  const { state } = cpu;
  state.set(SEG_SELECTOR + 4 * segment, d.selector);
  state.set(SEG_ATTR + 4 * segment, d.attr);
  state.set(SEG_LIMIT + 4 * segment, d.limit | 0);
  const at = segment === LDTR ? LDTR_BASE : segment === TR ? TR_BASE : REG.segBase + 8 * segment;
  state.set64(at, d.base);
}

/** Loads DS, ES, FS, GS or SS (MOV, POP, LSS...; SDM vol. 2, MOV). False with the fault noted. */
export function loadDataSegment(cpu: Cpu, segment: number, selector: number): boolean {
  const { state } = cpu;
  const { cpl } = state;
  const rpl = selector & 3;
  const sel = selector & 0xffff;
  if ((sel & 0xfffc) === 0) {
    if (segment === SS && ((state.get(MODE) & MODE_64) === 0 || cpl === 3 || rpl !== cpl)) {
      state.fault(13, 0);
      return false;
    }
    setSegment(cpu, segment, { selector: sel, base: 0n, limit: 0, attr: 0 });
    return true;
  }
  const d = readDescriptor(cpu, sel);
  if (!d) return false;
  const isCode = (d.attr & ATTR.CODE) !== 0;
  const readable = !isCode || (d.attr & ATTR.RW) !== 0;
  const bad =
    segment === SS
      ? rpl !== cpl || !(d.attr & ATTR.S) || isCode || !(d.attr & ATTR.RW) || dpl(d.attr) !== cpl
      : !(d.attr & ATTR.S) ||
        !readable ||
        ((!isCode || !(d.attr & ATTR.DC)) && (rpl > dpl(d.attr) || cpl > dpl(d.attr)));
  if (bad) {
    selectorFault(cpu, 13, sel);
    return false;
  }
  if (!(d.attr & ATTR.P)) {
    selectorFault(cpu, segment === SS ? 12 : 11, sel);
    return false;
  }
  if (!markAccessed(cpu, d)) return false;
  setSegment(cpu, segment, d);
  return true;
}

/** True in IA-32e mode (64-bit or compatibility). */
const longMode = (cpu: Cpu): boolean => (cpu.state.get(EFER) & 0x400) !== 0;

/** Checks a code segment for a far transfer to privilege `cpl`; undefined with the fault noted. */
export function checkCode(cpu: Cpu, selector: number, check: "jump" | "return"): Descriptor | undefined {
  const { state } = cpu;
  if ((selector & 0xfffc) === 0) {
    state.fault(13, 0);
    return undefined;
  }
  const d = readDescriptor(cpu, selector);
  if (!d) return undefined;
  const rpl = selector & 3;
  const { cpl } = state;
  if ((d.attr & (ATTR.S | ATTR.CODE)) !== (ATTR.S | ATTR.CODE)) return selectorFault(cpu, 13, selector);
  const conforming = (d.attr & ATTR.DC) !== 0;
  const privilege =
    check === "return"
      ? rpl < cpl || (conforming ? dpl(d.attr) > rpl : dpl(d.attr) !== rpl)
      : conforming
        ? dpl(d.attr) > cpl
        : rpl > cpl || dpl(d.attr) !== cpl;
  if (privilege) return selectorFault(cpu, 13, selector);
  if (longMode(cpu) && d.attr & ATTR.L && d.attr & ATTR.DB) return selectorFault(cpu, 13, selector);
  if (!(d.attr & ATTR.P)) return selectorFault(cpu, 11, selector);
  return d;
}

/** False, with #GP noted, for privilege levels 1 and 2: no TLB is kept for them. */
export function privilegeSupported(cpu: Cpu, selector: number, cpl: number): boolean {
  if (cpl === 0 || cpl === 3) return true;
  cpu.log(`code segment 0x${selector.toString(16)} at privilege ${cpl}: the software CPU has only 0 and 3`);
  selectorFault(cpu, 13, selector);
  return false;
}

/**
 * Makes `d` the code segment at privilege `cpl`. Outside 64-bit mode a base other than 0 is refused: RIP is
 * kept as a linear address. False, with the fault noted and nothing changed, if it cannot be one.
 */
export function setCode(cpu: Cpu, d: Descriptor, cpl: number): boolean {
  if (!privilegeSupported(cpu, d.selector, cpl)) return false;
  if (!(d.attr & ATTR.L && longMode(cpu)) && d.base !== 0n) {
    cpu.log(
      `code segment 0x${d.selector.toString(16)} has base 0x${d.base.toString(16)}: only flat code segments are supported`,
    );
    return selectorFault(cpu, 13, d.selector) ?? false;
  }
  setSegment(cpu, CS, { ...d, selector: (d.selector & 0xfffc) | cpl });
  return true;
}
