/**
 * Random self-modifying programs on the software CPU, run as a guest runs them (whole blocks, several passes),
 * against the processor of this host.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { GUEST_BASE, RAX as RAX_OFFSET } from "../../src/hypervisor/soft/layout.ts";
import { CaseBatch, type ResultBatch } from "../oracle/batch.ts";
import {
  CODE_OFFSET,
  CODE_PAGE,
  END_EXCEPTION,
  PAGE_SIZE,
  RAX,
  RBP,
  RBX,
  RFLAGS_STATUS,
  RSP,
} from "../oracle/layout.ts";
import { Random } from "../oracle/random.ts";
import { NativeRunner, nativeUnsupported } from "../oracle/runner.ts";
import { Guest, IF, SPARE, type Trap } from "./guest.ts";

const SEED = 0x5eed_0001;
const PROGRAMS = 10_000;
const MAX_BYTES = 32;

/** Byte registers AL, CL, DL and their wide forms: all that programs compute with. */
const REGISTERS = [0, 1, 2];
/** Opcodes `op r/m32, r32` with defined flags: ADD, ADC, SBB, SUB, CMP, MOV. */
const TWO_OPERANDS = [0x01, 0x11, 0x19, 0x29, 0x39, 0x89];
/** Opcodes `op al, imm8`: MOV, ADD, ADC, SBB, SUB, CMP. */
const AL_IMMEDIATE = [0xb0, 0x04, 0x14, 0x1c, 0x2c, 0x3c];
/** NOP, CLC, STC, CMC. */
const ONE_BYTE = [0x90, 0xf8, 0xf9, 0xf5];
const REX_W = 0x48;

/** A byte of the program that may become another one without losing sense. */
interface Mutable {
  at: number;
  /** What it may become; undefined: anything. */
  values: readonly number[] | undefined;
}

class Program {
  readonly bytes: number[] = [];
  private readonly mutable: Mutable[] = [];
  /** Stores to be pointed at a mutable byte: position of the displacement, and of the value if it has one. */
  private readonly stores: {
    disp: number;
    value: number | undefined;
    relative: number | undefined;
    any: boolean;
  }[] = [];

  constructor(private readonly random: Random) {
    const { bytes } = this;
    const loop = random.oneIn(2);
    const room = MAX_BYTES - (loop ? 4 : 0);
    while (bytes.length < room - 1) this.instruction(room - bytes.length);
    this.aim();
    // dec ebp; jnz start
    if (loop) bytes.push(0xff, 0xcd, 0x75, -(bytes.length + 4) & 0xff);
  }

  private byte(value: number, values?: readonly number[] | "any"): void {
    if (values) this.mutable.push({ at: this.bytes.length, values: values === "any" ? undefined : values });
    this.bytes.push(value);
  }

  private instruction(room: number): void {
    const { random, bytes } = this;
    const r = random.pick(REGISTERS);
    const q = random.pick(REGISTERS);
    switch (random.below(room >= 7 ? 11 : room >= 5 ? 7 : room >= 3 ? 5 : 3)) {
      case 0:
        this.byte(random.pick(ONE_BYTE), ONE_BYTE);
        return;
      case 1: {
        // An opcode with an immediate, or two instructions of one byte.
        this.byte(random.pick(AL_IMMEDIATE), [...AL_IMMEDIATE, ...ONE_BYTE]);
        this.byte(random.pick(ONE_BYTE), ONE_BYTE);
        return;
      }
      case 2:
        this.byte(random.pick(TWO_OPERANDS), TWO_OPERANDS);
        this.byte(
          0xc0 | (q << 3) | r,
          REGISTERS.flatMap((a) => REGISTERS.map((b) => 0xc0 | (a << 3) | b)),
        );
        return;
      case 3: {
        // A prefix or NOP before INC or DEC.
        this.byte(random.oneIn(2) ? 0x90 : REX_W, [...ONE_BYTE, REX_W]);
        this.byte(0xff);
        this.byte(
          (random.oneIn(2) ? 0xc0 : 0xc8) | r,
          REGISTERS.flatMap((a) => [0xc0 | a, 0xc8 | a]),
        );
        return;
      }
      case 4:
        // op r32, imm8
        this.byte(0x83);
        this.byte(
          0xc0 | r,
          REGISTERS.flatMap((a) => [0xc0 | a, 0xd0 | a, 0xd8 | a, 0xe8 | a, 0xf8 | a]),
        );
        this.byte(random.below(256), "any");
        return;
      case 5: {
        // Jcc over one or two instructions of one byte.
        const over = 1 + random.below(2);
        this.byte(
          0x70 | random.below(16),
          Array.from({ length: 16 }, (_, cc) => 0x70 | cc),
        );
        this.byte(over, over === 2 ? [0, 1, 2] : [0, 1]);
        for (let i = 0; i < over; i++) this.byte(random.pick(ONE_BYTE), ONE_BYTE);
        return;
      }
      case 6:
        this.byte(
          0xb8 | r,
          REGISTERS.map((a) => 0xb8 | a),
        );
        for (let i = 0; i < 4; i++) this.byte(random.below(256), "any");
        return;
      case 7:
        // mov byte ptr [rbx+disp8], imm8
        this.stores.push({
          disp: bytes.length + 2,
          value: bytes.length + 3,
          relative: undefined,
          any: false,
        });
        bytes.push(0xc6, 0x43, 0, 0);
        return;
      case 8:
        // mov byte ptr [rip+disp32], imm8
        this.stores.push({
          disp: bytes.length + 2,
          value: bytes.length + 6,
          relative: bytes.length + 7,
          any: false,
        });
        bytes.push(0xc6, 0x05, 0, 0, 0, 0, 0);
        return;
      case 9:
        // add byte ptr [rbx+disp8], imm8 or inc byte ptr [rbx+disp8]
        if (random.oneIn(2)) {
          this.stores.push({
            disp: bytes.length + 2,
            value: bytes.length + 3,
            relative: undefined,
            any: true,
          });
          bytes.push(0x80, 0x43, 0, 0);
        } else {
          this.stores.push({ disp: bytes.length + 2, value: undefined, relative: undefined, any: true });
          bytes.push(0xfe, 0x43, 0);
        }
        return;
      default:
        // mov or xchg [rbx+disp8], r8
        this.stores.push({ disp: bytes.length + 2, value: undefined, relative: undefined, any: true });
        bytes.push(random.oneIn(2) ? 0x88 : 0x86, 0x43 | (r << 3), 0);
    }
  }

