/** Operands of random cases that are chosen before the encoding: implicit ones, and where memory is. */

import { x87Operand } from "../../src/hypervisor/soft/float/x87.ts";
import type { CaseBatch } from "./batch.ts";
import type { Encoder } from "./encoder.ts";
import { type Form, isX87Row } from "./forms.ts";
import { FX_BYTES, PAGE_SIZE, RAX, RBP, RBX, RCX, RDI, RDX, RSI, RSP } from "./layout.ts";
import { randomPointer } from "./pointers.ts";
import type { Random } from "./random.ts";
import { peek, poke } from "./window-memory.ts";

const STACK_OUT = new Set(["push", "pushf", "call", "enter"]);
const STACK_IN = new Set(["pop", "popf", "ret"]);
const BIT_TESTS = new Set(["bt", "bts", "btr", "btc"]);
/** Counts at which shifts and rotates of some size change their behaviour. */
export const SHIFT_COUNTS = Uint8Array.of(0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255);
/** Longest run of a repeated string instruction. */
const STRING_BYTES = 64;

const bit = (...registers: number[]): number => registers.reduce((mask, reg) => mask | (1 << reg), 0);

/** An address for an access of `bytes`: mostly in the window, sometimes far away or not canonical. */
export function caseAddress(random: Random, cases: CaseBatch, bytes: number): bigint {
  switch (random.below(128)) {
    case 0:
      return BigInt(random.below(PAGE_SIZE));
    case 1:
      // Supervisor half.
      return 0xffff_8000_0000_0000n | (BigInt(random.below(0x4000)) << 32n) | BigInt(random.u32());
    case 2:
    case 3:
      return 0x1234_0000_0000_0000n + (BigInt(random.below(0x1000)) << 48n) + BigInt(random.u32());
    default:
      return BigInt(randomPointer(random, cases, bytes));
  }
}

/** Bytes of the form's memory operand. */
function memoryBytes(form: Form): number {
  const { insn, size } = form;
  if (isX87Row(insn)) {
    return Math.max(1, x87Operand(insn.opcode, form.regField << 3, size === 2, true)?.size ?? 1);
  }
  if (form.state === "image") return FX_BYTES;
  if (insn.mnemonic === "cmpxchg8b/16b") return 2 * size;
  if (insn.mnemonic === "lgdt" || insn.mnemonic === "lidt") return 10;
  const letters = insn.operands.find((o) => "EMO".includes(o[0]!));
  const fixed = { b: 1, w: 2, d: 4, q: 8 }[letters?.[1] ?? ""];
  return fixed ?? size;
}

export class Operands {
  constructor(
    private readonly random: Random,
    private readonly encoder: Encoder,
  ) {}

  /** Gives implicit operands that do not depend on the encoding their values. Returns their registers. */
  implicit(form: Form, cases: CaseBatch, i: number): number {
    const { random, encoder } = this;
    const { mnemonic, operands } = form.insn;
    if (form.insn.string) return this.stringOperands(form, cases, i);
    if (mnemonic === "xlatb") {
      const al = BigInt(cases.u32[cases.gprIndex(i, RAX)]! & 0xff);
      this.setPointer(cases, i, RBX, caseAddress(random, cases, 1) - al);
      return bit(RBX, RAX);
    }
    if (operands.includes("cb") || mnemonic.startsWith("loop") || mnemonic === "jrcxz") {
      const at = cases.gprIndex(i, RCX);
      if (operands.includes("cb"))
        cases.bytes[at * 4] = random.oneIn(2) ? random.pick(SHIFT_COUNTS) : random.u32();
      else if (random.oneIn(2)) cases.setGpr(i, RCX, random.below(3), encoder.addr32 ? random.u32() : 0);
      return bit(RCX);
    }
    const { size } = form;
    if (STACK_OUT.has(mnemonic) || STACK_IN.has(mnemonic)) {
      const out = STACK_OUT.has(mnemonic);
      const address = caseAddress(random, cases, size);
      cases.setGpr64(i, RSP, out ? address + BigInt(size) : address);
      if (mnemonic === "enter") cases.setGpr64(i, RBP, caseAddress(random, cases, size) + BigInt(size));
      return mnemonic === "enter" ? bit(RSP, RBP) : bit(RSP);
    }
    if (mnemonic === "leave") {
      cases.setGpr64(i, RBP, caseAddress(random, cases, size));
      return bit(RBP);
    }
    return 0;
  }

