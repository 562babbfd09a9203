/** IRET in all its forms, and far returns (SDM vol. 2A, IRET; vol. 2B, RET). */
import { beforeEach, describe, expect, test } from "bun:test";
import { DS, ES, RAX, RDI, REG, RSP, SEG_SELECTOR } from "../../src/hypervisor/soft/layout.ts";
import { code, code32, le32 } from "./code.ts";
import {
  CODE,
  CODE64,
  DATA,
  DATA32,
  DPL3,
  FREE_SELECTOR,
  Guest,
  IF,
  IOPL3,
  KERNEL_CODE,
  KERNEL_CS,
  KERNEL_SS,
  KERNEL_STACK,
  NT,
  RF,
  type RunOptions,
  type RunResult,
  STACK,
  STUBS,
  TF,
  USER_CS,
  USER_CS32,
  USER_SS,
} from "./guest.ts";

const guest = new Guest();

beforeEach(() => guest.reset());

/** Where returns go: reports RFLAGS (pushed) and ends with AL = 0x77. */
const LANDING = CODE + 0x100;
const LAND = code(`
  9c    | pushfq
  b0 77 | mov al, 0x77
  e6 f1 | out 0xf1, al
  eb fe | jmp .
`);
const FRAME = KERNEL_STACK - 0x100;

interface Frame {
  rip?: bigint | number;
  cs?: number;
  rflags?: number;
  rsp?: bigint | number;
  ss?: number;
}

/** Executes an IRETQ at privilege 0 with this frame on the stack. */
function iretq(frame: Frame, options: Partial<RunOptions> = {}): RunResult {
  const { rip = LANDING, cs = USER_CS, rflags = 2, rsp = STACK, ss = USER_SS } = frame;
  [rip, cs, rflags, rsp, ss].forEach((word, i) => {
    guest.write64(FRAME + 8 * i, BigInt(word));
  });
  guest.poke(LANDING, LAND);
  return guest.run({ code: code("48 cf | iretq"), rsp: FRAME, ...options });
}

/** RFLAGS after a return to LANDING. */
const flagsAfter = (): number => Number(guest.read64(Number(guest.reg(RSP))));

