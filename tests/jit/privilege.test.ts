/** Compiled calls that wait while the privilege changes and changes back (table/privilege.ts). */
import { beforeEach, describe, expect, test } from "bun:test";
import {
  LSTAR,
  R10,
  R11,
  RAX,
  RBX,
  RCX,
  RDI,
  RDX,
  RSP,
  SFMASK,
  STAR,
} from "../../src/hypervisor/soft/layout.ts";
import { code } from "../soft/code.ts";
import { CODE, Guest, IF, KERNEL_CODE, KERNEL_CS, KERNEL_SS, USER_CS, USER_SS } from "../soft/guest.ts";
import { type Assembler, assemble } from "./assembler.ts";

const CC_NE = 5;
const R9 = 72;
const ROUNDS = 2000;

/** The kernel's code; returns where its labels are. */
function kernel(guest: Guest, write: Parameters<typeof assemble>[1]): ReadonlyMap<string, number> {
  const { bytes, labels } = assemble(KERNEL_CODE, write);
  guest.poke(KERNEL_CODE, bytes);
  guest.state.set64(STAR, (0x1bn << 48n) | (BigInt(KERNEL_CS) << 32n));
  guest.state.set64(LSTAR, BigInt(KERNEL_CODE));
  guest.state.set64(SFMASK, BigInt(IF));
  return labels;
}

const user = (write: Parameters<typeof assemble>[1]): number[] => [...assemble(CODE, write).bytes];

/** A function of the kernel's: counts in RBX. */
function work(a: Assembler): void {
  a.label("work");
  a.emit(
    ...code(`
      48 ff c3 | inc rbx
      c3       | ret
    `),
  );
}

