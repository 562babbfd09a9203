/**
 * Operands of random cases that follow from the encoding: values that must fit a register or memory operand
 * for the instruction to do something other than fault or fail.
 */

import type { CaseBatch } from "./batch.ts";
import type { Encoder } from "./encoder.ts";
import type { Form } from "./forms.ts";
import {
  CODE_OFFSET,
  CODE_PAGE,
  DATA_CROSS,
  FX_MXCSR,
  MAX_CODE_BYTES,
  PAGE_SIZE,
  RAX,
  RDX,
  RSP,
} from "./layout.ts";
import type { Random } from "./random.ts";
import { peek, poke } from "./window-memory.ts";

/** MXCSR bits every x86-64 processor has. */
const MXCSR_BITS = 0xffff;

export class DependentOperands {
  constructor(
    private readonly random: Random,
    private readonly encoder: Encoder,
  ) {}

  /** Sets what depends on the encoding. */
  set(form: Form, cases: CaseBatch, i: number): void {
    const { insn, size } = form;
    switch (insn.mnemonic) {
      case "div":
      case "idiv":
        this.dividend(form, cases, i);
        return;
      case "cmpxchg":
        this.comparand(form, cases, i);
        return;
      case "cmpxchg8b/16b":
        this.comparandPair(form, cases, i);
        return;
      case "jmp":
      case "call":
        if (insn.end === "indirect") this.branchTarget(form, cases, i);
        return;
      case "ret":
        poke(cases, i, cases.gpr(i, RSP), this.target(), size);
        return;
      case "popf":
        poke(cases, i, cases.gpr(i, RSP), BigInt(this.random.u32()), size);
        return;
      case "fxrstor":
        if (!this.random.oneIn(8)) this.restorableImage(cases, i);
    }
  }

  /** Sets rDX:rAX so that most quotients fit. */
  private dividend(form: Form, cases: CaseBatch, i: number): void {
    const { random } = this;
    const size = form.insn.operands[0] === "Eb" ? 1 : form.size;
    if (random.oneIn(4) || this.usesForAddress(RAX) || this.usesForAddress(RDX)) return;
    const at = cases.gprIndex(i, RAX);
    const negative = form.insn.mnemonic === "idiv" && random.oneIn(2);
    if (size === 1) {
      // AX: a quotient of 8 bits has a dividend of little more.
      const dividend = random.oneIn(2) ? random.below(256) : random.u32() & 0x3fff;
      cases.view.setUint16(at * 4, negative ? -dividend : dividend, true);
      return;
    }
    const index = cases.gprIndex(i, RDX) * 4;
    const top = random.oneIn(2) ? 0 : random.below(4);
    const high = BigInt(negative ? -1 - top : top);
    if (size === 8) cases.view.setBigInt64(index, high, true);
    else if (size === 4) cases.view.setInt32(index, Number(high), true);
    else cases.view.setInt16(index, Number(high), true);
    const divisor = this.operandValue(form, cases, i, size);
    if (divisor !== 0n && random.oneIn(2) && size === 8) {
      // A true 128-bit dividend: divisor times a quotient of 63 bits.
      random.interesting64();
      const quotient = ((BigInt(random.high) << 32n) | BigInt(random.low)) >> 1n;
      const d = form.insn.mnemonic === "idiv" ? BigInt.asIntN(64, divisor) : divisor;
      const product = (negative ? -quotient : quotient) * d;
      cases.setGpr64(i, RAX, product);
      cases.setGpr64(i, RDX, product >> 64n);
    }
  }

  private usesForAddress(reg: number): boolean {
    return reg === this.encoder.base || reg === this.encoder.index;
  }

  /** What the r/m operand holds. */
  private operandValue(form: Form, cases: CaseBatch, i: number, size: number): bigint {
    const { encoder } = this;
    if (form.mem) return peek(cases, i, encoder.address, size);
    if (size === 1 && encoder.legacyBytes && encoder.rm >= 4)
      return (cases.gpr(i, encoder.rm - 4) >> 8n) & 0xffn;
    return BigInt.asUintN(8 * size, cases.gpr(i, encoder.rm));
  }

  /** Half of the time the accumulator equals the destination. */
  private comparand(form: Form, cases: CaseBatch, i: number): void {
    if (this.random.oneIn(2) || this.usesForAddress(RAX)) return;
    const size = form.insn.operands[0] === "Eb" ? 1 : form.size;
    const value = this.operandValue(form, cases, i, size);
    const old = cases.gpr(i, RAX);
    cases.setGpr64(i, RAX, ((old >> BigInt(8 * size)) << BigInt(8 * size)) | value);
  }

  private comparandPair(form: Form, cases: CaseBatch, i: number): void {
    const { random, encoder } = this;
    if (random.oneIn(4) || this.usesForAddress(RAX) || this.usesForAddress(RDX)) return;
    const { size } = form;
    const noise = size === 8 ? 0n : BigInt(random.u32()) << 32n;
    cases.setGpr64(i, RAX, peek(cases, i, encoder.address, size) | noise);
    if (random.oneIn(4)) return;
    cases.setGpr64(i, RDX, peek(cases, i, encoder.address + BigInt(size), size) | noise);
  }

  /** Where an indirect branch goes: mostly to the pads around the code. */
  private target(): bigint {
    const { random } = this;
    switch (random.below(16)) {
      case 0:
        return BigInt(DATA_CROSS + random.below(64));
      case 1:
        return BigInt(random.u32());
      case 2:
        return 0xffff_9000_0000_0000n | BigInt(random.u32());
      case 3:
        // Not canonical.
        return 0x1234_0000_0000_0000n | BigInt(random.u32());
      default: {
        const offset = random.below(PAGE_SIZE - MAX_CODE_BYTES);
        return BigInt(CODE_PAGE + (offset < CODE_OFFSET ? offset : offset + MAX_CODE_BYTES));
      }
    }
  }

  private branchTarget(form: Form, cases: CaseBatch, i: number): void {
    const { encoder } = this;
    if (form.mem) poke(cases, i, encoder.address, this.target(), form.size);
    else cases.setGpr64(i, encoder.rm, this.target());
  }

  /** Makes the operand an image FXRSTOR takes: no reserved MXCSR bit. */
  private restorableImage(cases: CaseBatch, i: number): void {
    const at = this.encoder.address;
    poke(cases, i, at + BigInt(FX_MXCSR), BigInt(this.random.u32() & MXCSR_BITS), 4);
  }
}
