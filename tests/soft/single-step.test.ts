/** Single-stepping with RFLAGS.TF (SDM vol. 3A, 17.3.1.4, and 6.8.3 for MOV SS). */
import { beforeEach, describe, expect, test } from "bun:test";
import { CSTAR, DR, LSTAR, R11, RAX, RCX, RDI, RSI, SFMASK, STAR } from "../../src/hypervisor/soft/layout.ts";
import { code } from "./code.ts";
import { CODE, DATA, Guest, IF, KERNEL_CODE, RF, type RunOptions, TF, type Trap, USER_SS } from "./guest.ts";

const guest = new Guest();
const DB = 1;
const DR6_BS = 0x4000n;

beforeEach(() => guest.reset());

/** Offsets from the code's start at which a #DB was delivered, up to the end of the program. */
function steps(program: number[], options: Partial<RunOptions> = {}): number[] {
  return run(program, options)
    .filter((t) => t.vector === DB)
    .map((t) => t.rip - (options.at ?? CODE));
}

/** Every trap of the program, started with TF set; all return. */
function run(program: number[], options: Partial<RunOptions> = {}): Trap[] {
  const { traps } = guest.run({
    // The end is not stepped: int 0x41 leaves, the handler does not return.
    code: [...program, 0xcd, 0x41],
    cpl: 3,
    rflags: TF | IF | 2,
    bare: true,
    onTrap: (t) => t.vector !== 0x41,
    ...options,
  });
  expect(traps.at(-1)?.vector).toBe(0x41);
  return traps.slice(0, -1);
}

describe("a trap comes after each", () => {
  test("plain instruction, with the registers it has left", () => {
    const seen: bigint[] = [];
    const { traps } = guest.run({
      code: code(`
        ff c0    | inc eax
        48 01 c0 | add rax, rax
        0f a2    | cpuid
      `),
      cpl: 3,
      rflags: TF | 2,
      regs: { [RAX]: 4 },
      onTrap: (t) => {
        // The handler has pushed RAX.
        seen.push(guest.read64(t.frame - 8));
        guest.write64(t.frame - 8, 0n);
        return seen.length < 3;
      },
    });
    expect(seen.slice(0, 2)).toEqual([5n, 0n]);
    expect(traps.map((t) => [t.vector, t.rip - CODE, t.rflags & (TF | RF)])).toEqual([
      [DB, 2, TF],
      [DB, 5, TF],
      [DB, 7, TF],
    ]);
    expect(guest.reg(DR + 32) & DR6_BS).toBe(DR6_BS);
    expect(traps[0]!.handlerRflags & TF).toBe(0);
  });

  test("branch, taken or not, call and return", () => {
    expect(
      steps(
        code(`
          31 c0          | xor eax, eax
          75 02          | jnz 1f
          74 00          | jz 1f
                         | 1:
          eb 01          | jmp 2f
          90             | nop
                         | 2:
          e8 02 00 00 00 | call 3f
          eb 01          | jmp 4f
                         | 3:
          c3             | ret
                         | 4:
          ff d6          | call rsi
        `),
        { regs: { [RSI]: CODE + 19 } },
      ),
    ).toEqual([2, 4, 6, 9, 16, 14, 17, 19]);
  });

  test("memory access, also to the page of the code itself", () => {
    expect(
      steps(
        code(`
          89 07             | mov [rdi], eax
          88 05 00 00 00 00 | mov [rip], al
          90                | nop
        `),
        { regs: { [RDI]: DATA, [RAX]: 0x90 } },
      ),
    ).toEqual([2, 8, 9]);
  });

  test("instruction that crosses into another page", () => {
    const at = CODE + 0xffd;
    expect(
      steps(
        code(`
          b8 01 00 00 00 | mov eax, 1
          90             | nop
        `),
        { at },
      ),
    ).toEqual([5, 6]);
  });

  test("iteration of a repeated compare, at the instruction until the last", () => {
    expect(
      steps(
        code(`
          f3 a6 | repe cmpsb
          90    | nop
        `),
        { regs: { [RSI]: DATA, [RDI]: DATA + 0x100, [RCX]: 3 } },
      ),
    ).toEqual([0, 0, 2, 3]);
  });

  test("iteration of a repeated store and move", () => {
    for (const program of [
      code(`
        f3 aa | rep stosb
        90    | nop
      `),
      code(`
        f3 a4 | rep movsb
        90    | nop
      `),
    ]) {
      const seen = steps(program, { regs: { [RSI]: DATA, [RDI]: DATA + 0x100, [RCX]: 3 } });
      expect(seen).toEqual([0, 0, 2, 3]);
    }
  });

  test("repeated instruction with nothing to do", () => {
    expect(
      steps(
        code(`
          f3 aa | rep stosb
          90    | nop
        `),
        { regs: { [RDI]: DATA } },
      ),
    ).toEqual([2, 3]);
  });

  test("port instruction and system instruction", () => {
    expect(
      steps(
        code(`
          e6 80    | out 0x80, al
          0f 20 d8 | mov rax, cr3
          0f 22 d8 | mov cr3, rax
          fb       | sti
          fa       | cli
        `),
        { cpl: 0, rflags: TF | 2 },
      ),
    ).toEqual([2, 5, 8, 9, 10]);
  });
});