// Compiled after a few rounds, when what calls return to has been decoded.
describe.each([
  ["compiled", new Guest(3)],
  ["in lockstep", new Guest(2, true)],
])("%s", (name, guest) => {
  beforeEach(() => guest.reset());

  /** Exits to the run loop because a helper has changed the machine. */
  const changes = (): number => {
    const { changed, changedNoTrap } = guest.vcpu.stats().exits;
    return changed! + changedNoTrap!;
  };

  test("a system call inside calls inside calls returns through all of them, without the run loop", () => {
    kernel(guest, (a) => {
      a.emit(
        ...code(`
          51          | push rcx
          41 53       | push r11
        `),
      );
      a.call("work");
      a.emit(
        ...code(`
          41 5b    | pop r11
          59       | pop rcx
          48 0f 07 | sysretq
        `),
      );
      work(a);
    });
    const before = changes();
    const { result } = guest.run({
      cpl: 3,
      rflags: IF | 2,
      regs: { [RAX]: ROUNDS, [RBX]: 0, [RDX]: 0 },
      code: user((a) => {
        a.label("again");
        a.call("outer");
        a.emit(...code("ff c8 | dec eax"));
        a.jcc(CC_NE, "again");
        a.jmp("out");
        a.label("outer");
        a.call("inner");
        a.emit(
          ...code(`
            ff c2 | inc edx
            c3    | ret
          `),
        );
        a.label("inner");
        a.emit(
          ...code(`
            0f 05 | syscall
            ff c2 | inc edx
            c3    | ret
          `),
        );
        a.label("out");
      }),
    });
    expect(result).toBe(0);
    expect([guest.reg(RBX), guest.reg(RDX)]).toEqual([BigInt(ROUNDS), BigInt(2 * ROUNDS)]);
    expect(changes() - before).toBeLessThan(ROUNDS / 10);
  });

  test("the user cannot return to a call of the kernel's", () => {
    // The kernel calls what R9 says: a function that returns, or one that goes to the user from inside the call.
    const labels = kernel(guest, (a) => {
      a.emit(...code("41 ff d1 | call r9"));
      a.label("back");
      a.emit(...code("48 0f 07 | sysretq"));
      a.label("returns");
      a.emit(
        ...code(`
          48 ff c3 | inc rbx
          c3       | ret
        `),
      );
      a.label("leaves");
      a.emit(
        ...code(`
          48 ff c3    | inc rbx
          48 83 c4 08 | add rsp, 8
          48 0f 07    | sysretq
        `),
      );
    });
    const back = labels.get("back")!;
    const { traps } = guest.run({
      cpl: 3,
      regs: {
        [RAX]: ROUNDS,
        [RBX]: 0,
        [RDI]: back,
        [R9]: labels.get("returns")!,
        [R10]: labels.get("leaves")!,
      },
      // All of it has run before when the last round comes: nothing in it is new to the CPU.
      code: user((a) => {
        a.label("again");
        a.emit(...code("48 8d 35 | lea rsi, [rip+next]"));
        a.ripRelative("next");
        a.emit(
          ...code(`
            3d 64 00 00 00 | cmp eax, 100
            4d 0f 42 ca    | cmovb r9, r10
            0f 05          | syscall
            ff c8          | dec eax
            48 0f 44 f7    | cmovz rsi, rdi
            56             | push rsi
            c3             | ret
          `),
        );
        a.label("next");
        a.jmp("again");
      }),
    });
    expect(guest.reg(RBX)).toBe(BigInt(ROUNDS));
    // Present, user, fetch: the page is the supervisor's.
    expect(traps.map((t) => [t.vector, t.error, t.rip, t.cs, t.ss])).toEqual([
      [14, 0x15, back, USER_CS, USER_SS],
    ]);
  });

  test("IRETQ to the user and back by SYSCALL, with calls on both sides", () => {
    kernel(guest, (a) => {
      // Returns to the user by IRETQ; its stack is the user's.
      a.emit(...code("48 89 e5 | mov rbp, rsp"));
      a.emit(...code("6a | push ss"), USER_SS);
      a.emit(
        ...code(`
          55    | push rbp
          41 53 | push r11
        `),
      );
      a.emit(...code("6a | push cs"), USER_CS);
      a.emit(...code("51 | push rcx"));
      a.call("work");
      a.emit(...code("48 cf | iretq"));
      work(a);
    });
    const before = changes();
    const { result } = guest.run({
      cpl: 3,
      rflags: IF | 2,
      regs: { [RAX]: ROUNDS, [RBX]: 0, [RDX]: 0, [RCX]: 0, [R11]: 0 },
      code: user((a) => {
        a.label("again");
        a.call("inner");
        a.emit(...code("ff c8 | dec eax"));
        a.jcc(CC_NE, "again");
        a.jmp("out");
        a.label("inner");
        a.emit(
          ...code(`
            0f 05 | syscall
            ff c2 | inc edx
            c3    | ret
          `),
        );
        a.label("out");
      }),
    });
    expect(result).toBe(0);
    expect([guest.reg(RBX), guest.reg(RDX)]).toEqual([BigInt(ROUNDS), BigInt(ROUNDS)]);
    expect(changes() - before).toBeLessThan(ROUNDS / 10);
  });

  test("a kernel returns to itself by IRETQ inside calls, as Linux serialises", () => {
    const before = changes();
    const { result } = guest.run({
      regs: { [RAX]: ROUNDS, [RBX]: 0 },
      code: user((a) => {
        a.label("again");
        a.call("sync");
        a.emit(...code("ff c8 | dec eax"));
        a.jcc(CC_NE, "again");
        a.jmp("out");
        a.label("sync");
        a.emit(
          ...code(`
            8c d1                | mov ecx, ss
            51                   | push rcx
            48 8d 4c 24 08       | lea rcx, [rsp+8]
            51                   | push rcx
            9c                   | pushfq
            8c c9                | mov ecx, cs
            51                   | push rcx
            48 8d 0d 03 00 00 00 | lea rcx, [rip+3]
            51                   | push rcx
            48 cf                | iretq
            ff c3                | inc ebx
            c3                   | ret
          `),
        );
        a.label("out");
      }),
    });
    expect(result).toBe(0);
    expect(guest.reg(RBX)).toBe(BigInt(ROUNDS));
    expect(guest.reg(RSP) % 8n).toBe(0n);
    expect(changes() - before).toBeLessThan(ROUNDS / 10);
  });

  test(`${name}: code has been compiled`, () => {
    expect(guest.vcpu.stats().regionsCompiled).toBeGreaterThan(10);
  });
});

if (KERNEL_SS !== KERNEL_CS + 8) throw new Error("SYSCALL loads SS with the selector after that of CS");
