/** Random cases of an instruction form: machine state, operands and encoding (see forms.ts). */

import { x87Operand } from "../../src/hypervisor/soft/float/x87.ts";
import type { CaseBatch } from "./batch.ts";
import { bigLittleEndian, Encoder, immediateBytes, littleEndian } from "./encoder.ts";
import { type Form, isX87Row } from "./forms.ts";
import {
  CODE_OFFSET,
  CODE_PAGE,
  DATA_CROSS,
  DATA_END,
  DATA_FIRST,
  DATA_READ_ONLY_END,
  DATA_THIRD,
  FX_MXCSR,
  MAX_CODE_BYTES,
  PAGE_SIZE,
  RAX,
  RBP,
  RBX,
  RCX,
  RDI,
  RDX,
  RSI,
  RSP,
} from "./layout.ts";
import { randomPointer } from "./pointers.ts";
import type { Random } from "./random.ts";

/** Longest instruction (SDM vol. 2A, 2.3.11). */
const MAX_LENGTH = 15;
/** Means nothing in 64-bit mode. */
const PREFIX_DS = 0x3e;
const MXCSR_BITS = 0xffff;
/** FSW.ES and FSW.B. */
const FSW_SUMMARY = 0x8080;
const STACK_OUT = new Set(["push", "pushf", "call", "enter"]);
const STACK_IN = new Set(["pop", "popf", "ret"]);
const BIT_TESTS = new Set(["bt", "bts", "btr", "btc"]);
const SHIFT_COUNTS = Uint8Array.of(0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255);

/** Longest run of a repeated string instruction. */
const STRING_BYTES = 64;

const bit = (...registers: number[]): number => registers.reduce((mask, reg) => mask | (1 << reg), 0);

export class Generator {
  private readonly encoder: Encoder;

  constructor(private readonly random: Random) {
    this.encoder = new Encoder(random);
  }

  /** Writes a case of `form` into `cases` at `i`. */
  write(form: Form, cases: CaseBatch, i: number): void {
    this.fillState(form, cases, i);
    const { encoder } = this;
    let immediate: number[];
    do {
      encoder.begin(form);
      const pinned = this.implicitOperands(form, cases, i);
      const forbidden = this.laterOperands(form);
      if (form.insn.modrm) {
        const address = this.operandAddress(form, cases, i);
        if (form.mem) this.indexOperand(form, cases, i, { pinned, forbidden, address });
        else encoder.operands(form, cases, i, { pinned, forbidden, address });
      } else if ("Z" === form.insn.operands[0]?.[0]) encoder.opcodeRegister(form);
      immediate = this.immediate(form, cases, i);
    } while (!encoder.finish(form, immediate));
    this.dependentOperands(form, cases, i);
    this.place(form, cases, i);
  }

  private fillState(form: Form, cases: CaseBatch, i: number): void {
    const { random } = this;
    random.fillGprs(cases, i);
    random.fillRflags(cases, i, true);
    random.fillWindow(cases, i, form.state !== "integer" && random.oneIn(2));
    if (random.oneIn(2)) cases.setGpr(i, RSP, DATA_CROSS);
    else {
      random.interesting64();
      cases.setGpr(i, RSP, random.low, random.high);
    }
    if (form.state === "integer") return;
    random.fillSse(cases, i, true);
    random.fillX87(cases, i, true);
    if (random.oneIn(16)) {
      // A pending exception: waiting instructions raise #MF instead of running.
      const exception = 1 << random.below(6);
      cases.setFcw(i, cases.fcw(i) & ~exception);
      cases.setFsw(i, cases.fsw(i) | exception | FSW_SUMMARY);
    }
  }

  // --- operands the encoding does not name ---------------------------------------------------------

  /** Gives implicit operands that do not depend on the encoding their values. Returns their registers. */
  private implicitOperands(form: Form, cases: CaseBatch, i: number): number {
    const { random, encoder } = this;
    const { mnemonic, operands } = form.insn;
    if (form.insn.string) return this.stringOperands(form, cases, i);
    if (mnemonic === "xlatb") {
      const al = BigInt(cases.u32[cases.gprIndex(i, RAX)]! & 0xff);
      this.setPointer(cases, i, RBX, this.anyAddress(cases, 1) - al);
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
      const address = this.anyAddress(cases, size);
      cases.setGpr64(i, RSP, out ? address + BigInt(size) : address);
      if (mnemonic === "enter") cases.setGpr64(i, RBP, this.anyAddress(cases, size) + BigInt(size));
      return mnemonic === "enter" ? bit(RSP, RBP) : bit(RSP);
    }
    if (mnemonic === "leave") {
      cases.setGpr64(i, RBP, this.anyAddress(cases, size));
      return bit(RBP);
    }
    return 0;
  }

