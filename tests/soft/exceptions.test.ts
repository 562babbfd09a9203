/** Delivery of exceptions and software interrupts (SDM vol. 3A, chapter 6; vol. 2A, INT n). */
import { beforeEach, describe, expect, test } from "bun:test";
import { RDI } from "../../src/hypervisor/soft/layout.ts";
import { code, code32 } from "./code.ts";
import {
  CODE,
  CODE64,
  DATA,
  DATA32,
  DPL3,
  FREE_SELECTOR,
  Guest,
  IF,
  KERNEL_CS,
  KERNEL_SS,
  KERNEL_STACK,
  RF,
  RSP0,
  type RunOptions,
  STACK,
  TF,
  USER_CS,
  USER_CS32,
  USER_SS,
} from "./guest.ts";

const guest = new Guest();

beforeEach(() => guest.reset());

const NOT_PRESENT = FREE_SELECTOR;
const ABSENT_CODE = FREE_SELECTOR + 8;
const ABSENT = 0x70_0000;

/** One way to raise each exception: the program, where RIP points, and what is pushed. */
interface Cause {
  name: string;
  vector: number;
  error: number;
  program: number[];
  /** Offset of the pushed RIP in the program. */
  at: number;
  /** Fault class: RF is set in the pushed RFLAGS. */
  fault: boolean;
  options?: Partial<RunOptions>;
  compat?: boolean;
}

const FCW_ZM_UNMASKED = 0x37b;
const MXCSR_ZM_UNMASKED = 0x1d80;

const CAUSES: Cause[] = [
  {
    name: "#DE, division by zero",
    vector: 0,
    error: -1,
    program: code(`
      31 c9 | xor ecx, ecx
      f7 f1 | div ecx
    `),
    at: 2,
    fault: true,
  },
  {
    name: "#DE, quotient too large",
    vector: 0,
    error: -1,
    program: code(`
      b8 00 00 00 80 | mov eax, 0x80000000
      99             | cdq
      83 c9 ff       | or ecx, -1
      f7 f9          | idiv ecx
    `),
    at: 9,
    fault: true,
  },
  {
    name: "#DB, INT1",
    vector: 1,
    error: -1,
    program: code(`
      f1 | int1
    `),
    at: 1,
    fault: false,
  },
  {
    name: "#BP",
    vector: 3,
    error: -1,
    program: code(`
      cc | int3
    `),
    at: 1,
    fault: false,
  },
  {
    name: "#OF",
    vector: 4,
    error: -1,
    program: code32(`
      b0 7f | mov al, 0x7f
      04 01 | add al, 1
      ce    | into
    `),
    at: 5,
    fault: false,
    compat: true,
  },
  {
    name: "#UD",
    vector: 6,
    error: -1,
    program: code(`
      90    | nop
      0f 0b | ud2
    `),
    at: 1,
    fault: true,
  },
  {
    name: "#NM, x87",
    vector: 7,
    error: -1,
    program: code(`
      d9 e8 | fld1
    `),
    at: 0,
    fault: true,
    options: { cr0: 0x8001_003bn },
  },
  {
    name: "#NM, SSE",
    vector: 7,
    error: -1,
    program: code(`
      0f 57 c0 | xorps xmm0, xmm0
    `),
    at: 0,
    fault: true,
    options: { cr0: 0x8001_003bn },
  },
  {
    name: "#NP",
    vector: 11,
    error: NOT_PRESENT,
    program: code(`
      b8 43 00 00 00 | mov eax, 0x43
      8e d8          | mov ds, eax
    `),
    at: 5,
    fault: true,
  },
  {
    name: "#GP, selector beyond the table",
    vector: 13,
    error: 0x1000,
    program: code(`
      b8 00 10 00 00 | mov eax, 0x1000
      8e d8          | mov ds, eax
    `),
    at: 5,
    fault: true,
  },
  {
    name: "#GP, local selector without a local table",
    vector: 13,
    error: 0x14,
    program: code(`
      b8 14 00 00 00 | mov eax, 0x14
      8e c0          | mov es, eax
    `),
    at: 5,
    fault: true,
  },
  {
    name: "#PF",
    vector: 14,
    error: 2,
    program: code(`
      90                   | nop
      89 04 25 00 00 70 00 | mov [0x700000], eax
    `),
    at: 1,
    fault: true,
  },
  {
    name: "#MF",
    vector: 16,
    error: -1,
    program: code(`
      d9 2f | fldcw [rdi]
      d9 e8 | fld1
      d9 ee | fldz
      de f9 | fdivp
      9b    | fwait
    `),
    at: 8,
    fault: true,
  },
  {
    name: "#XM",
    vector: 19,
    error: -1,
    program: code(`
      0f ae 57 04    | ldmxcsr [rdi+4]
      0f 57 c9       | xorps xmm1, xmm1
      f3 0f 10 47 08 | movss xmm0, [rdi+8]
      f3 0f 5e c1    | divss xmm0, xmm1
    `),
    at: 12,
    fault: true,
  },
];

