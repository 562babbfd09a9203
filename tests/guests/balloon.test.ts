/** Linux's balloon driver in a guest on the software CPU: memory that it gives away is the host's, and comes back. */

import { afterAll, beforeAll, expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { request } from "../api/support.ts";
import { type BootFiles, bootFiles } from "./boot-files.ts";
import { ConsoleShell } from "./console-shell.ts";
import { finishRuns, Started, TEST_LIMIT, temporaryDirectory } from "./sparkler.ts";

const MIB = 2 ** 20;
/** Memory of the guests, MiB. */
const MEMORY = 256;
/** How long the guest and the host may take for something that they do by themselves, ms. */
const PATIENCE = 60_000;

const dir = temporaryDirectory();
afterAll(() => {
  dir.remove();
  finishRuns();
});

let files: BootFiles;
beforeAll(async () => {
  files = await bootFiles();
}, 120_000);

class BalloonGuest {
  private static count = 0;
  private readonly socket: string;
  readonly shell: ConsoleShell;

  constructor(balloon: object) {
    const name = `vm-${BalloonGuest.count++}`;
    this.socket = join(dir.path, `${name}.sock`);
    const config = join(dir.path, `${name}.json`);
    const boot = {
      kernel_image_path: files.vmlinux,
      initrd_path: files.initramfs,
      boot_args: "console=ttyS0 reboot=k panic=1 quiet cryptomgr.notests",
    };
    const machine = { vcpu_count: 1, mem_size_mib: MEMORY };
    const vm = { "boot-source": boot, "machine-config": machine, drives: [], balloon };
    writeFileSync(config, JSON.stringify(vm));
    const argv = ["--api-sock", this.socket, "--config-file", config, "--level", "Warn", "--accel", "soft"];
    this.shell = new ConsoleShell(new Started(argv, "pipe", { limit: 3 * TEST_LIMIT }));
  }

  /** Host memory of the monitor, MiB. */
  get resident(): number {
    const rollup = readFileSync(`/proc/${this.shell.machine.child.pid}/smaps_rollup`, "utf8");
    return Math.round(Number(/^Rss:\s+(\d+) kB$/m.exec(rollup)?.[1]) / 1024);
  }

  async get(path: string): Promise<Record<string, number>> {
    const { status, body } = await request(this.socket, "GET", path);
    expect(status).toBe(200);
    return Object(body);
  }

  async patch(path: string, body?: object): Promise<void> {
    const { status } = await request(this.socket, "PATCH", path, body);
    expect(status).toBe(204);
  }

  /** Waits until `condition` holds, and fails with what `state` is if it never does. */
  async until(condition: () => Promise<boolean> | boolean, state: () => unknown): Promise<void> {
    const end = performance.now() + PATIENCE;
    while (!(await condition())) {
      if (performance.now() > end) throw new Error(`still ${JSON.stringify(await state())}`);
      await Bun.sleep(50);
    }
  }

  /** Asks for a balloon of `mib` and waits until the guest has it. */
  async inflate(mib: number): Promise<void> {
    await this.patch("/balloon", { amount_mib: mib });
    const statistics = () => this.get("/balloon/statistics");
    await this.until(async () => (await statistics()).actual_mib === mib, statistics);
  }

  /** Free memory in the guest, MiB. */
  async free(): Promise<number> {
    const line = await this.shell.type("grep MemFree /proc/meminfo");
    return Math.round(Number(/\d+/.exec(line)?.[0]) / 1024);
  }

  /** Makes the guest write to this much of its memory, and free it again if `remove`. */
  async touch(mib: number, remove = true): Promise<void> {
    const size = await this.shell.type(
      `dd if=/dev/zero of=/dev/shm/x bs=1M count=${mib} 2>/dev/null; wc -c </dev/shm/x`,
    );
    expect(size).toBe(`${mib * MIB}\n`);
    if (remove) await this.shell.type("rm /dev/shm/x");
  }

  async start(): Promise<void> {
    await this.shell.ready();
    await this.shell.type("mount -o remount,size=240m /dev/shm");
  }

  async end(): Promise<void> {
    const { code, stderr } = await this.shell.reboot();
    expect(stderr).toBe("");
    expect(code).toBe(0);
  }
}

/** Shows what was measured. */
function note(text: string): void {
  process.stderr.write(`          ${text}\n`);
}

test(
  "half of the memory goes to the host, with statistics, and the guest can have it back",
  async () => {
    const guest = new BalloonGuest({
      amount_mib: 0,
      deflate_on_oom: false,
      stats_polling_interval_s: 1,
    });
    await guest.start();
    await guest.touch(170);
    const before = { resident: guest.resident, free: await guest.free() };
    await guest.inflate(MEMORY / 2);
    const during = { resident: guest.resident, free: await guest.free() };
    note(`balloon of ${MEMORY / 2} MiB: the monitor ${before.resident} -> ${during.resident} MiB`);
    note(`free in the guest ${before.free} -> ${during.free} MiB`);
    expect(before.resident - during.resident).toBeGreaterThan(0.8 * (MEMORY / 2));
    expect(before.free - during.free).toBeGreaterThan(0.9 * (MEMORY / 2));

    // The guest tells once a second; MemFree moves by itself by a few MiB.
    const fresh = async () => {
      const { free_memory = 0, total_memory = 0 } = await guest.get("/balloon/statistics");
      return total_memory > 0 && Math.abs(free_memory / MIB - during.free) < 16;
    };
    await guest.until(fresh, () => guest.get("/balloon/statistics"));
    const statistics = await guest.get("/balloon/statistics");
    expect(statistics).toMatchObject({
      target_pages: (MEMORY / 2) * 256,
      actual_pages: (MEMORY / 2) * 256,
      target_mib: MEMORY / 2,
      swap_in: 0,
    });
    expect(statistics.minor_faults).toBeGreaterThan(100);
    expect(statistics.available_memory).toBeGreaterThan(0);

    await guest.inflate(0);
    expect(Math.abs((await guest.free()) - before.free)).toBeLessThan(16);
    await guest.touch(170, false);
    // What was free beside the balloon is resident already.
    expect(guest.resident - during.resident).toBeGreaterThan(0.8 * (170 - during.free));
    const compare =
      "rm /dev/shm/x; head -c 20000000 /dev/urandom >/dev/shm/y; cp /dev/shm/y /dev/shm/z; cmp /dev/shm/y /dev/shm/z && echo same";
    expect(await guest.shell.type(compare)).toBe("same\n");
    await guest.end();
  },
  4 * TEST_LIMIT,
);

test(
  "a balloon shrinks before the guest's programs are killed, if it was told to",
  async () => {
    const guest = new BalloonGuest({
      amount_mib: 100,
      deflate_on_oom: true,
      stats_polling_interval_s: 1,
    });
    await guest.start();
    const statistics = () => guest.get("/balloon/statistics");
    await guest.until(async () => (await statistics()).actual_mib === 100, statistics);
    const free = await guest.free();
    await guest.touch(free + 10, false);
    await guest.until(async () => Number((await statistics()).actual_mib) < 100, statistics);
    expect(await guest.shell.type("dmesg | grep -c -i 'out of memory: killed'")).toBe("0\n");
    await guest.end();
  },
  4 * TEST_LIMIT,
);

test(
  "memory that the guest frees goes to the host by itself, with free page reporting",
  async () => {
    const guest = new BalloonGuest({
      amount_mib: 0,
      deflate_on_oom: false,
      free_page_reporting: true,
    });
    await guest.start();
    await guest.touch(150, false);
    const full = guest.resident;
    await guest.shell.type("rm /dev/shm/x");
    await guest.until(
      () => full - guest.resident > 120,
      () => `${full} -> ${guest.resident} MiB`,
    );
    note(`150 MiB freed in the guest: the monitor ${full} -> ${guest.resident} MiB`);
    await guest.touch(150);
    await guest.end();
  },
  4 * TEST_LIMIT,
);

test(
  "the guest names its free memory when it is asked, with free page hinting",
  async () => {
    const guest = new BalloonGuest({
      amount_mib: 0,
      deflate_on_oom: false,
      free_page_hinting: true,
    });
    await guest.start();
    await guest.touch(150);
    const full = guest.resident;
    await guest.patch("/balloon/hinting/start");
    const status = () => guest.get("/balloon/hinting/status");
    await guest.until(async () => (await status()).host_cmd === 1, status);
    expect(await status()).toEqual({ host_cmd: 1, guest_cmd: 0 });
    note(`150 MiB hinted at: the monitor ${full} -> ${guest.resident} MiB`);
    expect(full - guest.resident).toBeGreaterThan(120);
    await guest.touch(150);
    await guest.end();
  },
  4 * TEST_LIMIT,
);
