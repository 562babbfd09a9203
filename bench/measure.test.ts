import { expect, test } from "bun:test";
import { cpuTime, duration, geometricMean, markdownTable, median, memoryUse, readProc } from "./measure.ts";

test("median and geometric mean", () => {
  expect(median([9, 1, 4])).toBe(4);
  expect(median([4, 1, 9, 2])).toBe(3);
  expect(geometricMean([2, 8])).toBeCloseTo(4);
  expect(() => median([])).toThrow(RangeError);
  expect(() => geometricMean([])).toThrow(RangeError);
});

test("a table", () => {
  expect(
    markdownTable([
      ["", "a", "ratio"],
      ["start", "1.00 s", "2"],
    ]),
  ).toBe(
    ["|       |      a | ratio |", "|-------|-------:|------:|", "| start | 1.00 s |     2 |"].join("\n"),
  );
  expect([duration(1234), duration(12.34), duration(1.234)]).toEqual(["1.23 s", "12 ms", "1.2 ms"]);
});

test("processor time from /proc/PID/stat, whatever the program is called", () => {
  const fields = ["S", ...Array.from({ length: 10 }, () => "0"), "125", "25", "7", "7"];
  expect(cpuTime(`12 (a) b (c) ${fields.join(" ")}`)).toBe(1500);
  const spent = cpuTime(readProc(process.pid, "stat"));
  expect(Math.abs(spent - process.cpuUsage().user / 1000 - process.cpuUsage().system / 1000)).toBeLessThan(
    100,
  );
});

test("guest RAM apart from the rest, though a file is mapped into it", () => {
  const mapping = (range: string, size: number, rss: number, anonymous = rss) =>
    `${range} 00000000 00:00 0 \nSize:           ${size} kB\nKernelPageSize: 4 kB\nRss:            ${rss} kB\nPss: 1 kB\nAnonymous:      ${anonymous} kB\n`;
  const smaps = [
    mapping("00400000-00500000 r-xp", 1024, 700, 40),
    mapping("10000000-90000000 rw-p", 2_097_152, 50),
    mapping("a0000000-a1000000 rw-p", 16_384, 10_000),
    mapping("a1000000-a2000000 rw-p", 16_384, 15_000, 5_000),
    mapping("a2000000-b0000000 rw-p", 229_376, 65_000),
    mapping("b0000000-c0100000 rwxp", 263_168, 100_000),
  ].join("");
  expect(memoryUse("VmPeak:\t 9 kB\nVmHWM:\t  200000 kB\n", smaps, 262_144)).toEqual({
    peak: 200_000,
    guestRam: 90_000,
    monitor: 100_750,
    monitorPrivate: 100_090,
  });
});
