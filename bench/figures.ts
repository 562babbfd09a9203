/** What the benchmarks write, and the tables and the picture that follow from it. No measuring here. */

import { ratioChart } from "./chart.ts";
import { qemu, sparkler } from "./engines.ts";
import { duration, geometricMean, markdownTable, median, ratioText } from "./measure.ts";

/** What was measured, with what. */
export interface Measured {
  /** When it was written, ISO 8601. */
  time: string;
  host: string;
  bun: string;
  /** `uname -r` of the guest. */
  kernel: string;
  /** The version of QEMU, if there was one. */
  qemu?: string;
  runs: number;
}

export interface ProgramResult {
  /** ms, by the program's own clock. */
  time: number;
  checksum: string;
}
export type ProgramResults = Record<string, ProgramResult>;

/** `bench:compute`: an element of each array for each run. */
export interface ComputeResult extends Measured {
  native: ProgramResults[];
  /** By the engine's name. */
  guests: Record<string, ProgramResults[]>;
}

export interface BootTimes {
  /** Process start to first output, and the processor time used by then, ms. */
  start: number;
  cpu: number;
  /** Share of one processor while the guest sleeps, percent. */
  idle: number;
}

/** `bench:boot`, as far as it is used here. */
export interface BootResult extends Measured {
  boots: Record<string, BootTimes[]>;
}

/** The times of each run, ms, by program and by where it ran: {@link NATIVE} or an engine's name. */
export type Times = Record<string, Record<string, number[]>>;
export const NATIVE = "native";

export function timesOf({ native, guests }: Pick<ComputeResult, "native" | "guests">): Times {
  const columns = Object.entries({ [NATIVE]: native, ...guests });
  return Object.fromEntries(
    Object.keys(native[0] ?? {}).map((program) => [
      program,
      Object.fromEntries(
        columns.map(([where, runs]) => [where, runs.map((run) => run[program]!.time)] as const),
      ),
    ]),
  );
}

/** One program: medians, ms. */
export interface Comparison {
  name: string;
  native: number;
  sparkler: number;
  /** Without QEMU there is none. */
  tcg?: number;
}

export function compare(times: Times): Comparison[] {
  return Object.entries(times).map(([name, columns]) => {
    const tcg = columns[qemu.name];
    return {
      name,
      native: median(columns[NATIVE] ?? []),
      sparkler: median(columns[sparkler.name] ?? []),
      ...(tcg === undefined ? {} : { tcg: median(tcg) }),
    };
  });
}

/** Sparkler/TCG of each program. @throws Error if QEMU did not run. */
export function tcgRatios(rows: readonly Comparison[]): { name: string; ratio: number }[] {
  return rows.map(({ name, sparkler, tcg }) => {
    if (tcg === undefined) throw new Error("there is nothing to compare with: QEMU did not run");
    return { name, ratio: sparkler / tcg };
  });
}

/** Times, Sparkler/native and, with QEMU, Sparkler/TCG of each program, and the geometric means. */
export function programTable(rows: readonly Comparison[]): string {
  const withQemu = rows.every(({ tcg }) => tcg !== undefined);
  const ratios = [
    rows.map((row) => row.sparkler / row.native),
    ...(withQemu ? [tcgRatios(rows).map(({ ratio }) => ratio)] : []),
  ];
  const qemuOnly = (cell: string) => (withQemu ? [cell] : []);
  return markdownTable([
    ["", NATIVE, sparkler.name, ...qemuOnly(qemu.name), "Sparkler/native", ...qemuOnly("Sparkler/TCG")],
    ...rows.map((row, i) => [
      row.name,
      duration(row.native),
      duration(row.sparkler),
      ...qemuOnly(duration(row.tcg ?? 0)),
      ...ratios.map((column) => ratioText(column[i]!)),
    ]),
    [
      "geometric mean",
      ...["", "", ...qemuOnly("")],
      ...ratios.map((column) => ratioText(geometricMean(column))),
    ],
  ]);
}

/** What the geometric mean of the programs and the boot shall be of TCG's time, and no program be above. */
export const TARGET = { mean: 0.6, boot: 0.8, worst: 1.3 };
/** The name of the boot's row in the picture. */
export const BOOT = "boot to first output";

/** The picture. `boot`: Sparkler/TCG of the time to the first output, for a row of its own. */
export function speedChart(rows: readonly Comparison[], boot?: number): string {
  return ratioChart({
    title: "Sparkler's software CPU beside QEMU TCG",
    caption: "time on Sparkler / time on QEMU TCG, logarithmic: further left is faster",
    even: "as fast as QEMU TCG",
    target: TARGET.mean,
    before: boot === undefined ? [] : [{ name: BOOT, ratio: boot }],
    bars: tcgRatios(rows),
  });
}

export type Boots = Readonly<Record<string, readonly BootTimes[]>>;

/** @throws Error if the engine did not run. */
export function bootMedian(boots: Boots, engine: string, key: keyof BootTimes): number {
  const figures = boots[engine] ?? [];
  if (figures.length === 0) throw new Error(`there are no boots of ${engine}`);
  return median(figures.map((times) => times[key]));
}

/** Sparkler/TCG of the time to the first output. @throws Error if one of them did not run. */
export function bootRatio(boots: Boots): number {
  return bootMedian(boots, sparkler.name, "start") / bootMedian(boots, qemu.name, "start");
}
