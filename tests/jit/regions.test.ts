/** What compiled code is kept, and for how long: shapes of regions, their number, and when they go. */
import { expect, test } from "bun:test";
import { MAX_REGIONS } from "../../src/hypervisor/soft/jit/jit.ts";
import { RAX, RBX, RDI } from "../../src/hypervisor/soft/layout.ts";
import { code, le32 } from "../soft/code.ts";
import { CODE, DATA, Guest } from "../soft/guest.ts";
import { type Assembler, assemble } from "./assembler.ts";

const CC_NE = 5;
const assembleBytes = (write: (a: Assembler) => void): number[] => [...assemble(CODE, write).bytes];

/** Everything is decoded in a first run; blocks are compiled in the second one. */
const SECOND_RUN = 2;

test("branches whose both ways are the same do not multiply the code", () => {
  const guest = new Guest(SECOND_RUN);
  const branches = Array.from({ length: 60 }, () => code("74 00 | jz $+2")).flat();
  const program = [...branches, ...code("b0 2a | mov al, 42")];
  expect(guest.run({ code: program }).result).toBe(42);
  const before = performance.now();
  expect(guest.run({ code: [], again: true }).result).toBe(42);
  expect(guest.run({ code: [], again: true }).result).toBe(42);
  expect(performance.now() - before).toBeLessThan(2000);
  expect(guest.vcpu.stats().regionsCompiled).toBeGreaterThan(0);
  expect(guest.vcpu.stats().instructionsCompiled).toBeLessThan(10 * 61);
});

/** A chain of `blocks` blocks that each add 1 to EAX. */
function chain(blocks: number): number[] {
  return Array.from({ length: blocks }, () => code("ff c0 eb 00 | inc eax; jmp $+2")).flat();
}

const END = code(`
  e6 f1 | out 0xf1, al
  eb fe | jmp $
`);

test("when there would be too many, all go, and what still runs is compiled again", () => {
  const guest = new Guest(1);
  const blocks = MAX_REGIONS + 500;
  guest.poke(CODE, [...chain(blocks), ...END]);
  const run = () => {
    const { result } = guest.run({ code: [], again: true, cpl: 3, regs: { [RAX]: 0 } });
    expect(result).toBe(blocks & 0xff);
    expect(guest.reg(RAX)).toBe(BigInt(blocks));
  };
  run();
  const first = guest.vcpu.stats();
  expect(first.evictions).toBe(1);
  expect(first.regionsCompiled).toBeGreaterThanOrEqual(blocks);
  // What was dropped is compiled again, in larger regions, because all is decoded by now.
  run();
  const second = guest.vcpu.stats();
  expect(second.evictions).toBe(1);
  expect(second.instructionsCompiled - first.instructionsCompiled).toBeGreaterThanOrEqual(2 * MAX_REGIONS);
  // All slots that were given back serve again: a rare form of an instruction finds one, too.
  const { result } = guest.run({
    code: code("67 66 f0 0f c1 07 | lock xadd [edi], ax"),
    regs: { [RDI]: DATA },
  });
  expect(result).toBeDefined();
}, 30_000);

test("code that is always rewritten fills the arena of decoded instructions, which then starts anew", () => {
  const guest = new Guest(3);
  // 16 pages of INC; each round rewrites their first bytes, so that all is decoded again.
  const at = CODE + 0x1000;
  const pages = 14;
  const body = Array.from({ length: (pages * 4096 - 2) / 2 }, () => [0xff, 0xc0]).flat();
  guest.poke(at, [...body, 0xff, 0xe6]); // jmp rsi
  const rounds = 30;
  const { result } = guest.run({
    code: assembleBytes((a) => {
      a.label("again");
      a.emit(...code("48 8d 35 | lea rsi, [rip+back]"));
      a.ripRelative("back");
      a.emit(...code("bf | mov edi, at"), ...le32(at));
      a.emit(...code("ff e7 | jmp rdi"));
      a.label("back");
      a.emit(...code("b9 | mov ecx, pages"), ...le32(pages));
      a.label("touch");
      a.emit(
        ...code(`
          c6 07 ff             | mov byte ptr [rdi], 0xff
          81 c7 00 10 00 00    | add edi, 0x1000
          ff c9                | dec ecx
        `),
      );
      a.jcc(CC_NE, "touch");
      a.emit(...code("ff cb | dec ebx"));
      a.jcc(CC_NE, "again");
    }),
    cpl: 3,
    regs: { [RAX]: 0, [RBX]: rounds },
  });
  expect(result).toBeDefined();
  expect(guest.reg(RAX)).toBe(BigInt(rounds * (body.length / 2)));
  expect(guest.vcpu.stats().arenaFlushes).toBeGreaterThan(1);
}, 30_000);

test("compiled code that is dropped is given back: memory does not grow with what is compiled over time", () => {
  const guest = new Guest(1);
  const blocks = 400;
  const program = [...chain(blocks), ...END];
  guest.poke(CODE, program);
  const pass = () => {
    for (let i = 0; i < 3; i++) {
      guest.vcpu.cpu.blocks.drop(guest.physical(CODE) / 4096);
      const { result } = guest.run({ code: [], again: true, cpl: 3, regs: { [RAX]: 0 } });
      expect(result).toBe(blocks & 0xff);
    }
    Bun.gc(true);
    return process.memoryUsage.rss();
  };
  // What the process holds goes up and down by some 20 MiB with the collector; 9,600 regions kept would be more.
  const passes = (n: number) => Array.from({ length: n }, pass);
  const before = Math.max(...passes(3));
  passes(5);
  const after = Math.min(...passes(3));
  expect(guest.vcpu.stats().regionsCompiled).toBeGreaterThanOrEqual(11 * 3 * blocks);
  expect(after - before).toBeLessThan(24 << 20);
}, 30_000);
