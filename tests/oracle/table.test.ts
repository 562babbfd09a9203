/**
 * Every form of the instruction table against the host's processor, and against stored outcomes of one.
 *
 * SPARKLER_ORACLE_CASES sets how many random cases run (default 1,000,000), SPARKLER_ORACLE_SEED their seed,
 * SPARKLER_ORACLE_FORMS a regular expression that the names of the forms to run must match.
 */

import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { Comparison } from "./compare.ts";
import { allForms, type Form } from "./forms.ts";
import { differenceReport, type FormOutcome, runForms, STATES } from "./oracle.ts";
import { NativeRunner, nativeUnsupported } from "./runner.ts";
import { SoftRunner } from "./soft-runner.ts";
import { vectorFile } from "./vector-files.ts";
import { loadVectors } from "./vectors.ts";

const DEFAULT_CASES = 1_000_000;
const DEFAULT_SEED = 1;
const TEST_TIMEOUT_MS = 600_000;
/** What counts as exercised, from this many cases of a form on. */
const ENOUGH_CASES = 400;
const LEAST_RAN = 20;
const LEAST_FAULTED = 2;
/** Differing stored cases that are described. */
const MOST_REPORTS = 20;

const setting = (name: string, fallback: number): number => {
  const text = process.env[name];
  const value = text === undefined ? fallback : Number(text);
  if (!Number.isSafeInteger(value) || value < 0) throw new Error(`${name} is "${text}": set it to a number`);
  return value;
};

/** What a form's cases failed to do, or undefined. */
function gap({ form, ran, faulted }: FormOutcome): string | undefined {
  const least = ran + faulted >= ENOUGH_CASES ? [LEAST_RAN, LEAST_FAULTED] : [1, 0];
  if (form.mayRun && ran < least[0]!) return `${form.name}: only ${ran} cases ran to the end`;
  return form.mayFault && faulted < least[1]! ? `${form.name}: only ${faulted} cases faulted` : undefined;
}

/** Why this host does not judge a form, or undefined if it does. */
function exclusion(form: Form): string | undefined {
  const otherVendor = form.followsAmd && !hostIsAmd;
  return form.excluded ?? (otherVendor ? "the software CPU does as AMD's processors do" : undefined);
}

function reasons(forms: readonly Form[]): string {
  const counts = new Map<string, number>();
  for (const reason of forms.map(exclusion)) {
    if (reason !== undefined) counts.set(reason, (counts.get(reason) ?? 0) + 1);
  }
  return Array.from(counts, ([reason, count]) => `  ${count}: ${reason}`).join("\n");
}

const unsupported = nativeUnsupported();
const AMD = /^vendor_id\s*:\s*(AuthenticAMD|HygonGenuine)$/m;
const hostIsAmd = unsupported === undefined && AMD.test(readFileSync("/proc/cpuinfo", "utf8"));
if (unsupported) console.log(`table oracle: stored vectors only, since ${unsupported}`);

describe("instruction table", () => {
  test.skipIf(unsupported !== undefined)(
    "does in every form what the host's processor does",
    () => {
      const filter = new RegExp(process.env.SPARKLER_ORACLE_FORMS ?? "");
      const forms = allForms().filter((form) => filter.test(form.name));
      const included = forms.filter((form) => exclusion(form) === undefined);
      expect(included.length).toBeGreaterThan(0);
      const seed = setting("SPARKLER_ORACLE_SEED", DEFAULT_SEED);
      const perForm = Math.max(
        1,
        Math.ceil(setting("SPARKLER_ORACLE_CASES", DEFAULT_CASES) / included.length),
      );
      using native = new NativeRunner();
      const start = performance.now();
      const outcomes = runForms(included, perForm, seed, new SoftRunner(), native);
      const seconds = ((performance.now() - start) / 1000).toFixed(1);
      const gaps = outcomes.map(gap).filter((line) => line !== undefined);
      const excluded = forms.length - included.length;
      console.log(
        `forms covered ${included.length - gaps.length} of ${included.length} (${excluded} excluded), ${
          perForm * included.length
        } cases in ${seconds} s, seed ${seed}; excluded:\n${reasons(forms)}`,
      );
      expect(differenceReport(outcomes)).toBe("");
      expect(gaps).toEqual([]);
    },
    TEST_TIMEOUT_MS,
  );

  test.each(STATES)("does what a real processor did: stored %s vectors", (state) => {
    const { cases, results } = loadVectors(vectorFile(state));
    const comparison = new Comparison(cases, new SoftRunner().run(cases), results);
    const reports: string[] = [];
    for (let i = 0; i < cases.count && reports.length < MOST_REPORTS; i++) {
      const differences = comparison.differences(i);
      if (differences.length > 0) reports.push([...differences, comparison.describe(i)].join("\n    "));
    }
    expect(reports.join("\n")).toBe("");
    expect(cases.count).toBeGreaterThan(0);
  });
});
