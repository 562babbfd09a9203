/**
 * What a microVM on KVM costs: `npm run build && npm run bench:start [-- --runs N]`. The guest is a few instructions
 * in a copy of the default kernel, so that what is loaded is a real kernel, and says one letter on its serial port.
 */

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { defaultCacheDir } from "../src/image/cache-dir.ts";
import { ensureKernel } from "../src/image/kernel.ts";
import { terminalProgress } from "../src/image/progress.ts";
import { duration, markdownTable, median } from "./measure.ts";
import { requireExecutable, startMonitor, writeConfig } from "./monitor.ts";
import { monitorPss } from "./pss.ts";
import { saysAndResets, saysAndSleeps, writeGuest, writeGuestInKernel, writesPort } from "./raw-guest.ts";
import { describeHost, option, temporaryDirectory, writeResult } from "./session.ts";

const MEM_MIB = 128;
const AT_ONCE = 4;
/** How long microVMs are created to count them, ms. */
const CREATE_FOR = 4000;
const RUNNING = 50;
const CROWD = 200;
const EXITS = 300_000;
const EXIT_ROUNDS = 5;

if (!existsSync("/dev/kvm")) throw new Error("This bench needs /dev/kvm.");
requireExecutable();
const runs = option("runs", 40);
const dir = temporaryDirectory();
const host = describeHost();
const { vmlinux } = await ensureKernel({ cacheDir: defaultCacheDir(), progress: terminalProgress() });

function config(name: string, write: (path: string) => void, memMib = MEM_MIB): string {
  const path = join(dir, name);
  write(path);
  return writeConfig(dir, name, path, memMib);
}
const sleeping = config("sleeping", (path) => writeGuestInKernel(path, vmlinux, saysAndSleeps("s")));
const resetting = config("resetting", (path) => writeGuestInKernel(path, vmlinux, saysAndResets("r")));
const writing = config("writing", (path) => writeGuest(path, writesPort(EXITS)), 16);

async function measureStart(): Promise<number[]> {
  const times: number[] = [];
  // The first one lays the kernel out.
  for (let run = 0; run <= runs; run++) {
    const monitor = startMonitor(sleeping);
    const at = await monitor.next();
    if (run > 0) times.push(at - monitor.startedAt);
    await monitor.kill();
  }
  return times;
}

/** How often a second `create` ran to its end, {@link AT_ONCE} at a time. */
async function measureRate(create: () => Promise<void>): Promise<number> {
  const started = performance.now();
  let count = 0;
  const creator = async () => {
    while (performance.now() - started < CREATE_FOR) {
      await create();
      count++;
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, creator));
  return count / ((performance.now() - started) / 1000);
}

/** microVMs a second that spoke: the next one is begun while the one before still ends. */
async function measureCreated(): Promise<number> {
  const ends: Promise<number>[] = [];
  const rate = await measureRate(async () => {
    const monitor = startMonitor(resetting);
    ends.push(monitor.exited);
    await monitor.next();
  });
  for (const code of await Promise.all(ends)) if (code !== 0) throw new Error("a monitor failed");
  return rate;
}

/** microVMs a second that spoke and are gone. */
function measureEnded(): Promise<number> {
  return measureRate(async () => {
    const monitor = startMonitor(resetting);
    await monitor.next();
    if ((await monitor.exited) !== 0) throw new Error("a monitor failed");
  });
}

/** The same of a program in C that creates a VM and does no more. */
async function measurePlain(): Promise<number | undefined> {
  const program = compiled("kvm-create");
  if (program === undefined) return undefined;
  return await measureRate(async () => {
    const code = await Bun.spawn([program], { stdio: ["ignore", "ignore", "inherit"] }).exited;
    if (code !== 0) throw new Error("kvm-create failed");
  });
}

