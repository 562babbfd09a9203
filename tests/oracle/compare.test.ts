import { describe, expect, test } from "bun:test";
import { CaseBatch, ResultBatch } from "./batch.ts";
import { Comparison } from "./compare.ts";
import {
  END_EXCEPTION,
  FX_ST,
  RAX,
  RCX,
  RECORD_WINDOW,
  RESULT_CR2,
  RESULT_END,
  RESULT_ERROR,
  RESULT_RIP,
  RESULT_TRAP,
  RFLAGS_AF,
  RFLAGS_CF,
  RFLAGS_OF,
} from "./layout.ts";
import { undefinedFlags } from "./undefined-flags.ts";

const ADD = [0x48, 0x01, 0xc8]; // add rax, rcx
const AND = [0x48, 0x21, 0xc8]; // and rax, rcx
const FNSTENV_RAX = [0xd9, 0x30];
const FSIN = [0xd9, 0xfe];
const FADD = [0xd8, 0xc1];

/** A case of `code` and two equal results of it, after `change` has been made to the software CPU's. */
function compared(
  code: number[],
  change: (soft: ResultBatch, cases: CaseBatch) => void,
  withFpu = false,
): string[] {
  const cases = new CaseBatch(1, { withFpu });
  cases.setCode(0, code);
  const soft = new ResultBatch(1, cases);
  const native = new ResultBatch(1, cases);
  change(soft, cases);
  return new Comparison(cases, soft, native).differences(0);
}

const bytes = (offset: number, value: number) => (soft: ResultBatch) => {
  soft.view.setUint8(soft.at(0) + offset, value);
};

describe("Comparison", () => {
  test("finds equal results equal", () => {
    expect(compared(ADD, () => {}, true)).toEqual([]);
  });

  test.each([
    ["end", bytes(RESULT_END, END_EXCEPTION)],
    ["trap", bytes(RESULT_TRAP, 6)],
    ["error code", bytes(RESULT_ERROR, 1)],
    ["cr2", bytes(RESULT_CR2 + 7, 1)],
    ["rip", bytes(RESULT_RIP + 4, 1)],
    ["r15", (soft: ResultBatch) => soft.setGpr(0, 15, 0, 1)],
    ["rflags", (soft: ResultBatch) => soft.setRflags(0, RFLAGS_AF)],
    ["window + 255", bytes(RECORD_WINDOW + 255, 1)],
    ["fcw", (soft: ResultBatch) => soft.setFcw(0, 1)],
    ["fsw", (soft: ResultBatch) => soft.setFsw(0, 1)],
    ["ftw", (soft: ResultBatch) => soft.setFtw(0, 1)],
    ["mxcsr", (soft: ResultBatch) => soft.setMxcsr(0, 1)],
    ["xmm15 high", (soft: ResultBatch) => soft.setXmm(0, 15, [0, 0, 0, 1])],
    ["st7", (soft: ResultBatch) => soft.view.setUint8(soft.fxAt(0) + FX_ST + 7 * 16 + 9, 1)],
  ] as const)("sees a change of %s", (name, change) => {
    const differences = compared(ADD, change, true);
    expect(differences.map((line) => line.split(":")[0])).toEqual([name]);
  });

  test("leaves undefined flags out, unless the instruction faulted", () => {
    const changed = (soft: ResultBatch): void => soft.setRflags(0, RFLAGS_AF);
    expect(compared(AND, changed)).toEqual([]);
    const cases = new CaseBatch(1);
    cases.setCode(0, AND);
    const soft = new ResultBatch(1);
    const native = new ResultBatch(1);
    for (const result of [soft, native]) {
      bytes(RESULT_END, END_EXCEPTION)(result);
      bytes(RESULT_TRAP, 14)(result);
    }
    changed(soft);
    expect(new Comparison(cases, soft, native).differences(0)).toHaveLength(1);
  });

  test("leaves out the instruction pointer in an FNSTENV image, wherever it lies", () => {
    const at = (offset: number) => (soft: ResultBatch, cases: CaseBatch) => {
      // The image starts 100 bytes into the window.
      cases.setGpr(0, RAX, cases.windowAddress + 100);
      soft.window(0)[100 + offset] = 1;
    };
    expect(compared(FNSTENV_RAX, at(12), true)).toEqual([]);
    expect(compared(FNSTENV_RAX, at(27), true)).toEqual([]);
    expect(compared(FNSTENV_RAX, at(11), true)).toHaveLength(1);
    expect(compared(FNSTENV_RAX, at(28), true)).toHaveLength(1);
  });

  test("allows a transcendental result to be the neighbour, and no other", () => {
    const low = (value: number) => (soft: ResultBatch) => {
      soft.view.setUint8(soft.fxAt(0) + FX_ST, value);
    };
    expect(compared(FSIN, low(1), true)).toEqual([]);
    expect(compared(FSIN, low(2), true)).toHaveLength(1);
    expect(compared(FADD, low(1), true)).toHaveLength(1);
  });

  test("takes a count in CL into account", () => {
    const shift = [0x48, 0xd3, 0xe0]; // shl rax, cl
    const overflow = (count: number) => (soft: ResultBatch, cases: CaseBatch) => {
      cases.setGpr(0, RCX, count);
      soft.setRflags(0, RFLAGS_OF);
    };
    expect(compared(shift, overflow(2))).toEqual([]);
    expect(compared(shift, overflow(1))).toHaveLength(1);
    expect(compared(shift, overflow(64))).toHaveLength(1);
  });
});

test("undefined flags of shifts depend on the masked count", () => {
  expect(undefinedFlags("shl", 4, 32)).toBe(0);
  expect(undefinedFlags("shl", 4, 33)).toBe(RFLAGS_AF);
  expect(undefinedFlags("shl", 1, 8)).toBe(RFLAGS_AF | RFLAGS_OF | RFLAGS_CF);
  expect(undefinedFlags("sar", 1, 8)).toBe(RFLAGS_AF | RFLAGS_OF);
  expect(undefinedFlags("rcl", 8, 65)).toBe(0);
  expect(undefinedFlags("rcl", 8, 66)).toBe(RFLAGS_OF);
});
