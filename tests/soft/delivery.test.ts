/** The way to a handler: gates, stacks, and faults on the way (SDM vol. 3A, 6.12 to 6.15). */
import { beforeEach, describe, expect, test } from "bun:test";
import { RSP } from "../../src/hypervisor/soft/layout.ts";
import { code } from "./code.ts";
import {
  CODE,
  CODE32,
  CODE64,
  DATA,
  FREE_SELECTOR,
  Guest,
  IF,
  IST,
  KERNEL_SS,
  KERNEL_STACK,
  NT,
  RF,
  RSP0,
  STACK,
  STUBS,
  TF,
  type Trap,
  TSS,
} from "./guest.ts";

const guest = new Guest();

const ABSENT_CODE = FREE_SELECTOR + 8;
/** Not mapped. */
const ABSENT = 0x70_0000;

beforeEach(() => {
  guest.reset();
  guest.setDescriptor(ABSENT_CODE, 0n, 0xf_ffff, CODE64 & ~0x80);
});

describe("gates", () => {
  const INT = code(`
    cd 40 | int 0x40
  `);

  test("an interrupt gate clears IF, a trap gate keeps it; both clear NT and TF", () => {
    for (const [type, flag] of [
      [0xe, 0],
      [0xf, IF],
    ] as const) {
      guest.setGate(0x40, STUBS + 16 * 0x40, { type });
      const { traps } = guest.run({ code: INT, cpl: 3, rflags: IF | NT | 2 });
      expect(traps[0]?.vector).toBe(0x40);
      expect(traps[0]!.handlerRflags & (IF | NT | TF)).toBe(flag);
      expect(traps[0]!.rflags & (IF | NT)).toBe(IF | NT);
    }
  });

  test("the user reaches only gates of DPL 3 by INT; the fault is at the INT", () => {
    guest.setGate(0x40, STUBS + 16 * 0x40, { dpl: 0 });
    guest.setGate(3, STUBS + 16 * 3, { dpl: 0 });
    const trap = (program: number[], cpl: 0 | 3): Trap => guest.run({ code: program, cpl }).traps[0]!;
    const INT3 = code(`
      cc | int3
    `);
    expect(trap(INT, 3)).toMatchObject({ vector: 13, error: 0x40 * 8 + 2, rip: CODE });
    expect(trap(INT, 3).rflags & RF).toBe(RF);
    expect(trap(INT, 0)).toMatchObject({ vector: 0x40, rip: CODE + 2 });
    expect(trap(INT3, 3)).toMatchObject({ vector: 13, error: 3 * 8 + 2, rip: CODE });
    expect(trap(INT3, 0)).toMatchObject({ vector: 3, rip: CODE + 1 });
  });

  test("INT1 and exceptions ignore the gate's privilege", () => {
    for (const vector of [1, 6, 14]) guest.setGate(vector, STUBS + 16 * vector, { dpl: 0 });
    const vector = (program: number[]) => guest.run({ code: program, cpl: 3 }).traps[0]?.vector;
    expect(
      vector(
        code(`
          f1 | int1
        `),
      ),
    ).toBe(1);
    expect(
      vector(
        code(`
          0f 0b | ud2
        `),
      ),
    ).toBe(6);
    expect(
      vector(
        code(`
          0f b6 00 | movzx eax, byte ptr [rax]
        `),
      ),
    ).toBe(14);
  });

  const BAD_GATES: [string, Parameters<Guest["setGate"]>[2], number | bigint, number, number][] = [
    ["not present", { present: false }, 0, 11, 0x40 * 8 + 2],
    ["of a 16-bit type", { type: 6 }, 0, 13, 0x40 * 8 + 2],
    ["a task gate", { type: 5 }, 0, 13, 0x40 * 8 + 2],
    ["with a null selector", { selector: 0 }, 0, 13, 0],
    ["with a selector beyond the GDT", { selector: 0x1000 }, 0, 13, 0x1000],
    ["with a data segment", { selector: KERNEL_SS }, 0, 13, KERNEL_SS],
    ["with a 32-bit code segment", { selector: FREE_SELECTOR + 16 }, 0, 13, FREE_SELECTOR + 16],
    ["with a code segment that is not present", { selector: ABSENT_CODE }, 0, 11, ABSENT_CODE],
    ["with a target that is not canonical", {}, 0x8000_0000_0000n, 13, 0],
  ];
  for (const [name, options, target, vector, error] of BAD_GATES) {
    test(`a gate ${name}`, () => {
      guest.setDescriptor(FREE_SELECTOR + 16, 0n, 0xf_ffff, CODE32);
      guest.setGate(0x40, target, options);
      guest.setGate(6, target, options);
      for (const cpl of [0, 3] as const) {
        const { traps } = guest.run({ code: INT, cpl });
        expect(traps[0]).toMatchObject({ vector, error, rip: CODE });
        // The same through an exception: EXT is set, and the index is that of the exception's gate.
        const { traps: nested } = guest.run({
          code: code(`
            0f 0b | ud2
          `),
          cpl,
        });
        const own = (error & 2) !== 0 ? 6 * 8 + 2 : error;
        expect(nested[0]).toMatchObject({ vector, error: own | 1, rip: CODE });
      }
    });
  }

  test("a vector beyond the IDT's limit", () => {
    const { traps } = guest.run({
      code: INT,
      tweak: (r) => {
        r.idt.limit = 0x40 * 16 + 14;
      },
    });
    expect(traps[0]).toMatchObject({ vector: 13, error: 0x40 * 8 + 2, rip: CODE });
  });

  test("an IDT that is not mapped is a page fault of the supervisor", () => {
    // The first part of the IDT stays readable, so that the fault itself can be delivered.
    const { traps } = guest.run({
      code: code(`
        cd f0 | int 0xf0
      `),
      cpl: 3,
      tweak: (r) => {
        r.idt = { base: BigInt(DATA + 0xf400), limit: 0xfff };
        for (let v = 0; v < 20; v++) {
          guest.write64(DATA + 0xf400 + 16 * v, guest.read64(0x1_1000 + 16 * v));
          guest.write64(DATA + 0xf408 + 16 * v, guest.read64(0x1_1008 + 16 * v));
        }
      },
    });
    expect(traps[0]).toMatchObject({ vector: 14, error: 0, rip: CODE, cr2: BigInt(DATA + 0xf400 + 0xf00) });
  });
});

