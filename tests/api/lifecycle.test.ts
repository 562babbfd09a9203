/** A microVM driven over the API from its configuration to its end, on a scripted CPU. */

import { afterAll, afterEach, describe, expect, test } from "bun:test";
import { existsSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { monotonicMicros } from "../../src/platform/clock.ts";
import { tinyKernel } from "../vmm/tiny-kernel.ts";
import { type Answer, fault, Monitor, send, temporaryDirectory } from "./support.ts";

const dir = temporaryDirectory();
afterAll(dir.remove);
const kernel = join(dir.path, "kernel");
writeFileSync(kernel, tinyKernel());

let monitors: Monitor[] = [];
let sockets = 0;
afterEach(async () => {
  await Promise.all(monitors.map((monitor) => monitor.kill()));
  monitors = [];
});

function start(flags: object = {}, overrides: object = {}): Promise<Monitor> {
  const monitor = Monitor.scripted(join(dir.path, `${sockets++}.sock`), flags, overrides);
  monitors.push(monitor);
  return monitor.ready();
}

function file(name: string, content: string | Uint8Array): string {
  const path = join(dir.path, name);
  writeFileSync(path, content);
  return path;
}

async function boot(monitor: Monitor, script: string): Promise<void> {
  const source = { kernel_image_path: kernel, boot_args: `script=${script}` };
  expect((await monitor.put("/boot-source", source)).status).toBe(204);
  expect(await monitor.action("InstanceStart")).toMatchObject({ status: 204, body: undefined });
}

describe("configuration", () => {
  test("GET /vm/config is exact before and after boot", async () => {
    const monitor = await start();
    const empty = {
      balloon: null,
      drives: [],
      "boot-source": { kernel_image_path: "", initrd_path: null, boot_args: null },
      "cpu-config": null,
      logger: null,
      "machine-config": {
        vcpu_count: 1,
        mem_size_mib: 128,
        smt: false,
        track_dirty_pages: false,
        huge_pages: "None",
      },
      metrics: null,
      "mmds-config": null,
      "network-interfaces": [],
      vsock: null,
      entropy: null,
      pmem: [],
      "memory-hotplug": null,
    };
    expect((await monitor.get("/vm/config")).body).toEqual(empty);
    const disk = file("disk", Buffer.alloc(4096));
    const root = file("root", Buffer.alloc(4096));
    await monitor.put("/drives/data", { drive_id: "data", is_root_device: false, path_on_host: disk });
    await monitor.put("/drives/rootfs", {
      drive_id: "rootfs",
      is_root_device: true,
      path_on_host: root,
      is_read_only: true,
      cache_type: "Writeback",
      partuuid: "p",
    });
    await monitor.put("/entropy", {});
    await monitor.put("/machine-config", { vcpu_count: 1, mem_size_mib: 64 });
    await monitor.patch("/machine-config", { mem_size_mib: 65 });
    await boot(monitor, "hang");
    const drive = { rate_limiter: null, io_engine: "Sync", socket: null };
    expect((await monitor.get("/vm/config")).body).toEqual({
      ...empty,
      "boot-source": { kernel_image_path: kernel, initrd_path: null, boot_args: "script=hang" },
      drives: [
        {
          drive_id: "rootfs",
          partuuid: "p",
          is_root_device: true,
          cache_type: "Writeback",
          is_read_only: true,
          path_on_host: root,
          ...drive,
        },
        {
          drive_id: "data",
          partuuid: null,
          is_root_device: false,
          cache_type: "Unsafe",
          is_read_only: false,
          path_on_host: disk,
          ...drive,
        },
      ],
      "machine-config": { ...empty["machine-config"], mem_size_mib: 65 },
      entropy: { rate_limiter: null },
    });
    expect((await monitor.get("/machine-config")).body).toEqual({
      ...empty["machine-config"],
      mem_size_mib: 65,
    });
  });

  test("a failed InstanceStart leaves the process usable, and the guest starts later", async () => {
    const monitor = await start();
    expect(fault(await monitor.action("InstanceStart"))).toBe(
      "Start microvm error: Cannot start microvm without kernel configuration.",
    );
    const broken = file("broken", "no kernel at all");
    await monitor.put("/boot-source", { kernel_image_path: broken });
    for (let i = 0; i < 3; i++) {
      const answer = await monitor.action("InstanceStart");
      expect(answer.status).toBe(400);
      expect(fault(answer)).toStartWith("Start microvm error: ");
    }
    expect((await monitor.get("/")).body).toMatchObject({ state: "Not started" });
    await boot(monitor, "panic");
    expect(await monitor.exited()).toBe(0);
    expect(monitor.stdout).toContain("Kernel panic");
  });

  test("a file and the API together: the guest runs, requests find it started", async () => {
    const config = file(
      "config.json",
      JSON.stringify({
        "boot-source": { kernel_image_path: kernel, boot_args: "script=hang" },
        drives: [],
        metrics: { metrics_path: join(dir.path, "file-metrics") },
      }),
    );
    const metadata = file("metadata.json", '{"latest":{"id":1}}');
    const monitor = await start({ configFile: config, metadata });
    expect((await monitor.get("/")).body).toMatchObject({ id: "test", state: "Running" });
    expect((await monitor.get("/mmds")).body).toEqual({ latest: { id: 1 } });
    expect(await monitor.kill()).toBe(143);
    expect(existsSync(monitor.socket)).toBe(false);
    expect(readFileSync(join(dir.path, "file-metrics"), "utf8").trimEnd().split("\n").length).toBe(2);
    const bad = Monitor.scripted(join(dir.path, "bad.sock"), { configFile: broken(), metadata });
    expect(await bad.exited()).toBe(152);
    expect(existsSync(bad.socket)).toBe(false);
  });

  function broken(): string {
    return file("broken.json", '{"drives": []}');
  }
});

describe("the socket", () => {
  test("one that is in use or left behind is an error, and stays", async () => {
    const monitor = await start();
    const left = file("left.sock", "");
    const long = join(dir.path, "x".repeat(200));
    for (const path of [monitor.socket, left, long, join(dir.path, "none", "s")]) {
      const second = Monitor.scripted(path);
      expect(await second.exited()).toBe(1);
      expect(second.stderr).toContain(
        `Failed to open the API socket at: ${path}. Check that it is not already used.`,
      );
    }
    expect((await monitor.get("/")).status).toBe(200);
    expect(existsSync(left)).toBe(true);
    expect(await monitor.kill()).toBe(143);
    expect(existsSync(monitor.socket)).toBe(false);
  });

  test("is gone when the guest has ended", async () => {
    const monitor = await start();
    expect(statSync(monitor.socket).isSocket()).toBe(true);
    await boot(monitor, "triple");
    expect(await monitor.exited()).toBe(1);
    expect(monitor.stderr).toContain("The guest stopped by a triple fault");
    expect(existsSync(monitor.socket)).toBe(false);
  });
});

describe("the running guest", () => {
  test("pauses and resumes: nothing is printed in between", async () => {
    const monitor = await start();
    expect(fault(await monitor.patch("/vm", { state: "Paused" }))).toContain("before starting the microVM");
    await boot(monitor, "count");
    await monitor.printed("3\n");
    for (let round = 0; round < 3; round++) {
      for (let i = 0; i < 2; i++) expect((await monitor.patch("/vm", { state: "Paused" })).status).toBe(204);
      expect((await monitor.get("/")).body).toMatchObject({ state: "Paused" });
      // What was printed before the pause may still be on its way.
      await Bun.sleep(50);
      const before = monitor.stdout;
      await Bun.sleep(100);
      expect(monitor.stdout).toBe(before);
      for (let i = 0; i < 2; i++) expect((await monitor.patch("/vm", { state: "Resumed" })).status).toBe(204);
      expect((await monitor.get("/")).body).toMatchObject({ state: "Running" });
      const next = Number(before.trimEnd().split("\n").pop()) + 3;
      await monitor.printed(`\n${next}\n`);
    }
    await monitor.patch("/vm", { state: "Paused" });
    expect(await monitor.kill()).toBe(143);
  });

  test("a pause in the middle of a stream loses nothing", async () => {
    const monitor = await start();
    await boot(monitor, "flood");
    for (let i = 0; i < 20; i++) {
      // The guest may end, and the monitor with it, while a request is on its way.
      const paused = await monitor.patch("/vm", { state: "Paused" }).catch(() => undefined);
      if (paused?.status !== 204) break;
      await monitor.patch("/vm", { state: "Resumed" }).catch(() => undefined);
    }
    expect(await monitor.exited()).toBe(0);
    expect(monitor.stdout.split("\n").length).toBe(20_001);
  });

  test("Ctrl-Alt-Del reaches the keyboard", async () => {
    const monitor = await start();
    expect(fault(await monitor.action("SendCtrlAltDel"))).toContain("before starting the microVM");
    await boot(monitor, "keyboard");
    await monitor.printed("ready\n");
    expect((await monitor.action("SendCtrlAltDel")).status).toBe(204);
    expect(await monitor.exited()).toBe(0);
    expect(monitor.stdout).toBe("ready\n14 11 e0 71 ");
  });

  test("gets another disk behind its drive, and learns of a grown one", async () => {
    const first = file("first", Buffer.alloc(512 * 8, "a"));
    const second = file("second", Buffer.alloc(512 * 16, "b"));
    const monitor = await start();
    await monitor.put("/drives/d", { drive_id: "d", is_root_device: false, path_on_host: first });
    await boot(monitor, "watch");
    await monitor.printed("8 sectors of a\n");
    const patch = (path_on_host?: string) => monitor.patch("/drives/d", { drive_id: "d", path_on_host });
    expect(fault(await patch(join(dir.path, "none")))).toMatch(
      /^Drive config error: Unable to patch the block device: .*No such file or directory \(os error 2\)$/,
    );
    expect(fault(await patch())).toBe(
      "Drive config error: Unable to patch the block device: Device manager error: Running method expected different backend. Please verify the request arguments.",
    );
    const unknown = await monitor.patch("/drives/e", { drive_id: "e", path_on_host: second });
    expect(fault(unknown)).toContain("There is no drive `e`.");
    expect((await monitor.get("/vm/config")).body).toMatchObject({ drives: [{ path_on_host: first }] });

    expect((await patch(second)).status).toBe(204);
    await monitor.printed("16 sectors of b\n");
    expect((await monitor.get("/vm/config")).body).toMatchObject({ drives: [{ path_on_host: second }] });
    writeFileSync(second, Buffer.alloc(512 * 32, "c"));
    expect((await patch(second)).status).toBe(204);
    await monitor.printed("32 sectors of c\n");

    // The lock went from the old disk to the new one.
    const other = await start();
    const drive = (path_on_host: string) => ({ drive_id: "x", is_root_device: false, path_on_host });
    expect((await other.put("/drives/x", drive(first))).status).toBe(204);
    expect(fault(await other.put("/drives/x", drive(second)))).toContain("in use by another microVM");
  });

  test("gives memory to a balloon, which the host gets, and takes it back", async () => {
    const monitor = await start();
    const failed = async (answer: Promise<Answer>) => [(await answer).status, fault(await answer)];
    const refusal = (reason: string) => [400, `Balloon config error: ${reason}`];
    const missing = refusal("No balloon device found.");
    const tooLarge = refusal(
      "Amount of pages requested is too large. The guest has 128 MiB: ask for no more.",
    );
    const config = {
      amount_mib: 0,
      deflate_on_oom: true,
      stats_polling_interval_s: 1,
      free_page_hinting: true,
      free_page_reporting: false,
    };
    expect(await failed(monitor.get("/balloon"))).toEqual(missing);
    expect(await failed(monitor.put("/balloon", { ...config, amount_mib: 129 }))).toEqual(tooLarge);
    expect((await monitor.put("/balloon", { ...config, amount_mib: 100 })).status).toBe(204);
    expect(await failed(monitor.patch("/machine-config", { mem_size_mib: 99 }))).toEqual([
      400,
      "Machine config error: The memory size (MiB) is smaller than the previously set balloon device target size.",
    ]);
    expect((await monitor.put("/balloon", config)).status).toBe(204);
    await boot(monitor, "balloon");
    await monitor.printed("up\n");
    expect((await monitor.get("/balloon")).body).toEqual(config);
    expect((await monitor.get("/vm/config")).body).toMatchObject({ balloon: config });

    const full = monitor.residentBytes();
    expect((await monitor.patch("/balloon", { amount_mib: 48 })).status).toBe(204);
    await monitor.printed("balloon of 12288 pages, ends 0 1\n");
    expect(full - monitor.residentBytes()).toBeGreaterThan(40 * 2 ** 20);
    await monitor.answers("/balloon/statistics", {
      target_pages: 12288,
      actual_pages: 12288,
      target_mib: 48,
      actual_mib: 48,
      free_memory: 16 * 2 ** 20,
    });
    expect((await monitor.patch("/balloon", { amount_mib: 1 })).status).toBe(204);
    await monitor.printed("balloon of 256 pages, ends 0 1\n");
    expect(await failed(monitor.patch("/balloon", { amount_mib: 129 }))).toEqual(tooLarge);
    expect((await monitor.get("/vm/config")).body).toMatchObject({ balloon: { amount_mib: 1 } });

    const noChange = refusal("Cannot enable/disable the statistics after boot.");
    const interval = (seconds: number) =>
      monitor.patch("/balloon/statistics", { stats_polling_interval_s: seconds });
    expect(await failed(interval(0))).toEqual(noChange);
    expect((await interval(60)).status).toBe(204);
    expect((await monitor.get("/balloon")).body).toEqual({
      ...config,
      amount_mib: 1,
      stats_polling_interval_s: 60,
    });

    expect((await monitor.get("/balloon/hinting/status")).body).toEqual({ host_cmd: 0 });
    expect((await monitor.patch("/balloon/hinting/start")).status).toBe(204);
    await monitor.printed("hint 2, page 0\n");
    expect((await monitor.get("/balloon/hinting/status")).body).toEqual({ host_cmd: 1, guest_cmd: 0 });
    const open = await monitor.patch("/balloon/hinting/start", { acknowledge_on_stop: false });
    expect(open.status).toBe(204);
    await monitor.printed("hint 3, page 0\n");
    expect((await monitor.get("/balloon/hinting/status")).body).toEqual({ host_cmd: 3, guest_cmd: 0 });
    expect((await monitor.patch("/balloon/hinting/stop")).status).toBe(204);
    expect((await monitor.get("/balloon/hinting/status")).body).toEqual({ host_cmd: 1, guest_cmd: 0 });
  });

  test("a balloon without driver, statistics or hinting says so", async () => {
    const monitor = await start();
    await monitor.put("/balloon", { amount_mib: 1, deflate_on_oom: false });
    await boot(monitor, "hang");
    for (const [answer, reason] of [
      [
        monitor.patch("/balloon", { amount_mib: 2 }),
        "Device is inactive, check if balloon driver is enabled in guest kernel.",
      ],
      [monitor.get("/balloon/statistics"), "Statistics for the balloon device are not enabled"],
      [
        monitor.patch("/balloon/statistics", { stats_polling_interval_s: 1 }),
        "Cannot enable/disable the statistics after boot.",
      ],
      [monitor.get("/balloon/hinting/status"), "Attempting to use hinting when not enabled."],
      [monitor.patch("/balloon/hinting/start"), "Attempting to use hinting when not enabled."],
      [monitor.patch("/balloon/hinting/stop"), "Attempting to use hinting when not enabled."],
    ] as const) {
      const { status, body } = await answer;
      expect([status, body]).toEqual([
        400,
        { fault_message: expect.stringContaining(`Balloon config error: ${reason}`) },
      ]);
    }
    expect((await monitor.get("/balloon")).body).toMatchObject({ amount_mib: 1 });
  });

  test("a rate limiter drops serial output and does not slow the guest down", async () => {
    const serial = join(dir.path, "limited.out");
    const metrics = join(dir.path, "limited.json");
    const monitor = await start();
    // So slow that next to nothing is added while the guest runs.
    const rate_limiter = { size: 1000, refill_time: 100_000_000, one_time_burst: 500 };
    expect((await monitor.put("/serial", { serial_out_path: serial, rate_limiter })).status).toBe(204);
    await monitor.put("/metrics", { metrics_path: metrics });
    await boot(monitor, "flood");
    expect(await monitor.exited()).toBe(0);
    const lines = Array.from({ length: 20_000 }, (_, i) => `line ${String(i).padStart(6, "0")}\n`).join("");
    expect(readFileSync(serial, "utf8")).toBe(lines.slice(0, 1500));
    const counts = readFileSync(metrics, "utf8")
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line).uart);
    const sum = (name: string) => counts.reduce((total, uart) => total + uart[name], 0);
    expect([sum("write_count"), sum("rate_limiter_dropped_bytes")]).toEqual([
      lines.length,
      lines.length - 1500,
    ]);
  });

  test("serial output and log go where the API says", async () => {
    const serial = join(dir.path, "serial.out");
    const log = join(dir.path, "api.log");
    const monitor = await start({ level: "Info" });
    await monitor.put("/serial", { serial_out_path: serial });
    const settings = { log_path: log, level: "debug", show_level: true, show_log_origin: false };
    expect((await monitor.put("/logger", settings)).status).toBe(204);
    await monitor.put("/mmds", { secret: "s3cret" });
    await boot(monitor, "panic");
    expect(await monitor.exited()).toBe(0);
    expect(monitor.stdout).toBe("");
    expect(readFileSync(serial, "utf8")).toStartWith("one\nKernel panic");
    const text = readFileSync(log, "utf8");
    expect(text).toContain('[test:main:INFO] The API server received a Put request on "/actions" with body');
    expect(text).toContain("Status code: 204 No Content.");
    expect(text).not.toContain("s3cret");
  });
});

