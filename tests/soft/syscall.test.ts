/** SYSCALL, SYSRET, SWAPGS and 32-bit user code (SDM vol. 2B, SYSCALL, SYSRET; AMD APM vol. 3). */
import { beforeEach, describe, expect, test } from "bun:test";
import {
  CS,
  CSTAR,
  KERNEL_GS_BASE,
  LSTAR,
  R11,
  RAX,
  RBX,
  RCX,
  RDI,
  RDX,
  REG,
  RSI,
  RSP,
  SEG_ATTR,
  SEG_LIMIT,
  SEG_SELECTOR,
  SFMASK,
  SS,
  STAR,
} from "../../src/hypervisor/soft/layout.ts";
import { code, code32 } from "./code.ts";
import {
  CODE,
  DATA,
  Guest,
  IF,
  IOPL3,
  KERNEL_CODE,
  KERNEL_CS,
  KERNEL_SS,
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

/** STAR: SYSCALL loads CS 0x08 and SS 0x10; SYSRET CS 0x18 + 16 (64-bit) or 0x18 and SS 0x18 + 8. */
const STAR_VALUE = (0x1bn << 48n) | (0x08n << 32n);

beforeEach(() => {
  guest.reset();
  guest.state.set64(STAR, STAR_VALUE);
  guest.state.set64(LSTAR, BigInt(KERNEL_CODE));
  guest.state.set64(CSTAR, BigInt(KERNEL_CODE + 0x800));
});

const segment = (s: number) => ({
  selector: guest.state.get(SEG_SELECTOR + 4 * s),
  base: guest.reg(REG.segBase + 8 * s),
  limit: guest.state.get(SEG_LIMIT + 4 * s) >>> 0,
  attr: guest.state.get(SEG_ATTR + 4 * s),
});

const END = code(`
  e6 f1 | out 0xf1, al
  eb fe | jmp .
`);

describe("SYSCALL", () => {
  const SYSCALL = code(`
    90    | nop
    0f 05 | syscall
  `);

  test("loads flat kernel segments whatever the GDT holds, RCX, R11 and LSTAR; RSP stays", () => {
    guest.poke(KERNEL_CODE, END);
    guest.setDescriptor(KERNEL_CS, 0n, 0, 0);
    guest.setDescriptor(KERNEL_SS, 0n, 0, 0);
    const { result } = guest.run({ code: SYSCALL, cpl: 3, rflags: IF | 0x8d5 | 2, regs: { [RAX]: 5 } });
    expect(result).toBe(5);
    expect(guest.state.cpl).toBe(0);
    expect([guest.reg(RCX), guest.reg(R11), guest.reg(RSP)]).toEqual([
      BigInt(CODE + 3),
      BigInt(IF | 0x8d5 | 2),
      BigInt(STACK),
    ]);
    expect(segment(CS)).toEqual({ selector: KERNEL_CS, base: 0n, limit: 0xffff_ffff, attr: 0xa09b });
    expect(segment(SS)).toEqual({ selector: KERNEL_SS, base: 0n, limit: 0xffff_ffff, attr: 0xc093 });
  });

  test("clears exactly the flags in SFMASK, and RF", () => {
    guest.poke(
      KERNEL_CODE,
      code(`
        48 89 fc | mov rsp, rdi
        9c       | pushfq
        e6 f1    | out 0xf1, al
        eb fe    | jmp .
      `),
    );
    const all = 0x24_0cd5 | IF | IOPL3 | 2;
    for (const mask of [0, IF, 0x4_7700, 0xffff_ffff, 0x8d5]) {
      guest.state.set64(SFMASK, BigInt(mask));
      guest.run({ code: SYSCALL, cpl: 3, rflags: all | RF, regs: { [RDI]: DATA + 0x1000 } });
      expect(Number(guest.read64(DATA + 0xff8))).toBe((all & ~mask) | 2);
      expect(guest.reg(R11)).toBe(BigInt(all));
    }
  });

  test("is #UD without EFER.SCE", () => {
    const { traps } = guest.run({ code: SYSCALL, cpl: 3, efer: 0xd00n });
    expect(traps[0]).toMatchObject({ vector: 6, rip: CODE + 1 });
  });

  test("from 32-bit user code enters at CSTAR with a 32-bit return address", () => {
    guest.poke(KERNEL_CODE + 0x800, END);
    const { result } = guest.run({ code: SYSCALL, compat: true, regs: { [RAX]: 9 } });
    expect([result, guest.reg(RCX)]).toEqual([9, BigInt(CODE + 3)]);
    expect(segment(CS).attr).toBe(0xa09b);
  });
});

describe("SYSRET", () => {
  const sysret = (wide: boolean, regs: Record<number, number | bigint>, options: Partial<RunOptions> = {}) =>
    guest.run({ code: wide ? code("48 0f 07 | sysretq") : [0x0f, 0x07], regs, ...options });

  test("to 64-bit code: segments, RIP from RCX, flags from R11; RSP stays", () => {
    guest.poke(CODE + 0x100, END);
    const { result } = sysret(true, { [RCX]: CODE + 0x100, [R11]: IF | 0x8d5, [RAX]: 7 }, { rsp: STACK });
    expect(result).toBe(7);
    expect([guest.state.cpl, guest.reg(RSP), guest.state.rflags]).toEqual([3, BigInt(STACK), IF | 0x8d5 | 2]);
    expect(segment(CS)).toEqual({ selector: USER_CS, base: 0n, limit: 0xffff_ffff, attr: 0xa0fb });
    expect(segment(SS)).toEqual({ selector: USER_SS, base: 0n, limit: 0xffff_ffff, attr: 0xc0f3 });
  });

  test("to 32-bit code: RIP from ECX", () => {
    guest.poke(
      CODE + 0x100,
      code32(`
        40    | inc eax
        e6 f1 | out 0xf1, al
        eb fe | jmp .
      `),
    );
    const { result } = sysret(false, { [RCX]: 0x9_0000_0000n + BigInt(CODE + 0x100), [R11]: 2, [RAX]: 7 });
    // 40 is INC EAX in 32-bit code and a prefix in 64-bit code.
    expect(result).toBe(8);
    expect(segment(CS)).toEqual({ selector: USER_CS32, base: 0n, limit: 0xffff_ffff, attr: 0xc0fb });
  });

  test("takes no RF and VM from R11, but every other flag that exists", () => {
    guest.poke(CODE + 0x100, END);
    sysret(true, { [RCX]: CODE + 0x100, [R11]: 0xffff_ffff & ~TF }, { rsp: STACK });
    expect(guest.state.rflags & (RF | 0x2_0000)).toBe(0);
    expect(guest.state.rflags & ~0x18_0000).toBe(0x24_7ed7);
  });

  test("to an address that is not canonical is #GP(0) at privilege 0, at the SYSRET", () => {
    const { traps } = sysret(true, { [RCX]: 0x8000_0000_0000n, [R11]: 2 });
    expect(traps[0]).toMatchObject({ vector: 13, error: 0, rip: CODE, cs: KERNEL_CS });
  });

  test("is #UD without EFER.SCE", () => {
    expect(sysret(true, {}, { efer: 0xd00n }).traps[0]).toMatchObject({ vector: 6, rip: CODE });
  });
});

test("SYSCALL and SYSRET, a thousand times, as a kernel does it", () => {
  guest.state.set64(KERNEL_GS_BASE, BigInt(DATA));
  guest.state.set64(SFMASK, BigInt(IF));
  guest.write64(DATA, BigInt(RSP0));
  guest.poke(
    KERNEL_CODE,
    code(`
      0f 01 f8                   | swapgs
      65 48 89 24 25 08 00 00 00 | mov gs:[8], rsp
      65 48 8b 24 25 00 00 00 00 | mov rsp, gs:[0]
      51                         | push rcx
      41 53                      | push r11
      48 01 c3                   | add rbx, rax
      41 5b                      | pop r11
      59                         | pop rcx
      65 48 8b 24 25 08 00 00 00 | mov rsp, gs:[8]
      0f 01 f8                   | swapgs
      48 0f 07                   | sysretq
    `),
  );
  const { result, traps } = guest.run({
    code: code(`
      b8 e8 03 00 00 | mov eax, 1000
                     | again:
      0f 05          | syscall
      ff c8          | dec eax
      75 fa          | jnz again
      b0 21          | mov al, 0x21
    `),
    cpl: 3,
    rflags: IF | 2,
  });
  expect([result, traps]).toEqual([0x21, []]);
  expect(guest.reg(RBX)).toBe(500_500n);
  expect([guest.reg(RSP), guest.reg(KERNEL_GS_BASE)]).toEqual([BigInt(STACK), BigInt(DATA)]);
});

describe("32-bit user code", () => {
  test("INT 0x80 enters the 64-bit handler with a 64-bit frame and returns", () => {
    const { result, traps } = guest.run({
      code: code32(`
        b8 11 00 00 00 | mov eax, 0x11
        cd 80          | int 0x80
        40             | inc eax
      `),
      compat: true,
      rflags: IF | 2,
      onTrap: () => true,
    });
    expect(result).toBe(0x12);
    expect(traps[0]).toMatchObject({
      vector: 0x80,
      rip: CODE + 7,
      cs: USER_CS32,
      ss: USER_SS,
      rsp: STACK,
      frame: RSP0 - 40,
      rflags: IF | 2,
    });
  });

  test("a handler sees 64-bit registers; the upper halves are those it leaves", () => {
    guest.setGate(0x80, KERNEL_CODE);
    guest.poke(
      KERNEL_CODE,
      code(`
        48 8d 14 00 | lea rdx, [rax+rax]
        48 cf       | iretq
      `),
    );
    guest.run({
      code: code32(`
        b8 00 00 00 90 | mov eax, 0x90000000
        cd 80          | int 0x80
      `),
      compat: true,
    });
    expect(guest.reg(RDX)).toBe(0x1_2000_0000n);
  });

  test("addresses wrap at 4 GiB, and push and pop move 4 bytes", () => {
    guest.write64(DATA, 0x5566_7788n);
    const { result } = guest.run({
      code: code32(`
        8b 04 33 | mov eax, [ebx+esi+0]
        6a ff    | push -1
        58       | pop eax
        50       | push eax
        89 e1    | mov ecx, esp
      `),
      compat: true,
      regs: { [RBX]: 0xffff_ff00, [RSI]: BigInt(DATA) + 0x100n },
    });
    expect(result).toBe(0xff);
    expect([guest.reg(RAX), guest.reg(RCX)]).toEqual([0xffff_ffffn, BigInt(STACK - 4)]);
  });

  test("a page fault carries a 32-bit CR2, and 40 to 4f are INC and DEC", () => {
    const { traps } = guest.run({
      code: code32(`
        43                   | inc ebx
        4b                   | dec ebx
        8b 84 1b 00 00 70 f0 | mov eax, [ebx+ebx+0xf0700000]
      `),
      compat: true,
      regs: { [RBX]: 0x8000_0000 },
    });
    expect(traps[0]).toMatchObject({ vector: 14, error: 4, rip: CODE + 2, cr2: 0xf070_0000n });
  });

  test("data segments have a base there, and none in 64-bit code", () => {
    guest.setDescriptor(0x40, BigInt(DATA), 0xf_ffff, 0xc0f3);
    guest.write64(DATA + 8, 0x77n);
    const { result } = guest.run({
      code: code32(`
        b8 43 00 00 00 | mov eax, 0x43
        8e d8          | mov ds, eax
        a1 08 00 00 00 | mov eax, [8]
      `),
      compat: true,
    });
    expect(result).toBe(0x77);
    const wide = guest.run({
      code: code(`
        b8 43 00 00 00       | mov eax, 0x43
        8e d8                | mov ds, eax
        8b 04 25 08 00 50 00 | mov eax, [0x500008]
      `),
      cpl: 3,
    });
    expect(wide.result).toBe(0x77);
  });

  test("SWAPGS is #UD there, even for what privilege 0 may do", () => {
    expect(guest.run({ code: [0x0f, 0x01, 0xf8], compat: true }).traps[0]?.vector).toBe(6);
  });

  test("FS with a base, the way 32-bit thread-local storage works", () => {
    guest.setDescriptor(0x40, BigInt(DATA + 0x100), 0xf_ffff, 0xc0f3);
    guest.write64(DATA + 0xf8, 0x66n);
    const { result } = guest.run({
      code: code32(`
        b8 43 00 00 00    | mov eax, 0x43
        8e e8             | mov gs, eax
        65 a1 f8 ff ff ff | mov eax, gs:[-8]
      `),
      compat: true,
    });
    expect(result).toBe(0x66);
  });
});