describe("IRETQ", () => {
  test("to the user: CS, SS, RSP, RIP, and the landing runs at privilege 3", () => {
    expect(iretq({}).result).toBe(0x77);
    expect(guest.state.cpl).toBe(3);
    expect(guest.reg(RSP)).toBe(BigInt(STACK - 8));
  });

  test("to privilege 0, with a null SS or a real one", () => {
    for (const ss of [0, KERNEL_SS]) {
      expect(iretq({ cs: KERNEL_CS, ss, rsp: KERNEL_STACK }).result).toBe(0x77);
      expect([guest.state.cpl, guest.reg(RSP)]).toEqual([0, BigInt(KERNEL_STACK - 8)]);
    }
  });

  test("to 32-bit user code, with RSP and RIP cut to 32 bits", () => {
    const { result } = iretq({
      cs: USER_CS32,
      rip: 0x5_0000_0000n + BigInt(LANDING),
      rsp: 0x7_0000_0000n + BigInt(STACK),
    });
    expect(result).toBe(0x77);
    // PUSHFQ is PUSHFD there: four bytes.
    expect([guest.state.cpl, guest.reg(RSP)]).toEqual([3, BigInt(STACK - 4)]);
  });

  test("restores the flags privilege 0 may set, and drops RF, VM and reserved bits", () => {
    iretq({ rflags: 0x3f_ffff & ~TF & ~NT });
    // VIF and VIP stay clear: there is no virtual-8086 extension.
    expect(flagsAfter() & ~0x18_0000).toBe(0x24_3ed7 & ~NT);
    iretq({ rflags: 0 });
    expect(flagsAfter()).toBe(2);
  });

  test("NT set is #GP(0) in long mode", () => {
    expect(iretq({}, { rflags: NT | 2 }).traps[0]).toMatchObject({ vector: 13, error: 0, rip: CODE });
  });

  test("a return to the user empties data segments it may not have", () => {
    iretq(
      {},
      {
        code: code(`
          b8 10 00 00 00 | mov eax, 0x10
          8e d8          | mov ds, eax
          b8 23 00 00 00 | mov eax, 0x23
          8e c0          | mov es, eax
          48 cf          | iretq
        `),
      },
    );
    expect(guest.state.get(SEG_SELECTOR + 4 * DS)).toBe(0);
    expect(guest.state.get(SEG_SELECTOR + 4 * ES)).toBe(USER_SS);
  });

  const CASES: [string, Frame, number, number][] = [
    ["a null CS", { cs: 0 }, 13, 0],
    ["a null CS with RPL 3", { cs: 3 }, 13, 0],
    ["a CS beyond the GDT", { cs: 0x1003 }, 13, 0x1000],
    ["a data segment as CS", { cs: USER_SS }, 13, USER_SS & ~3],
    ["a CS of other DPL than RPL", { cs: KERNEL_CS | 3 }, 13, KERNEL_CS],
    ["a CS that is not present", { cs: FREE_SELECTOR | 3 }, 11, FREE_SELECTOR],
    ["a CS with L and D", { cs: (FREE_SELECTOR + 8) | 3 }, 13, FREE_SELECTOR + 8],
    ["a null SS at privilege 3", { ss: 3 }, 13, 0],
    ["a null SS before 32-bit code", { cs: USER_CS32, ss: 0 }, 13, 0],
    ["an SS of other RPL", { ss: USER_SS & ~3 }, 13, USER_SS & ~3],
    ["a code segment as SS", { ss: USER_CS }, 13, USER_CS & ~3],
    ["an SS of other DPL", { ss: KERNEL_SS | 3 }, 13, KERNEL_SS],
    ["an SS that is not present", { ss: (FREE_SELECTOR + 16) | 3 }, 12, FREE_SELECTOR + 16],
    ["a read-only SS", { ss: (FREE_SELECTOR + 24) | 3 }, 13, FREE_SELECTOR + 24],
    ["an RIP that is not canonical", { rip: 0x8000_0000_0000n }, 13, 0],
    [
      "privilege 1, which the software CPU has not",
      { cs: (FREE_SELECTOR + 32) | 1, ss: (FREE_SELECTOR + 40) | 1 },
      13,
      FREE_SELECTOR + 32,
    ],
  ];
  for (const [name, frame, vector, error] of CASES) {
    test(`${name}: the fault is at the IRET, and nothing has changed`, () => {
      guest.setDescriptor(FREE_SELECTOR, 0n, 0xf_ffff, (CODE64 | DPL3) & ~0x80);
      guest.setDescriptor(FREE_SELECTOR + 8, 0n, 0xf_ffff, CODE64 | DPL3 | 0x4000);
      guest.setDescriptor(FREE_SELECTOR + 16, 0n, 0xf_ffff, (DATA32 | DPL3) & ~0x80);
      guest.setDescriptor(FREE_SELECTOR + 24, 0n, 0xf_ffff, (DATA32 | DPL3) & ~2);
      guest.setDescriptor(FREE_SELECTOR + 32, 0n, 0xf_ffff, CODE64 | 0x20);
      guest.setDescriptor(FREE_SELECTOR + 40, 0n, 0xf_ffff, DATA32 | 0x20);
      const { traps } = iretq({ rflags: IF | 2, ...frame });
      expect(traps[0]).toMatchObject({ vector, error, rip: CODE, cs: KERNEL_CS, ss: KERNEL_SS, rsp: FRAME });
      expect(traps[0]!.rflags).toBe(RF | 2);
    });
  }

  test("from the user to the user: IF and IOPL stay; inward is #GP", () => {
    const frame = (cs: number, ss: number) =>
      [LANDING, cs, IOPL3 | 2, STACK - 0x200, ss].forEach((word, i) => {
        guest.write64(DATA + 8 * i, BigInt(word));
      });
    const run = () => {
      guest.poke(LANDING, LAND);
      return guest.run({
        code: code(`
          48 89 fc | mov rsp, rdi
          48 cf    | iretq
        `),
        cpl: 3,
        rflags: IF | 2,
        regs: { [RDI]: DATA },
      });
    };
    frame(USER_CS, USER_SS);
    expect(run().result).toBe(0x77);
    expect(flagsAfter()).toBe(IF | 2);
    frame(KERNEL_CS, KERNEL_SS);
    expect(run().traps[0]).toMatchObject({ vector: 13, error: KERNEL_CS, rip: CODE + 3 });
  });

  test("a frame that is not mapped is #PF at the IRET, also half of it", () => {
    expect(guest.run({ code: code("48 cf | iretq"), rsp: 0x70_0000, ...onIst() }).traps[0]).toMatchObject({
      vector: 14,
      error: 0,
      rip: CODE,
      cr2: 0x70_0000n,
    });
    // RIP, CS and RFLAGS are in the last page of a range, RSP and SS in the page after it.
    const half = STACK - 24;
    [LANDING, USER_CS, 2].forEach((word, i) => {
      guest.write64(half + 8 * i, BigInt(word));
    });
    expect(guest.run({ code: code("48 cf | iretq"), rsp: half, ...onIst() }).traps[0]).toMatchObject({
      vector: 14,
      error: 0,
      rip: CODE,
      cr2: BigInt(STACK),
      rsp: half,
    });
  });

  test("a landing that is not mapped faults there, at the new privilege", () => {
    const { traps } = iretq({ rip: 0x70_0000 });
    expect(traps[0]).toMatchObject({
      vector: 14,
      error: 4 | 16,
      rip: 0x70_0000,
      cs: USER_CS,
      cr2: 0x70_0000n,
    });
  });
});

