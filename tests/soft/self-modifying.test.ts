/** Code that changes while it runs (SDM vol. 3A, 11.6 and 8.1.3): what is executed is what memory holds. */
import { beforeEach, describe, expect, test } from "bun:test";
import { RAX, RBX, RCX, RDI, RSI, XMM } from "../../src/hypervisor/soft/layout.ts";
import { code, le32 } from "./code.ts";
import { type DeviceCommand, DeviceThread } from "./device.ts";
import { CODE, DATA, Guest } from "./guest.ts";

const guest = new Guest();

beforeEach(() => guest.reset());

/** A function that returns `value`; its immediate starts at its second byte. */
const returns = (value: number) => [0xb8, ...le32(value), 0xc3];

/** Linear alias of the page at `linear`, writable: the same bytes under another address. */
function alias(linear: number, at: number): void {
  guest.pages.map(at, guest.physical(linear), 7);
}
const ALIAS = 0x70_0000;

describe("a write into the running block", () => {
  test("to the next instruction's immediate", () => {
    const { result } = guest.run({
      code: code(`
        c6 05 01 00 00 00 07 | mov byte ptr [rip+1], 7
        b0 01                | mov al, 1
      `),
      cpl: 3,
    });
    expect(result).toBe(7);
  });

  test("to an opcode further on", () => {
    const { result } = guest.run({
      code: code(`
        b0 05                | mov al, 5
        c6 05 05 00 00 00 c8 | mov byte ptr [rip+5], 0xc8
        90                   | nop
        90                   | nop
        90                   | nop
        90                   | nop
        fe c0                | inc al
      `),
      cpl: 3,
    });
    // FE C0 has become FE C8, DEC AL.
    expect(result).toBe(4);
  });

  test("to an instruction that it lengthens", () => {
    const { result } = guest.run({
      code: code(`
        c6 05 00 00 00 00 b0 | mov byte ptr [rip+0], 0xb0
        90                   | nop
        31 c9                | xor ecx, ecx
      `),
      cpl: 3,
      regs: { [RCX]: 5 },
    });
    // NOP, XOR ECX, ECX has become MOV AL, 0x31 and LEAVE, which finds no stack at RBP, 0.
    expect(result).toBeUndefined();
    expect([guest.reg(RAX), guest.reg(RCX)]).toEqual([0x31n, 5n]);
  });

  test("to itself: the change counts from the next execution on", () => {
    const { result } = guest.run({
      code: code(`
                             | again:
        ff c0                | inc eax
        c6 05 f9 ff ff ff 90 | mov byte ptr [rip-7], 0x90
        83 c3 01             | add ebx, 1
        83 fb 02             | cmp ebx, 2
        72 ef                | jb again
      `),
      cpl: 3,
    });
    // C6 05 f9 ff ff ff 90 has become NOP; ADD EAX, -7; NOP.
    expect(result).toBe((1 + 1 - 7) & 0xff);
  });

  test("every time round a loop", () => {
    const { result } = guest.run({
      code: code(`
        31 db             | xor ebx, ebx
                          | again:
        00 0d 01 00 00 00 | add [rip+1], cl
        b0 00             | mov al, 0
        0f b6 c0          | movzx eax, al
        01 c3             | add ebx, eax
        ff c9             | dec ecx
        75 ef             | jnz again
      `),
      cpl: 3,
      regs: { [RCX]: 20 },
    });
    expect(result).toBeDefined();
    let expected = 0;
    let immediate = 0;
    for (let cl = 20; cl > 0; cl--) {
      immediate = (immediate + cl) & 0xff;
      expected += immediate;
    }
    expect(guest.reg(RBX)).toBe(BigInt(expected));
  });

  test("by the last instruction of a page: execution goes on in the next page", () => {
    const at = CODE + 0x1000 - 7;
    guest.poke(CODE + 0x1000, [0xb0, 0x44, 0xe6, 0xf1, 0xeb, 0xfe]);
    // At the start of the page lies a trap for a program counter that wraps.
    guest.poke(CODE, [0x0f, 0x0b]);
    const { result, traps } = guest.run({
      code: code(`
        c6 05 00 f0 ff ff 0b | mov byte ptr [rip-0x1000], 0x0b
      `),
      at,
      cpl: 3,
      bare: true,
    });
    expect([traps, result]).toEqual([[], 0x44]);
  });

  test("by an instruction that crosses into the next page", () => {
    for (let inFirst = 1; inFirst < 7; inFirst++) {
      guest.reset();
      guest.poke(CODE, [0x0f, 0x0b]);
      const { result, traps } = guest.run({
        code: code(`
          c6 05 00 f0 ff ff 0b | mov byte ptr [rip-0x1000], 0x0b
          b0 44                | mov al, 0x44
        `),
        at: CODE + 0x1000 - inFirst,
        cpl: 3,
      });
      expect([traps, result]).toEqual([[], 0x44]);
    }
  });
});

