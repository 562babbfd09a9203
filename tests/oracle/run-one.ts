/** Running one case at a time, for tests of the runner. */

import { expect } from "bun:test";
import { CaseBatch, type ResultBatch } from "./batch.ts";
import { CODE_OFFSET, CODE_PAGE, END_EXCEPTION } from "./layout.ts";
import type { NativeRunner } from "./runner.ts";

/** Guest address of the first code byte. */
export const CODE = BigInt(CODE_PAGE + CODE_OFFSET);

export type RunOne = (code: number[], prepare?: (cases: CaseBatch) => void, withFpu?: boolean) => ResultBatch;

/** Runs `code` as the only case; `prepare` sets its state. */
export function runOne(
  runner: NativeRunner,
  code: number[],
  prepare: (cases: CaseBatch) => void = () => {},
  withFpu = false,
): ResultBatch {
  const cases = new CaseBatch(1, { withFpu });
  cases.setCode(0, code);
  prepare(cases);
  return runner.run(cases);
}

/** Expects that the first case ended in this exception. */
export function expectTrap(r: ResultBatch, trap: number, error: number, rip: bigint): void {
  expect({ end: r.end(0), trap: r.trap(0), error: r.errorCode(0), rip: r.rip(0) }).toEqual({
    end: END_EXCEPTION,
    trap,
    error,
    rip,
  });
}