describe("TF itself", () => {
  test("set by POPF: the instruction after POPF is the first that traps", () => {
    expect(
      steps(
        code(`
          68 02 01 00 00 | push 0x102
          9d             | popfq
          90             | nop
          90             | nop
        `),
        { rflags: 2 },
      ),
    ).toEqual([7, 8]);
  });

  test("cleared by POPF: POPF is the last that traps", () => {
    expect(
      steps(
        code(`
          6a 02 | push 2
          9d    | popfq
          90    | nop
          90    | nop
        `),
      ),
    ).toEqual([2, 3]);
  });

  test("is in the image that PUSHF stores", () => {
    run(
      code(`
        9c | pushfq
        58 | pop rax
      `),
    );
    expect(guest.reg(RAX) & BigInt(TF)).toBe(BigInt(TF));
  });

  test("set by IRET: one instruction runs, then the trap", () => {
    const seen: number[] = [];
    guest.run({
      code: code(`
        cd 40 | int 0x40
        90    | nop
        90    | nop
      `),
      cpl: 3,
      onTrap: (t) => {
        seen.push(t.vector, t.rip - CODE);
        if (t.vector === 0x40) guest.write64(t.frame + 16, BigInt(TF | 2));
        return t.vector === 0x40;
      },
    });
    expect(seen).toEqual([0x40, 2, DB, 3]);
  });
});

describe("instructions after which there is no trap", () => {
  test("MOV SS and POP SS: the trap comes one instruction later", () => {
    expect(
      steps(
        code(`
          8e d0 | mov ss, eax
          90    | nop
          90    | nop
        `),
        { regs: { [RAX]: USER_SS } },
      ),
    ).toEqual([3, 4]);
    // Other segments do not hold it off.
    expect(
      steps(
        code(`
          8e d8 | mov ds, eax
          90    | nop
        `),
        { regs: { [RAX]: USER_SS } },
      ),
    ).toEqual([2, 3]);
  });

  test("INT n and INT3 enter their handlers untrapped, and the next instruction traps", () => {
    expect(
      run(
        code(`
          cd 40 | int 0x40
          90    | nop
          cc    | int3
          90    | nop
        `),
      ).map((t) => [t.vector, t.rip - CODE]),
    ).toEqual([
      [0x40, 2],
      [DB, 3],
      [3, 4],
      [DB, 5],
    ]);
  });

  test("an instruction that faults: its handler is entered untrapped, with TF in the frame", () => {
    const traps = guest.run({
      code: code(`
        0f 0b | ud2
        90    | nop
      `),
      cpl: 3,
      rflags: TF | 2,
      onTrap: (t) => {
        if (t.vector === 6) guest.write64(t.frame, BigInt(CODE + 2));
        return t.vector === 6;
      },
    }).traps;
    expect(traps.map((t) => [t.vector, t.rip - CODE, t.rflags & TF])).toEqual([
      [6, 0, TF],
      [DB, 3, TF],
    ]);
  });
});

describe("SYSCALL and SYSRET", () => {
  const PROGRAM = code(`
    90    | nop
    0f 05 | syscall
    90    | nop
  `);

  beforeEach(() => {
    guest.state.set64(STAR, (0x1bn << 48n) | (0x08n << 32n));
    guest.state.set64(LSTAR, BigInt(KERNEL_CODE));
    guest.state.set64(CSTAR, BigInt(KERNEL_CODE));
    guest.poke(
      KERNEL_CODE,
      code(`
        90       | nop
        48 0f 07 | sysretq
      `),
    );
  });

  test("with TF masked the kernel is not stepped, and SYSRET traps before the next user instruction", () => {
    guest.state.set64(SFMASK, BigInt(TF | IF));
    expect(run(PROGRAM).map((t) => [t.vector, t.rip - CODE, t.cs & 3])).toEqual([
      [DB, 1, 3],
      [DB, 3, 3],
      [DB, 4, 3],
    ]);
    expect(guest.reg(R11) & BigInt(TF)).toBe(BigInt(TF));
  });

  test("with TF not masked the kernel is stepped from its first instruction", () => {
    guest.state.set64(SFMASK, 0n);
    // #DB in the kernel needs a stack: SYSCALL has left the user's.
    guest.setGate(DB, 0x1_6000 + 16 * DB, { ist: 1 });
    expect(run(PROGRAM).map((t) => t.rip)).toEqual([
      CODE + 1,
      KERNEL_CODE,
      KERNEL_CODE + 1,
      CODE + 3,
      CODE + 4,
    ]);
  });
});
