/**
 * docs/speed.md and docs/speed.svg show what docs/speed.json says. SPARKLER_UPDATE_DOCS=1 makes both anew from it,
 * without measuring.
 */

import { expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { compare, tcgRatios, timesOf } from "./figures.ts";
import { geometricMean, ratioText } from "./measure.ts";
import {
  CHART_FILE,
  chartOf,
  collect,
  FIGURES_FILE,
  figuresText,
  PAGE_FILE,
  type SpeedFigures,
  withFigures,
} from "./page.ts";
import { checkXml } from "./testing/xml.ts";

const figures = JSON.parse(readFileSync(FIGURES_FILE, "utf8")) as SpeedFigures;
if (process.env.SPARKLER_UPDATE_DOCS === "1") {
  writeFileSync(PAGE_FILE, withFigures(readFileSync(PAGE_FILE, "utf8"), figures));
  writeFileSync(CHART_FILE, chartOf(figures));
}
const page = readFileSync(PAGE_FILE, "utf8");
const svg = readFileSync(CHART_FILE, "utf8");

/** The last cell of the table rows that begin with a name. */
function lastCells(text: string): Map<string, string> {
  const rows = text.split("\n").filter((line) => line.startsWith("| "));
  return new Map(
    rows.map((row) => {
      const cells = row.split("|").slice(1, -1);
      return [cells[0]!.trim(), cells.at(-1)!.trim()];
    }),
  );
}

test("page and picture are made from the figures", () => {
  expect(page).toBe(withFigures(page, figures));
  expect(svg).toBe(chartOf(figures));
  expect(readFileSync(FIGURES_FILE, "utf8")).toBe(figuresText(figures));
});

test("the page's table and the picture say the same of each program", () => {
  const ratios = tcgRatios(compare(figures.programs));
  expect(ratios.length).toBeGreaterThan(10);
  const all = [...ratios, { name: "geometric mean", ratio: geometricMean(ratios.map(({ ratio }) => ratio)) }];
  const table = lastCells(page);
  const texts = checkXml(svg);
  for (const { name, ratio } of all) {
    expect(table.get(name)).toBe(ratioText(ratio));
    expect(texts[texts.indexOf(name) + 1]).toBe(ratioText(ratio));
  }
  expect(texts[texts.indexOf("boot to first output") + 1]).toBe(table.get("start to first output")!);
});

test("each program is described", () => {
  const described = [...page.matchAll(/^\| `(\w+)` \|/gm)].map(([, name]) => name!);
  expect(Object.keys(figures.programs).filter((name) => !described.includes(name))).toEqual([]);
});

const result = (time: number) => ({ a: { time, checksum: "0" }, b: { time: 2 * time, checksum: "1" } });
const measured = { time: "2026-01-02T03:04:05.678Z", host: "h", bun: "1", kernel: "6", qemu: "7" };
const compute = {
  ...measured,
  runs: 3,
  native: [result(10), result(12.345678), result(20)],
  guests: {
    Sparkler: [result(60), result(50), result(40)],
    "QEMU TCG": [result(99), result(100), result(101)],
  },
};
const times = (start: number, idle: number) => ({ start, cpu: start / 2, idle });
const boots = {
  ...measured,
  runs: 1,
  boots: { Sparkler: [times(3000, 0.5)], "QEMU TCG": [times(3000, 1)] },
};

test("figures are the values of all runs, and rows their medians", () => {
  expect(compare(timesOf(compute))).toEqual([
    { name: "a", native: 12.345678, sparkler: 50, tcg: 100 },
    { name: "b", native: 2 * 12.345678, sparkler: 100, tcg: 200 },
  ]);
  const made = collect(boots, compute, "machine", 0.123);
  expect(made.programs.a).toEqual({
    native: [10, 12.35, 20],
    Sparkler: [60, 50, 40],
    "QEMU TCG": [99, 100, 101],
  });
  expect(made).toMatchObject({ host: "machine", load: 0.12, boot: boots.boots });
  expect(JSON.parse(figuresText(made))).toEqual(made);
  expect(figuresText(made)).toContain('"native": [10, 12.35, 20]');
});

test("the page says what was met, and whether the machine was busy", () => {
  const empty = page.replace(/(?<=-->).*(?=<!-- end)/s, "");
  const steady = { ...compute, native: [result(10), result(10.5)] };
  const quiet = withFigures(empty, collect(boots, steady, "machine", 0.1));
  expect(quiet).toMatch(/geometric mean of the programs +\| +0.50x \| at most 0.60x \| +met \|/);
  expect(quiet).toMatch(/boot to first output +\| +1.00x \| at most 0.80x \| missed \|/);
  expect(quiet).not.toContain("provisional");
  const busy = withFigures(quiet, collect(boots, steady, "machine", 3));
  expect(busy).toContain("(load 3.0 at the start, native times 5 % apart): these figures are provisional");
  const shaky = withFigures(quiet, collect(boots, compute, "machine", 0.1));
  expect(shaky).toContain("(load 0.1 at the start, native times 100 % apart): these figures are provisional");
  expect(withFigures(busy, collect(boots, steady, "machine", 0.1))).toBe(quiet);
});

test("a page without markers is refused", () => {
  expect(() => withFigures("# Speed\n", figures)).toThrow("the page needs one line");
  expect(() => withFigures(page + page, figures)).toThrow("the page needs one line");
});
