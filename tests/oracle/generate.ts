/** Random cases of an instruction form: machine state, operands and encoding (see forms.ts). */

import type { CaseBatch } from "./batch.ts";
import { DependentOperands } from "./dependent-operands.ts";
import { bigLittleEndian, Encoder, immediateBytes, littleEndian } from "./encoder.ts";
import type { Form } from "./forms.ts";
import { CODE_OFFSET, CODE_PAGE, DATA_CROSS, MAX_CODE_BYTES, PAGE_SIZE, RSP } from "./layout.ts";
import { Operands, SHIFT_COUNTS } from "./operands.ts";
import type { Random } from "./random.ts";

/** Longest instruction (SDM vol. 2A, 2.3.11). */
const MAX_LENGTH = 15;
/** Means nothing in 64-bit mode. */
const PREFIX_DS = 0x3e;
/** FSW.ES and FSW.B. */
const FSW_SUMMARY = 0x8080;

export class Generator {
  private readonly encoder: Encoder;
  private readonly operands: Operands;
  private readonly dependent: DependentOperands;

  constructor(private readonly random: Random) {
    this.encoder = new Encoder(random);
    this.operands = new Operands(random, this.encoder);
    this.dependent = new DependentOperands(random, this.encoder);
  }

  /** Writes a case of `form` into `cases` at `i`. */
  write(form: Form, cases: CaseBatch, i: number): void {
    this.fillState(form, cases, i);
    const { encoder, operands } = this;
    let immediate: number[];
    do {
      encoder.begin(form);
      const pinned = operands.implicit(form, cases, i);
      const forbidden = operands.later(form);
      if (form.insn.modrm) operands.encode(form, cases, i, pinned, forbidden);
      else if (form.insn.operands[0]?.[0] === "Z") encoder.opcodeRegister(form);
      immediate = this.immediate(form, cases);
    } while (!encoder.finish(form, immediate));
    this.dependent.set(form, cases, i);
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

  private immediate(form: Form, cases: CaseBatch): number[] {
    const { random, encoder } = this;
    const { insn } = form;
    const bytes = immediateBytes(form, encoder.addr32);
    if (insn.immediateRule === "offset") return this.operands.offset(form, cases);
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
    return bigLittleEndian((BigInt(random.high) << 32n) | BigInt(random.low), bytes);
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

  /** Puts the code into its page; sometimes so that it cannot run. */
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
