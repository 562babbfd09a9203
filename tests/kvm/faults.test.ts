/**
 * A host that refuses what a microVM needs, and signals at every stage of its start: the monitor says what is wrong or
 * ends, and leaves no process, no socket that answers and no lock.
 */

import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { saysAndResets, saysAndSleeps, writeGuest } from "../../bench/raw-guest.ts";
import { Monitor } from "../api/support.ts";
import { backendNames } from "./machine.ts";

const MAIN = join(import.meta.dir, "../../src/main.ts");
const TIMEOUT = 120_000;
/** More descriptors than any start takes here. */
const ENOUGH_DESCRIPTORS = 64;
const NOBODY = 65534;

const dir = mkdtempSync(join(tmpdir(), "sparkler-faults-"));
/** Those of a test that failed are still there at the end. */
const monitors: Monitor[] = [];
afterAll(() => {
  for (const { process } of monitors) process.kill("SIGKILL");
  rmSync(dir, { recursive: true });
});
const resets = join(dir, "resets");
writeGuest(resets, saysAndResets("r"));
const sleeps = join(dir, "sleeps");
writeGuest(sleeps, saysAndSleeps("s"));

function configFile(kernel: string, more: object = {}): string {
  const path = join(dir, `${crypto.randomUUID()}.json`);
  const config = {
    "boot-source": { kernel_image_path: kernel, boot_args: "" },
    drives: [],
    "machine-config": { vcpu_count: 1, mem_size_mib: 16 },
    ...more,
  };
  writeFileSync(path, JSON.stringify(config));
  return path;
}

