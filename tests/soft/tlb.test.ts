/** Translation caching: what INVLPG, CR3 loads and CR4.PGE drop, and what they keep (SDM vol. 3A, 4.10). */
import { beforeEach, describe, expect, test } from "bun:test";
import { RAX, RBX, RCX, RDI } from "../../src/hypervisor/soft/layout.ts";
import { code } from "./code.ts";
import { CODE, Guest, KERNEL_CODE, ROOT, SPARE } from "./guest.ts";

const guest = new Guest();

const RW = 2n;
const US = 4n;
const G = 0x100n;
const PS = 0x80n;
const P = 1n;

const PDPT = SPARE;
const PD = SPARE + 0x1000;
const PT = SPARE + 0x2000;
/** Entry 0 of every table. */
const LINEAR = 0x80_0000_0000n;
const FIRST = SPARE + 0x10_0000;
const SECOND = SPARE + 0x11_0000;

function put(entry: number, value: bigint): void {
  guest.write64(entry, value);
}

/** Maps `pages` pages from LINEAR on to `physical`. */
function map(physical: number, flags: bigint, pages = 1): void {
  put(ROOT + 8, BigInt(PDPT) | P | RW | US);
  put(PDPT, BigInt(PD) | P | RW | US);
  put(PD, BigInt(PT) | P | RW | US);
  for (let i = 0; i < pages; i++) put(PT + 8 * i, BigInt(physical + 4096 * i) | P | flags);
}

beforeEach(() => {
  guest.reset();
  for (let i = 0; i < 16; i++) {
    guest.write64(FIRST + 4096 * i, 0x1111n);
    guest.write64(SECOND + 4096 * i, 0x2222n);
  }
});

/** Reads [rdi], lets the test change the tables, runs `between`, reads again. Values are reported on 0x80. */
function readTwice(
  between: number[],
  change: () => void,
  options: { cr4?: bigint; rcx?: bigint } = {},
): number[] {
  const seen: number[] = [];
  guest.run({
    code: [
      ...code(`
        8b 07 | mov eax, [rdi]
        e7 80 | out 0x80, eax
      `),
      ...between,
      ...code(`
        8b 07 | mov eax, [rdi]
        e7 80 | out 0x80, eax
      `),
    ],
    regs: { [RDI]: LINEAR, [RCX]: options.rcx ?? LINEAR },
    ...(options.cr4 === undefined ? {} : { cr4: options.cr4 }),
    onOut: (_port, value) => {
      seen.push(value);
      if (seen.length === 1) change();
    },
    onTrap: (trap) => {
      seen.push(-trap.vector);
      return false;
    },
  });
  return seen;
}

const INVLPG = code(`
  0f 01 39 | invlpg [rcx]
`);
const RELOAD_CR3 = code(`
  0f 20 d8 | mov rax, cr3
  0f 22 d8 | mov cr3, rax
`);
const TOGGLE_PGE = code(`
  0f 20 e0          | mov rax, cr4
  48 35 80 00 00 00 | xor rax, 0x80
  0f 22 e0          | mov cr4, rax
  48 35 80 00 00 00 | xor rax, 0x80
  0f 22 e0          | mov cr4, rax
`);
const TOGGLE_WP = code(`
  0f 20 c0          | mov rax, cr0
  48 35 00 00 01 00 | xor rax, 0x10000
  0f 22 c0          | mov cr0, rax
  48 35 00 00 01 00 | xor rax, 0x10000
  0f 22 c0          | mov cr0, rax
`);
const remap = (flags: bigint) => () => put(PT, BigInt(SECOND) | P | flags);

