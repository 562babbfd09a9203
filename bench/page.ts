/** docs/speed.md and docs/speed.svg: what of them is made from docs/speed.json. */

import { join } from "node:path";
import { qemu, sparkler } from "./engines.ts";
import {
  BOOT,
  type BootResult,
  type BootTimes,
  bootMedian,
  bootRatio,
  type ComputeResult,
  compare,
  type Measured,
  NATIVE,
  programTable,
  speedChart,
  TARGET,
  type Times,
  tcgRatios,
  timesOf,
} from "./figures.ts";
import { duration, geometricMean, markdownTable, ratioText } from "./measure.ts";

const docs = join(import.meta.dir, "..", "docs");
export const FIGURES_FILE = join(docs, "speed.json");
export const PAGE_FILE = join(docs, "speed.md");
export const CHART_FILE = join(docs, "speed.svg");

/** docs/speed.json. */
export interface SpeedFigures extends Measured {
  /** Load average over the minute before measuring. */
  load: number;
  /** By the engine's name. */
  boot: Record<string, BootTimes[]>;
  programs: Times;
}

const BEGIN = "<!-- figures: made by `npm run bench:speed-page` -->";
const END = "<!-- end of figures -->";
/** Above this load before the start, other programs had a noticeable part of a processor. */
const BUSY = 0.5;
/** How far apart the native times of a program may be on a machine that does nothing else, as a share. */
const SPREAD = 0.15;
/** Percent of a processor. */
const IDLE_TARGET = 2;

/** The figures of the page from one run of each benchmark, on the machine `host`. */
export function collect(boot: BootResult, compute: ComputeResult, host: string, load: number): SpeedFigures {
  const { time, bun, kernel, qemu, runs } = compute;
  return {
    ...{ time, host, load: rounded(load), kernel, bun },
    ...(qemu === undefined ? {} : { qemu }),
    runs,
    boot: mapValues(boot.boots, (boots) =>
      boots.map(({ start, cpu, idle }) => mapValues({ start, cpu, idle }, rounded)),
    ),
    programs: mapValues(timesOf(compute), (columns) => mapValues(columns, (times) => times.map(rounded))),
  };
}

function mapValues<Key extends string, From, To>(
  from: Record<Key, From>,
  change: (value: From) => To,
): Record<Key, To> {
  const entries = Object.entries<From>(from).map(([key, value]) => [key, change(value)]);
  return Object.fromEntries(entries) as Record<Key, To>;
}

/** Hundredths of what is measured mean nothing. */
function rounded(value: number): number {
  return Math.round(value * 100) / 100;
}

/** The text of docs/speed.json: lists and objects of plain values on one line. */
export function figuresText(figures: SpeedFigures): string {
  const flat = /(?<open>[[{])\s+(?<inside>[^[\]{}]*?)\s+(?<close>[\]}])/g;
  return `${JSON.stringify(figures, null, 2).replace(
    flat,
    (_, open: string, inside: string, close: string) => `${open}${inside.replace(/\s*\n\s*/g, " ")}${close}`,
  )}\n`;
}

export function chartOf({ boot, programs }: SpeedFigures): string {
  return speedChart(compare(programs), bootRatio(boot));
}

/** What stands between the markers of docs/speed.md. */
export function figuresSection(figures: SpeedFigures): string {
  const rows = compare(figures.programs);
  const apart = spread(figures.programs);
  const busy =
    figures.load > BUSY || apart > SPREAD
      ? `**The machine had other work (load ${figures.load.toFixed(1)} at the start, native times ` +
        `${(apart * 100).toFixed(0)} % apart): these figures are provisional.** `
      : "";
  return [
    `${busy}Medians of ${figures.runs} runs, ${figures.time.slice(0, 10)}. Host: ${figures.host}. ` +
      `Bun ${figures.bun}, QEMU ${figures.qemu ?? "none"}, kernel ${figures.kernel}.`,
    "![Time on Sparkler as a share of the time on QEMU TCG, program by program](speed.svg)",
    targetTable(figures),
    programTable(rows),
    bootTable(figures),
  ].join("\n\n");
}

/** How far the longest native time of a program is above its shortest, as a share: the mean of the programs. */
function spread(programs: Times): number {
  const apart = Object.values(programs).map(
    ({ [NATIVE]: times = [] }) => Math.max(...times) / Math.min(...times),
  );
  return geometricMean(apart) - 1;
}

function targetTable({ boot, programs }: SpeedFigures): string {
  const ratios = tcgRatios(compare(programs));
  const worst = ratios.reduce((a, b) => (b.ratio > a.ratio ? b : a));
  const row = (what: string, value: number, target: number, format: (value: number) => string) => [
    what,
    format(value),
    `at most ${format(target)}`,
    value <= target ? "met" : "missed",
  ];
  return markdownTable([
    ["Sparkler/TCG", "measured", "target", ""],
    row("geometric mean of the programs", geometricMean(ratios.map((r) => r.ratio)), TARGET.mean, ratioText),
    row(`slowest program (${worst.name})`, worst.ratio, TARGET.worst, ratioText),
    row(BOOT, bootRatio(boot), TARGET.boot, ratioText),
    row("idle guest, of a processor", bootMedian(boot, sparkler.name, "idle"), IDLE_TARGET, percent),
  ]);
}

function bootTable({ boot }: SpeedFigures): string {
  const row = (what: string, key: keyof BootTimes, format: (value: number) => string) => {
    const [here, tcg] = [bootMedian(boot, sparkler.name, key), bootMedian(boot, qemu.name, key)];
    return [what, format(here), format(tcg), tcg > 0 ? ratioText(here / tcg) : ""];
  };
  return markdownTable([
    ["boot", sparkler.name, qemu.name, "Sparkler/TCG"],
    row("start to first output", "start", duration),
    row("processor time until then, all threads", "cpu", duration),
    row("processor while the guest sleeps", "idle", percent),
  ]);
}

function percent(value: number): string {
  return `${value.toFixed(1)} %`;
}

/** `page` with other figures between its markers. @throws Error if it has not got both, in order and once. */
export function withFigures(page: string, figures: SpeedFigures): string {
  const begin = page.split(BEGIN);
  const end = begin.at(-1)!.split(END);
  if (begin.length !== 2 || end.length !== 2 || begin[0]!.includes(END)) {
    throw new Error(`the page needs one line ${BEGIN} and after it one line ${END}`);
  }
  return `${begin[0]}${BEGIN}\n\n${figuresSection(figures)}\n\n${END}${end[1]}`;
}