describe("a write to other code, by every kind of instruction", () => {
  const TARGET = CODE + 0x2800;
  // RDI points to the immediate; RAX, RCX, XMM0 and [rsi] hold `02 00 00 00 c3 90 90 90`.
  const WRITERS: Record<string, number[]> = {
    "mov byte": code("c6 07 02 | mov byte ptr [rdi], 2"),
    "mov word": code("66 89 07 | mov [rdi], ax"),
    "mov qword": code("48 89 07 | mov [rdi], rax"),
    xchg: code("87 07 | xchg [rdi], eax"),
    "lock xadd": code("f0 0f c1 1f | lock xadd [rdi], ebx"),
    "lock inc": code("f0 ff 07 | lock inc dword ptr [rdi]"),
    add: code("83 07 01 | add dword ptr [rdi], 1"),
    "bts and btr": code(`
      0f ba 2f 01 | bts dword ptr [rdi], 1
      0f ba 37 00 | btr dword ptr [rdi], 0
    `),
    cmpxchg: code(`
      b8 01 00 00 00 | mov eax, 1
      0f b1 0f       | cmpxchg [rdi], ecx
    `),
    push: code(`
      48 89 e2    | mov rdx, rsp
      48 8d 67 08 | lea rsp, [rdi+8]
      50          | push rax
      48 89 d4    | mov rsp, rdx
    `),
    "pop to memory": code(`
      50    | push rax
      8f 07 | pop qword ptr [rdi]
    `),
    stosb: code("aa | stosb"),
    "rep stosb": code(`
      b9 01 00 00 00 | mov ecx, 1
      f3 aa          | rep stosb
    `),
    "rep movsb": code(`
      b9 08 00 00 00 | mov ecx, 8
      f3 a4          | rep movsb
    `),
    "rep movsq, backwards": code(`
      b9 01 00 00 00 | mov ecx, 1
      fd             | std
      f3 48 a5       | rep movsq
      fc             | cld
    `),
    movups: code("0f 11 07 | movups [rdi], xmm0"),
    movq: code("66 0f d6 07 | movq [rdi], xmm0"),
    setcc: code(`
      c6 47 ff b8 | mov byte ptr [rdi-1], 0xb8
      f6 c4 ff    | test ah, 0xff
      0f 94 07    | sete [rdi]
      00 07       | add [rdi], al
      80 2f 01    | sub byte ptr [rdi], 1
    `),
    fistp: code(`
      df 2e | fild qword ptr [rsi]
      df 3f | fistp qword ptr [rdi]
    `),
    insb: code(`
      66 ba f3 00 | mov dx, 0xf3
      6c          | insb
    `),
  };

  for (const [name, writer] of Object.entries(WRITERS)) {
    for (const place of ["its own page", "another page", "an alias"]) {
      test(`${name} to ${place}`, () => {
        guest.pioRead = () => 2;
        const target = place === "its own page" ? CODE + 0x800 : TARGET;
        const written = place === "an alias" ? ALIAS + 0x800 : target;
        if (place === "an alias") alias(target & ~0xfff, ALIAS);
        guest.poke(target, returns(1));
        guest.write64(DATA, 0x9090_90c3_0000_0002n);
        const seen: number[] = [];
        const call = [...code("ff d3 | call rbx"), ...code("e6 f2 | out 0xf2, al")];
        guest.state.set64(XMM, 0x9090_90c3_0000_0002n);
        guest.state.set64(XMM + 8, 0x9090_9090_9090_9090n);
        guest.run({
          code: [
            ...call,
            ...code(`
              53             | push rbx
              bb 01 00 00 00 | mov ebx, 1
              57             | push rdi
              48 8b 06       | mov rax, [rsi]
              48 89 c1       | mov rcx, rax
            `),
            ...writer,
            ...code(`
              5f | pop rdi
              5b | pop rbx
            `),
            ...call,
          ],
          cpl: 3,
          regs: { [RBX]: target, [RDI]: written + 1, [RSI]: DATA },
          onOut: (_port, value) => seen.push(value),
        });
        expect(seen).toEqual([1, 2]);
      });
    }
  }

  test("a store that reaches from a data page into a code page", () => {
    const page = CODE + 0x3000;
    guest.poke(page, returns(1));
    for (let before = 1; before < 8; before++) {
      guest.poke(page, returns(1));
      const seen: number[] = [];
      // The bytes that land in the code page are the function's own, with another immediate.
      const bytes = [...Array<number>(before).fill(0x11), ...returns(2), 0x90, 0x90].slice(0, 8);
      if (bytes.length - before < 2) continue;
      guest.poke(DATA, bytes);
      guest.run({
        code: code(`
          ff d3    | call rbx
          e6 f2    | out 0xf2, al
          48 8b 06 | mov rax, [rsi]
          48 89 07 | mov [rdi], rax
          ff d3    | call rbx
          e6 f2    | out 0xf2, al
        `),
        cpl: 3,
        regs: { [RBX]: page, [RDI]: page - before, [RSI]: DATA },
        onOut: (_port, value) => seen.push(value),
      });
      expect({ before, seen }).toEqual({ before, seen: [1, 2] });
    }
  });

  test("an interrupt frame that is pushed over code", () => {
    // The SS word of a frame, its last, lies on the function, which becomes `23 00 ...`.
    const at = CODE + 0x2808;
    guest.poke(at, returns(1));
    const seen: number[] = [];
    const { traps } = guest.run({
      code: code(`
        ff d3 | call rbx
        e6 f2 | out 0xf2, al
        cc    | int3
        ff d3 | call rbx
        e6 f2 | out 0xf2, al
      `),
      cpl: 3,
      regs: { [RBX]: at },
      onOut: (_port, value) => seen.push(value),
      onTrap: (t) => {
        if (t.vector !== 3) return false;
        expect(guest.read64(at)).toBe(BigInt(t.ss));
        return true;
      },
      tweak: () => guest.write64(0x1_2004, BigInt(at + 8)),
    });
    // `23 00` is AND EAX, [RAX]: RAX is 1, which is not mapped for the user.
    expect(seen).toEqual([1]);
    expect(traps.at(-1)).toMatchObject({ vector: 14, rip: at });
  });
});

