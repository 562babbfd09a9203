/** Regions that go over several pages, and regions whose code is mapped more than once. */
import { beforeEach, expect, test } from "bun:test";
import { RAX, RBX, RCX, RDI, RDX, RSI } from "../../src/hypervisor/soft/layout.ts";
import { code } from "../soft/code.ts";
import { Guest, KERNEL_CODE, ROOT, SPARE } from "../soft/guest.ts";

const guest = new Guest(8);
beforeEach(() => guest.reset());

/** Physical pages of this test's own. */
const ONE = SPARE + 0x10_0000;
const TWO = SPARE + 0x10_1000;
const THREE = SPARE + 0x10_2000;
/** Linear pages. */
const HERE = 0x80_0000;
const THERE = 0x90_0000;

/** Physical address of the page table entry of a linear page. */
function entryOf(linear: number): number {
  const next = (table: number, index: number) => Number(guest.read64(table + 8 * index) & 0xffff_f000n);
  return next(next(next(ROOT, 0), 0), linear >>> 21) + 8 * ((linear >>> 12) & 511);
}

test("a jump from one mapping of a page to another of the same page goes there", () => {
  guest.pages.map(HERE, ONE, 7);
  guest.pages.map(THERE, ONE, 7);
  // The call inside makes a second entry, so that the region has a dispatcher.
  guest.poke(
    ONE,
    code(`
      48 8d 05 00 00 00 00 | lea rax, [rip]
      48 01 c6             | add rsi, rax
      e8 0d 00 00 00       | call return
      48 31 fa             | xor rdx, rdi
      ff cb                | dec ebx
      74 02                | jz $+4
      ff e2                | jmp rdx
      e6 f1                | out 0xf1, al
      eb fe                | jmp $
      c3                   | return: ret
    `),
  );
  const rounds = 1000;
  guest.run({
    code: code("ff e2 | jmp rdx"),
    regs: { [RDX]: HERE, [RDI]: HERE ^ THERE, [RBX]: rounds, [RSI]: 0 },
  });
  expect(guest.reg(RSI)).toBe(BigInt((rounds / 2) * (HERE + 7 + THERE + 7)));
  expect(guest.vcpu.stats().regionsCompiled).toBeGreaterThan(0);
});

/** `inc` or `add`ing blocks of a loop that goes from HERE to the next page and back. */
function twoPages(): void {
  guest.pages.map(HERE, ONE, 7);
  guest.pages.map(HERE + 0x1000, TWO, 7);
  guest.poke(ONE, code("ff c0 e9 f9 0f 00 00 | inc eax; jmp HERE+0x1000"));
  const back = (add: number) => [
    ...[0x83, 0xc2, add], // add edx, add
    ...code(`
      ff c9             | dec ecx
      0f 85 f5 ef ff ff | jnz HERE
      c3                | ret
    `),
  ];
  guest.poke(TWO, back(1));
  guest.poke(THREE, back(100));
}

test("a loop over two pages does what the second page says after it has been mapped anew", () => {
  twoPages();
  const { result } = guest.run({
    at: KERNEL_CODE,
    regs: {
      ...{ [RSI]: BigInt(TWO) | 7n, [RDI]: BigInt(THREE) | 7n, [RBX]: HERE, [RAX]: 0, [RDX]: 0 },
      ...{ [8 * 9]: HERE + 0x1000, [8 * 10]: entryOf(HERE + 0x1000), [8 * 8]: 200 },
    },
    code: code(`
                     | again:
      49 89 32       | mov [r10], rsi
      41 0f 01 39    | invlpg [r9]
      b9 05 00 00 00 | mov ecx, 5
      ff d3          | call rbx
      49 89 3a       | mov [r10], rdi
      41 0f 01 39    | invlpg [r9]
      b9 05 00 00 00 | mov ecx, 5
      ff d3          | call rbx
      41 ff c8       | dec r8d
      75 dd          | jnz again
    `),
  });
  expect(result).toBeDefined();
  expect(guest.reg(RDX)).toBe(200n * (5n + 500n));
  expect(guest.reg(RCX)).toBe(0n);
});

test("a loop over two pages does what the second page says after it has been written over", () => {
  twoPages();
  const { result } = guest.run({
    at: KERNEL_CODE,
    regs: { [RBX]: HERE, [RAX]: 0, [RDX]: 0, [8 * 9]: HERE + 0x1002, [8 * 8]: 200 },
    code: code(`
                     | again:
      b9 05 00 00 00 | mov ecx, 5
      ff d3          | call rbx
      41 80 01 01    | add byte [r9], 1
      41 ff c8       | dec r8d
      41 80 21 3f    | and byte [r9], 0x3f
      45 85 c0       | test r8d, r8d
      75 e9          | jnz again
    `),
  });
  expect(result).toBeDefined();
  let sum = 0;
  for (let round = 0, add = 1; round < 200; round++, add = (add + 1) & 0x3f) sum += 5 * add;
  expect(guest.reg(RDX)).toBe(BigInt(sum));
});
