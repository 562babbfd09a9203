/** Instructions that lie in two pages: their bytes, their translations, and faults of the second part. */
import { beforeEach, describe, expect, test } from "bun:test";
import { RAX, RBX, RDI, RSI } from "../../src/hypervisor/soft/layout.ts";
import { code } from "./code.ts";
import { CODE, Guest, ROOT, SPARE } from "./guest.ts";

const guest = new Guest();

beforeEach(() => guest.reset());

describe("an instruction across two pages", () => {
  const P = 7n;
  const TABLES = [SPARE, SPARE + 0x1000, SPARE + 0x2000] as const;
  const LINEAR = 0x80_0000_0000n;
  const FIRST = [SPARE + 0x4000, SPARE + 0x5000] as const;
  const SECOND = [SPARE + 0x6000, SPARE + 0x7000] as const;
  /** MOV EAX, imm32 with two bytes in the first page; RET. `low` and `high` are parts of the immediate. */
  const START = 0xffe;

  function build(): void {
    guest.write64(ROOT + 8, BigInt(TABLES[0]) | P);
    guest.write64(TABLES[0], BigInt(TABLES[1]) | P);
    guest.write64(TABLES[1], BigInt(TABLES[2]) | P);
    mapPages(0, 0);
    for (const i of [0, 1] as const) {
      guest.poke(FIRST[i] + START, [0xb8, 0x10 + i]);
      guest.poke(SECOND[i], [0x20 + i, 0, 0, 0xc3]);
    }
  }
  function mapPages(first: 0 | 1, second: 0 | 1): void {
    guest.write64(TABLES[2], BigInt(FIRST[first]) | P);
    guest.write64(TABLES[2] + 8, BigInt(SECOND[second]) | P);
  }
  /** Results of calls to the instruction, with `change` after each. */
  function calls(changes: (() => void)[], between: number[]): number[] {
    const seen: number[] = [];
    const call = [...code("ff d3 | call rbx"), ...code("e7 f2 | out 0xf2, eax")];
    guest.run({
      code: [...call, ...changes.flatMap(() => [...between, ...call])],
      regs: { [RBX]: LINEAR + BigInt(START), [RDI]: LINEAR, [RSI]: LINEAR + 0x1000n },
      onOut: (_port, value) => {
        seen.push(value);
        changes[seen.length - 1]?.();
      },
    });
    return seen;
  }
  const INVLPG = code(`
    0f 01 3f | invlpg [rdi]
    0f 01 3e | invlpg [rsi]
  `);

  test("either page remapped, and back", () => {
    build();
    const seen = calls(
      [() => mapPages(0, 1), () => mapPages(1, 1), () => mapPages(1, 0), () => mapPages(0, 0)],
      INVLPG,
    );
    expect(seen).toEqual([0x2010, 0x2110, 0x2111, 0x2011, 0x2010]);
  });

  test("either page rewritten", () => {
    for (const [offset, value] of [
      [BigInt(START + 1), 0x2077],
      [0x1000n, 0x7710],
    ] as const) {
      build();
      const seen: number[] = [];
      guest.run({
        code: code(`
          ff d3    | call rbx
          e7 f2    | out 0xf2, eax
          c6 07 77 | mov byte ptr [rdi], 0x77
          ff d3    | call rbx
          e7 f2    | out 0xf2, eax
        `),
        regs: { [RBX]: LINEAR + BigInt(START), [RDI]: LINEAR + offset },
        onOut: (_port, v) => seen.push(v),
      });
      expect(seen).toEqual([0x2010, value]);
    }
  });

  test("the second page made absent is a page fault at its first byte, with RIP at the instruction", () => {
    build();
    const trap = { vector: 14, error: 16, rip: Number(LINEAR) + START, cr2: LINEAR + 0x1000n };
    const seen: unknown[] = [];
    guest.run({
      code: code(`
        ff d3    | call rbx
        e7 f2    | out 0xf2, eax
        0f 01 3e | invlpg [rsi]
        ff d3    | call rbx
      `),
      regs: { [RBX]: LINEAR + BigInt(START), [RSI]: LINEAR + 0x1000n },
      onOut: () => guest.write64(TABLES[2] + 8, 0n),
      onTrap: (t) => {
        seen.push(t);
        return false;
      },
    });
    expect(seen).toMatchObject([trap]);
  });

  test("the second page execute-disable, or the supervisor's, is a page fault there", () => {
    build();
    guest.write64(TABLES[2] + 8, BigInt(SECOND[0]) | P | (1n << 63n));
    const run = (cpl: 0 | 3) =>
      guest.run({ code: code("ff d3 | call rbx"), cpl, regs: { [RBX]: LINEAR + BigInt(START) } }).traps[0];
    expect(run(0)).toMatchObject({
      vector: 14,
      error: 17,
      rip: Number(LINEAR) + START,
      cr2: LINEAR + 0x1000n,
    });
    guest.write64(TABLES[2] + 8, BigInt(SECOND[0]) | 3n);
    expect(run(0)).toBeUndefined();
    expect(run(3)).toMatchObject({ vector: 14, error: 21, cr2: LINEAR + 0x1000n });
  });

  test("what lies before it in its page is done before the fault", () => {
    guest.write64(TABLES[2] + 8, 0n);
    const at = CODE + 0x1_0000 - 9;
    const { traps } = guest.run({
      code: code(`
        b8 05 00 00 00 | mov eax, 5
        ff c0          | inc eax
        b9 01 00 00 00 | mov ecx, 1
      `).slice(0, 9),
      at,
      cpl: 3,
      bare: true,
    });
    expect(traps[0]).toMatchObject({ vector: 14, error: 20, rip: at + 7, cr2: BigInt(CODE + 0x1_0000) });
    expect(guest.reg(RAX)).toBe(6n);
  });

  test("an instruction that ends with the page does not touch the next one", () => {
    const at = CODE + 0x1_0000 - 2;
    const { traps } = guest.run({ code: code("b0 05 | mov al, 5"), at, cpl: 3, bare: true });
    expect(traps[0]).toMatchObject({ vector: 14, error: 20, rip: CODE + 0x1_0000 });
    expect(guest.reg(RAX)).toBe(5n);
  });
});