describe("one physical page under two linear addresses", () => {
  test("RIP-relative data and return addresses are those of the address in use", () => {
    alias(CODE + 0x1000, ALIAS);
    const seen: number[] = [];
    // LEA RAX, [RIP+0]; RET
    guest.poke(CODE + 0x1000, [0x48, 0x8d, 0x05, 0, 0, 0, 0, 0xc3]);
    guest.run({
      code: code(`
        ff d3 | call rbx
        e7 f2 | out 0xf2, eax
        ff d1 | call rcx
        e7 f2 | out 0xf2, eax
        ff d3 | call rbx
        e7 f2 | out 0xf2, eax
      `),
      cpl: 3,
      regs: { [RBX]: CODE + 0x1000, [RCX]: ALIAS },
      onOut: (_port, value) => seen.push(value),
    });
    expect(seen).toEqual([CODE + 0x1007, ALIAS + 7, CODE + 0x1007]);
  });

  test("branches inside the page stay at the address in use", () => {
    alias(CODE + 0x1000, ALIAS);
    guest.poke(
      CODE + 0x1000,
      code(`
        b9 05 00 00 00       | mov ecx, 5
                             | again:
        ff c9                | dec ecx
        75 fc                | jnz again
        48 8d 05 00 00 00 00 | lea rax, [rip]
        c3                   | ret
      `),
    );
    const seen: number[] = [];
    guest.run({
      code: code(`
        ff d3 | call rbx
        e7 f2 | out 0xf2, eax
        ff d6 | call rsi
        e7 f2 | out 0xf2, eax
      `),
      cpl: 3,
      regs: { [RBX]: CODE + 0x1000, [RSI]: ALIAS },
      onOut: (_port, value) => seen.push(value),
    });
    expect(seen).toEqual([CODE + 0x1010, ALIAS + 0x10]);
  });
});

