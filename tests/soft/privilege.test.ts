/** What privilege level 3 may not do (SDM vol. 3A, 5.9; vol. 1, 19.5). */
import { beforeEach, describe, expect, test } from "bun:test";
import { CR3, RAX, RCX, RDI, RDX, RSI } from "../../src/hypervisor/soft/layout.ts";
import { code, code32 } from "./code.ts";
import {
  CODE,
  DATA,
  DPL3,
  FREE_SELECTOR,
  Guest,
  IF,
  IOPL3,
  KERNEL_SS,
  TSS_SELECTOR,
  USER_CS,
  USER_SS,
} from "./guest.ts";

const guest = new Guest();

beforeEach(() => guest.reset());

const CR4_TSD = 4n;
const CR4 = 0x6a0n;

/** Each is #GP(0) for the user. */
const PRIVILEGED: Record<string, number[]> = {
  hlt: code("f4 | hlt"),
  cli: code("fa | cli"),
  sti: code("fb | sti"),
  clts: code("0f 06 | clts"),
  invd: code("0f 08 | invd"),
  wbinvd: code("0f 09 | wbinvd"),
  invlpg: code("0f 01 3f | invlpg [rdi]"),
  lgdt: code("0f 01 17 | lgdt [rdi]"),
  lidt: code("0f 01 1f | lidt [rdi]"),
  lldt: code("0f 00 d0 | lldt ax"),
  ltr: code("0f 00 d8 | ltr ax"),
  lmsw: code("0f 01 f0 | lmsw ax"),
  "mov from cr0": code("0f 20 c0 | mov rax, cr0"),
  "mov from cr2": code("0f 20 d0 | mov rax, cr2"),
  "mov from cr3": code("0f 20 d8 | mov rax, cr3"),
  "mov from cr4": code("0f 20 e0 | mov rax, cr4"),
  "mov from cr8": code("44 0f 20 c0 | mov rax, cr8"),
  "mov to cr0": code("0f 22 c0 | mov cr0, rax"),
  "mov to cr2": code("0f 22 d0 | mov cr2, rax"),
  "mov to cr3": code("0f 22 d8 | mov cr3, rax"),
  "mov to cr4": code("0f 22 e0 | mov cr4, rax"),
  "mov to cr8": code("44 0f 22 c0 | mov cr8, rax"),
  "mov from dr0": code("0f 21 c0 | mov rax, dr0"),
  "mov from dr7": code("0f 21 f8 | mov rax, dr7"),
  "mov to dr0": code("0f 23 c0 | mov dr0, rax"),
  "mov to dr7": code("0f 23 f8 | mov dr7, rax"),
  rdmsr: code("0f 32 | rdmsr"),
  wrmsr: code("0f 30 | wrmsr"),
  rdpmc: code("0f 33 | rdpmc"),
  swapgs: code("0f 01 f8 | swapgs"),
  sysretl: code("0f 07 | sysret"),
  sysretq: code("48 0f 07 | sysretq"),
  sysexit: code("0f 35 | sysexit"),
  "in al, imm": code("e4 80 | in al, 0x80"),
  "in eax, dx": code("ed | in eax, dx"),
  "out imm, al": code("e6 80 | out 0x80, al"),
  "out dx, ax": code("66 ef | out dx, ax"),
  insb: code("6c | insb"),
  "rep insd": code("f3 6d | rep insd"),
  outsb: code("6e | outsb"),
  "rep outsw": code("66 f3 6f | rep outsw"),
};