/** Page faults on a stack of their own. */
function onIst(): Partial<RunOptions> {
  guest.setGate(14, STUBS + 16 * 14, { ist: 1 });
  return {};
}

describe("IRET with smaller operands", () => {
  test("IRETD in 64-bit mode pops five doublewords", () => {
    guest.poke(LANDING, LAND);
    guest.poke(FRAME, [LANDING, USER_CS, 2, STACK, USER_SS].flatMap(le32));
    const { result } = guest.run({ code: code("cf | iretd"), rsp: FRAME });
    expect([result, guest.state.cpl, guest.reg(RSP)]).toEqual([0x77, 3, BigInt(STACK - 8)]);
  });

  test("IRETD between 32-bit user code pops three", () => {
    guest.poke(LANDING, LAND);
    guest.poke(DATA, [LANDING, USER_CS32, 2].flatMap(le32));
    const { result } = guest.run({
      code: code32(`
        89 fc | mov esp, edi
        cf    | iret
      `),
      compat: true,
      regs: { [RDI]: DATA },
    });
    expect([result, guest.reg(RSP)]).toEqual([0x77, BigInt(DATA + 12 - 4)]);
  });
});

describe("far transfers", () => {
  test("far return to the user and to other code of the same privilege", () => {
    guest.poke(LANDING, LAND);
    for (const [cs, ss, rsp] of [
      [USER_CS, USER_SS, STACK],
      [KERNEL_CS, KERNEL_SS, FRAME + 16],
    ] as const) {
      [LANDING, cs, STACK, ss].forEach((word, i) => {
        guest.write64(FRAME + 8 * i, BigInt(word));
      });
      const { result } = guest.run({ code: code("48 cb | retfq"), rsp: FRAME });
      expect([result, guest.reg(RSP)]).toEqual([0x77, BigInt(rsp - 8)]);
    }
  });

  test("far jump and far call change between 64-bit and 32-bit user code", () => {
    const back = CODE + 0x200;
    guest.poke(LANDING, [
      // Now in 32-bit code: jmp far 0x2b:back
      0xea,
      ...le32(back),
      USER_CS,
      0,
    ]);
    guest.poke(back, LAND);
    guest.poke(DATA, [...le32(LANDING), USER_CS32, 0]);
    const { result } = guest.run({
      code: code("ff 2f | jmp fword ptr [rdi]"),
      cpl: 3,
      regs: { [RDI]: DATA },
    });
    expect([result, guest.reg(RSP)]).toEqual([0x77, BigInt(STACK - 8)]);
    // The call leaves a far return address, by which 32-bit code returns to 64-bit code.
    guest.poke(LANDING, code32("cb | retf"));
    const called = guest.run({
      code: code(`
        ff 1f | call fword ptr [rdi]
        b0 12 | mov al, 0x12
      `),
      cpl: 3,
      regs: { [RDI]: DATA },
    });
    expect([called.result, guest.reg(RSP)]).toEqual([0x12, BigInt(STACK)]);
  });

  test("a far jump to more privilege, or to a data segment, is #GP with the selector", () => {
    for (const [selector, error] of [
      [KERNEL_CS, KERNEL_CS],
      [KERNEL_SS, KERNEL_SS],
      [0, 0],
      [0x1003, 0x1000],
    ] as const) {
      guest.poke(DATA, [...le32(LANDING), selector & 0xff, selector >> 8]);
      const { traps } = guest.run({
        code: code("ff 2f | jmp fword ptr [rdi]"),
        cpl: 3,
        regs: { [RDI]: DATA },
      });
      expect(traps[0]).toMatchObject({ vector: 13, error, rip: CODE });
    }
  });
});

