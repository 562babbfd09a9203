/**
 * Runs the programs of bench/programs in a guest on Sparkler's software CPU and on QEMU TCG, and on this machine
 * itself: `npm run bench:compute [-- --runs N] [-- --only NAME,NAME]`. Each program does a fixed amount of work and
 * times itself; its checksum must be the same everywhere, and the guest's clock must agree with this machine's.
 * `--chart PATH` writes the ratios as a picture (SVG), with a row for the boot if `--boot PATH` is a result of
 * `bench:boot`.
 */

import { chmodSync, copyFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { ensureBusybox } from "../src/image/busybox.ts";
import { defaultCacheDir } from "../src/image/cache-dir.ts";
import { silentProgress } from "../src/image/progress.ts";
import { type Engine, engines, MARK, qemu, qemuVersion } from "./engines.ts";
import {
  type BootResult,
  bootRatio,
  compare,
  type ProgramResult,
  programTable,
  speedChart,
  timesOf,
} from "./figures.ts";
import { duration } from "./measure.ts";
import {
  addDirectory,
  type BenchFiles,
  boot,
  describeHost,
  guestFiles,
  option,
  pathOption,
  temporaryDirectory,
  writeResult,
} from "./session.ts";

const MEM_MIB = 256;
const SOURCES = join(import.meta.dir, "programs");
/** Programs of one C file each. */
const COMPILED = [
  "sieve",
  "xorshift",
  "fib",
  "sha256",
  "aes",
  "qsort",
  "doubles",
  "hashtable",
  "strings",
  "records",
];
const COMPILER = "gcc";
const FLAGS = ["-O2", "-static"];
/** Text for gzip to compress, bytes. */
const TEXT_BYTES = 6_000_000;
const PYTHON = "/usr/bin/python3";
/** A program that has said nothing after this time, ms, hangs. */
const PROGRAM_LIMIT = 120_000;
/** How far the guest's clock may be from this machine's, as a share, and what start and output may take, ms. */
const CLOCK_TOLERANCE = 0.1;
const LINE_TIME = 400;

/** Runs what the lines of /bench/commands say, each named on the console before it starts. */
const INIT = `#!/bin/sh
mount -t devtmpfs devtmpfs /dev
while read -r command; do
  echo "${MARK}run"
  $command </dev/null || echo "${MARK}failed $command"
done </bench/commands
echo "${MARK}end"
reboot -f
`;

type Results = Map<string, ProgramResult>;

const dir = temporaryDirectory();
const bench = join(dir, "bench");
mkdirSync(bench);

function run(argv: readonly string[]): string {
  const { exitCode, stdout, stderr } = Bun.spawnSync([...argv]);
  if (exitCode !== 0) throw new Error(`${argv.join(" ")} failed:\n${stderr.toString()}`);
  return stdout.toString();
}

/** Text with the repetitions of a log file. */
function writeText(path: string): void {
  let state = 12345;
  let text = "";
  while (text.length < TEXT_BYTES) {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    text += `${state % 86400} host-${state % 13} request ${(state >>> 8) % 1000}: status ${200 + ((state >>> 4) % 5)}\n`;
  }
  writeFileSync(path, text);
}

/** Copies the interpreter, its libraries and the modules it starts with; returns the command that runs `loop.py`. */
function addPython(to: string): string {
  const libraries = join(bench, "python", "lib");
  mkdirSync(libraries, { recursive: true });
  const home = run([PYTHON, "-S", "-c", "import encodings; print(encodings.__path__[0])"]).trim();
  let loader = "";
  for (const [, path] of run(["ldd", PYTHON]).matchAll(/(\/\S+) \(0x/g)) {
    copyFileSync(path!, join(libraries, basename(path!)));
    if (basename(path!).startsWith("ld-")) loader = basename(path!);
  }
  if (loader === "") throw new Error(`${PYTHON} has no dynamic loader`);
  for (const [from, name] of [
    [PYTHON, "python3"],
    [join(SOURCES, "loop.py"), "loop.py"],
  ] as const) {
    copyFileSync(from, join(bench, "python", name));
  }
  // Where PYTHONHOME has them: lib/pythonX.Y/encodings.
  run(["mkdir", "-p", join(libraries, basename(join(home, "..")))]);
  run(["cp", "-r", home, join(libraries, basename(join(home, "..")))]);
  const inside = `${to}/python`;
  return [
    ...["env", `PYTHONHOME=${inside}`, "PYTHONHASHSEED=0"],
    ...[`${inside}/lib/${loader}`, "--library-path", `${inside}/lib`, `${inside}/python3`],
    ...["-S", "-B", `${inside}/loop.py`],
  ].join(" ");
}

/** Makes all programs in `bench`; returns their commands by name, `@` standing for the directory they are in. */
async function makePrograms(): Promise<Map<string, string>> {
  const commands = new Map<string, string>();
  for (const name of COMPILED) {
    run([
      COMPILER,
      ...FLAGS,
      "-o",
      join(bench, name),
      join(SOURCES, "main.c"),
      join(SOURCES, `${name}.c`),
      "-lm",
    ]);
    commands.set(name, `@/${name}`);
  }
  run([COMPILER, ...FLAGS, "-o", join(bench, "timed"), join(SOURCES, "timed.c")]);
  const busybox = await ensureBusybox({ cacheDir: defaultCacheDir(), progress: silentProgress });
  copyFileSync(busybox, join(bench, "busybox"));
  chmodSync(join(bench, "busybox"), 0o755);
  writeText(join(bench, "text"));
  commands.set("gzip", "@/timed gzip @/busybox gzip -c @/text");
  if (await Bun.file(PYTHON).exists()) commands.set("python", `@/timed python @/busybox ${addPython("@")}`);
  else console.log(`Without python: ${PYTHON} is not installed.`);
  return commands;
}

function parse(line: string): [string, ProgramResult] {
  const [name, nanoseconds, checksum] = line.split(" ");
  if (name === undefined || checksum === undefined || !/^\d+$/.test(nanoseconds ?? "")) {
    throw new Error(`not a result: ${line}`);
  }
  return [name, { time: Number(nanoseconds) / 1e6, checksum }];
}

function runNative(commands: ReadonlyMap<string, string>): Results {
  return new Map(
    [...commands.values()].map((command) => {
      const output = run(command.replaceAll("@", bench).split(" ")).trim();
      return parse(output.slice(MARK.length));
    }),
  );
}

async function runGuest(engine: Engine, files: BenchFiles): Promise<Results> {
  const { guest, first } = await boot(engine, files, dir);
  const results: Results = new Map();
  try {
    for (let line = first; line.text !== "end"; ) {
      if (line.text.startsWith("failed")) throw new Error(`${engine.name}: ${line.text}`);
      const next = await guest.next(PROGRAM_LIMIT);
      if (line.text === "run") {
        const [name, result] = parse(next.text);
        const seen = next.at - line.at;
        if (Math.abs(result.time - seen) > LINE_TIME + seen * CLOCK_TOLERANCE) {
          throw new Error(
            `${engine.name}: the guest's clock is wrong: ${name} took ${duration(result.time)} by it and ${duration(seen)} here`,
          );
        }
        results.set(name, result);
      }
      line = next;
    }
  } finally {
    await guest.end();
  }
  return results;
}

/** @throws Error if a program computed something else in a guest than here. */
function checkSums(native: Results, engine: Engine, results: Results): void {
  for (const [name, { checksum }] of native) {
    const theirs = results.get(name)?.checksum;
    if (theirs !== checksum) {
      throw new Error(
        `${engine.name}: ${name} gave ${theirs ?? "nothing"}, not ${checksum} as on this machine`,
      );
    }
  }
}

if (Bun.which(COMPILER) === null) {
  console.log(`skip: ${COMPILER} is not installed (Debian packages gcc and libc6-dev)`);
  process.exit(0);
}
const runs = option("runs", 3);
const chart = pathOption("chart");
const bootResult = pathOption("boot");
const bootAgainstTcg =
  bootResult === undefined
    ? undefined
    : bootRatio((JSON.parse(readFileSync(bootResult, "utf8")) as BootResult).boots);
const host = describeHost();
const only = process.argv[process.argv.indexOf("--only") + 1]?.split(",");
const commands = await makePrograms();
if (process.argv.includes("--only")) {
  for (const name of commands.keys()) if (!only?.includes(name)) commands.delete(name);
  if (commands.size === 0) throw new Error(`--only ${only?.join(",")}: no such program`);
}
writeFileSync(join(bench, "commands"), `${[...commands.values()].join("\n").replaceAll("@", "/bench")}\n`);
const files = await guestFiles(dir, MEM_MIB, (cpio) => {
  cpio.file("/init", INIT, { mode: 0o755 });
  addDirectory(cpio, bench, "/bench");
});

const compared = engines();
if (chart !== undefined && !compared.includes(qemu))
  throw new Error("--chart compares with QEMU: install it");
const nativeRuns: Results[] = [];
const guestRuns = new Map<Engine, Results[]>(compared.map((engine) => [engine, []]));
for (let round = 0; round < runs; round++) {
  const native = runNative(commands);
  nativeRuns.push(native);
  for (const engine of compared) {
    const results = await runGuest(engine, files);
    checkSums(native, engine, results);
    guestRuns.get(engine)!.push(results);
  }
}

const plain = (results: Results[]) => results.map((result) => Object.fromEntries(result));
const result = {
  native: plain(nativeRuns),
  guests: Object.fromEntries([...guestRuns].map(([engine, results]) => [engine.name, plain(results)])),
};
const rows = compare(timesOf(result));
console.log(`\nTime for a fixed amount of work, median of ${runs}. ${host}\n`);
console.log(programTable(rows));
writeResult("compute", host, {
  kernel: files.kernelVersion,
  ...(compared.includes(qemu) ? { qemu: qemuVersion() } : {}),
  runs,
  ...result,
});
if (chart !== undefined) {
  writeFileSync(chart, speedChart(rows, bootAgainstTcg));
  console.log(`Written: ${chart}`);
}