describe("flags", () => {
  test("log, metrics, start times and the largest body", async () => {
    const log = join(dir.path, "flags.log");
    const metrics = join(dir.path, "flags.metrics");
    const largest = JSON.stringify({ kernel_image_path: kernel, boot_args: "script=panic" });
    const limit = Buffer.byteLength(largest);
    const monitor = await start({
      logPath: log,
      level: "Info",
      showLevel: true,
      showLogOrigin: true,
      metricsPath: metrics,
      startTimeUs: String(monotonicMicros() - 5_000_000),
      startTimeCpuUs: "0",
      parentCpuTimeUs: "1000000000",
      httpApiMaxPayloadSize: String(limit),
    });
    expect((await monitor.put("/boot-source", largest)).status).toBe(204);
    const larger = await send(monitor.socket, "PUT", "/boot-source", `${largest} `);
    expect([larger.status, await larger.text()]).toEqual([
      400,
      `{ "error": "Request payload with size ${limit + 1} is larger than the limit of ${limit} allowed by server.\n` +
        'All previous unanswered requests will be dropped." }',
    ]);
    expect((await monitor.action("InstanceStart")).status).toBe(204);
    expect(await monitor.exited()).toBe(0);
    expect(monitor.stderr).toBe("");
    const stamp = String.raw`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}`;
    const lines = readFileSync(log, "utf8").trimEnd().split("\n");
    for (const line of lines) {
      expect(line).toMatch(new RegExp(`^${stamp} \\[test:\\S+:(INFO|WARN|ERROR):src/\\S+\\.ts:\\d+\\] `));
    }
    const [first] = readFileSync(metrics, "utf8").split("\n");
    const { process_startup_time_us: wall, process_startup_time_cpu_us: cpu } = JSON.parse(first!).api_server;
    expect(wall).toBeGreaterThan(5_000_000);
    expect(cpu).toBeGreaterThan(1_000_000_000);
  });
});