describe("a fault inside a handler", () => {
  test("IRET that faults in the handler of another exception nests, and both return", () => {
    // The handler of #UD returns through a frame with a bad SS; the #GP handler repairs it and returns.
    guest.setGate(6, KERNEL_CODE);
    guest.poke(
      KERNEL_CODE,
      code(`
        48 83 04 24 02             | add qword ptr [rsp], 2
        48 c7 44 24 20 10 00 00 00 | mov qword ptr [rsp+32], 0x10
        48 cf                      | iretq
      `),
    );
    const { result, traps } = guest.run({
      code: code(`
        0f 0b | ud2
        b0 2a | mov al, 42
      `),
      cpl: 3,
      onTrap: (t) => {
        expect(t).toMatchObject({ vector: 13, error: KERNEL_SS, cpl: 0, cs: KERNEL_CS });
        guest.write64(t.rsp + 32, BigInt(USER_SS));
        return true;
      },
    });
    expect([result, traps.length]).toEqual([42, 1]);
  });

  test("SWAPGS state survives: GS base of user and kernel stay apart", () => {
    guest.setGate(0x80, KERNEL_CODE);
    guest.poke(
      KERNEL_CODE,
      code(`
        0f 01 f8                   | swapgs
        65 48 8b 04 25 00 00 00 00 | mov rax, gs:[0]
        0f 01 f8                   | swapgs
        48 cf                      | iretq
      `),
    );
    guest.write64(DATA, 0x1111n);
    guest.write64(DATA + 0x100, 0x2222n);
    guest.poke(LANDING, [
      ...code(`
        cd 80                      | int 0x80
        65 48 8b 3c 25 00 00 00 00 | mov rdi, gs:[0]
      `),
      ...LAND.slice(1),
    ]);
    const gsBase = (msr: number, value: number) => [
      ...[0xb9, ...le32(msr)],
      ...[0xb8, ...le32(value)],
      ...code(`
        31 d2 | xor edx, edx
        0f 30 | wrmsr
      `),
    ];
    [LANDING, USER_CS, 2, STACK, USER_SS].forEach((word, i) => {
      guest.write64(FRAME + 8 * i, BigInt(word));
    });
    const { result, traps } = guest.run({
      // A null selector, or the return to the user would take GS away together with its base.
      code: [
        ...code(`
          31 c0 | xor eax, eax
          8e e8 | mov gs, eax
        `),
        ...gsBase(0xc000_0101, DATA),
        ...gsBase(0xc000_0102, DATA + 0x100),
        ...code("48 cf | iretq"),
      ],
      rsp: FRAME,
    });
    expect(traps).toEqual([]);
    expect(result).toBe(0x77);
    expect(guest.reg(RDI)).toBe(0x1111n);
    expect(guest.reg(RAX)).toBe(0x2277n);
    expect(guest.reg(REG.segBase + 40)).toBe(BigInt(DATA));
  });
});
