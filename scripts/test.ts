/**
 * Runs the tests: `npm test [-- PATTERN...]`, and with `--long` the long ones (`*.slow.test.ts`) instead. Each file
 * is a process of its own, the quick ones first. The last line is `N passed, N failed`, with `N skipped` where
 * something was; before it stand the reasons: what a test file printed as a line `skip: REASON`.
 */

import { mkdtempSync, rmSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { parseReport, type Report } from "./junit.ts";

/** Folders in the order in which they run; those of `tests` that are not named come before the guests. */
const QUICK = ["src", "scripts", "bench"];
const PROGRAMS = ["tests/vmm", "tests/oracle", "tests/soft", "tests/kvm", "tests/api"];
const LAST = ["tests/guests"];
const LONG = ".slow.test.ts";
/** A test may take this long unless it says otherwise, ms: machines with tests on every core are slow. */
const TEST_TIMEOUT = 30_000;
/** A file that hangs is ended after this time, ms. */
const FILE_TIMEOUT = 10 * 60_000;
const LONG_FILE_TIMEOUT = 40 * 60_000;

interface Outcome extends Report {
  file: string;
  reasons: string[];
}

const root = join(import.meta.dir, "..");
const patterns = process.argv.slice(2).filter((argument) => argument !== "--long");
const long = process.argv.includes("--long");
const started = performance.now();

function wanted(file: string): boolean {
  return file.endsWith(LONG) === long && (patterns.length === 0 || patterns.some((p) => file.includes(p)));
}

function place(file: string): number {
  const position = [...QUICK, ...PROGRAMS, "tests", ...LAST].indexOf(
    [...PROGRAMS, ...LAST].find((folder) => file.startsWith(`${folder}/`)) ?? file.split("/")[0]!,
  );
  return Math.max(position, 0);
}

async function runFile(file: string, reports: string): Promise<Outcome> {
  const report = join(reports, `${file.replaceAll("/", "_")}.xml`);
  const begin = performance.now();
  const child = Bun.spawn(
    [
      ...[process.execPath, "test", `./${file}`, `--timeout=${TEST_TIMEOUT}`],
      ...["--reporter=junit", `--reporter-outfile=${report}`],
    ],
    { cwd: root, stdin: "ignore", stdout: "pipe", stderr: "pipe" },
  );
  let late = false;
  const timer = setTimeout(
    () => {
      late = true;
      child.kill("SIGKILL");
    },
    long ? LONG_FILE_TIMEOUT : FILE_TIMEOUT,
  );
  const [stdout, stderr, exitCode] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  clearTimeout(timer);
  const outcome: Outcome = { file, ...(await readReport(report)), reasons: skipReasons(stdout + stderr) };
  // A file that cannot be loaded, or that ends the process, leaves no report.
  if (outcome.failed === 0 && (exitCode !== 0 || late || !(await Bun.file(report).exists())))
    outcome.failed = 1;
  const seconds = ((performance.now() - begin) / 1000).toFixed(1);
  const counts = [`${outcome.passed} passed`];
  if (outcome.failed > 0) counts.push(`${outcome.failed} FAILED`);
  if (outcome.skipped.length > 0) counts.push(`${outcome.skipped.length} skipped`);
  console.log(`${seconds.padStart(7)} s  ${file}: ${counts.join(", ")}`);
  if (outcome.failed > 0) {
    process.stdout.write(`${stdout}${stderr}\n`);
    const how = late ? "took too long and was killed" : `ended with exit status ${exitCode}`;
    console.log(`         ${file} ${how}`);
  }
  return outcome;
}

async function readReport(path: string): Promise<Report> {
  try {
    return parseReport(await Bun.file(path).text());
  } catch {
    return { passed: 0, failed: 0, skipped: [] };
  }
}

function skipReasons(output: string): string[] {
  return [...new Set([...output.matchAll(/^skip: (.+)$/gm)].map((match) => match[1]!.trim()))];
}

/** Runs `files`, `width` at a time. */
async function runFiles(files: string[], width: number, reports: string): Promise<Outcome[]> {
  const outcomes: Outcome[] = [];
  const queue = [...files];
  const lane = async () => {
    for (let file = queue.shift(); file !== undefined; file = queue.shift()) {
      outcomes.push(await runFile(file, reports));
    }
  };
  await Promise.all(Array.from({ length: width }, lane));
  return outcomes;
}

/** Which tests did not run, and why: the file's own words, or else the tests' names. */
function printSkipped(outcomes: Outcome[]): void {
  for (const { file, skipped, reasons } of outcomes) {
    if (skipped.length === 0 && reasons.length === 0) continue;
    console.log(`skipped in ${file}: ${skipped.length === 1 ? "1 test" : `${skipped.length} tests`}`);
    for (const line of reasons.length > 0 ? reasons : [...new Set(skipped)]) console.log(`  ${line}`);
  }
}

const files = [...new Bun.Glob("{src,scripts,bench,tests}/**/*.test.ts").scanSync({ cwd: root })]
  .filter(wanted)
  .sort((a, b) => place(a) - place(b) || (a < b ? -1 : 1));
if (files.length === 0) {
  console.error(`No test file has ${patterns.join(" or ")} in its path.`);
  process.exit(1);
}

const reports = mkdtempSync(join(tmpdir(), "sparkler-test-"));
process.on("exit", () => rmSync(reports, { recursive: true, force: true }));
// Whole programs measure time and use both cores themselves, so only unit tests run side by side.
const quick = files.filter((file) => QUICK.includes(file.split("/")[0]!) && !long);
const rest = files.filter((file) => !quick.includes(file));
const outcomes = [
  ...(await runFiles(quick, Math.min(4, availableParallelism()), reports)),
  ...(await runFiles(rest, 1, reports)),
];

printSkipped(outcomes);
const sum = (count: (outcome: Outcome) => number) => outcomes.reduce((total, o) => total + count(o), 0);
const failed = sum((outcome) => outcome.failed);
const skipped = sum((outcome) => outcome.skipped.length);
console.log(`${files.length} files in ${((performance.now() - started) / 1000).toFixed(0)} s`);
for (const { file } of outcomes.filter((outcome) => outcome.failed > 0)) console.log(`FAILED: ${file}`);
console.log(
  `${sum((outcome) => outcome.passed)} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ""}`,
);
process.exit(failed > 0 ? 1 : 0);