/** Starts `count` at once. When the last one's guest had spoken, ms, and the monitors' memory, KiB each. */
async function measureCrowd(count: number): Promise<{ all: number; pss: number }> {
  const started = performance.now();
  const monitors = Array.from({ length: count }, () => startMonitor(sleeping));
  try {
    const answers = await Promise.all(monitors.map((monitor) => monitor.next()));
    await Bun.sleep(500);
    const pss = monitors.map(({ pid }) => monitorPss(readFileSync(`/proc/${pid}/smaps`, "latin1"), MEM_MIB));
    return { all: Math.max(...answers) - started, pss: pss.reduce((sum, kib) => sum + kib, 0) / count };
  } finally {
    await Promise.all(monitors.map((monitor) => monitor.kill()));
  }
}

/** Nanoseconds of a port write in our monitor. */
async function exitCost(): Promise<number> {
  const monitor = startMonitor(writing);
  const first = await monitor.next();
  const last = await monitor.next();
  await monitor.exited;
  return ((last - first) * 1e6) / EXITS;
}

/** The program of bench/programs, or undefined without a compiler. */
function compiled(name: string): string | undefined {
  const program = join(dir, name);
  if (existsSync(program)) return program;
  const gcc = Bun.which("gcc");
  if (gcc === null) return undefined;
  const source = join(import.meta.dir, `programs/${name}.c`);
  const { success, stderr } = Bun.spawnSync([gcc, "-O2", "-o", program, source]);
  if (!success) throw new Error(`gcc: ${stderr}`);
  return program;
}

function plainExitCost(): number | undefined {
  const program = compiled("kvm-exit");
  if (program === undefined) return undefined;
  const { success, stdout, stderr } = Bun.spawnSync([program, String(EXITS)]);
  if (!success) throw new Error(`kvm-exit: ${stderr}`);
  return Number(stdout.toString());
}

const starts = await measureStart();
const created = await measureCreated();
const ended = await measureEnded();
const plainEnded = await measurePlain();
const fifty = await measureCrowd(RUNNING);
const ours: number[] = [];
const plain: number[] = [];
for (let round = 0; round < EXIT_ROUNDS; round++) {
  ours.push(await exitCost());
  plain.push(plainExitCost() ?? Number.NaN);
}
const crowd = await measureCrowd(CROWD);

const [our, theirs] = [median(ours), median(plain)];
const more = Number.isNaN(theirs)
  ? "no gcc to compare with"
  : `${(our - theirs).toFixed(0)} ns, ${((our / theirs - 1) * 100).toFixed(1)} %`;
const mebibytes = (kib: number) => `${(kib / 1024).toFixed(1)} MiB`;
console.log(`\nmicroVMs on KVM, ${MEM_MIB} MiB each, Debian's kernel loaded. ${host}\n`);
console.log(
  markdownTable([
    ["", "measured", "target"],
    [
      `process start to the guest's first instruction, median of ${runs}`,
      duration(median(starts)),
      "<= 12 ms",
    ],
    ["the fastest of them", duration(Math.min(...starts)), ""],
    [`created a second, ${AT_ONCE} at a time, to the first instruction`, created.toFixed(0), ">= 150"],
    [`created and gone a second, ${AT_ONCE} at a time`, ended.toFixed(0), ""],
    ["a program in C that creates a VM and ends, likewise", plainEnded?.toFixed(0) ?? "no gcc", ""],
    [`memory (PSS) of a monitor with ${RUNNING} running`, mebibytes(fifty.pss), "<= 10 MiB"],
    [
      `port write: ${our.toFixed(0)} ns, in plain C ${theirs.toFixed(0)} ns; more`,
      more,
      "<= 1000 ns and 10 %",
    ],
    [`${CROWD} at once, all have answered after`, duration(crowd.all), "yes"],
    [`memory (PSS) of a monitor with ${CROWD} running`, mebibytes(crowd.pss), ""],
  ]),
);
writeResult("start", host, { starts, created, ended, plainEnded, fifty, crowd, exit: { ours, plain } });
