/**
 * Random programs: compiled code ends as interpreted code does, and as the processor of this host does. Set
 * SPARKLER_JIT_PROGRAMS for a longer search and SPARKLER_JIT_SEED for another one.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { CaseBatch } from "../oracle/batch.ts";
import { Random } from "../oracle/random.ts";
import { NativeRunner, nativeUnsupported } from "../oracle/runner.ts";
import { CODE } from "../soft/guest.ts";
import { listing } from "./listing.ts";
import { Machine, runDifferences, type Snapshot, type Start } from "./machine.ts";
import { NATIVE_BASE, nativeDifferences, setProgram } from "./native.ts";
import { assembleProgram, type Program, ProgramGenerator, partAddresses } from "./program.ts";
import { reduce } from "./reduce.ts";

const PROGRAMS = Number(process.env.SPARKLER_JIT_PROGRAMS ?? 600);
const SEED = Number(process.env.SPARKLER_JIT_SEED ?? 0x51a7);
const TIMEOUT_MS = 60_000 + 100 * PROGRAMS;
/** Programs compiled in batches, too: one in so many. */
const BATCHED_ONE_IN = 10;
/** A case's window is the whole data page. */
const SHAPE = { withFpu: true, windowBytes: 4096 };
const PAGE = 4096;

const interpreted = new Machine(false);
/** Compiles each block before it runs: small regions. */
const atOnce = new Machine(1);
/** Decodes everything in a first run: regions as large as they get. */
const second = new Machine(2);
/** Compiles as the product does, in batches, what has run 12 times. */
const batched = new Machine(12);

function fillState(random: Random, cases: CaseBatch, i: number): void {
  random.fillRflags(cases, i);
  random.fillWindow(cases, i);
  random.fillSse(cases, i, true, random.oneIn(8));
  random.fillX87(cases, i, random.oneIn(8));
}

interface Counted {
  readonly snapshots: Snapshot[];
  readonly instructions: number;
}

function counted(machine: Machine, start: Start): Counted {
  const before = machine.guest.vcpu.stats().instructions;
  const snapshots = machine.run(start);
  return { snapshots, instructions: machine.guest.vcpu.stats().instructions - before };
}

/** Runs a program interpreted and compiled. `rewrites`: it changes its own code. */
function compare(start: Start, rewrites: boolean, inBatches: boolean): string[] {
  interpreted.load(start);
  const want = counted(interpreted, start);
  const engines: [Machine, number][] = [
    [atOnce, 1],
    [second, rewrites ? 1 : 3],
  ];
  if (inBatches && !rewrites) engines.push([batched, 16]);
  for (const [machine, runs] of engines) {
    machine.load(start);
    for (let run = 0; run < runs; run++) {
      const got = counted(machine, start);
      const d = runDifferences(want.snapshots, got.snapshots);
      // A block that is left because it has been written over is not charged for what it did.
      if (!rewrites && got.instructions !== want.instructions) {
        d.push(`instructions: ${want.instructions} / ${got.instructions}`);
      }
      if (d.length > 0) {
        return [`interpreted / compiled after ${machine.jit} executions, run ${run}:`, ...d];
      }
    }
  }
  return [];
}

function startOf(program: Program, base: number, cases: CaseBatch, index: number): Start {
  const code = assembleProgram(program, base);
  return { code, parts: partAddresses(program, code), cases, index };
}

function report(what: string, differences: string[], start: Start): string {
  return [what, ...differences, listing(start.code)].join("\n");
}

describe.each([
  ["that only compute", false, PROGRAMS],
  ["that change themselves", true, Math.ceil(PROGRAMS / 4)],
])("programs %s", (_name, rewrites, count) => {
  test(
    `${count} end compiled as they end interpreted`,
    () => {
      const random = new Random(SEED + Number(rewrites));
      const generator = new ProgramGenerator(random, {
        native: false,
        parts: 4,
        manyPages: true,
        selfModifying: rewrites,
        faultOneIn: 40,
      });
      const cases = new CaseBatch(1, SHAPE);
      for (let i = 0; i < count; i++) {
        fillState(random, cases, 0);
        const program = generator.next();
        const base = CODE + random.below(PAGE);
        const inBatches = i % BATCHED_ONE_IN === 0;
        const differences = () => compare(startOf(program, base, cases, 0), rewrites, inBatches);
        if (differences().length === 0) continue;
        reduce(program, () => differences().length > 0);
        const start = startOf(program, base, cases, 0);
        expect(report(`program ${i}`, differences(), start)).toBe("");
      }
      expect(second.guest.vcpu.stats().regionsCompiled).toBeGreaterThan(count);
    },
    TIMEOUT_MS,
  );
});

const reason = nativeUnsupported();
if (reason) console.log(`skip: ${reason}`);

describe.skipIf(reason !== undefined)("on this processor", () => {
  const runner = reason === undefined ? new NativeRunner() : undefined;
  afterAll(() => runner?.close());

  test.each([
    ["that only compute", false, 3 * PROGRAMS],
    ["that change themselves", true, Math.ceil(PROGRAMS / 2)],
  ])(
    "programs %s end as interpreted and compiled",
    (_name, rewrites, count) => {
      const random = new Random(SEED + 2 + Number(rewrites));
      const generator = new ProgramGenerator(random, {
        native: true,
        parts: 1,
        manyPages: false,
        selfModifying: rewrites,
        faultOneIn: 400,
      });
      const cases = new CaseBatch(count, SHAPE);
      const programs: Program[] = [];
      for (let i = 0; i < count; i++) {
        fillState(random, cases, i);
        let program: Program;
        do program = generator.next();
        while (!setProgram(cases, i, assembleProgram(program, NATIVE_BASE)));
        programs.push(program);
      }
      const results = runner!.run(cases);
      const machines = [interpreted, atOnce];
      const run = (machine: Machine, start: Start): Snapshot[] => {
        machine.load(start);
        return machine.run(start);
      };
      for (let i = 0; i < count; i++) {
        const program = programs[i]!;
        const start = startOf(program, NATIVE_BASE, cases, i);
        for (const machine of machines) {
          if (nativeDifferences(results, i, run(machine, start)).length === 0) continue;
          expect(reduced(program, start, cases, i, (s) => run(machine, s))).toBe("");
        }
      }
    },
    TIMEOUT_MS,
  );

  /** Reports on a smaller version of a program that ends otherwise than on the host. */
  function reduced(
    program: Program,
    start: Start,
    cases: CaseBatch,
    i: number,
    run: (start: Start) => Snapshot[],
  ): string {
    const one = new CaseBatch(1, SHAPE);
    one.bytes.set(cases.bytes.subarray(cases.at(i), cases.at(i) + cases.stride));
    const differences = (): string[] => {
      const smaller = startOf(program, NATIVE_BASE, one, 0);
      if (!setProgram(one, 0, smaller.code)) return [];
      return nativeDifferences(runner!.run(one), 0, run(smaller));
    };
    reduce(program, () => differences().length > 0);
    const last = differences();
    return report(
      `program ${i}: host / here`,
      last,
      last.length > 0 ? startOf(program, NATIVE_BASE, one, 0) : start,
    );
  }
});
