/** Compiled code and page tables: what runs at an address is what is mapped there now. */
import { beforeEach, describe, expect, test } from "bun:test";
import { RBX, RCX, RDI, RDX, RSI } from "../../src/hypervisor/soft/layout.ts";
import { code, le32 } from "../soft/code.ts";
import { CODE, Guest, KERNEL_CODE, ROOT, SPARE } from "../soft/guest.ts";

const guest = new Guest(1);
beforeEach(() => guest.reset());

/** Physical pages of this test's own. */
const SECOND_ROOT = SPARE;
const SECOND_PDPT = SPARE + 0x1000;
const SECOND_PD = SPARE + 0x2000;
const SECOND_PT = SPARE + 0x3000;
const ONE = SPARE + 0x10_0000;
const TWO = SPARE + 0x10_1000;
/** A linear page that both address spaces map, each to its own. */
const SHARED = 0x80_0000;

/** `mov eax, value` and a loop of three rounds that adds 1, with RET. */
const returns = (value: number) => [
  ...code("b8 | mov eax, value"),
  ...le32(value),
  ...code(`
    ba 03 00 00 00 | mov edx, 3
                   | again:
    ff c0          | inc eax
    ff ca          | dec edx
    75 fa          | jnz again
    c3             | ret
  `),
];

function prepare(): void {
  guest.pages.map(SHARED, ONE, 7);
  guest.poke(ONE, returns(100));
  guest.poke(TWO, returns(200));
}

/** The page table entry of SHARED in the first address space, as a physical address. */
function sharedEntry(): number {
  const next = (table: number, index: number) => Number(guest.read64(table + 8 * index) & 0xffff_f000n);
  return next(next(next(ROOT, 0), 0), SHARED >>> 21) + 8 * ((SHARED >>> 12) & 511);
}

describe("the same RIP", () => {
  test("in two address spaces is two pages' code, switched 500 times", () => {
    prepare();
    // The second address space: the same but for the table of SHARED.
    for (const [to, from] of [
      [SECOND_ROOT, ROOT],
      [SECOND_PDPT, Number(guest.read64(ROOT) & ~0xfffn)],
    ] as const) {
      for (let i = 0; i < 512; i++) guest.write64(to + 8 * i, guest.read64(from + 8 * i));
    }
    const directory = Number(guest.read64(SECOND_PDPT) & ~0xfffn);
    for (let i = 0; i < 512; i++) guest.write64(SECOND_PD + 8 * i, guest.read64(directory + 8 * i));
    guest.write64(SECOND_ROOT, BigInt(SECOND_PDPT) | 7n);
    guest.write64(SECOND_PDPT, BigInt(SECOND_PD) | 7n);
    guest.write64(SECOND_PD + 8 * (SHARED >>> 21), BigInt(SECOND_PT) | 7n);
    guest.write64(SECOND_PT + 8 * ((SHARED >>> 12) & 511), BigInt(TWO) | 7n);
    const { result } = guest.run({
      at: KERNEL_CODE,
      regs: { [RSI]: SECOND_ROOT, [RDI]: ROOT, [RCX]: 500, [RBX]: SHARED, [8 * 8]: 0, [8 * 9]: 0 },
      code: code(`
                    | again:
        0f 22 df    | mov cr3, rdi
        ff d3       | call rbx
        49 01 c0    | add r8, rax
        0f 22 de    | mov cr3, rsi
        ff d3       | call rbx
        49 01 c1    | add r9, rax
        ff c9       | dec ecx
        75 ec       | jnz again
      `),
    });
    expect(result).toBeDefined();
    expect([guest.reg(8 * 8), guest.reg(8 * 9)]).toEqual([500n * 103n, 500n * 203n]);
  });

  test("mapped to another page with INVLPG, in between calls of a compiled loop", () => {
    prepare();
    const entry = sharedEntry();
    const { result } = guest.run({
      at: KERNEL_CODE,
      regs: {
        ...{ [RSI]: BigInt(ONE) | 7n, [RDI]: BigInt(TWO) | 7n, [RBX]: SHARED, [RCX]: 300, [RDX]: 0 },
        ...{ [8 * 8]: 0, [8 * 10]: entry },
      },
      code: code(`
                 | again:
        49 89 32 | mov [r10], rsi
        0f 01 3b | invlpg [rbx]
        ff d3    | call rbx
        49 01 c0 | add r8, rax
        49 89 3a | mov [r10], rdi
        0f 01 3b | invlpg [rbx]
        ff d3    | call rbx
        49 01 c0 | add r8, rax
        ff c9    | dec ecx
        75 e6    | jnz again
      `),
    });
    expect(result).toBeDefined();
    expect(guest.reg(8 * 8)).toBe(300n * (103n + 203n));
  });

  test("remapped by a callee while its compiled caller waits for it in the page that goes away", () => {
    // The caller's page is SHARED itself; the callee, elsewhere, exchanges it: RET goes to the other page's code.
    prepare();
    const caller = (value: number) => [
      ...code(`
        ff d3          | call rbx
        b8             | mov eax, value
      `),
      ...le32(value),
      ...code(`
        ff c9          | dec ecx
        74 02          | jz out
        eb f3          | jmp
                       | out:
        ff e5          | jmp rbp
      `),
    ];
    guest.poke(ONE, caller(1));
    guest.poke(TWO, caller(2));
    const entry = sharedEntry();
    const seen: number[] = [];
    guest.run({
      at: KERNEL_CODE,
      regs: { [RSI]: BigInt(ONE) | 7n, [RDI]: BigInt(TWO) | 7n, [RCX]: 31, [8 * 10]: entry },
      code: code(`
        48 8d 1d 11 00 00 00 | lea rbx, [rip+0x11]  callee
        48 8d 2d 22 00 00 00 | lea rbp, [rip+0x22]  out
        b8 00 00 80 00       | mov eax, SHARED
        ff e0                | jmp rax
        0f 0b 90             | ud2
                             | callee:
        e7 f4                | out 0xf4, eax
        48 87 fe             | xchg rsi, rdi
        49 89 32             | mov [r10], rsi
        0f 01 3c 25 00 00 80 00 | invlpg [SHARED]
        c3                   | ret
                             | padding to out:
        90 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90 |
      `),
      onOut: (port, value) => {
        if (port === 0xf4) seen.push(value);
      },
    });
    // Each return lands in the page that the callee has just mapped.
    expect(seen).toEqual([SHARED, ...Array.from({ length: 30 }, (_, i) => (i % 2 === 0 ? 2 : 1))]);
  });
});

test("a block is not compiled with the code of another page than its own", () => {
  guest.run({
    code: code(`
      ff c0 | inc eax
      eb 00 | jmp
    `),
  });
  const { blocks } = guest.vcpu.cpu;
  const before = guest.vcpu.stats().regionsCompiled;
  const record = blocks.at(CODE, 0);
  const page = guest.physical(CODE);
  blocks.compile(record, page + 0x1000);
  blocks.compile(record, -1);
  expect(guest.vcpu.stats().regionsCompiled).toBe(before);
  blocks.compile(record, page);
  expect(guest.vcpu.stats().regionsCompiled).toBe(before + 1);
});
