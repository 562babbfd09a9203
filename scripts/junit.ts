/** Reading the JUnit report that `bun test --reporter=junit` writes. */

export interface Report {
  passed: number;
  failed: number;
  /** Names of skipped tests, with the names of the `describe` blocks around them. */
  skipped: string[];
}

const ENTITIES: Readonly<Record<string, string>> = { lt: "<", gt: ">", amp: "&", quot: '"', apos: "'" };

function decoded(text: string): string {
  return text.replace(/&(?:#x([0-9a-f]+)|#(\d+)|(\w+));/gi, (all, hex, decimal, name) => {
    if (name !== undefined) return ENTITIES[name] ?? all;
    return String.fromCodePoint(hex === undefined ? Number(decimal) : Number.parseInt(hex, 16));
  });
}

function attribute(tag: string, name: string): string {
  return decoded(new RegExp(`\\s${name}="([^"]*)"`).exec(tag)?.[1] ?? "");
}

/** @throws Error if `xml` is no complete report. */
export function parseReport(xml: string): Report {
  if (!/<\/testsuites>\s*$|<testsuites[^>]*\/>\s*$/.test(xml)) throw new Error("the report is incomplete");
  const report: Report = { passed: 0, failed: 0, skipped: [] };
  for (const [, tag, body] of xml.matchAll(/<testcase\b((?:[^>"]|"[^"]*")*?)(?:\/>|>(.*?)<\/testcase>)/gs)) {
    if (body === undefined) report.passed++;
    else if (body.includes("<skipped")) report.skipped.push(fullName(tag!));
    else if (body.includes("<failure") || body.includes("<error")) report.failed++;
    else report.passed++;
  }
  return report;
}

function fullName(tag: string): string {
  const [around, name] = [attribute(tag, "classname"), attribute(tag, "name")];
  return around === "" ? name : `${around} > ${name}`;
}
