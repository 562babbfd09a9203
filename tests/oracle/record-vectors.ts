/**
 * Writes the vectors that table.test.ts replays: for every form of the instruction table a case that ran and
 * one that faulted, with what this host's processor made of them. Run it with Bun on x86-64 Linux after the
 * table has got new rows:
 *
 *     bun tests/oracle/record-vectors.ts
 */

import { statSync } from "node:fs";
import { CaseBatch } from "./batch.ts";
import { Comparison } from "./compare.ts";
import { DecodedCase } from "./decoded-case.ts";
import { allForms, SHAPES, type StateKind } from "./forms.ts";
import { DATA_FIRST, DATA_READ_ONLY_END, FX_BYTES, FX_XMM, PAGE_SIZE } from "./layout.ts";
import { batches, faulted, STATES } from "./oracle.ts";
import { NativeRunner } from "./runner.ts";
import { SoftRunner } from "./soft-runner.ts";
import { vectorFile } from "./vector-files.ts";
import { saveVectors } from "./vectors.ts";

const SEED = 20;
/** Cases of each form to choose from. */
const CANDIDATES = 200;
/** Of each form: cases kept that ran, and that faulted. */
const KEPT_RAN = 1;
const KEPT_FAULTED = 1;
/** Bytes of data kept in front of and behind an address that a register holds. */
const NEAR = 8;

/** Zeroes what the case is unlikely to look at, so that the file compresses. */
function thin(cases: CaseBatch, i: number, decoded: DecodedCase, state: StateKind): void {
  decoded.decode(cases, i);
  const used = decoded.registers;
  for (let reg = 8; reg < 16; reg++) if (((used >> reg) & 1) === 0) cases.setGpr(i, reg, 0);
  if (state === "image") return;
  if (cases.withFpu) cases.fx(i).fill(0, FX_XMM, FX_BYTES);
  thinWindow(cases, i, decoded);
}

/** Zeroes the window but for what lies near an address in use. */
function thinWindow(cases: CaseBatch, i: number, decoded: DecodedCase): void {
  const window = cases.window(i);
  const half = window.length / 2;
  const keep = new Uint8Array(window.length);
  const mark = (address: bigint, bytes: number): void => {
    if (address < BigInt(DATA_FIRST - PAGE_SIZE) || address > BigInt(DATA_READ_ONLY_END)) return;
    for (let offset = -NEAR; offset < bytes + NEAR; offset++) {
      const inPage = (Number(address) + offset) % PAGE_SIZE;
      if (inPage < half) keep[half + inPage] = 1;
      else if (inPage >= PAGE_SIZE - half) keep[inPage - (PAGE_SIZE - half)] = 1;
    }
  };
  for (let reg = 0; reg < 8; reg++) mark(BigInt.asUintN(32, cases.gpr(i, reg)), 2 * NEAR);
  if (decoded.mem) mark(decoded.address(cases, i), decoded.insn?.fpu === "x87" ? 108 : NEAR);
  for (let at = 0; at < window.length; at++) if (keep[at] === 0) window[at] = 0;
}

/** The chosen cases of a state, thinned. */
function choose(state: StateKind, native: NativeRunner): CaseBatch {
  const forms = allForms().filter((form) => form.excluded === undefined && form.state === state);
  const chosen: Uint8Array[] = [];
  for (const batch of batches(forms, CANDIDATES, SEED)) {
    const results = native.run(batch.cases);
    const { stride, bytes } = batch.cases;
    batch.forms.forEach((_, n) => {
      const left = { ran: KEPT_RAN, faulted: KEPT_FAULTED };
      for (let i = n * CANDIDATES; i < (n + 1) * CANDIDATES; i++) {
        const kind = faulted(results, i) ? "faulted" : "ran";
        if (left[kind]-- > 0) chosen.push(bytes.slice(i * stride, (i + 1) * stride));
      }
    });
  }
  const cases = new CaseBatch(chosen.length, SHAPES[state]);
  chosen.forEach((record, i) => {
    cases.bytes.set(record, cases.at(i));
  });
  return cases;
}

using native = new NativeRunner();
const soft = new SoftRunner();
for (const state of STATES) {
  const cases = choose(state, native);
  const decoded = new DecodedCase();
  for (let i = 0; i < cases.count; i++) thin(cases, i, decoded, state);
  const results = native.run(cases);
  const comparison = new Comparison(cases, soft.run(cases), results);
  for (let i = 0; i < cases.count; i++) {
    const differences = comparison.differences(i);
    if (differences.length > 0)
      throw new Error(`not recorded: ${differences.join("; ")} in ${comparison.describe(i)}`);
  }
  const path = vectorFile(state);
  saveVectors(path, cases, results);
  console.log(`${path}: ${cases.count} cases, ${statSync(path).size} bytes`);
}