describe("a changed translation", () => {
  test("is seen after INVLPG, global or not", () => {
    for (const flags of [RW, RW | G]) {
      map(FIRST, flags);
      expect(readTwice(INVLPG, remap(flags))).toEqual([0x1111, 0x2222]);
    }
  });

  test("is seen after INVLPG of any byte of its page, and not after that of the next page", () => {
    map(FIRST, RW | G, 2);
    expect(readTwice(INVLPG, remap(RW), { rcx: LINEAR + 0xfffn })).toEqual([0x1111, 0x2222]);
    map(FIRST, RW | G, 2);
    // Nothing requires the old one to be kept; that it is shows that the next case tests something.
    expect(readTwice(INVLPG, remap(RW), { rcx: LINEAR + 0x1000n })).toEqual([0x1111, 0x1111]);
  });

  test("is seen after a CR3 load unless it is global", () => {
    map(FIRST, RW);
    expect(readTwice(RELOAD_CR3, remap(RW))).toEqual([0x1111, 0x2222]);
    map(FIRST, RW | G);
    expect(readTwice(RELOAD_CR3, remap(RW))).toEqual([0x1111, 0x1111]);
  });

  test("is seen after a CR3 load although global when CR4.PGE is off", () => {
    map(FIRST, RW | G);
    expect(readTwice(RELOAD_CR3, remap(RW), { cr4: 0x620n })).toEqual([0x1111, 0x2222]);
  });

  test("is seen after CR4.PGE or CR0.WP has been toggled, although global", () => {
    map(FIRST, RW | G);
    expect(readTwice(TOGGLE_PGE, remap(RW))).toEqual([0x1111, 0x2222]);
    map(FIRST, RW | G);
    expect(readTwice(TOGGLE_WP, remap(RW))).toEqual([0x1111, 0x2222]);
  });

  test("G in an entry that is not a leaf means nothing", () => {
    map(FIRST, RW);
    put(PD, BigInt(PT) | P | RW | G);
    expect(readTwice(RELOAD_CR3, remap(RW))).toEqual([0x1111, 0x2222]);
  });

  test("a page made absent faults after INVLPG, and is usable as soon as it is back", () => {
    map(FIRST, RW);
    expect(readTwice(INVLPG, () => put(PT, 0n))).toEqual([0x1111, -14]);
    // Absent entries are never cached: no INVLPG is needed to make a page present.
    map(FIRST, RW);
    put(PT, 0n);
    const { result, traps } = guest.run({
      code: code(`
        8b 07 | mov eax, [rdi]
      `),
      regs: { [RDI]: LINEAR },
      onTrap: () => {
        put(PT, BigInt(FIRST) | P | RW);
        return true;
      },
    });
    expect([traps.length, result]).toEqual([1, 0x11]);
  });
});

describe("a TLB entry", () => {
  test("of a read is not used for a write without RW", () => {
    map(FIRST, 0n);
    const { traps } = guest.run({
      code: code(`
        8b 07 | mov eax, [rdi]
        89 07 | mov [rdi], eax
      `),
      regs: { [RDI]: LINEAR },
    });
    expect([traps[0]?.vector, traps[0]?.error, traps[0]?.rip]).toEqual([14, 3, CODE + 2]);
  });

  test("of the supervisor is not used by the user", () => {
    map(FIRST, RW);
    guest.setGate(0x80, KERNEL_CODE);
    guest.poke(
      KERNEL_CODE,
      code(`
        8b 07 | mov eax, [rdi]
        48 cf | iretq
      `),
    );
    const { traps } = guest.run({
      cpl: 3,
      code: code(`
        cd 80 | int 0x80
        8b 07 | mov eax, [rdi]
      `),
      regs: { [RDI]: LINEAR },
    });
    expect(guest.reg(RAX)).toBe(0x1111n);
    expect([traps[0]?.vector, traps[0]?.error, traps[0]?.rip]).toEqual([14, 5, CODE + 2]);
  });

  test("gives way to lost rights after INVLPG: write, user", () => {
    const seen: number[] = [];
    map(FIRST, RW);
    guest.run({
      code: code(`
        89 07    | mov [rdi], eax
        e6 80    | out 0x80, al
        0f 01 3f | invlpg [rdi]
        89 07    | mov [rdi], eax
      `),
      regs: { [RDI]: LINEAR },
      onOut: () => put(PT, BigInt(FIRST) | P),
      onTrap: (t) => {
        seen.push(t.error);
        return false;
      },
    });
    expect(seen).toEqual([3]);
  });

  test("of a write keeps D clear pages honest: after D is cleared and INVLPG it is set again", () => {
    const dirty: boolean[] = [];
    const D = 0x40n;
    map(FIRST, RW);
    guest.run({
      code: code(`
        89 07    | mov [rdi], eax
        e6 80    | out 0x80, al
        0f 01 3f | invlpg [rdi]
        8b 07    | mov eax, [rdi]
        e6 80    | out 0x80, al
        89 07    | mov [rdi], eax
        e6 80    | out 0x80, al
      `),
      regs: { [RDI]: LINEAR },
      onOut: () => {
        dirty.push((guest.read64(PT) & D) !== 0n);
        if (dirty.length === 1) put(PT, guest.read64(PT) & ~D);
      },
    });
    expect(dirty).toEqual([true, false, true]);
  });
});

describe("INVLPG of a large page drops all of it (SDM vol. 3A, 4.10.4.1)", () => {
  for (const [name, pages] of [
    ["2 MiB", { entry: PD, first: SPARE, second: 0 }],
    ["1 GiB", { entry: PDPT, first: 0, second: 0 }],
  ] as const) {
    test(name, () => {
      for (const flags of [RW | PS, RW | PS | G]) {
        map(FIRST, RW);
        put(pages.entry, BigInt(pages.first) | P | flags);
        // Two places in the page are cached; the page goes away; INVLPG names the first place alone.
        const { traps } = guest.run({
          code: code(`
            8b 07    | mov eax, [rdi]
            8b 03    | mov eax, [rbx]
            89 03    | mov [rbx], eax
            e6 80    | out 0x80, al
            0f 01 3f | invlpg [rdi]
            89 03    | mov [rbx], eax
          `),
          regs: { [RDI]: LINEAR, [RBX]: LINEAR + 0x1f_0000n },
          onOut: () => put(pages.entry, 0n),
        });
        expect([traps[0]?.vector, traps[0]?.error]).toEqual([14, 2]);
      }
    });
  }

  test("also for instruction fetches", () => {
    const at = SPARE + 0x1_0000;
    const target = LINEAR + 0x1_0000n;
    map(FIRST, RW);
    put(PD, BigInt(SPARE) | P | RW | PS | G);
    guest.poke(
      at,
      code(`
        c3 | ret
      `),
    );
    const { traps } = guest.run({
      code: code(`
        ff d0    | call rax
        e6 80    | out 0x80, al
        0f 01 3f | invlpg [rdi]
        ff d0    | call rax
      `),
      regs: { [RDI]: LINEAR, [RAX]: target },
      onOut: () => put(PD, 0n),
    });
    expect([traps[0]?.vector, traps[0]?.error, traps[0]?.cr2]).toEqual([14, 16, target]);
  });
});

