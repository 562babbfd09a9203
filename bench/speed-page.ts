/**
 * Runs `bench:boot` and `bench:compute` and rewrites docs/speed.json, docs/speed.svg and the figures in docs/speed.md:
 * `npm run bench:speed-page [-- --runs N]`. On a machine that does nothing else.
 */

import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { loadavg } from "node:os";
import { join } from "node:path";
import { engines, qemu } from "./engines.ts";
import type { BootResult, ComputeResult } from "./figures.ts";
import { CHART_FILE, chartOf, collect, FIGURES_FILE, figuresText, PAGE_FILE, withFigures } from "./page.ts";
import { describeMachine, option, temporaryDirectory } from "./session.ts";

if (!engines().includes(qemu)) throw new Error("the page compares with QEMU: install it");
const dir = temporaryDirectory();
const runs = option("runs", 5);
const load = loadavg()[0]!;

async function measure(bench: string): Promise<string> {
  const out = join(dir, `${bench}.json`);
  const script = join(import.meta.dir, `${bench}.ts`);
  const child = Bun.spawn([process.execPath, script, "--runs", String(runs), "--out", out], {
    stdio: ["ignore", "inherit", "inherit"],
  });
  // A benchmark that cannot run here says why, and writes nothing.
  if ((await child.exited) !== 0 || !existsSync(out)) throw new Error(`bench:${bench} gave no figures`);
  return readFileSync(out, "utf8");
}

const boot = JSON.parse(await measure("boot")) as BootResult;
const compute = JSON.parse(await measure("compute")) as ComputeResult;
const figures = collect(boot, compute, describeMachine(), load);
// All is made before anything is written, so that the three files agree.
const text = figuresText(figures);
const chart = chartOf(figures);
const page = withFigures(readFileSync(PAGE_FILE, "utf8"), figures);
writeFileSync(FIGURES_FILE, text);
writeFileSync(CHART_FILE, chart);
writeFileSync(PAGE_FILE, page);
console.log(`\nWritten: ${PAGE_FILE}, with its picture and ${FIGURES_FILE}`);