describe("privileged instructions", () => {
  test("each is #GP(0) at privilege 3 and changes nothing", () => {
    for (const [name, program] of Object.entries(PRIVILEGED)) {
      const { traps } = guest.run({
        code: program,
        cpl: 3,
        rflags: IF | 2,
        regs: { [RAX]: 0x12, [RCX]: 3, [RDX]: 0x80, [RDI]: DATA, [RSI]: DATA },
      });
      const seen = { name, vector: traps[0]?.vector, error: traps[0]?.error, rip: traps[0]?.rip };
      expect(seen).toEqual({ name, vector: 13, error: 0, rip: CODE });
      expect([guest.reg(RAX), guest.reg(RCX), guest.reg(RDI)]).toEqual([0x12n, 3n, BigInt(DATA)]);
      expect(guest.reg(CR3)).toBe(0x1000n);
    }
  });

  test("the same in 32-bit user code", () => {
    for (const program of [
      code32("f4 | hlt"),
      code32("fa | cli"),
      code32("0f 22 c0 | mov cr0, eax"),
      code32("0f 20 d8 | mov eax, cr3"),
      code32("0f 32 | rdmsr"),
      code32("0f 01 17 | lgdt [edi]"),
      code32("ec | in al, dx"),
    ]) {
      const { traps } = guest.run({ code: program, compat: true, regs: { [RDX]: 0x80, [RDI]: DATA } });
      expect(traps[0]).toMatchObject({ vector: 13, error: 0, rip: CODE });
    }
  });

  test("RDTSC and RDTSCP are the user's unless CR4.TSD is set", () => {
    for (const program of [code("0f 31 | rdtsc"), code("0f 01 f9 | rdtscp")]) {
      expect(guest.run({ code: program, cpl: 3 }).result).toBeNumber();
      expect(guest.run({ code: program, cpl: 3, cr4: CR4 | CR4_TSD }).traps[0]).toMatchObject({
        vector: 13,
        error: 0,
      });
      expect(guest.run({ code: program, cr4: CR4 | CR4_TSD }).result).toBeNumber();
    }
  });

  test("the user may look: SGDT, SIDT, SLDT, STR, SMSW, CPUID", () => {
    const { result } = guest.run({
      code: code(`
        0f 01 07    | sgdt [rdi]
        0f 01 4f 10 | sidt [rdi+16]
        0f 00 c0    | sldt eax
        0f 00 c9    | str ecx
        0f 01 e2    | smsw edx
      `),
      cpl: 3,
      regs: { [RDI]: DATA },
    });
    expect(result).toBeNumber();
    expect([guest.reg(RAX), guest.reg(RCX), guest.reg(RDX) & 0xffffn]).toEqual([
      0n,
      BigInt(TSS_SELECTOR),
      0x33n,
    ]);
    expect(guest.read64(DATA) & 0xffffn).toBe(0x7fn);
    expect(guest.read64(DATA + 2)).toBe(0x1_0000n);
  });
});

describe("IOPL", () => {
  test("POPF changes IF only with CPL <= IOPL, and IOPL only at privilege 0; neither faults", () => {
    const program = code(`
      68 02 30 00 00 | push 0x3002
      9d             | popfq
      9c             | pushfq
      58             | pop rax
    `);
    const flags = (rflags: number, cpl: 0 | 3) => {
      guest.run({ code: program, cpl, rflags });
      return Number(guest.reg(RAX)) & (IF | IOPL3);
    };
    expect(flags(IF | 2, 3)).toBe(IF);
    expect(flags(2, 3)).toBe(0);
    expect(flags(IF | IOPL3 | 2, 3)).toBe(IOPL3);
    expect(flags(IF | 0x2000 | 2, 3)).toBe(IF | 0x2000);
    expect(flags(IF | 2, 0)).toBe(IOPL3);
  });

  test("CLI and STI work for the user with IOPL 3, and fault with less", () => {
    const program = code(`
      fa | cli
      9c | pushfq
      58 | pop rax
      fb | sti
      9c | pushfq
      59 | pop rcx
    `);
    expect(guest.run({ code: program, cpl: 3, rflags: IF | IOPL3 | 2 }).traps).toEqual([]);
    expect([guest.reg(RAX) & 0x200n, guest.reg(RCX) & 0x200n]).toEqual([0n, 0x200n]);
    expect(guest.run({ code: program, cpl: 3, rflags: IF | 0x2000 | 2 }).traps[0]?.vector).toBe(13);
  });

  test("opens every port", () => {
    const outs: number[] = [];
    const { result } = guest.run({
      code: code(`
        66 ba f8 03 | mov dx, 0x3f8
        ee          | out dx, al
      `),
      cpl: 3,
      rflags: IOPL3 | 2,
      onOut: (port) => outs.push(port),
    });
    expect([result, outs]).toEqual([0, [0x3f8]]);
  });
});

