/**
 * Boots the default kernel to a one-line program on Sparkler's software CPU and on QEMU TCG, by turns:
 * `npm run bench:boot [-- --runs N]`. Medians of time to the program's first output, processor time up to it, idle
 * load while the guest sleeps, and memory; then `sparkler run` for instructions a second.
 */

import { type Engine, engines, qemu, qemuVersion, SPARKLER } from "./engines.ts";
import type { BootTimes } from "./figures.ts";
import { cpuTime, duration, markdownTable, median, memoryUse, readProc } from "./measure.ts";
import {
  type BenchFiles,
  boot,
  describeHost,
  guestFiles,
  option,
  temporaryDirectory,
  writeResult,
} from "./session.ts";

const MEM_MIB = 256;
/** The guest sleeps SLEEP_S seconds; from SETTLE on its load is measured for IDLE, ms. */
const SLEEP_S = 4;
const SETTLE = 500;
const IDLE = 3000;

const INIT = `#!/bin/sh
echo "bench: up"
sleep ${SLEEP_S}
reboot -f
`;

interface BootFigures extends BootTimes {
  /** KiB. */
  peak: number;
  guestRam: number;
  monitor: number;
  monitorPrivate: number;
  hung: number;
}

interface RunFigures {
  /** `sparkler run -- true` from start to end, ms. */
  whole: number;
  instructions: number;
  /** Instructions a second from the first to the last. */
  rate: number;
}

const dir = temporaryDirectory();
const runs = option("runs", 5);
const host = describeHost();

async function measureBoot(engine: Engine, files: BenchFiles): Promise<BootFigures> {
  const { guest, first, hung } = await boot(engine, files, dir);
  const cpu = cpuTime(readProc(guest.pid, "stat"));
  await Bun.sleep(SETTLE);
  const before = cpuTime(readProc(guest.pid, "stat"));
  const since = performance.now();
  await Bun.sleep(IDLE);
  const used = cpuTime(readProc(guest.pid, "stat")) - before;
  const idle = (used / (performance.now() - since)) * 100;
  const memory = memoryUse(readProc(guest.pid, "status"), readProc(guest.pid, "smaps"), MEM_MIB * 1024);
  await guest.end();
  return { start: first.at, cpu, idle, hung, ...memory };
}

async function measureRun(): Promise<RunFigures> {
  const started = performance.now();
  const child = Bun.spawn([SPARKLER, "run", "--accel", "soft", "--timings", "--stats", "--", "true"], {
    stdin: "ignore",
    stdout: "ignore",
    stderr: "pipe",
  });
  const timings = await new Response(child.stderr).text();
  if ((await child.exited) !== 0) throw new Error(`sparkler run failed: ${timings}`);
  const whole = performance.now() - started;
  const figure = (pattern: RegExp) => {
    const found = pattern.exec(timings)?.[1];
    if (found === undefined) throw new Error(`sparkler run --timings has no ${pattern}:\n${timings}`);
    return Number(found);
  };
  const instructions = figure(/^ *(\d+) {2}instructions$/m);
  const seconds =
    (figure(/^ *([\d.]+) ms.*machine ended$/m) - figure(/^ *([\d.]+) ms.*threads ready$/m)) / 1000;
  return { whole, instructions, rate: instructions / seconds };
}

const files = await guestFiles(dir, MEM_MIB, (cpio) => cpio.file("/init", INIT, { mode: 0o755 }));
const compared = engines();
const boots = new Map<Engine, BootFigures[]>(compared.map((engine) => [engine, []]));
const programs: RunFigures[] = [];
for (let run = 0; run < runs; run++) {
  for (const engine of compared) boots.get(engine)!.push(await measureBoot(engine, files));
  programs.push(await measureRun());
}

const column = (engine: Engine, key: keyof BootFigures) =>
  median(boots.get(engine)!.map((figures) => figures[key]));
function row(title: string, key: keyof BootFigures, format: (value: number) => string): string[] {
  const values = compared.map((engine) => column(engine, key));
  const ratio = values.length === 2 && values[1]! > 0 ? (values[0]! / values[1]!).toFixed(2) : "-";
  return [title, ...values.map(format), ratio];
}
const mebibytes = (value: number) => `${(value / 1024).toFixed(0)} MiB`;

console.log(`\nBoot to a program's first output, median of ${runs}. ${host}\n`);
console.log(
  markdownTable([
    ["", ...compared.map((engine) => engine.name), "ratio"],
    row("start to first output", "start", duration),
    row("processor time until then", "cpu", duration),
    row("processor while the guest sleeps", "idle", (value) => `${value.toFixed(1)} %`),
    row("peak memory", "peak", mebibytes),
    row(`guest pages touched (of ${MEM_MIB} MiB)`, "guestRam", mebibytes),
    row("memory besides them", "monitor", mebibytes),
    row("of it without pages of files", "monitorPrivate", mebibytes),
  ]),
);
for (const engine of compared) {
  const hung = boots.get(engine)!.reduce((sum, figures) => sum + figures.hung, 0);
  if (hung > 0) console.log(`\n${engine.name}: ${hung} boots hung and were repeated.`);
}
const whole = median(programs.map((figures) => figures.whole));
const rate = median(programs.map((figures) => figures.rate));
const instructions = median(programs.map((figures) => figures.instructions));
console.log(
  `\n\`sparkler run -- true\`: ${duration(whole)}, ${(instructions / 1e6).toFixed(0)} million instructions, ` +
    `${(rate / 1e6).toFixed(0)} million a second.`,
);
writeResult("boot", host, {
  kernel: files.kernelVersion,
  ...(compared.includes(qemu) ? { qemu: qemuVersion() } : {}),
  runs,
  boots: Object.fromEntries([...boots].map(([engine, figures]) => [engine.name, figures])),
  run: programs,
});
