/** Calls that compiled code makes as WebAssembly calls, and guests that do not return as they called. */
import { beforeEach, describe, expect, test } from "bun:test";
import { RAX, RBP, RBX, RCX, RDI, RDX, RETURN_LIMIT, RSI } from "../../src/hypervisor/soft/layout.ts";
import { code, le32 } from "../soft/code.ts";
import { CODE, DATA, Guest, SPARE } from "../soft/guest.ts";
import { type Assembler, assemble } from "./assembler.ts";

const CC_E = 4;
const CC_NE = 5;

const guest = new Guest(1);
beforeEach(() => guest.reset());

/** Top of a large stack: the supervisor's identity map ends at 4 MiB. */
const DEEP_STACK = 0x3f_f000;

/** Machine code with labels, at CODE. */
const program = (write: (a: Assembler) => void): number[] => [...assemble(CODE, write).bytes];

/** Adds up ecx, ecx - 1, ... 1 by recursion. */
const RECURSION = program((a) => {
  a.call("sum");
  a.jmp("out");
  a.label("sum");
  a.emit(...code("85 c9 | test ecx, ecx"));
  a.jcc(CC_E, "zero");
  a.emit(
    ...code(`
      51    | push rcx
      ff c9 | dec ecx
    `),
  );
  a.call("sum");
  a.emit(
    ...code(`
      59    | pop rcx
      01 c8 | add eax, ecx
      c3    | ret
    `),
  );
  a.label("zero");
  a.emit(
    ...code(`
      31 c0 | xor eax, eax
      c3    | ret
    `),
  );
  a.label("out");
});

describe("recursion", () => {
  test.each([RETURN_LIMIT - 2, RETURN_LIMIT, RETURN_LIMIT + 1, 5000, 100_000])("%d levels deep", (levels) => {
    // Two rounds: in the second one all of it is compiled from the first call on.
    for (const again of [false, true]) {
      const { result } = guest.run({ code: RECURSION, again, rsp: DEEP_STACK, regs: { [RCX]: levels } });
      expect(result).toBeDefined();
      expect(guest.reg(RAX)).toBe(BigInt.asUintN(32, (BigInt(levels) * BigInt(levels + 1)) / 2n));
    }
    expect(guest.vcpu.stats().regionsCompiled).toBeGreaterThan(0);
  });

  test("that never returns ends where its stack does", () => {
    const { traps } = guest.run({
      rsp: 0x60_1000,
      cpl: 3,
      code: code(`
                       | again:
        ff c0          | inc eax
        e8 f9 ff ff ff | call again
      `),
    });
    expect(traps.map((t) => [t.vector, t.rip - CODE, Number(t.cr2)])).toEqual([[14, 2, 0x60_0000 - 8]]);
    // 512 calls fit into the page; the one after them faults.
    expect(guest.read64(traps[0]!.frame - 8)).toBe(513n);
  });
});

describe("a guest that does not return as it called", () => {
  test("leaves many frames by loading RSP (longjmp), 3,000 times", () => {
    const { result } = guest.run({
      regs: { [RBX]: 3000, [RDX]: 0 },
      code: program((a) => {
        a.label("again");
        a.emit(
          ...code(`
            48 89 e5       | mov rbp, rsp
            b9 14 00 00 00 | mov ecx, 20
          `),
        );
        a.call("down");
        a.label("back");
        a.emit(
          ...code(`
            ff c2 | inc edx
            ff cb | dec ebx
          `),
        );
        a.jcc(CC_NE, "again");
        a.jmp("out");
        a.label("down");
        a.emit(...code("ff c9 | dec ecx"));
        a.jcc(CC_E, "leave");
        a.call("down");
        a.emit(...code("cc | int3"));
        a.label("leave");
        a.emit(...code("48 89 ec | mov rsp, rbp"));
        a.jmp("back");
        a.label("out");
      }),
    });
    expect(result).toBeDefined();
    expect(guest.reg(RDX)).toBe(3000n);
  });

  test("changes between two stacks (coroutines), 3,000 times", () => {
    const OTHER = SPARE + 0x1_0000;
    const { result } = guest.run({
      regs: { [RCX]: 3000, [RSI]: OTHER - 8, [RAX]: 0, [RDX]: 0 },
      code: program((a) => {
        // The other coroutine begins at its address on top of its stack.
        a.emit(...code("48 8d 1d | lea rbx, [rip+other]"));
        a.ripRelative("other");
        a.emit(...code("48 89 1e | mov [rsi], rbx"));
        a.label("again");
        a.call("switch");
        a.emit(
          ...code(`
            ff c0 | inc eax
            ff c9 | dec ecx
          `),
        );
        a.jcc(CC_NE, "again");
        a.jmp("out");
        a.label("switch");
        a.emit(
          ...code(`
            48 87 e6 | xchg rsp, rsi
            c3       | ret
          `),
        );
        a.label("other");
        a.emit(...code("83 c2 03 | add edx, 3"));
        a.call("switch");
        a.jmp("other");
        a.label("out");
      }),
    });
    expect(result).toBeDefined();
    expect([guest.reg(RAX), guest.reg(RDX)]).toEqual([3000n, 9000n]);
  });

  test("returns to an address it has pushed, from every depth", () => {
    // A chain of return addresses is a program of its own: 40 times the same gadget, then the end.
    const { result } = guest.run({
      regs: { [RCX]: 40, [RBX]: 200, [RAX]: 0 },
      code: code(`
                             | again:
        48 8d 05 1e 00 00 00 | lea rax, [rip+0x1e]    done
        50                   | push rax
        b9 28 00 00 00       | mov ecx, 40
        48 8d 05 09 00 00 00 | lea rax, [rip+9]       gadget
                             | more:
        50                   | push rax
        ff c9                | dec ecx
        75 fb                | jnz more
        c3                   | ret
        90 90 90             |
                             | gadget:
        83 c2 01             | add edx, 1
        c3                   | ret
        90 90 90 90          |
                             | done:
        ff cb                | dec ebx
        75 d7                | jnz again
      `),
    });
    expect(result).toBeDefined();
    expect(guest.reg(RDX)).toBe(200n * 40n);
  });

  test("pops its return address, and pushes it back later", () => {
    const { result } = guest.run({
      regs: { [RCX]: 500, [RAX]: 0 },
      code: code(`
                       | again:
        e8 06 00 00 00 | call odd
        ff c9          | dec ecx
        75 f7          | jnz again
        eb 0b          | jmp out
                       | odd:
        5b             | pop rbx
        ff c0          | inc eax
        a8 01          | test al, 1
        74 02          | jz even
        ff e3          | jmp rbx
                       | even:
        53             | push rbx
        c3             | ret
        90             |
      `),
    });
    expect(result).toBeDefined();
    expect(guest.reg(RAX)).toBe(500n);
  });
});