describe("segment loads", () => {
  /** Loads DS or SS with a selector; the vector and error code, or undefined. */
  function load(register: "ds" | "ss", selector: number, cpl: 0 | 3): [number, number] | undefined {
    const program =
      register === "ds"
        ? code(`
          8e d8 | mov ds, eax
        `)
        : code(`
          8e d0 | mov ss, eax
        `);
    const { traps } = guest.run({ code: program, cpl, regs: { [RAX]: selector } });
    return traps[0] && [traps[0].vector, traps[0].error];
  }

  test("DS: privilege, type, null", () => {
    expect(load("ds", 0, 3)).toBeUndefined();
    expect(load("ds", 3, 3)).toBeUndefined();
    expect(load("ds", USER_SS, 3)).toBeUndefined();
    expect(load("ds", USER_SS, 0)).toBeUndefined();
    expect(load("ds", KERNEL_SS, 0)).toBeUndefined();
    expect(load("ds", KERNEL_SS, 3)).toEqual([13, KERNEL_SS]);
    expect(load("ds", KERNEL_SS | 3, 0)).toEqual([13, KERNEL_SS]);
    expect(load("ds", TSS_SELECTOR, 0)).toEqual([13, TSS_SELECTOR]);
    // Code segments may be read if they say so; execute-only ones may not.
    expect(load("ds", USER_CS, 3)).toBeUndefined();
    guest.setDescriptor(FREE_SELECTOR, 0n, 0xf_ffff, 0xa099 | DPL3);
    expect(load("ds", FREE_SELECTOR | 3, 3)).toEqual([13, FREE_SELECTOR]);
  });

  test("SS: writable data of exactly this privilege; null only below privilege 3 in 64-bit mode", () => {
    expect(load("ss", 0, 0)).toBeUndefined();
    expect(load("ss", 3, 0)).toEqual([13, 0]);
    expect(load("ss", 0, 3)).toEqual([13, 0]);
    expect(load("ss", 3, 3)).toEqual([13, 0]);
    expect(load("ss", USER_SS, 3)).toBeUndefined();
    expect(load("ss", USER_SS, 0)).toEqual([13, USER_SS & ~3]);
    expect(load("ss", KERNEL_SS, 3)).toEqual([13, KERNEL_SS]);
    expect(load("ss", USER_CS, 3)).toEqual([13, USER_CS & ~3]);
    guest.setDescriptor(FREE_SELECTOR, 0n, 0xf_ffff, 0xc091 | DPL3);
    expect(load("ss", FREE_SELECTOR | 3, 3)).toEqual([13, FREE_SELECTOR]);
  });

  test("a load sets the descriptor's accessed bit, though its page is the supervisor's", () => {
    guest.setDescriptor(FREE_SELECTOR, 0n, 0xf_ffff, 0xc092 | DPL3);
    expect(load("ds", FREE_SELECTOR | 3, 3)).toBeUndefined();
    expect((guest.read64(0x1_0000 + FREE_SELECTOR) >> 40n) & 1n).toBe(1n);
  });

  test("LTR takes an available TSS, marks it busy, and refuses it then", () => {
    const ltr = (selector: number) =>
      guest.run({ code: code("0f 00 d8 | ltr ax"), regs: { [RAX]: selector } });
    expect(ltr(TSS_SELECTOR).result).toBe(TSS_SELECTOR);
    expect((guest.read64(0x1_0000 + TSS_SELECTOR) >> 40n) & 0x1fn).toBe(0xbn);
    expect(ltr(TSS_SELECTOR).traps[0]).toMatchObject({ vector: 13, error: TSS_SELECTOR });
    expect(ltr(0).traps[0]).toMatchObject({ vector: 13, error: 0 });
    expect(ltr(KERNEL_SS).traps[0]).toMatchObject({ vector: 13, error: KERNEL_SS });
  });
});