/** Runs a command to its end. */
async function finish(command: string[]): Promise<{ stdout: string; stderr: string; code: number }> {
  const child = Bun.spawn(command, { stdin: "ignore", stdout: "pipe", stderr: "pipe" });
  const [stdout, stderr, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return { stdout, stderr, code };
}

const noApi = (accel: string, config: string) => [
  process.execPath,
  MAIN,
  ...["--no-api", "--config-file", config, "--level", "Error", "--accel", accel],
];

async function until(condition: () => boolean): Promise<void> {
  const deadline = performance.now() + 5000;
  while (!condition()) {
    if (performance.now() > deadline) throw new Error("waited in vain");
    await Bun.sleep(2);
  }
}

/** Whether `command` ends well here: some need root. */
function works(...command: string[]): boolean {
  try {
    return Bun.spawnSync(command).exitCode === 0;
  } catch {
    return false;
  }
}

describe("a /dev/kvm that cannot be used", () => {
  const mounts = works("unshare", "--mount", "true");
  if (!mounts) console.warn("skip: another /dev/kvm needs unshare --mount");
  const asNobody = ["setpriv", `--reuid=${NOBODY}`, `--regid=${NOBODY}`, "--clear-groups"];
  const others = works(...asNobody, process.execPath, "--version") && works(...asNobody, "test", "-r", MAIN);
  if (!others) console.warn("skip: another user cannot start the monitor here");

  const REMEDY = "Leave --accel out, or give --accel soft, to run on the software CPU.";
  const withDevice = (script: string) => ["unshare", "--mount", "sh", "-c", `${script}; exec "$@"`, "sh"];

  test.each([
    [
      "is not there",
      mounts,
      withDevice(`mount -t tmpfs none /mnt; touch /mnt/null; mount --bind /dev/null /mnt/null;
        mount -t tmpfs none /dev; touch /dev/null; mount --bind /mnt/null /dev/null`),
      "Error: There is no /dev/kvm: load the kvm_intel or kvm_amd module",
    ],
    [
      "is on a file system without devices",
      mounts,
      withDevice(`mount -t tmpfs -o nodev none /mnt; mknod /mnt/kvm c 10 232; touch /dev/kvm;
        mount --bind /mnt/kvm /dev/kvm`),
      "Error: No permission to open /dev/kvm: add the user to the group that owns it",
    ],
    [
      "is another device",
      mounts,
      withDevice("test -e /dev/kvm || touch /dev/kvm; mount --bind /dev/null /dev/kvm"),
      "Error: /dev/kvm is not KVM's device, or does not let itself be asked: ",
    ],
    [
      "belongs to others",
      others && existsSync("/dev/kvm") && !works(...asNobody, "test", "-w", "/dev/kvm"),
      asNobody,
      "Error: No permission to open /dev/kvm: add the user to the group that owns it",
    ],
  ])(
    "%s: KVM that is asked for is refused, and auto takes the software CPU",
    async (_, possible, prefix, text) => {
      if (!possible) return;
      const config = configFile(resets);
      Bun.spawnSync(["chmod", "-R", "a+rX", dir]);
      const refused = await finish([...prefix, ...noApi("kvm", config)]);
      expect(refused.stderr).toContain(text);
      expect(refused.stderr).toContain(REMEDY);
      expect(refused).toMatchObject({ stdout: "", code: 152 });
      const taken = await finish([...prefix, ...noApi("auto", config)]);
      expect(taken).toEqual({ stdout: "r", stderr: "", code: 0 });
    },
    TIMEOUT,
  );
});

describe.each(backendNames())("%s", (accel) => {
  test(
    "every limit of open files that is too low ends the monitor with a message",
    async () => {
      const config = configFile(resets);
      let refused = 0;
      for (let limit = 9; limit < ENOUGH_DESCRIPTORS; limit++) {
        const limited = ["sh", "-c", 'ulimit -n "$0"; exec "$@"', String(limit)];
        const { stdout, stderr, code } = await finish([...limited, ...noApi(accel, config)]);
        if (code === 0) {
          expect(stdout).toBe("r");
          break;
        }
        expect(stdout).toBe("");
        expect(stderr).toMatch(/EMFILE|Too many open files|ResolveMessage/);
        refused++;
      }
      expect(refused).toBeGreaterThan(0);
      expect(refused).toBeLessThan(ENOUGH_DESCRIPTORS - 9);
    },
    TIMEOUT,
  );

  /** A monitor with an API that has been told of its guest. */
  async function configured(): Promise<Monitor> {
    const socket = join(dir, `${crypto.randomUUID().slice(0, 8)}.sock`);
    const monitor = Monitor.program(socket, ["--api-sock", socket, "--level", "Off", "--accel", accel]);
    monitors.push(monitor);
    await monitor.ready();
    expect((await monitor.put("/boot-source", { kernel_image_path: resets })).status).toBe(204);
    const machine = { vcpu_count: 1, mem_size_mib: 2048 };
    expect((await monitor.put("/machine-config", machine)).status).toBe(204);
    return monitor;
  }

  /** Sets a soft limit of the monitor. */
  function limit(monitor: Monitor, resource: string, value: number | "unlimited"): void {
    const { exitCode } = Bun.spawnSync([
      "prlimit",
      `--pid=${monitor.process.pid}`,
      `--${resource}=${value}:`,
    ]);
    expect(exitCode).toBe(0);
  }

  /** A start that is refused for lack of address space. */
  async function startWithoutMemory(monitor: Monitor): Promise<void> {
    const status = readFileSync(`/proc/${monitor.process.pid}/status`, "utf8");
    const mapped = Number(/^VmSize:\s+(\d+) kB$/m.exec(status)?.[1]) * 1024;
    limit(monitor, "as", mapped + 256 * 2 ** 20);
    const refused = await monitor.action("InstanceStart");
    expect(refused.status).toBe(400);
    expect(refused.body).toEqual({
      fault_message:
        "Start microvm error: Cannot get 2048 MiB of guest memory from the host. Lower mem_size_mib.",
    });
    limit(monitor, "as", "unlimited");
  }

  const open = (monitor: Monitor) => readdirSync(`/proc/${monitor.process.pid}/fd`).length;

  test(
    "memory that cannot be mapped: the request is refused, and a later one starts the guest",
    async () => {
      const monitor = await configured();
      await startWithoutMemory(monitor);
      expect((await monitor.action("InstanceStart")).status).toBe(204);
      expect(await monitor.exited()).toBe(0);
      expect(monitor.stdout).toBe("r");
      expect(existsSync(monitor.socket)).toBe(false);
    },
    TIMEOUT,
  );

  test(
    "no more descriptors at the start: it is refused, and a later one starts the guest",
    async () => {
      const monitor = await configured();
      // Has the main thread's code loaded: what could not be read is not read again.
      const before = open(monitor);
      await startWithoutMemory(monitor);
      await until(() => open(monitor) <= before);
      for (let more = 2; more <= 14; more += 3) {
        limit(monitor, "nofile", before + more);
        const { status, body } = await monitor.action("InstanceStart");
        expect(status).toBe(400);
        expect(JSON.stringify(body)).toMatch(
          /Start microvm error: The microVM needs \d+ more descriptors: Too many open files .* \(ulimit -n\)\."/,
        );
      }
      limit(monitor, "nofile", 1024);
      expect((await monitor.action("InstanceStart")).status).toBe(204);
      expect(await monitor.exited()).toBe(0);
      expect(monitor.stdout).toBe("r");
    },
    TIMEOUT,
  );

  describe("a signal at any stage of the start", () => {
    /** Signals from the first moment on to a little after the start is done. */
    const STEPS = 24;
    const BEYOND = 1.5;

    const output = join(dir, `output-${accel}`);

    /** Processes of the session `leader`, which the monitor's children stay in. */
    function session(leader: number): string[] {
      return readdirSync("/proc").flatMap((pid) => {
        if (!/^\d+$/.test(pid)) return [];
        try {
          const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
          const [state, , , sid] = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
          return Number(sid) === leader && state !== "Z" ? [stat] : [];
        } catch {
          return [];
        }
      });
    }

    function answers(socket: string): Promise<boolean> {
      return new Promise((resolve) => {
        const client = connect(socket);
        client.once("connect", () => {
          client.destroy();
          resolve(true);
        });
        client.once("error", () => resolve(false));
      });
    }

    /**
     * Starts `command` as the leader of a session, kills it, and calls `after`: again and again, each time a little
     * later, until after it has `started`.
     */
    async function sweep(
      signal: NodeJS.Signals,
      command: string[],
      started: (leader: number) => boolean,
      after: () => void | Promise<void>,
    ) {
      const whole = await killed(signal, command, (leader) => until(() => started(leader)));
      await after();
      for (let i = 0; i <= STEPS; i++) {
        await killed(signal, command, () => Bun.sleep((i / STEPS) * BEYOND * whole));
        await after();
      }
    }

    /** Kills a session's leader when `moment` has come, after the time in ms that is returned, and sees all of it go. */
    async function killed(
      signal: NodeJS.Signals,
      command: string[],
      moment: (leader: number) => Promise<void>,
    ): Promise<number> {
      writeFileSync(output, "");
      const begun = performance.now();
      const child = Bun.spawn(["setsid", ...command], {
        stdin: "ignore",
        stdout: Bun.file(output),
        stderr: "ignore",
      });
      await moment(child.pid);
      const took = performance.now() - begun;
      child.kill(signal);
      await child.exited;
      expect(child.exitCode ?? child.signalCode ?? "runs").toBeOneOf([143, signal]);
      await until(() => session(child.pid).length === 0);
      expect(session(child.pid)).toEqual([]);
      return took;
    }

    test.each(["SIGTERM", "SIGKILL"] as const)(
      "%s, API, drive and vsock",
      async (signal) => {
        const folder = mkdtempSync(join(dir, "sockets-"));
        const socket = join(folder, "api.sock");
        const vsock = join(folder, "vsock.sock");
        const disk = join(dir, `${crypto.randomUUID()}.img`);
        writeFileSync(disk, new Uint8Array(65536));
        const parts = {
          drives: [{ drive_id: "d", path_on_host: disk, is_root_device: false }],
          vsock: { guest_cid: 3, uds_path: vsock },
        };
        const config = configFile(sleeps, parts);
        const command = [process.execPath, MAIN, "--api-sock", socket, "--config-file", config];
        const said = () => readFileSync(output, "utf8") === "s";
        await sweep(signal, [...command, "--accel", accel], said, async () => {
          if (signal === "SIGTERM") expect(readdirSync(folder)).toEqual([]);
          for (const name of readdirSync(folder)) {
            // What nobody could remove answers nobody.
            expect(await answers(join(folder, name))).toBe(false);
            rmSync(join(folder, name));
          }
        });
        // The drive's lock has gone with its holder.
        const { vsock: _, ...rest } = parts;
        const last = await finish(noApi(accel, configFile(resets, rest)));
        expect(last).toEqual({ stdout: "r", stderr: "", code: 0 });
      },
      TIMEOUT,
    );

    test.skipIf(Bun.which("passt") === null).each(["SIGTERM", "SIGKILL"] as const)(
      "%s, run with a network through passt",
      async (signal) => {
        const initrd = join(dir, "initrd");
        writeFileSync(initrd, "");
        const command = [process.execPath, MAIN, "run", "--accel", accel, "--net", "user"];
        await sweep(
          signal,
          [...command, "--kernel", sleeps, "--initrd", initrd, "--mem", "64", "--", "true"],
          (leader) => session(leader).some((stat) => stat.includes("(passt")),
          () => {},
        );
      },
      TIMEOUT,
    );
  });
});