  private stringOperands(form: Form, cases: CaseBatch, i: number): number {
    const { random, encoder } = this;
    const bytes = form.size;
    // The destination is in ES, which an override does not change.
    this.setPointer(cases, i, RSI, this.anyAddress(cases, bytes));
    const source = encoder.segmentBase;
    this.setPointer(cases, i, RDI, this.anyAddress(cases, bytes) + source);
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
        this.poke(cases, i, cases.gpr(i, RDI) + BigInt(n * bytes), word, bytes);
    }
    if (form.insn.mnemonic.startsWith("cmps") && random.oneIn(2)) {
      for (let n = random.below(24); n >= 0; n--) {
        const offset = BigInt(n * bytes);
        const value = this.peek(cases, i, cases.gpr(i, RSI) + encoder.segmentBase + offset, bytes);
        this.poke(cases, i, cases.gpr(i, RDI) + offset, value, bytes);
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

  /** Registers that {@link dependentOperands} will set. */
  private laterOperands(form: Form): number {
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

  // --- the memory operand --------------------------------------------------------------------------

  private memoryBytes(form: Form): number {
    const { insn, size } = form;
    if (isX87Row(insn)) {
      return Math.max(1, x87Operand(insn.opcode, form.regField << 3, size === 2, true)?.size ?? 1);
    }
    if (form.state === "image") return 512;
    if (insn.mnemonic === "cmpxchg8b/16b") return 2 * size;
    if (insn.mnemonic === "lgdt" || insn.mnemonic === "lidt") return 10;
    const letters = insn.operands.find((o) => "EMO".includes(o[0]!));
    const fixed = { b: 1, w: 2, d: 4, q: 8 }[letters?.[1] ?? ""];
    return fixed ?? size;
  }

  private operandAddress(form: Form, cases: CaseBatch, i: number): bigint {
    if (!form.mem) return 0n;
    const bytes = this.memoryBytes(form);
    const address = this.anyAddress(cases, bytes);
    const { mnemonic } = form.insn;
    const aligned = form.state === "image" || (mnemonic === "cmpxchg8b/16b" && form.size === 8);
    if (aligned && !this.random.oneIn(8)) return address & ~15n;
    // POP computes its address with the new RSP; a little off is as good.
    return mnemonic === "lea" && this.random.oneIn(2) ? cases.gpr(i, RAX) : address;
  }

  /** An address for an access of `bytes`: mostly in the window, sometimes far away or not canonical. */
  private anyAddress(cases: CaseBatch, bytes: number): bigint {
    const { random } = this;
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

  /** Encodes a memory operand; a bit index in a register that reaches beyond it is kept near the window. */
  private indexOperand(
    form: Form,
    cases: CaseBatch,
    i: number,
    placement: { address: bigint; pinned: number; forbidden: number },
  ): void {
    const { encoder, random } = this;
    const indexed = BIT_TESTS.has(form.insn.mnemonic) && form.insn.operands[1]?.[0] === "G";
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

  // --- immediates ----------------------------------------------------------------------------------

  private immediate(form: Form, cases: CaseBatch, i: number): number[] {
    const { random, encoder } = this;
    const { insn } = form;
    const bytes = immediateBytes(form, encoder.addr32);
    if (insn.immediateRule === "offset") return encoder.offsetOperand(this.offsetAddress(form, cases));
    if (insn.end === "direct") return this.branchDistance(bytes);
    if (insn.mnemonic === "enter") {
      const level = random.oneIn(2) ? 0 : random.oneIn(2) ? random.below(4) : random.below(256);
      return [...littleEndian(random.oneIn(4) ? random.u32() : random.below(64), 2), level];
    }
    if (
      bytes === 1 &&
      insn.operands[0]?.[0] === "E" &&
      /^(sh|sa|ro|rc)/.test(insn.mnemonic) &&
      random.oneIn(2)
    ) {
      return [random.pick(SHIFT_COUNTS)];
    }
    if (insn.mnemonic === "ret" && random.oneIn(2)) return littleEndian(8 * random.below(16), 2);
    random.interesting64();
    void i;
    return bigLittleEndian((BigInt(random.high) << 32n) | BigInt(random.low), bytes);
  }

  private offsetAddress(form: Form, cases: CaseBatch): bigint {
    const address = this.anyAddress(cases, this.memoryBytes(form));
    return address;
  }

  /** A displacement whose target is not inside the instruction itself: that could loop for ever. */
  private branchDistance(bytes: number): number[] {
    const { random } = this;
    if (bytes === 1) {
      const distance = (random.u32() << 24) >> 24;
      return [(distance < 0 && distance >= -MAX_CODE_BYTES ? distance ^ 0x80 : distance) & 0xff];
    }
    const kind = random.below(8);
    const start = CODE_PAGE + CODE_OFFSET;
    let distance: number;
    if (kind === 0) distance = DATA_CROSS + random.below(64) - 32 - start;
    else if (kind === 1) distance = random.u32() | 0;
    else distance = random.below(PAGE_SIZE) - CODE_OFFSET;
    if (distance < 0 && distance >= -MAX_CODE_BYTES) distance -= MAX_CODE_BYTES;
    return littleEndian(distance, bytes);
  }

  // --- operands that depend on the encoding ----------------------------------------------------------

  private dependentOperands(form: Form, cases: CaseBatch, i: number): void {
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
        this.poke(cases, i, cases.gpr(i, RSP), this.target(), size);
        return;
      case "popf":
        this.poke(cases, i, cases.gpr(i, RSP), BigInt(this.random.u32()), size);
        return;
      case "leave":
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
    if (form.mem) return this.peek(cases, i, encoder.address, size);
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
    cases.setGpr64(i, RAX, this.peek(cases, i, encoder.address, size) | noise);
    if (random.oneIn(4)) return;
    cases.setGpr64(i, RDX, this.peek(cases, i, encoder.address + BigInt(size), size) | noise);
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
      default: {
        const offset = random.below(PAGE_SIZE - MAX_CODE_BYTES);
        return BigInt(CODE_PAGE + (offset < CODE_OFFSET ? offset : offset + MAX_CODE_BYTES));
      }
    }
  }

  private branchTarget(form: Form, cases: CaseBatch, i: number): void {
    const { encoder } = this;
    if (form.mem) this.poke(cases, i, encoder.address, this.target(), form.size);
    else cases.setGpr64(i, encoder.rm, this.target());
  }

  /** Makes the operand an image FXRSTOR takes: no reserved MXCSR bit. */
  private restorableImage(cases: CaseBatch, i: number): void {
    const at = this.encoder.address;
    this.poke(cases, i, at + BigInt(FX_MXCSR), BigInt(this.random.u32() & MXCSR_BITS), 4);
  }

  // --- guest memory ----------------------------------------------------------------------------------

  /** Offset in the window of a linear address, or -1. */
  private windowOffset(cases: CaseBatch, address: bigint): number {
    if (address < BigInt(DATA_FIRST) || address >= BigInt(DATA_READ_ONLY_END)) return -1;
    const linear = Number(address);
    if (linear >= DATA_END && linear < DATA_THIRD) return -1;
    const half = cases.windowBytes / 2;
    const inPage = linear % PAGE_SIZE;
    if (inPage < half) return half + inPage;
    return inPage >= PAGE_SIZE - half ? inPage - (PAGE_SIZE - half) : -1;
  }

  private poke(cases: CaseBatch, i: number, address: bigint, value: bigint, bytes: number): void {
    const window = cases.window(i);
    for (let n = 0; n < bytes; n++) {
      const at = this.windowOffset(cases, address + BigInt(n));
      if (at >= 0) window[at] = Number((value >> BigInt(8 * n)) & 0xffn);
    }
  }

  private peek(cases: CaseBatch, i: number, address: bigint, bytes: number): bigint {
    const window = cases.window(i);
    let value = 0n;
    for (let n = 0; n < bytes; n++) {
      const at = this.windowOffset(cases, address + BigInt(n));
      if (at >= 0) value |= BigInt(window[at]!) << BigInt(8 * n);
    }
    return value;
  }

  // --- placing the code --------------------------------------------------------------------------------

  private place(form: Form, cases: CaseBatch, i: number): void {
    const { bytes } = this.encoder;
    const { insn } = form;
    // POPF may set TF or AC, which the runner's own jump behind the code would feel.
    const trapEnd = insn.end !== undefined || insn.mnemonic === "popf";
    if (this.random.oneIn(256) && bytes.length > 1) {
      // Cut off by the end of the page: the fetch of the rest faults.
      const kept = 1 + this.random.below(bytes.length - 1);
      cases.setCode(i, bytes.slice(0, kept), { offset: PAGE_SIZE - kept, trapEnd: true });
      return;
    }
    if (this.random.oneIn(512)) {
      // More than 15 bytes.
      const longer = new Array<number>(MAX_LENGTH + 1 + this.random.below(3) - bytes.length).fill(PREFIX_DS);
      cases.setCode(i, [...longer, ...bytes], { trapEnd });
      return;
    }
    cases.setCode(i, bytes, { trapEnd });
  }
}