describe("stacks", () => {
  const UD = code(`
    0f 0b | ud2
  `);

  test("the frame is 16-byte aligned whatever RSP was, and the old RSP comes back", () => {
    for (let offset = 0; offset < 16; offset++) {
      const rsp = KERNEL_STACK - 64 - offset;
      const { traps, result } = guest.run({
        code: code(`
          cc    | int3
          b0 05 | mov al, 5
        `),
        rsp,
        onTrap: () => true,
      });
      expect(traps[0]).toMatchObject({ rsp, frame: (rsp & ~15) - 40 });
      expect(result).toBe(5);
      expect(guest.reg(RSP)).toBe(BigInt(rsp));
    }
  });

  test("IST n of the gate is used from every privilege; SS changes only with the privilege", () => {
    for (let ist = 1; ist < 8; ist++) {
      guest.setGate(6, STUBS + 16 * 6, { ist });
      for (const cpl of [0, 3] as const) {
        const { traps } = guest.run({ code: UD, cpl });
        expect(traps[0]).toMatchObject({ vector: 6, frame: IST + ist * 0x1000 - 40, cpl: 0 });
        expect(traps[0]?.handlerSs).toBe(cpl === 3 ? 0 : KERNEL_SS);
        expect(traps[0]?.rsp).toBe(cpl === 3 ? STACK : KERNEL_STACK);
      }
    }
  });

  test("IST keeps nested exceptions of one vector on the same stack", () => {
    guest.setGate(6, STUBS + 16 * 6, { ist: 2 });
    guest.write64(TSS + 36 + 8, BigInt(IST + 0x2000 - 8));
    const { traps } = guest.run({ code: UD });
    expect(traps[0]?.frame).toBe(((IST + 0x2000 - 8) & ~15) - 40);
  });

  test("a stack pointer in the TSS that is not canonical is #SS", () => {
    guest.write64(TSS + 4, 0x8000_0000_1000n);
    guest.setGate(12, STUBS + 16 * 12, { ist: 1 });
    const { traps } = guest.run({
      code: code(`
        cd 40 | int 0x40
      `),
      cpl: 3,
    });
    expect(traps[0]).toMatchObject({ vector: 12, error: 0, rip: CODE });
  });

  test("a TSS too short for the stack pointer is #TS with its selector", () => {
    guest.setGate(10, STUBS + 16 * 10, { ist: 0 });
    const { traps, end } = guest.run({
      code: code(`
        cd 40 | int 0x40
      `),
      cpl: 3,
      tweak: (r) => {
        r.tr.limit = 10;
      },
    });
    // #TS needs the same stack pointer: contributory after contributory, then the double fault fails too.
    expect([traps.length, end.kind]).toEqual([0, "shutdown"]);

    guest.setGate(0x40, STUBS + 16 * 0x40, { ist: 7 });
    const short = guest.run({
      code: code(`
        cd 40 | int 0x40
      `),
      tweak: (r) => {
        r.tr.limit = 83;
      },
    });
    expect(short.traps[0]).toMatchObject({ vector: 10, error: 0x30, rip: CODE });
  });

  test("a stack that is not mapped: the page fault names it, at the instruction that raised the first one", () => {
    guest.setGate(14, STUBS + 16 * 14, { ist: 1 });
    const { traps } = guest.run({ code: UD, rsp: ABSENT });
    expect(traps[0]).toMatchObject({
      vector: 14,
      error: 2,
      rip: CODE,
      rsp: ABSENT,
      cr2: BigInt(ABSENT - 40),
    });
  });
});

