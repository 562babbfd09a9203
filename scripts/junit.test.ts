import { expect, test } from "bun:test";
import { parseReport } from "./junit.ts";

const REPORT = `<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="bun test" tests="5" failures="1" skipped="2" time="0.02">
  <testsuite name="a.test.ts" file="a.test.ts" tests="5" hostname="vm">
    <testcase name="ok" classname="" time="0.000017" line="2" assertions="1" />
    <testcase name="a &gt; b / c" classname="" time="0.1" line="2" assertions="1" />
    <testcase name="bad &lt;x&gt;" classname="" time="0.000168" line="2" assertions="1">
      <failure type="AssertionError" message="&lt;skipped /&gt;">Expected: 2&#10;</failure>
    </testcase>
    <testcase name="s &quot;q&quot; &#233;" classname="" time="0" assertions="0">
      <skipped />
    </testcase>
    <testsuite name="d (because)" tests="1">
      <testcase name="x" classname="d (because)" time="0" assertions="0">
        <skipped message="TODO" />
      </testcase>
    </testsuite>
  </testsuite>
</testsuites>
`;

test("counts tests and names the skipped ones", () => {
  expect(parseReport(REPORT)).toEqual({ passed: 2, failed: 1, skipped: ['s "q" é', "d (because) > x"] });
});

test("a file without tests", () => {
  expect(parseReport('<testsuites name="bun test" tests="0"/>')).toEqual({
    passed: 0,
    failed: 0,
    skipped: [],
  });
});

test("a report that was cut off is no report", () => {
  expect(() => parseReport("")).toThrow("incomplete");
  expect(() => parseReport(REPORT.slice(0, -20))).toThrow("incomplete");
});