test("a log FIFO that nobody reads keeps no request waiting, and the lines it loses are counted", async () => {
  const fifo = join(dir.path, "log.fifo");
  const metrics = join(dir.path, "log-metrics.json");
  Bun.spawnSync(["mkfifo", fifo]);
  const monitor = await start();
  expect((await monitor.put("/logger", { log_path: fifo, level: "Debug" })).status).toBe(204);
  expect((await monitor.put("/metrics", { metrics_path: metrics })).status).toBe(204);
  // Each is logged with its body, 64 KiB fit.
  const body = { kernel_image_path: `/none/${"x".repeat(1000)}` };
  for (let i = 0; i < 100; i++) expect((await monitor.put("/boot-source", body)).status).toBe(400);
  await boot(monitor, "panic");
  expect(await monitor.exited()).toBe(0);
  const lines = readFileSync(metrics, "utf8").trimEnd().split("\n");
  const lost = lines.map((line) => JSON.parse(line).logger.missed_log_count);
  expect(lost[0]).toBeGreaterThan(10);
});

describe("metrics", () => {
  test("a line each period while the guest runs, with what was counted since the one before", async () => {
    const path = join(dir.path, "periodic.json");
    const read = () =>
      readFileSync(path, "utf8")
        .split("\n")
        .slice(0, -1)
        .map((line) => JSON.parse(line));
    const grown = async (lines: number) => {
      const end = performance.now() + 10_000;
      while (read().length < lines) {
        if (performance.now() > end) throw new Error(`${read().length} lines, not ${lines}`);
        await Bun.sleep(2);
      }
      return read();
    };
    const monitor = await start({}, { metricsPeriod: 10 });
    expect((await monitor.put("/metrics", { metrics_path: path })).status).toBe(204);
    // Not before the guest runs.
    expect(readFileSync(path, "utf8")).toBe("");
    await boot(monitor, "hang");
    const first = await grown(3);
    expect(first[0]).toMatchObject({ put_api_requests: { boot_source_count: 1, actions_count: 1 } });
    for (const line of first.slice(1)) expect(line.put_api_requests.boot_source_count).toBe(0);
    expect((await monitor.get("/")).status).toBe(200);
    const second = await grown(first.length + 3);
    const asked = second.map((line) => line.get_api_requests.instance_info_count);
    expect(asked.reduce((a, b) => a + b, 0)).toBe(1);
    const times = second.map((line) => line.utc_timestamp_ms);
    expect(times).toEqual([...times].sort((a, b) => a - b));
    // Also while it is paused.
    expect((await monitor.patch("/vm", { state: "Paused" })).status).toBe(204);
    await grown(read().length + 2);
  });

  test("at the start, on flush and at the end, also to a FIFO that nobody reads", async () => {
    const path = join(dir.path, "metrics.json");
    const fifo = join(dir.path, "metrics.fifo");
    Bun.spawnSync(["mkfifo", fifo]);
    const disk = file("metrics-disk", Buffer.alloc(512 * 64));
    const monitor = await start({ startTimeUs: String(monotonicMicros()) });
    const unread = await start();
    expect((await unread.put("/metrics", { metrics_path: fifo })).status).toBe(204);
    await boot(unread, "hang");
    let refused = 0;
    for (let i = 0; i < 100; i++) if ((await unread.action("FlushMetrics")).status === 400) refused++;
    expect(refused).toBeGreaterThan(0);
    expect((await unread.get("/")).status).toBe(200);

    expect(fault(await monitor.action("FlushMetrics"))).toContain("before starting the microVM");
    expect((await monitor.put("/metrics", { metrics_path: path })).status).toBe(204);
    expect(fault(await monitor.put("/metrics", { metrics_path: path }))).toBe(
      "Metrics error: Reinitialization of metrics not allowed.",
    );
    await monitor.put("/drives/d", {
      drive_id: "d",
      is_root_device: false,
      path_on_host: disk,
      cache_type: "Writeback",
    });
    await boot(monitor, "block");
    expect(await monitor.exited()).toBe(0);
    const lines = readFileSync(path, "utf8")
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(lines.length).toBe(2);
    expect(lines[0]).toMatchObject({
      put_api_requests: { drive_count: 1, metrics_count: 2, metrics_fails: 1, actions_fails: 1 },
    });
    expect(lines[0].api_server.process_startup_time_us).toBeGreaterThan(1000);
    expect(lines[1].block_d.read_count + lines[0].block_d.read_count).toBe(2001);
    expect(lines[1].block.write_bytes + lines[0].block.write_bytes).toBe(4096);
    expect(lines[1].i8042.reset_count).toBe(1);
    expect(lines[1].uart.write_count).toBeGreaterThan(10);
  });
});
