/**
 * Disk and network of a guest on Sparkler's software CPU and on QEMU TCG, with the same kernel and devices:
 * `npm run bench:io [-- --runs N]`. TCP goes through a TAP device in a network namespace of the benchmark's own, to a
 * program there. Disks are raw files in the host's page cache. Of the thread that serves the devices the processor time
 * for each request is shown: QEMU has further threads that do transfers, as has the kernel for io_uring, and on both sides
 * the vCPU's thread does some requests itself.
 */

import { chmodSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { defaultCacheDir } from "../src/image/cache-dir.ts";
import { ensureInitramfs } from "../src/image/initramfs.ts";
import { ensureKernel } from "../src/image/kernel.ts";
import { terminalProgress } from "../src/image/progress.ts";
import { runArchive } from "../src/image/run-archive.ts";
import { Namespace, noNamespaces } from "../tests/net/namespace.ts";
import { type Engine, engines, type Guest, type GuestFiles, MARK, sparkler } from "./engines.ts";
import { cpuTime, markdownTable, median } from "./measure.ts";
import { boot, describeHost, option, temporaryDirectory, writeResult } from "./session.ts";

const MEM_MIB = 256;
const COMPILER = "gcc";
/** A transfer that has not ended after this time, ms, hangs. */
const LIMIT = 120_000;
const PORT = 7000;
const MIB = 2 ** 20;
/** Sizes tell the disks apart in the guest, MiB; transfers go to their first 128. */
const DISKS = { Sync: 129, Async: 130 } as const;

interface Case {
  readonly name: string;
  /** Arguments of iobench; `@Sync` and `@Async` stand for a disk, `@host` for the host's address. */
  readonly argv: string;
  /** What one operation is, and what is shown. */
  readonly unit: "requests/s" | "MiB/s" | "us";
  /** QEMU has this only with the host's vhost-vsock. */
  readonly vsock?: boolean;
}

function blockCases(engine: keyof typeof DISKS): Case[] {
  const cases: Case[] = [];
  for (const [size, count, name] of [
    [4096, 20_000, "4k"],
    [131072, 2000, "128k"],
  ] as const) {
    for (const order of ["random", "seq"]) {
      for (const way of ["read", "write"]) {
        cases.push({
          name: `${engine}: ${name} ${order} ${way}, 16 at once`,
          argv: `block @${engine} ${way} ${order} ${size} ${count} 16`,
          unit: size === 4096 ? "requests/s" : "MiB/s",
        });
      }
    }
  }
  cases.push({
    name: `${engine}: 4k random read, one at a time`,
    argv: `block @${engine} read random 4096 4000 1`,
    unit: "us",
  });
  return cases;
}

const CASES: readonly Case[] = [
  { name: "TCP to the guest", argv: `recv tcp @host ${PORT} ${256 * MIB}`, unit: "MiB/s" },
  { name: "TCP from the guest", argv: `send tcp @host ${PORT} ${256 * MIB}`, unit: "MiB/s" },
  { name: "TCP round trip", argv: `ping tcp @host ${PORT} 5000`, unit: "us" },
  ...blockCases("Sync"),
  ...blockCases("Async"),
  { name: "vsock to the guest", argv: `recv vsock 2 ${PORT} ${128 * MIB}`, unit: "MiB/s", vsock: true },
  { name: "vsock from the guest", argv: `send vsock 2 ${PORT} ${128 * MIB}`, unit: "MiB/s", vsock: true },
  { name: "vsock round trip", argv: `ping vsock 2 ${PORT} 5000`, unit: "us", vsock: true },
];

interface Pass {
  /** Of the whole transfer, by the guest's clock, ns. */
  readonly time: number;
  readonly operations: number;
  readonly bytes: number;
  /** Processor time of the thread that serves the devices, ns. */
  readonly deviceTime: number;
}
/** A case runs twice in each guest: what the first pass does, the second has compiled. */
interface Result {
  readonly first: Pass;
  readonly second: Pass;
}
type Results = Map<string, Result>;

const dir = temporaryDirectory();

function compile(): string {
  const out = join(dir, "iobench");
  const source = join(import.meta.dir, "programs", "iobench.c");
  const { exitCode, stderr } = Bun.spawnSync([COMPILER, "-O2", "-static", "-o", out, source]);
  if (exitCode !== 0) throw new Error(`${COMPILER} failed:\n${stderr.toString()}`);
  chmodSync(out, 0o755);
  return out;
}

function script(cases: readonly Case[], host: string): string {
  const lines = cases.map(({ name, argv }) => {
    const words = argv.replace("@host", host).replace(/@(Sync|Async)/, "$$$1");
    return `echo "${MARK}start ${name}"; for pass in 1 2; do /iobench ${words}; done`;
  });
  const disks = Object.entries(DISKS).map(
    ([name, mib]) => `[ "$size" = ${mib * 2048} ] && ${name}=/dev/\${disk##*/}`,
  );
  return `for disk in /sys/block/vd*; do read -r size <$disk/size; ${disks.join("; ")}; done
${lines.join("\n")}
echo "${MARK}end"`;
}

/** In `GuestFiles`, what is different for each engine: a TAP device of its own. */
async function guestFor(
  space: Namespace,
  number: number,
  program: string,
  cases: readonly Case[],
): Promise<GuestFiles> {
  const tap = `tap${number}`;
  const [host, guest] = [`172.31.${number}.1`, `172.31.${number}.2`];
  space.addTap(tap, `${host}/24`);
  const options = { cacheDir: defaultCacheDir(), progress: terminalProgress() };
  const kernel = await ensureKernel(options);
  const base = readFileSync(await ensureInitramfs({ ...options, kernel }));
  const archive = runArchive({
    argv: ["sh", "-c", script(cases, host)],
    add: [{ host: program, guest: "/iobench" }],
  });
  const padding = Buffer.alloc((4 - (base.length % 4)) % 4);
  const initrd = join(dir, `initrd-${number}`);
  writeFileSync(initrd, Buffer.concat([base, padding, archive]));
  const paths = Object.entries(DISKS).map(([name, mib]) => {
    const path = join(dir, `${name}-${number}`);
    writeFileSync(path, Buffer.alloc(mib * MIB, 0x33));
    return { name, path };
  });
  const mac = `06:00:ac:1f:0${number}:02`;
  const config = {
    drives: paths.map(({ name, path }) => ({
      ...{ drive_id: name, is_root_device: false, path_on_host: path },
      ...{ io_engine: name, cache_type: "Writeback" },
    })),
    "network-interfaces": [{ iface_id: "net1", host_dev_name: tap, guest_mac: mac }],
    vsock: { guest_cid: 3, uds_path: join(dir, `vsock-${number}`) },
  };
  const qemuArgs = [
    ...["-global", "virtio-mmio.force-legacy=false"],
    ...["-netdev", `tap,id=net1,ifname=${tap},script=no,downscript=no,vhost=off`],
    ...["-device", `virtio-net-device,netdev=net1,mac=${mac}`],
    ...paths.flatMap(({ name, path }) => [
      "-drive",
      `if=none,id=${name},file=${path},format=raw,aio=${name === "Async" ? "io_uring" : "threads"}`,
      "-device",
      `virtio-blk-device,drive=${name}`,
    ]),
  ];
  return {
    ...{ kernel: kernel.vmlinux, initrd, memMib: MEM_MIB },
    devices: { config, qemuArgs, bootArgs: `sparkler.ip=${guest}/24,${host}` },
  };
}

/** Processor time of the first thread of a process, which serves the devices on both sides, ns. */
function deviceTime(guest: Guest): number {
  return 1e6 * cpuTime(readFileSync(`/proc/${guest.pid}/task/${guest.pid}/stat`, "latin1"));
}

async function runGuest(engine: Engine, files: GuestFiles, prefix: readonly string[]): Promise<Results> {
  const inSpace = {
    ...engine,
    argv: (...args: Parameters<Engine["argv"]>) => [...prefix, ...engine.argv(...args)],
  };
  const { guest, first } = await boot(inSpace, files, dir);
  const results: Results = new Map();
  try {
    for (let line = first; line.text !== "end"; line = await guest.next(LIMIT)) {
      const name = line.text.slice("start ".length);
      const pass = async (): Promise<Pass> => {
        const before = deviceTime(guest);
        const { text } = await guest.next(LIMIT);
        const [time = Number.NaN, operations = 0, bytes = 0] = text.split(" ").map(Number);
        if (!Number.isInteger(time)) throw new Error(`${engine.name}: ${name}: ${text}`);
        return { time, operations, bytes, deviceTime: deviceTime(guest) - before };
      };
      results.set(name, { first: await pass(), second: await pass() });
    }
  } finally {
    await guest.end();
  }
  return results;
}

/** What the case shows, from medians. */
function figure({ unit }: Case, passes: readonly Pass[]): number {
  const time = median(passes.map((pass) => pass.time));
  const { operations, bytes } = passes[0]!;
  if (unit === "us") return time / operations / 1000;
  return (unit === "MiB/s" ? bytes / MIB : operations) / (time / 1e9);
}

function deviceFigure(passes: readonly Pass[]): string {
  return (median(passes.map((pass) => pass.deviceTime)) / passes[0]!.operations / 1000).toFixed(1);
}

/** Speed of the first column as a multiple of the second's; nothing if one of them lacks the case. */
function speed({ unit }: Case, [ours, theirs]: readonly (number | undefined)[]): string {
  if (ours === undefined || theirs === undefined) return "-";
  return `${(unit === "us" ? theirs / ours : ours / theirs).toFixed(2)}x`;
}

const reason = Bun.which(COMPILER) === null ? `${COMPILER} is not installed` : noNamespaces();
if (reason !== undefined) {
  console.log(`skip: ${reason}`);
  process.exit(0);
}
const runs = option("runs", 3);
const at = process.argv.indexOf("--only");
const only = at < 0 ? undefined : process.argv[at + 1];
const wanted = CASES.filter(({ name }) => only === undefined || name.includes(only));
const host = describeHost();
const program = compile();
const space = new Namespace();
process.on("exit", () => space.remove());
const servers = [Bun.spawn([...space.prefix, program, "listen-tcp", String(PORT)], { stdout: "ignore" })];
process.on("exit", () => {
  for (const server of servers) server.kill("SIGKILL");
});

const compared = engines();
const guests = new Map<Engine, { files: GuestFiles; runs: Results[] }>();
for (const [number, engine] of compared.entries()) {
  const cases = wanted.filter(({ vsock }) => vsock !== true || engine === sparkler);
  if (engine === sparkler) {
    const path = join(dir, `vsock-${number}_${PORT}`);
    servers.push(Bun.spawn([program, "listen-unix", path], { stdout: "ignore" }));
  }
  guests.set(engine, { files: await guestFor(space, number, program, cases), runs: [] });
}
for (let round = 0; round < runs; round++) {
  for (const [engine, guest] of guests) guest.runs.push(await runGuest(engine, guest.files, space.prefix));
}

const all = [...guests.values()].map((guest) => guest.runs);
const both = compared.length > 1;
const rows = wanted.map((one) => {
  const columns = all.map((runs) =>
    runs.map((results) => results.get(one.name)).filter((r) => r !== undefined),
  );
  const figures = (pass: keyof Result) =>
    columns.map((results) =>
      results.length === 0
        ? undefined
        : figure(
            one,
            results.map((result) => result[pass]),
          ),
    );
  const second = figures("second");
  return [
    `${one.name}, ${one.unit}`,
    ...second.map((value) => value?.toFixed(value < 100 ? 1 : 0) ?? "-"),
    ...(both ? [speed(one, second), speed(one, figures("first"))] : []),
    ...columns.map((results) =>
      results.length === 0 ? "-" : deviceFigure(results.map((result) => result.second)),
    ),
  ];
});
console.log(`
Second pass of each case in its guest, median of ${runs} guests; speed as a multiple of TCG's, in the first pass too.
CPU: processor time of the device thread for each request, round trip, or 64 KiB of a stream, us.
${host}
`);
const names = compared.map(({ name }) => name);
const header = [
  "",
  ...names,
  ...(both ? ["speed", "first pass"] : []),
  ...names.map((name) => `${name} CPU`),
];
console.log(markdownTable([header, ...rows]));
writeResult("io", host, {
  runs,
  guests: Object.fromEntries(
    [...guests].map(([engine, guest]) => [
      engine.name,
      guest.runs.map((results) => Object.fromEntries(results)),
    ]),
  ),
});
process.exit(0);