function prepare(): void {
  guest.setDescriptor(NOT_PRESENT, 0n, 0xf_ffff, (DATA32 | DPL3) & ~0x80);
  guest.setDescriptor(ABSENT_CODE, 0n, 0xf_ffff, CODE64 & ~0x80);
  guest.write64(DATA, BigInt(FCW_ZM_UNMASKED) | (BigInt(MXCSR_ZM_UNMASKED) << 32n));
  guest.write64(DATA + 8, 0x3f80_0000n);
}

describe("each vector pushes its error code and frame", () => {
  for (const c of CAUSES) {
    for (const cpl of c.compat ? ([3] as const) : ([0, 3] as const)) {
      test(`${c.name}, privilege ${cpl}`, () => {
        prepare();
        const { traps } = guest.run({
          code: c.program,
          cpl,
          compat: c.compat ?? false,
          rflags: IF | 2,
          regs: { [RDI]: DATA },
          ...c.options,
        });
        expect(traps.length).toBe(1);
        const t = traps[0]!;
        expect([t.vector, t.rip]).toEqual([c.vector, CODE + c.at]);
        expect(t.error).toBe(c.vector === 14 && cpl === 3 ? c.error | 4 : c.error);
        expect(t.cs).toBe(c.compat ? USER_CS32 : cpl === 3 ? USER_CS : KERNEL_CS);
        expect([t.ss, t.rsp]).toEqual(cpl === 3 ? [USER_SS, STACK] : [KERNEL_SS, KERNEL_STACK]);
        expect(t.rflags & (IF | RF | 2)).toBe(c.fault ? IF | RF | 2 : IF | 2);
        // Same stack, 16-byte aligned, or RSP0.
        expect(t.frame).toBe((cpl === 3 ? RSP0 : KERNEL_STACK) - (c.error >= 0 ? 48 : 40));
        expect([t.cpl, t.handlerSs]).toEqual([0, cpl === 3 ? 0 : KERNEL_SS]);
        expect(t.handlerRflags & (IF | RF | TF)).toBe(0);
        expect(t.cr2).toBe(c.vector === 14 ? BigInt(ABSENT) : 0n);
      });
    }
  }

  test("#SS for a stack segment that is not present", () => {
    prepare();
    guest.setDescriptor(NOT_PRESENT, 0n, 0xf_ffff, DATA32 & ~0x80);
    const { traps } = guest.run({
      code: code(`
        b8 40 00 00 00 | mov eax, 0x40
        8e d0          | mov ss, eax
      `),
    });
    expect([traps[0]?.vector, traps[0]?.error, traps[0]?.rip]).toEqual([12, NOT_PRESENT, CODE + 5]);
  });

  test("INTO without overflow goes on", () => {
    const { result } = guest.run({
      code: code32(`
        b0 01 | mov al, 1
        04 01 | add al, 1
        ce    | into
      `),
      compat: true,
    });
    expect(result).toBe(2);
  });
});
