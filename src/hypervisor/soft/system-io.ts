/** Port I/O (SDM vol. 1, chapter 19; permission bitmap: vol. 1, 19.5.2). */
import { HELPER } from "./helpers.ts";
import {
  EXIT,
  MODE,
  MODE_64,
  RAX,
  RCX,
  RDI,
  RDX,
  RECORD,
  REG,
  RSI,
  SEG_LIMIT,
  TR,
  TR_BASE,
  X87_OPERAND,
} from "./layout.ts";
import { RFLAGS } from "./state.ts";
import {
  aux,
  changed,
  type Helper,
  type HelperCall,
  immediate,
  instructionRip,
  readRegister,
  writeRegister,
} from "./system.ts";

/** True if the current privilege may access `size` ports from `port`; a fault is noted otherwise. */
function allowed(c: HelperCall, port: number, size: number): boolean {
  const { state, mmu } = c.cpu;
  if (state.cpl <= (state.rflags & RFLAGS.IOPL) >> 12) return true;
  const limit = state.get(SEG_LIMIT + 4 * TR) >>> 0;
  const tss = state.get64(TR_BASE);
  if (limit >= 103) {
    if (!mmu.readLinear(tss + 102n, 2, X87_OPERAND, false)) return false;
    const at = state.view.getUint16(X87_OPERAND, true) + (port >> 3);
    // Two bytes are read always, so the last byte of a bitmap must be followed by one more.
    if (at + 1 <= limit) {
      if (!mmu.readLinear(tss + BigInt(at), 2, X87_OPERAND, false)) return false;
      const bits = state.view.getUint16(X87_OPERAND, true) >> (port & 7);
      if ((bits & ((1 << size) - 1)) === 0) return true;
    }
  }
  state.fault(13, 0);
  return false;
}

/** E4-E7 carry the port in the immediate, EC-EF in DX; aux is the opcode. */
const portOf = (c: HelperCall): number => (aux(c) & 8 ? c.cpu.state.get(RDX) & 0xffff : immediate(c) & 0xff);

/** Ports are 32 bits wide at most: REX.W does not widen IN and OUT. */
const width = (c: HelperCall): number => Math.min(4, c.size);

const input: Helper = (c) => {
  const port = portOf(c);
  const size = width(c);
  if (!allowed(c, port, size)) return EXIT.fault;
  writeRegister(c, RAX, size, BigInt(c.cpu.bus.pioRead(port, size) >>> 0));
  return 0;
};

const output: Helper = (c) => {
  const port = portOf(c);
  const size = width(c);
  if (!allowed(c, port, size)) return EXIT.fault;
  c.cpu.bus.pioWrite(port, size, Number(readRegister(c, RAX, size)));
  return 0;
};

/** INS and OUTS: one element a call, so that interrupts are taken between elements. */
const stringPort =
  (direction: "in" | "out"): Helper =>
  (c) => {
    const { state, mmu, bus } = c.cpu;
    const size = width(c);
    const address = c.addr32 ? 4 : 8;
    const port = state.get(RDX) & 0xffff;
    // Permission comes first: a count of 0 faults too.
    if (!allowed(c, port, size)) return EXIT.fault;
    if (c.rep && readRegister(c, RCX, address) === 0n) return 0;
    const pointer = direction === "in" ? RDI : RSI;
    const segment =
      direction === "out"
        ? state.view.getUint16(c.record + RECORD.segment, true)
        : state.get(MODE) & MODE_64
          ? REG.zero
          : REG.segBase;
    const linear = BigInt.asUintN(64, readRegister(c, pointer, address) + state.get64(segment));
    const user = state.cpl === 3;
    if (direction === "in") {
      // Nothing is taken from the device unless it can be stored.
      if (!mmu.probeWrite(linear, size, user)) return EXIT.fault;
      state.view.setUint32(X87_OPERAND, bus.pioRead(port, size) >>> 0, true);
      if (!mmu.writeLinear(linear, size, X87_OPERAND, user)) return EXIT.fault;
    } else {
      if (!mmu.readLinear(linear, size, X87_OPERAND, user)) return EXIT.fault;
      bus.pioWrite(port, size, Number(readRegister(c, X87_OPERAND, size)));
    }
    const step = BigInt(state.rflags & RFLAGS.DF ? -size : size);
    writeRegister(c, pointer, address, BigInt.asUintN(64, readRegister(c, pointer, address) + step));
    if (!c.rep) return 0;
    const left = BigInt.asUintN(64, readRegister(c, RCX, address) - 1n);
    writeRegister(c, RCX, address, left);
    return left === 0n ? 0 : changed(c, instructionRip(c));
  };

export function portHelpers(set: (id: number, helper: Helper) => void): void {
  set(HELPER.in, input);
  set(HELPER.out, output);
  set(HELPER.ins, stringPort("in"));
  set(HELPER.outs, stringPort("out"));
}
