import { expect, test } from "bun:test";
import { type Bar, escapeXml, logTicks, ratioChart } from "./chart.ts";
import { checkXml, unescapeXml } from "./testing/xml.ts";

function chart(bars: readonly Bar[], before: readonly Bar[] = []): string {
  return ratioChart({ title: "T", caption: "C", even: "E", target: 0.6, bars, before });
}

/** The bars of a chart, top down. */
function drawn(svg: string): { kind: string; x: number; width: number }[] {
  const bar = /<rect class="(faster|slower)" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"/g;
  return [...svg.matchAll(bar)].map(([, kind, x, width]) => ({
    kind: kind!,
    x: Number(x),
    width: Number(width),
  }));
}

test("is well-formed, whatever the names are", () => {
  const name = `<b> & "c" 'd' ]]> \u0000\u001b\ud800`;
  const svg = chart([{ name, ratio: 0.5 }]);
  const content = checkXml(svg);
  expect(content).toContain(`<b> & "c" 'd' ]]> `);
  expect(unescapeXml(escapeXml(name))).toBe(`<b> & "c" 'd' ]]> `);
  expect(svg).not.toContain("<script");
});

test("a bar goes from 1 to its ratio, and is longer the further that is", () => {
  const ratios = [0.05, 0.3, 0.31, 0.6, 0.99, 1, 1.01, 1.3, 2, 11];
  const bars = drawn(chart(ratios.map((ratio, i) => ({ name: `p${i}`, ratio })))).slice(0, ratios.length);
  const one = bars[ratios.indexOf(1)]!.x;
  const ends = bars.map(({ kind, x, width }, i) => {
    const slower = ratios[i]! > 1;
    expect(kind).toBe(slower ? "slower" : "faster");
    expect(slower ? x : x + width).toBeCloseTo(one, 1);
    return slower ? x + width : x;
  });
  for (let i = 1; i < ends.length; i++) expect(ends[i]!).toBeGreaterThan(ends[i - 1]!);
});

test("the axis is logarithmic: twice as fast is as long as twice as slow", () => {
  const [half, double, quarter] = drawn(
    chart([
      { name: "a", ratio: 0.5 },
      { name: "b", ratio: 2 },
      { name: "c", ratio: 0.25 },
    ]),
  );
  expect(half!.width).toBeCloseTo(double!.width, 1);
  expect(quarter!.width).toBeCloseTo(2 * half!.width, 1);
});

test("lines stand at 1 and at the target", () => {
  const svg = chart([{ name: "a", ratio: 0.6 }]);
  const line = (kind: string) => Number(new RegExp(`<line class="${kind}" x1="([\\d.]+)"`).exec(svg)?.[1]);
  const [bar] = drawn(svg);
  expect(line("target")).toBeCloseTo(bar!.x, 1);
  expect(line("even")).toBeCloseTo(bar!.x + bar!.width, 1);
});

test("the last row is the geometric mean of the bars alone", () => {
  const svg = chart(
    [
      { name: "a", ratio: 0.2 },
      { name: "b", ratio: 0.8 },
    ],
    [{ name: "first", ratio: 9 }],
  );
  const texts = checkXml(svg);
  const rows = ["first", "9.00x", "a", "0.20x", "b", "0.80x", "geometric mean", "0.40x"];
  expect(texts.filter((text) => rows.includes(text))).toEqual(rows);
});

test("all that is drawn lies inside the picture", () => {
  const svg = chart([
    { name: "a", ratio: 0.0001 },
    { name: "b", ratio: 4000 },
  ]);
  const width = Number(/viewBox="0 0 (\d+) /.exec(svg)?.[1]);
  const places = [...svg.matchAll(/ x[12]?="([\d.]+)"/g)].map(([, x]) => Number(x));
  expect(places.length).toBeGreaterThan(20);
  for (const x of places) expect(x).toBeLessThan(width);
  for (const { x, width: length } of drawn(svg)) expect(x + length).toBeLessThan(width);
});

test("refuses what is no ratio", () => {
  for (const ratio of [0, -1, Number.NaN, Number.POSITIVE_INFINITY]) {
    expect(() => chart([{ name: "a", ratio }])).toThrow(RangeError);
    expect(() => chart([{ name: "a", ratio: 1 }], [{ name: "b", ratio }])).toThrow(RangeError);
  }
  expect(() => chart([])).toThrow(RangeError);
});

test("ticks enclose the values", () => {
  expect(logTicks(0.3, 2)).toEqual([0.2, 0.5, 1, 2]);
  expect(logTicks(0.2, 2.1)).toEqual([0.2, 0.5, 1, 2, 5]);
  expect(logTicks(0.09, 11)).toEqual([0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20]);
});
