/** What a slice writes to guest RAM, so that it can be undone, done again, and compared with another slice. */
import { GUEST_BASE } from "../layout.ts";
import type { WriteWatch } from "../mmu.ts";
import type { State } from "../state.ts";

const PAGE = 4096;
const WORDS = PAGE / 4;
/** Words of a difference that are shown. */
const SHOWN = 4;

/** A touched page, before and after: words that are equal were not written, or with what they held. */
interface PageChange {
  readonly before: Int32Array;
  readonly after: Int32Array;
}

/** Changes by page number. */
export type Changes = ReadonlyMap<number, PageChange>;

export class Journal implements WriteWatch {
  /** Something happened that cannot be undone. */
  spoiled = false;
  private readonly before = new Map<number, Int32Array>();
  /** Write TLB entries made since the start. */
  private entries: number[] = [];

  constructor(private readonly state: State) {}

  start(): void {
    this.spoiled = false;
    this.before.clear();
  }

  touch(physical: number): void {
    const page = Math.floor(physical / PAGE);
    if (!this.before.has(page)) this.before.set(page, this.page(page).slice());
  }
  filled(entry: number): void {
    this.entries.push(entry);
  }
  spoil(): void {
    this.spoiled = true;
  }

  /** Ends the journal. The next write to any page is seen again. */
  finish(): Changes {
    for (const at of this.entries) this.state.i32.fill(-1, at, at + 2);
    this.entries = [];
    const changes = new Map<number, PageChange>();
    for (const [page, before] of this.before) changes.set(page, { before, after: this.page(page).slice() });
    return changes;
  }

  /** Puts back what was there before. Words that others have written meanwhile stay. */
  undo(changes: Changes): void {
    for (const [page, { before, after }] of changes) this.write(page, after, before);
  }

  /** Puts in again what {@link undo} has taken away. */
  redo(changes: Changes): void {
    for (const [page, { before, after }] of changes) this.write(page, before, after);
  }

  private write(page: number, from: Int32Array, to: Int32Array): void {
    const words = this.page(page);
    for (let i = 0; i < WORDS; i++) if (from[i] !== to[i]) words[i] = to[i]!;
  }

  private page(page: number): Int32Array {
    const at = (GUEST_BASE + page * PAGE) >>> 2;
    return this.state.i32.subarray(at, at + WORDS);
  }
}

/** Where the changes of two slices from the same start differ, one line a page. */
export function compareChanges(a: Changes, b: Changes): string[] {
  const out: string[] = [];
  for (const page of new Set([...a.keys(), ...b.keys()])) {
    const x = a.get(page);
    const y = b.get(page);
    const before = (x ?? y)!.before;
    const [p, q] = [x?.after ?? before, y?.after ?? before];
    const at = firstDifference(p, q, WORDS);
    if (at < 0) continue;
    const show = (words: Int32Array) =>
      Array.from(words.subarray(at, at + SHOWN), (word) => (word >>> 0).toString(16).padStart(8, "0")).join(
        " ",
      );
    out.push(
      `physical 0x${(page * PAGE + 4 * at).toString(16)}: compiled ${show(p)}, interpreted ${show(q)}`,
    );
  }
  return out;
}

/** Index of the first word that differs; -1: none. */
export function firstDifference(a: Int32Array, b: Int32Array, words: number): number {
  for (let i = 0; i < words; i++) if (a[i] !== b[i]) return i;
  return -1;
}