describe("hot code", () => {
  test("is given up when it changes: a loop that rewrites what it has run 100,000 times", () => {
    const { result } = guest.run({
      code: code(`
        31 db                | xor ebx, ebx
                             | outer:
        b9 a0 86 01 00       | mov ecx, 100000
                             | again:
        83 c3 01             | add ebx, 1
        ff c9                | dec ecx
        75 f9                | jnz again
        80 05 f4 ff ff ff 01 | add byte ptr [rip-12], 1
        80 3d ed ff ff ff 04 | cmp byte ptr [rip-19], 4
        75 e4                | jne outer
      `),
      cpl: 3,
    });
    expect(result).toBeDefined();
    expect(guest.reg(RBX)).toBe(600_000n);
  });

  test("keeps going while data in its page, but not in its lines, is written", () => {
    const before = guest.vcpu.stats().pagesDropped;
    const { result } = guest.run({
      code: code(`
        b9 a0 86 01 00    | mov ecx, 100000
                          | again:
        ff 05 00 08 00 00 | inc dword ptr [rip+0x800]
        ff c9             | dec ecx
        75 f6             | jnz again
      `),
      cpl: 3,
    });
    expect(result).toBeDefined();
    expect(guest.read64(CODE + 11 + 0x800)).toBe(100_000n);
    expect(guest.vcpu.stats().pagesDropped - before).toBeLessThan(3);
  });
});

describe("code that a device thread rewrites", () => {
  test("is decoded anew without anything from the guest", async () => {
    const device = await DeviceThread.start(guest.memory);
    try {
      // The loop runs until its own immediate has been changed from 1 to 2.
      const at = CODE + 0x100;
      let sent = false;
      const write: DeviceCommand = { kind: "write", gpa: guest.physical(at) + 1, bytes: [2], delayMs: 20 };
      const { result } = guest.run({
        code: code(`
          b8 01 00 00 00 | mov eax, 1
          83 f8 02       | cmp eax, 2
          74 04          | je 1f
          e6 f2          | out 0xf2, al
          eb f2          | jmp .-12
                         | 1:
        `),
        at,
        cpl: 3,
        onOut: () => {
          if (!sent) device.send(write);
          sent = true;
        },
      });
      expect(result).toBe(2);
    } finally {
      device.stop();
    }
  });

  test("is decoded anew when it is not the running code", async () => {
    const device = await DeviceThread.start(guest.memory);
    try {
      const at = CODE + 0x2000;
      guest.poke(at, returns(1));
      const seen: number[] = [];
      guest.run({
        code: code(`
          ff d3    | call rbx
          e6 f2    | out 0xf2, al
                   | wait:
          83 3f 00 | cmp dword ptr [rdi], 0
          74 fb    | je wait
          ff d3    | call rbx
          e6 f2    | out 0xf2, al
        `),
        regs: { [RBX]: at, [RDI]: DATA },
        onOut: (_port, value) => {
          seen.push(value);
          if (seen.length > 1) return;
          device.send({ kind: "write", gpa: guest.physical(at) + 1, bytes: [2], delayMs: 0 });
          device.send({ kind: "write", gpa: guest.physical(DATA), bytes: [1], delayMs: 0 });
        },
      });
      expect(seen).toEqual([1, 2]);
    } finally {
      device.stop();
    }
  });
});