describe("a caller that waits goes on in changed code", () => {
  // Blocks are decoded first, so that the block returned to belongs to the caller's region.
  const guest = new Guest(3);
  const CALLEE = CODE + 0x1000;
  const QUIET_ROUNDS = 20;

  /** Calls, in each of `rounds`, a callee that runs `write` in every 20th; adds up the immediate behind the call. */
  function run(rounds: number, write: number[]): bigint {
    guest.reset();
    const callee = assemble(CALLEE, (a) => {
      a.emit(...code("ff ce | dec esi"));
      a.jcc(CC_NE, "quiet");
      a.emit(...code("be | mov esi, 20"), ...le32(QUIET_ROUNDS), ...write);
      a.label("quiet");
      a.emit(...code("c3 | ret"));
    });
    guest.poke(CALLEE, [...callee.bytes]);
    const caller = program((a) => {
      a.emit(
        ...code(`
          db e3 | fninit
          d9 ee | fldz
        `),
      );
      a.label("again");
      a.emit(
        ...code(`
          ff d5          | call rbp
          bb 00 00 00 00 | mov ebx, 0
          01 d8          | add eax, ebx
          ff c9          | dec ecx
        `),
      );
      a.jcc(CC_NE, "again");
    });
    const { result } = guest.run({
      code: caller,
      regs: { [RCX]: rounds, [RAX]: 0, [RBP]: CALLEE, [RSI]: QUIET_ROUNDS, [RDI]: CODE + 7 },
    });
    expect(result).toBeDefined();
    expect(guest.vcpu.stats().regionsCompiled).toBeGreaterThan(0);
    return guest.reg(RAX);
  }

  // The first value is seen by the call that writes it.
  const changes = 30;
  const rounds = QUIET_ROUNDS * (changes + 1) - 1;
  const expected = BigInt((QUIET_ROUNDS * changes * (changes + 1)) / 2);

  test("that its callee stores", () => {
    const inc = code("fe 07 | inc byte ptr [rdi]");
    expect(run(rounds, inc)).toBe(expected);
  });

  test("that a helper of its callee stores", () => {
    const count = code(`
      d9 e8 | fld1
      de c1 | faddp st1, st0
      db 17 | fist dword ptr [rdi]
    `);
    expect(run(rounds, count)).toBe(expected);
  });
});

test("a helper that writes over the instructions behind it in compiled code changes them", () => {
  const guest = new Guest(3);
  const { result } = guest.run({
    regs: { [RCX]: 100, [RAX]: 0, [RBX]: DATA, [RSI]: CODE + 29 },
    code: program((a) => {
      a.label("again");
      a.emit(
        ...code(`
          48 89 df       | mov rdi, rbx
          83 f9 28       | cmp ecx, 40
          48 0f 44 fe    | cmove rdi, rsi
          d9 e8          | fld1
          db 1f          | fistp dword ptr [rdi]
          90 90 90 90 90 | nop
          90 90 90 90 90 |
          90 90 90 90    |
          05 00 00 00 00 | add eax, 0
          ff c9          | dec ecx
        `),
      );
      a.jcc(CC_NE, "again");
    }),
  });
  expect(result).toBeDefined();
  expect(guest.vcpu.stats().regionsCompiled).toBeGreaterThan(0);
  // 1 in the last 40 rounds.
  expect(guest.reg(RAX)).toBe(40n);
});