describe("a fault while an exception is delivered (SDM vol. 3A, table 6-5)", () => {
  const DE = code(`
    31 c9 | xor ecx, ecx
    f7 f1 | div ecx
  `);
  const UD = code(`
    0f 0b | ud2
  `);
  const PF = code(`
    89 04 25 00 00 70 00 | mov [0x700000], eax
  `);
  const GP = code(`
    48 b9 00 00 00 00 00 80 00 00 | movabs rcx, 0x800000000000
    89 01                         | mov [rcx], eax
  `);

  test("benign, then anything: the second", () => {
    guest.setGate(6, 0, { present: false });
    expect(guest.run({ code: UD }).traps[0]).toMatchObject({ vector: 11, error: 6 * 8 + 3, rip: CODE });
  });

  test("contributory, then contributory: #DF", () => {
    guest.setGate(0, 0, { present: false });
    expect(guest.run({ code: DE }).traps[0]).toMatchObject({ vector: 8, error: 0, rip: CODE + 2 });
  });

  test("contributory, then a page fault: the page fault", () => {
    guest.setGate(14, STUBS + 16 * 14, { ist: 1 });
    const { traps } = guest.run({ code: GP, rsp: ABSENT });
    expect(traps[0]).toMatchObject({ vector: 14, error: 2, rip: CODE + 10, cr2: BigInt(ABSENT - 48) });
  });

  test("a page fault, then contributory: #DF, and CR2 names the page fault", () => {
    guest.setGate(14, 0, { type: 5 });
    const { traps } = guest.run({ code: PF });
    expect(traps[0]).toMatchObject({ vector: 8, error: 0, rip: CODE, cr2: BigInt(ABSENT) });
  });

  test("a page fault, then a page fault: #DF, and CR2 names the second", () => {
    guest.setGate(8, STUBS + 16 * 8, { ist: 1 });
    const { traps } = guest.run({ code: PF, rsp: ABSENT + 0x5000 });
    expect(traps[0]).toMatchObject({ vector: 8, error: 0, rip: CODE, rsp: ABSENT + 0x5000 });
    expect(traps[0]?.cr2).toBe(BigInt(ABSENT + 0x5000 - 48));
  });

  test("a fault of INT n is never a double fault by itself", () => {
    guest.setGate(0x40, 0, { present: false });
    const { traps } = guest.run({
      code: code(`
        cd 40 | int 0x40
      `),
      cpl: 3,
    });
    expect(traps[0]).toMatchObject({ vector: 11, error: 0x40 * 8 + 2, rip: CODE });
  });

  test("INT 14 is no page fault: no error code, CR2 stays", () => {
    const { traps } = guest.run({
      code: code(`
        cd 0e | int 14
      `),
      cpl: 3,
    });
    expect(traps[0]).toMatchObject({ vector: 14, error: -1, rip: CODE + 2, frame: RSP0 - 40, cr2: 0n });
  });

  test("a fault during #DF shuts the processor down", () => {
    guest.setGate(0, 0, { present: false });
    guest.setGate(8, 0, { present: false });
    const { end, traps } = guest.run({ code: DE });
    expect(traps).toEqual([]);
    expect(end.kind).toBe("shutdown");
    expect(end).toHaveProperty("detail", expect.stringContaining("triple fault; rip=0000000000400002"));
  });

  test("without an IDT any exception shuts the processor down", () => {
    for (const cpl of [0, 3] as const) {
      const { end } = guest.run({
        code: UD,
        cpl,
        tweak: (r) => {
          r.idt.limit = 0;
        },
      });
      expect(end.kind).toBe("shutdown");
    }
  });
});