describe("control registers", () => {
  test("CR0, CR4, EFER and CR3 refuse reserved bits and impossible combinations with #GP(0)", () => {
    const bad: Record<string, number[]> = {
      "CR0 above bit 31": code(`
        48 b8 33 00 01 80 01 00 00 00 | movabs rax, 0x180010033
        0f 22 c0                      | mov cr0, rax
      `),
      "PG without PE": code(`
        b8 32 00 01 80 | mov eax, 0x80010032
        0f 22 c0       | mov cr0, rax
      `),
      "NW without CD": code(`
        b8 33 00 01 a0 | mov eax, 0xa0010033
        0f 22 c0       | mov cr0, rax
      `),
      "PG off in 64-bit mode": code(`
        b8 33 00 01 00 | mov eax, 0x10033
        0f 22 c0       | mov cr0, rax
      `),
      "PAE off in long mode": code(`
        b8 80 06 00 00 | mov eax, 0x680
        0f 22 e0       | mov cr4, rax
      `),
      "CR4 bit 31": code(`
        b8 a0 06 00 80 | mov eax, 0x800006a0
        0f 22 e0       | mov cr4, rax
      `),
      "CR3 above the physical addresses": code(`
        48 b8 00 10 00 00 00 01 00 00 | movabs rax, 0x10000001000
        0f 22 d8                      | mov cr3, rax
      `),
      "EFER bit 2": code(`
        b9 80 00 00 c0 | mov ecx, 0xc0000080
        b8 05 0d 00 00 | mov eax, 0xd05
        31 d2          | xor edx, edx
        0f 30          | wrmsr
      `),
      "LME off under paging": code(`
        b9 80 00 00 c0 | mov ecx, 0xc0000080
        b8 01 0c 00 00 | mov eax, 0xc01
        31 d2          | xor edx, edx
        0f 30          | wrmsr
      `),
      "LSTAR not canonical": code(`
        b9 82 00 00 c0 | mov ecx, 0xc0000082
        31 c0          | xor eax, eax
        ba 00 80 00 00 | mov edx, 0x8000
        0f 30          | wrmsr
      `),
      "an MSR that is not there": code(`
        b9 00 00 00 d0 | mov ecx, 0xd0000000
        0f 32          | rdmsr
      `),
      "CR8 above 15": code(`
        b8 10 00 00 00 | mov eax, 16
        44 0f 22 c0    | mov cr8, rax
      `),
    };
    for (const [name, program] of Object.entries(bad)) {
      const { traps } = guest.run({ code: program });
      expect({ name, vector: traps[0]?.vector, error: traps[0]?.error }).toEqual({
        name,
        vector: 13,
        error: 0,
      });
    }
  });

  test("control registers that are not there are #UD", () => {
    for (const program of [
      code("0f 20 c8 | mov rax, cr1"),
      code("0f 22 e8 | mov cr5, rax"),
      code("44 0f 20 c8 | mov rax, cr9"),
    ]) {
      expect(guest.run({ code: program }).traps[0]?.vector).toBe(6);
    }
  });

  test("CLTS and LMSW change what they may: LMSW cannot clear PE", () => {
    guest.run({
      code: code(`
        31 c0          | xor eax, eax
        0f 01 f0       | lmsw ax
        0f 20 c1       | mov rcx, cr0
        b8 0e 00 00 00 | mov eax, 0xe
        0f 01 f0       | lmsw ax
        0f 20 c2       | mov rdx, cr0
        0f 06          | clts
        0f 20 c6       | mov rsi, cr0
      `),
    });
    expect([RCX, RDX, RSI].map((r) => guest.reg(r) & 0xfn)).toEqual([1n, 0xfn, 7n]);
  });
});
