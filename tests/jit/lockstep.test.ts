/** Lockstep: compiled code and the interpreter side by side, while a guest runs. */
import { expect, test } from "bun:test";
import { MODE, MODE_REPLAY, RAX, RCX, RECORD } from "../../src/hypervisor/soft/layout.ts";
import { CaseBatch } from "../oracle/batch.ts";
import { Random } from "../oracle/random.ts";
import { code } from "../soft/code.ts";
import { CODE, Guest } from "../soft/guest.ts";
import { Machine, runDifferences } from "./machine.ts";
import { assembleProgram, ProgramGenerator, partAddresses } from "./program.ts";

const PROGRAMS = 60;
const HOT = 2;

test("random programs run as ever, and nothing differs", () => {
  const random = new Random(0x10c);
  const interpreted = new Machine(false);
  const lockstep = new Machine(HOT, true);
  for (const rewrites of [false, true]) {
    const generator = new ProgramGenerator(random, {
      native: false,
      parts: 4,
      manyPages: true,
      selfModifying: rewrites,
      faultOneIn: 40,
    });
    const cases = new CaseBatch(1, { withFpu: true, windowBytes: 4096 });
    for (let i = 0; i < PROGRAMS; i++) {
      random.fillRflags(cases, 0);
      random.fillWindow(cases, 0);
      random.fillSse(cases, 0, true, random.oneIn(8));
      random.fillX87(cases, 0, random.oneIn(8));
      const program = generator.next();
      const assembled = assembleProgram(program, CODE + random.below(4096));
      const start = { code: assembled, parts: partAddresses(program, assembled), cases, index: 0 };
      interpreted.load(start);
      const want = interpreted.run(start);
      lockstep.load(start);
      for (let run = 0; run < (rewrites ? 1 : 3); run++) {
        expect(runDifferences(want, lockstep.run(start))).toEqual([]);
      }
    }
  }
  const { slicesCompared, slicesSkipped, regionsCompiled } = lockstep.guest.vcpu.stats();
  expect(regionsCompiled).toBeGreaterThan(PROGRAMS);
  expect(slicesCompared).toBeGreaterThan(10 * PROGRAMS);
  expect(slicesSkipped).toBeLessThan(slicesCompared / 4);
});

test("compiled code that computes something else is reported, with the shortest way there", () => {
  const guest = new Guest(HOT, true);
  const loop = code(`
                   | again:
    83 c0 01       | add eax, 1
    d1 c0          | rol eax, 1
    ff c9          | dec ecx
    75 f7          | jnz again
    31 db          | xor ebx, ebx
  `);
  const run = () => guest.run({ code: [], again: true, regs: { [RAX]: 0, [RCX]: 1000 } });
  guest.poke(CODE, [...loop, ...code("e6 f1 eb fe | out 0xf1, al; jmp $")]);
  run();
  const { slicesCompared, regionsCompiled } = guest.vcpu.stats();
  expect(regionsCompiled).toBeGreaterThan(0);
  expect(slicesCompared).toBeGreaterThan(0);
  // The interpreter's side is made to add 2: the loop's block in the mode that comparisons are decoded in.
  const { state, vcpu } = guest;
  const mode = state.get(MODE);
  state.set(MODE, mode | MODE_REPLAY);
  state.set(vcpu.cpu.blocks.at(CODE, 0) + RECORD.imm, 2);
  state.set(MODE, mode);
  let report = "";
  try {
    run();
  } catch (error) {
    report = String(error);
  }
  expect(report).toContain("after 4 instructions");
  expect(report).toContain("rax: compiled 0x2, interpreted 0x4");
  expect(report).toContain("add [83 /0 Ev,Ib] size 4");
});
