/** Ratios as a bar chart in SVG: text stays text, and a reader's light or dark setting is followed. */

import { geometricMean, ratioText } from "./measure.ts";

export interface Bar {
  name: string;
  /** Above 0; below 1 is faster. */
  ratio: number;
}

export interface RatioChart {
  title: string;
  /** What the ratios are, below the axis. */
  caption: string;
  /** What 1 means. */
  even: string;
  /** A ratio to reach, marked by a line. */
  target: number;
  /** Rows that do not count in the mean, above the others. */
  before?: readonly Bar[];
  bars: readonly Bar[];
}

const WIDTH = 760;
/** The names end, and the plot begins and ends, at these x. Values end at the margin. */
const NAMES = 172;
const LEFT = 186;
const RIGHT = 680;
const MARGIN = 20;
const TOP = 80;
const ROW = 24;
const BAR = 14;
/** Room below the rows: tick labels and the caption. */
const BOTTOM = 62;
/** From the bottom of a line of text up to where the eye sees its middle. */
const BASELINE = 4;
/** Ticks of a logarithmic axis, in each decade. */
const TICKS = [1, 2, 5];

const STYLE = `
  text { font: 13px system-ui, sans-serif; fill: #1f2328; }
  .back { fill: #ffffff; }
  .title { font-size: 16px; font-weight: 600; }
  .note, .tick { font-size: 11.5px; fill: #59636e; }
  .grid { stroke: #d1d9e0; }
  .even { stroke: #59636e; stroke-width: 1.5; }
  .target { stroke: #1a7f37; stroke-width: 1.5; stroke-dasharray: 5 4; }
  .faster { fill: #2a6fbb; }
  .slower { fill: #c2571a; }
  .mean { font-weight: 600; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; }
    .back { fill: #0d1117; }
    .note, .tick { fill: #9198a1; }
    .grid { stroke: #3d444d; }
    .even { stroke: #9198a1; }
    .target { stroke: #3fb950; }
    .faster { fill: #4493f8; }
    .slower { fill: #db6d28; }
  }`;

/** Text as XML has it, in elements and in attributes. What XML 1.0 cannot hold is left out. */
export function escapeXml(text: string): string {
  const entities: Record<string, string> = {
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    '"': "&quot;",
    "'": "&apos;",
  };
  return text.replace(/[\p{Cc}\p{Cs}]/gu, "").replace(/[&<>"']/g, (character) => entities[character]!);
}

/** The ticks from the last one that is not above `low` to the first that is not below `high`. */
export function logTicks(low: number, high: number): number[] {
  const ticks: number[] = [];
  for (let decade = Math.floor(Math.log10(low)); ; decade++) {
    for (const step of TICKS) {
      const tick = Number(`${step}e${decade}`);
      if (tick <= low) ticks.length = 0;
      ticks.push(tick);
      if (tick >= high) return ticks;
    }
  }
}

/**
 * Horizontal bars from 1 to each ratio on a logarithmic axis, so that twice as fast is as long as twice as slow. The
 * last row is the geometric mean of `bars`.
 * @throws RangeError without bars, and if a ratio is not a finite number above 0.
 */
export function ratioChart(chart: RatioChart): string {
  const rows = [
    ...(chart.before ?? []),
    ...chart.bars,
    { name: "geometric mean", ratio: geometricMean(chart.bars.map(({ ratio }) => ratio)) },
  ];
  for (const { name, ratio } of rows) {
    if (!(ratio > 0 && Number.isFinite(ratio))) throw new RangeError(`${name}: no ratio is ${ratio}`);
  }
  const ratios = rows.map(({ ratio }) => ratio);
  const ticks = logTicks(Math.min(0.5, chart.target, ...ratios), Math.max(2, chart.target, ...ratios));
  const [low, high] = [Math.log(ticks[0]!), Math.log(ticks.at(-1)!)];
  const x = (ratio: number) => place(LEFT + ((Math.log(ratio) - low) / (high - low)) * (RIGHT - LEFT));
  const bottom = TOP + rows.length * ROW;
  const vertical = (ratio: number, kind: string) =>
    `<line class="${kind}" x1="${x(ratio)}" x2="${x(ratio)}" y1="${TOP - 6}" y2="${bottom + 4}"/>`;

  const height = bottom + BOTTOM;
  return `${[
    `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${height}" viewBox="0 0 ${WIDTH} ${height}" role="img" aria-labelledby="title">`,
    `<style>${STYLE}\n</style>`,
    `<rect class="back" width="${WIDTH}" height="${height}" rx="6"/>`,
    text(MARGIN, 32, "title", chart.title, 'id="title"'),
    ...ticks.map((tick) => vertical(tick, "grid")),
    ...ticks.map((tick) => text(x(tick), bottom + 20, "tick", String(tick), 'text-anchor="middle"')),
    ...rows.map((row, i) => drawRow(row, TOP + i * ROW, x, i === rows.length - 1)),
    vertical(1, "even"),
    vertical(chart.target, "target"),
    text(x(1) + 4, TOP - 12, "note", chart.even),
    text(x(chart.target) - 4, TOP - 12, "note", `target ${chart.target}`, 'text-anchor="end"'),
    text((LEFT + RIGHT) / 2, bottom + 44, "note", chart.caption, 'text-anchor="middle"'),
    "</svg>",
  ].join("\n")}\n`;
}

function drawRow({ name, ratio }: Bar, y: number, x: (ratio: number) => number, mean: boolean): string {
  const [from, to] = [x(Math.min(ratio, 1)), x(Math.max(ratio, 1))];
  const middle = y + ROW / 2 + BASELINE;
  const kind = mean ? "mean" : "name";
  return [
    ...(mean ? [`<line class="grid" x1="${MARGIN}" x2="${WIDTH - MARGIN}" y1="${y}" y2="${y}"/>`] : []),
    text(NAMES, middle, kind, name, 'text-anchor="end"'),
    `<rect class="${ratio <= 1 ? "faster" : "slower"}" x="${from}" y="${y + (ROW - BAR) / 2}" width="${place(to - from)}" height="${BAR}"/>`,
    text(WIDTH - MARGIN, middle, mean ? "mean value" : "value", ratioText(ratio), 'text-anchor="end"'),
  ].join("\n");
}

function text(x: number, y: number, kind: string, content: string, attributes = ""): string {
  const more = attributes === "" ? "" : ` ${attributes}`;
  return `<text class="${kind}" x="${x}" y="${y}"${more}>${escapeXml(content)}</text>`;
}

/** Two decimals are enough for a picture, and keep its text the same everywhere. */
function place(value: number): number {
  return Math.round(value * 100) / 100;
}