  private stringOperands(form: Form, cases: CaseBatch, i: number): number {
    const { random, encoder } = this;
    const bytes = form.size;
    // The destination is in ES, which an override does not change.
    this.setPointer(cases, i, RSI, caseAddress(random, cases, bytes));
    const source = encoder.segmentBase;
    this.setPointer(cases, i, RDI, caseAddress(random, cases, bytes) + source);
    if (random.oneIn(8) || (form.rep !== 0 && this.aliased(cases, i))) {
      // Overlapping operands: each element sees the ones written before it.
      const near = cases.gpr(i, RSI) + source + BigInt(random.below(64) - 32);
      this.setPointer(cases, i, RDI, near + encoder.segmentBase);
    }
    if (form.rep !== 0) {
      const count = random.oneIn(4) ? random.below(3) : random.below(1 + STRING_BYTES / bytes);
      cases.setGpr(i, RCX, count, encoder.addr32 ? random.u32() : 0);
    }
    if (form.insn.mnemonic.startsWith("scas") && random.oneIn(2)) {
      // A value that is there to be found, and one that repeats.
      const word = random.oneIn(2) ? cases.gpr(i, RAX) : 0n;
      cases.setGpr64(i, RAX, word);
      for (let n = random.below(24); n > 0; n--)
        poke(cases, i, cases.gpr(i, RDI) + BigInt(n * bytes), word, bytes);
    }
    if (form.insn.mnemonic.startsWith("cmps") && random.oneIn(2)) {
      for (let n = random.below(24); n >= 0; n--) {
        const offset = BigInt(n * bytes);
        const value = peek(cases, i, cases.gpr(i, RSI) + encoder.segmentBase + offset, bytes);
        poke(cases, i, cases.gpr(i, RDI) + offset, value, bytes);
      }
    }
    return bit(RSI, RDI, RCX, RAX);
  }

  /**
   * The repeated operands overlap in memory but not in their addresses, since one page is mapped several
   * times: fast string operations of real processors then do not go element by element.
   */
  private aliased(cases: CaseBatch, i: number): boolean {
    const linear = (reg: number): number => Number(BigInt.asUintN(32, cases.gpr(i, reg)));
    const distance = linear(RDI) - linear(RSI) - Number(this.encoder.segmentBase);
    const inPage = ((distance % PAGE_SIZE) + PAGE_SIZE) % PAGE_SIZE;
    const near = 2 * STRING_BYTES;
    return (inPage < near || inPage > PAGE_SIZE - near) && Math.abs(distance) >= near;
  }

  /** `reg` = address, less the segment base; with 32-bit addresses the upper half is noise. */
  private setPointer(cases: CaseBatch, i: number, reg: number, address: bigint): void {
    const { encoder, random } = this;
    const value = BigInt.asUintN(64, address - encoder.segmentBase);
    if (!encoder.addr32) cases.setGpr64(i, reg, value);
    else cases.setGpr64(i, reg, BigInt.asUintN(32, value) | (BigInt(random.u32()) << 32n));
  }

  /** Registers that {@link DependentOperands} will set. */
  later(form: Form): number {
    if (this.random.oneIn(8)) return 0;
    switch (form.insn.mnemonic) {
      case "div":
      case "idiv":
      case "cmpxchg8b/16b":
        return bit(RAX, RDX);
      case "cmpxchg":
        return bit(RAX);
      default:
        return 0;
    }
  }

  /** Where the memory operand goes. */
  private address(form: Form, cases: CaseBatch, i: number): bigint {
    const bytes = memoryBytes(form);
    const address = caseAddress(this.random, cases, bytes);
    const { mnemonic } = form.insn;
    const aligned = form.state === "image" || (mnemonic === "cmpxchg8b/16b" && form.size === 8);
    if (aligned && !this.random.oneIn(8)) return address & ~15n;
    return mnemonic === "lea" && this.random.oneIn(2) ? cases.gpr(i, RAX) : address;
  }

  /** Encodes ModRM and the memory operand if there is one; a bit index in a register that reaches beyond it is kept near the window. */
  encode(form: Form, cases: CaseBatch, i: number, pinned: number, forbidden: number): void {
    const { encoder, random } = this;
    const placement = { pinned, forbidden, address: form.mem ? this.address(form, cases, i) : 0n };
    const indexed = form.mem && BIT_TESTS.has(form.insn.mnemonic) && form.insn.operands[1]?.[0] === "G";
    if (!indexed) {
      encoder.operands(form, cases, i, placement);
      return;
    }
    const bits = 8 * form.size;
    const distance = random.below(16 * bits) - 8 * bits;
    const element = BigInt(Math.floor(distance / bits) * form.size);
    encoder.operands(form, cases, i, { ...placement, address: placement.address - element });
    const { reg } = encoder;
    // As part of the address it stays what it is, and points far away.
    if (reg === encoder.base || reg === encoder.index) return;
    const value = BigInt.asUintN(bits, BigInt(distance));
    random.next64();
    const noise = (BigInt(random.high) << 32n) | BigInt(random.low);
    cases.setGpr64(i, reg, value | ((noise >> BigInt(bits)) << BigInt(bits)));
  }

  /** Bytes of the address of a MOV that has it in the instruction. */
  offset(form: Form, cases: CaseBatch): number[] {
    return this.encoder.offsetOperand(caseAddress(this.random, cases, memoryBytes(form)));
  }
}