  /** Points every store at a mutable byte, or at the padding before the code if there is none. */
  private aim(): void {
    const { random, bytes } = this;
    for (const s of this.stores) {
      const targets = s.any ? this.mutable.filter((m) => m.values === undefined) : this.mutable;
      const target = targets.length > 0 ? random.pick(targets) : undefined;
      const at = target?.at ?? -1 - random.below(8);
      if (s.value !== undefined) {
        const { values } = target ?? { values: undefined };
        bytes[s.value] = values ? random.pick(values) : random.below(256);
      }
      if (s.relative === undefined) bytes[s.disp] = at & 0xff;
      else for (let i = 0; i < 4; i++) bytes[s.disp + i] = ((at - s.relative) >> (8 * i)) & 0xff;
    }
  }
}

function programs(): CaseBatch {
  const random = new Random(SEED);
  const cases = new CaseBatch(PROGRAMS);
  for (let i = 0; i < PROGRAMS; i++) {
    random.fillGprs(cases, i);
    random.fillRflags(cases, i);
    random.fillWindow(cases, i);
    const { bytes } = new Program(random);
    const offset = random.oneIn(8) ? PAGE_SIZE - bytes.length : CODE_OFFSET + random.below(64);
    cases.setCode(i, bytes, { offset, trapEnd: true });
    cases.setGpr(i, RBX, CODE_PAGE + offset);
    cases.setGpr(i, RBP, 1 + random.below(4));
  }
  return cases;
}

/** What both sides are compared by. */
interface Outcome {
  trap: number;
  error: number;
  rip: bigint;
  cr2: bigint;
  flags: number;
  gprs: bigint[];
}

function native(results: ResultBatch, i: number): Outcome {
  expect(results.end(i)).toBe(END_EXCEPTION);
  return {
    trap: results.trap(i),
    error: results.errorCode(i),
    rip: results.rip(i),
    cr2: results.cr2(i),
    flags: results.rflags(i) & RFLAGS_STATUS,
    gprs: Array.from({ length: 16 }, (_, r) => results.gpr(i, r)),
  };
}

class SoftSide {
  private readonly guest = new Guest();
  private readonly code = SPARE;

  constructor() {
    this.guest.pages.map(CODE_PAGE, this.code, 7);
  }

  run(cases: CaseBatch, i: number): Outcome {
    const { guest } = this;
    const { bytes } = guest.state;
    guest.vcpu.cpu.blocks.drop(this.code / PAGE_SIZE);
    cases.codePage(i, bytes.subarray(GUEST_BASE + this.code, GUEST_BASE + this.code + PAGE_SIZE));
    const regs: Record<number, bigint> = {};
    for (let r = 0; r < 16; r++) if (r !== RSP) regs[8 * r] = cases.gpr(i, r);
    const { traps } = guest.run({
      code: [],
      again: true,
      at: cases.codeAddress(i),
      cpl: 3,
      rsp: Number(cases.gpr(i, RSP)),
      rflags: cases.rflags(i) | IF | 2,
      regs,
    });
    return this.outcome(traps[0]!);
  }

  private outcome(t: Trap): Outcome {
    const { guest } = this;
    const gprs = Array.from({ length: 16 }, (_, r) => guest.reg(8 * r));
    // The handler has pushed RAX and uses it.
    gprs[RAX] = guest.read64(t.frame - 8);
    gprs[RSP] = BigInt(t.rsp);
    expect(RAX_OFFSET).toBe(0);
    return {
      trap: t.vector,
      error: Math.max(0, t.error),
      rip: BigInt(t.rip),
      cr2: t.vector === 14 ? t.cr2 : 0n,
      flags: t.rflags & RFLAGS_STATUS,
      gprs,
    };
  }
}

const reason = nativeUnsupported();
if (reason) console.log(`skip: ${reason}`);

describe.skipIf(reason !== undefined)("random self-modifying programs", () => {
  const runner = reason === undefined ? new NativeRunner() : undefined;
  afterAll(() => runner?.close());

  test(`${PROGRAMS} of them end as on this processor`, () => {
    const cases = programs();
    const results = runner!.run(cases);
    const soft = new SoftSide();
    const text = (o: Outcome) =>
      `trap ${o.trap} error ${o.error} rip ${o.rip.toString(16)} cr2 ${o.cr2.toString(16)} flags ${o.flags.toString(16)} ${o.gprs.map((g) => g.toString(16)).join(" ")}`;
    const failures: string[] = [];
    for (let i = 0; i < PROGRAMS && failures.length < 3; i++) {
      const want = text(native(results, i));
      const got = text(soft.run(cases, i));
      if (want !== got) failures.push(`${cases.describe(i)}\n  want ${want}\n  got  ${got}`);
    }
    expect(failures.join("\n")).toBe("");
  }, 20_000);
});
