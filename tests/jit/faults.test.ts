/** Exceptions and traps in the middle of compiled code: precise, and resumed where they were. */
import { beforeEach, describe, expect, test } from "bun:test";
import { GUEST_BASE, RAX, RBX, RCX, RDI, RDX } from "../../src/hypervisor/soft/layout.ts";
import { code } from "../soft/code.ts";
import { CODE, Guest, SPARE, TF } from "../soft/guest.ts";

const PAGE = 4096;
/** Linear pages that tests map while the guest runs. */
const WINDOW = 0x90_0000;
const RW_USER = 6;

const guest = new Guest(1);
beforeEach(() => {
  guest.reset();
});

/** Clears the page-table entry of a linear address near which something is mapped. */
function unmap(linear: number): void {
  const entry = (table: number, index: number) => Number(guest.read64(table + 8 * index) & 0xffff_f000n);
  const pdpt = entry(guest.pages.root, 0);
  const directory = entry(pdpt, 0);
  const table = entry(directory, linear >>> 21);
  guest.write64(table + 8 * ((linear >>> 12) & 511), 0n);
}

describe("a compiled loop", () => {
  test("goes on where it faulted, with all registers and flags, once the page is there", () => {
    const pages = 24;
    guest.pages.map(WINDOW, SPARE, RW_USER);
    unmap(WINDOW);
    const faults: { cr2: number; rip: number; rcx: bigint; carry: number }[] = [];
    const { result } = guest.run({
      cpl: 3,
      regs: { [RDI]: WINDOW, [RCX]: (pages * PAGE) / 64, [RAX]: 0, [RBX]: 0x1_0000 },
      code: code(`
                    | again:
        66 83 fb 01 | cmp bx, 1
        11 0f       | adc [rdi], ecx
        48 83 c7 40 | add rdi, 64
        03 47 c0    | add eax, [rdi-64]
        83 e9 01    | sub ecx, 1
        75 ee       | jnz again
        e7 f2       | out 0xf2, eax
      `),
      onTrap: (t) => {
        if (t.vector !== 14) return false;
        faults.push({ cr2: Number(t.cr2), rip: t.rip - CODE, rcx: guest.reg(RCX), carry: t.rflags & 1 });
        guest.pages.map(Number(t.cr2) & -PAGE, SPARE + PAGE * faults.length, RW_USER);
        return true;
      },
    });
    // ecx + 1 in each line of 64 bytes: BX is 0, so that the comparison borrows.
    let sum = 0;
    for (let n = (pages * PAGE) / 64; n > 0; n--) sum += n + 1;
    expect(result).toBe(sum & 0xff);
    expect(guest.reg(RAX)).toBe(BigInt(sum >>> 0));
    expect(faults).toEqual(
      Array.from({ length: pages }, (_, i) => ({
        cr2: WINDOW + i * PAGE,
        rip: 4,
        rcx: BigInt(((pages - i) * PAGE) / 64),
        carry: 1,
      })),
    );
  });

  test("divides until it cannot, and leaves the dividend alone", () => {
    const { traps } = guest.run({
      regs: { [RCX]: 300, [RBX]: 7 },
      code: code(`
                       | again:
        48 89 c8       | mov rax, rcx
        48 99          | cqo
        48 83 eb 00    | sub rbx, 0
        48 f7 fb       | idiv rbx
        48 ff c9       | dec rcx
        48 81 f9 64 00 00 00 | cmp rcx, 100
        48 0f 44 d9    | cmove rbx, rcx
        74 e4          | je again
        48 83 f9 32    | cmp rcx, 50
        75 de          | jne again
        31 db          | xor ebx, ebx
        eb da          | jmp again
      `),
    });
    expect(traps.map((t) => [t.vector, t.rip - CODE])).toEqual([[0, 9]]);
    // The handler has pushed RAX, and uses AL.
    expect(guest.read64(traps[0]!.frame - 8)).toBe(50n);
    expect([guest.reg(RCX), guest.reg(RBX)]).toEqual([50n, 0n]);
    // SUB RBX, 0 of 0: ZF and PF.
    expect(traps[0]!.rflags & 0x8d5).toBe(0x44);
  });

  test("is stepped through one instruction at a time with TF, and runs on as compiled code after that", () => {
    const rounds = 40;
    const program = code(`
      b9 28 00 00 00 | mov ecx, 40
                     | again:
      01 c8          | add eax, ecx
      d1 c0          | rol eax, 1
      ff c9          | dec ecx
      75 f8          | jnz again
      89 c3          | mov ebx, eax
    `);
    const run = (rflags: number, again: boolean) => {
      const rips: number[] = [];
      const { result } = guest.run({
        code: program,
        again,
        cpl: 3,
        rflags,
        onTrap: (t) => {
          if (t.vector !== 1) return false;
          rips.push(t.rip - CODE);
          return true;
        },
        regs: { [RAX]: 0 },
      });
      return { result, rips, value: guest.reg(RBX) };
    };
    const plain = run(2, false);
    expect(guest.vcpu.stats().regionsCompiled).toBeGreaterThan(0);
    const stepped = run(TF | 2, true);
    const after = run(2, true);
    expect(plain.rips).toEqual([]);
    expect([stepped.value, after.value]).toEqual([plain.value, plain.value]);
    expect(after.rips).toEqual([]);
    const round = [7, 9, 11];
    const expected = [
      5,
      ...Array.from({ length: rounds }, (_, i) => [...round, i < rounds - 1 ? 5 : 13]).flat(),
      15,
    ];
    // Behind it comes the harness's OUT, which ends the run.
    expect(stepped.rips.slice(0, expected.length)).toEqual(expected);
  });

  test("that sets TF is stepped from there on", () => {
    const rips: number[] = [];
    guest.run({
      cpl: 3,
      regs: { [RCX]: 50 },
      code: code(`
                       | again:
        83 e9 01       | sub ecx, 1
        83 f9 05       | cmp ecx, 5
        75 f8          | jne again
        68 02 01 00 00 | push 0x102
        9d             | popf
        90             | nop
        90             | nop
      `),
      onTrap: (t) => {
        rips.push(t.rip - CODE);
        return rips.length < 2;
      },
    });
    expect(rips).toEqual([15, 16]);
  });

  test("faults at the page boundary that its access crosses, with nothing written", () => {
    guest.pages.map(WINDOW, SPARE, RW_USER);
    const { traps } = guest.run({
      cpl: 3,
      regs: { [RDI]: WINDOW, [RAX]: 0x1111_1111, [RDX]: 0x1_0000 },
      code: code(`
                    | again:
        48 01 07    | add [rdi], rax
        48 83 c7 05 | add rdi, 5
        eb f7       | jmp again
      `),
    });
    const last = Math.floor((PAGE - 8) / 5) + 1;
    expect(traps.map((t) => [t.vector, t.rip - CODE, Number(t.cr2)])).toEqual([[14, 0, WINDOW + PAGE]]);
    expect(Number(guest.reg(RDI))).toBe(WINDOW + 5 * last);
    // The write before ended at RDI + 3; what lies behind it is as it was.
    const end = GUEST_BASE + SPARE + PAGE;
    const from = end - (PAGE - (5 * last + 3));
    expect(from).toBeLessThan(end);
    expect([...guest.state.bytes.subarray(from, end)]).toEqual(Array(end - from).fill(0));
  });
});