test("translations are not leaked while CR3 never changes", () => {
  // More misses than the TLB has entries, many times over: what has to be remembered for a CR3 load is bounded.
  map(FIRST, RW);
  const seen: number[] = [];
  guest.run({
    code: code(`
      b9 a0 86 01 00 | mov ecx, 100000
                     | again:
      8b 07          | mov eax, [rdi]
      8b 03          | mov eax, [rbx]
      ff c9          | dec ecx
      75 f8          | jnz again
      e6 80          | out 0x80, al
    `),
    // Both addresses use one entry of the TLB, so every access misses.
    regs: { [RDI]: LINEAR, [RBX]: 0 },
    onOut: () => seen.push(guest.vcpu.cpu.mmu.tracked),
  });
  expect(guest.vcpu.stats().instructions).toBeGreaterThan(100_000);
  expect(seen[0]).toBeLessThan(1000);
});

describe("code through changing translations", () => {
  const RETURN_1 = code(`
    b0 01 | mov al, 1
    c3    | ret
  `);
  const RETURN_2 = code(`
    b0 02 | mov al, 2
    c3    | ret
  `);
  const CALL_TWICE = (between: number[]) => [
    ...code(`
      ff d3 | call rbx
      e6 80 | out 0x80, al
    `),
    ...between,
    ...code(`
      ff d3 | call rbx
      e6 80 | out 0x80, al
    `),
  ];
  const callTwice = (between: number[], change: () => void): number[] => {
    const seen: number[] = [];
    guest.run({
      code: CALL_TWICE(between),
      regs: { [RBX]: LINEAR, [RCX]: LINEAR },
      onOut: (_port, value) => {
        seen.push(value & 0xff);
        if (seen.length === 1) change();
      },
      onTrap: (t) => {
        seen.push(-t.vector);
        return false;
      },
    });
    return seen;
  };

  test("a remapped code page runs the new code after INVLPG or a CR3 load", () => {
    for (const between of [INVLPG, RELOAD_CR3]) {
      map(FIRST, RW);
      guest.poke(FIRST, RETURN_1);
      guest.poke(SECOND, RETURN_2);
      expect(callTwice(between, remap(RW))).toEqual([1, 2]);
    }
  });

  test("a code page made absent faults after INVLPG", () => {
    map(FIRST, RW);
    guest.poke(FIRST, RETURN_1);
    expect(callTwice(INVLPG, () => put(PT, 0n))).toEqual([1, -14]);
  });

  test("a code page made execute-disable faults after INVLPG", () => {
    map(FIRST, RW);
    guest.poke(FIRST, RETURN_1);
    expect(callTwice(INVLPG, () => put(PT, BigInt(FIRST) | P | RW | (1n << 63n)))).toEqual([1, -14]);
  });

  test("address spaces: the same linear page is other code in each", () => {
    map(FIRST, RW);
    guest.poke(FIRST, RETURN_1);
    guest.poke(SECOND, RETURN_2);
    // A second set of tables that differs in this page only.
    const root = SPARE + 0x8000;
    const pdpt = SPARE + 0x9000;
    const pd = SPARE + 0xa000;
    const pt = SPARE + 0xb000;
    put(root, guest.read64(ROOT));
    put(root + 8, BigInt(pdpt) | 3n);
    put(pdpt, BigInt(pd) | 3n);
    put(pd, BigInt(pt) | 3n);
    put(pt, BigInt(SECOND) | 3n);
    const seen: number[] = [];
    guest.run({
      code: code(`
                 | again:
        ff d3    | call rbx
        e6 80    | out 0x80, al
        0f 20 da | mov rdx, cr3
        48 87 d1 | xchg rcx, rdx
        0f 22 da | mov cr3, rdx
        ff cf    | dec edi
        75 ef    | jnz again
      `),
      regs: { [RBX]: LINEAR, [RCX]: root, [RDI]: 6 },
      onOut: (_port, value) => seen.push(value & 0xff),
    });
    expect(seen).toEqual([1, 2, 1, 2, 1, 2]);
  });
});
