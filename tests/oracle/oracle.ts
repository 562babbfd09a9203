/** Runs every form of the instruction table on both processors and collects where they differ. */

import { CaseBatch, type ResultBatch } from "./batch.ts";
import { Comparison } from "./compare.ts";
import { type Form, SHAPES, type StateKind } from "./forms.ts";
import { Generator } from "./generate.ts";
import { END_EXCEPTION, END_FELL_THROUGH } from "./layout.ts";
import { Random } from "./random.ts";

/** Cases of one batch, about. */
const BATCH_CASES = 20_000;
const TRAP_BP = 3;
/** Differing cases of a form that are described. */
const MOST_EXAMPLES = 3;

/** Something that runs cases: the native runner, the software CPU. */
export interface Processor {
  run(cases: CaseBatch): ResultBatch;
}

export interface FormOutcome {
  readonly form: Form;
  /** Cases that ran to the end of their code (or to where a branch went), and that raised an exception. */
  ran: number;
  faulted: number;
  /** Cases in which the processors differ, and reports of the first few. */
  different: number;
  readonly examples: string[];
}

export const STATES: readonly StateKind[] = ["integer", "x87", "image"];

/** True if case `i` ended in an exception its instruction raised; INT3 pads end a branch. */
export function faulted(results: ResultBatch, i: number): boolean {
  return results.end(i) === END_EXCEPTION && results.trap(i) !== TRAP_BP;
}

/** `perForm` random cases of each form, in batches of forms that share a record shape. */
export function* batches(
  forms: readonly Form[],
  perForm: number,
  seed: number,
): IterableIterator<{ forms: Form[]; cases: CaseBatch }> {
  const generator = new Generator(new Random(seed));
  for (const state of STATES) {
    const rest = forms.filter((form) => form.state === state);
    while (rest.length > 0) {
      const chunk = rest.splice(0, Math.max(1, Math.floor(BATCH_CASES / perForm)));
      const cases = new CaseBatch(chunk.length * perForm, SHAPES[state]);
      for (let i = 0; i < cases.count; i++) generator.write(chunk[Math.floor(i / perForm)]!, cases, i);
      yield { forms: chunk, cases };
    }
  }
}

/** Runs the cases of {@link batches} on both processors. */
export function runForms(
  forms: readonly Form[],
  perForm: number,
  seed: number,
  soft: Processor,
  native: Processor,
): FormOutcome[] {
  const outcomes: FormOutcome[] = [];
  for (const batch of batches(forms, perForm, seed)) {
    const host = native.run(batch.cases);
    const comparison = new Comparison(batch.cases, soft.run(batch.cases), host);
    batch.forms.forEach((form, n) => {
      const outcome: FormOutcome = { form, ran: 0, faulted: 0, different: 0, examples: [] };
      outcomes.push(outcome);
      for (let i = n * perForm; i < (n + 1) * perForm; i++) {
        if (faulted(host, i)) outcome.faulted++;
        else if (host.end(i) === END_FELL_THROUGH || host.end(i) === END_EXCEPTION) outcome.ran++;
        const differences = comparison.differences(i);
        if (differences.length === 0) continue;
        outcome.different++;
        if (outcome.examples.length < MOST_EXAMPLES) {
          outcome.examples.push([...differences, comparison.describe(i)].join("\n    "));
        }
      }
    });
  }
  return outcomes;
}

/** Reports on the first few forms whose cases differ; empty if none do. */
export function differenceReport(outcomes: readonly FormOutcome[], mostForms = 20): string {
  const bad = outcomes.filter((o) => o.different > 0);
  const lines = bad.slice(0, mostForms).map((o) => {
    const cases = `${o.different} of ${o.ran + o.faulted} cases differ`;
    return `${o.form.name}: ${cases}\n  - ${o.examples.join("\n  - ")}`;
  });
  if (bad.length > mostForms) lines.push(`... and ${bad.length - mostForms} more forms`);
  return lines.join("\n");
}
