/**
 * What Firecracker's clients do, as they do it: the flags, the order of calls and the answers they rely on, against
 * the program itself. Each ends with a booted Debian kernel whose console is on stdout.
 */

import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test";
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { makeExt4 } from "../../src/image/rootfs.ts";
import { bootFiles } from "../guests/boot-files.ts";
import { canOpenTap, fault, Monitor, request, temporaryDirectory } from "./support.ts";

const BOOT_TIMEOUT = 60_000;
/** The Go SDK gives up on a request after this, ms. */
const SDK_REQUEST_TIMEOUT = 500;
/** What the initramfs prints once the kernel has booted and run it. */
const BOOTED = "sparkler: no command given";
/** What /sbin/init of the root file system prints. */
const ROOT_BOOTED = "init of the root file system runs";

const dir = temporaryDirectory();
afterAll(dir.remove);

let kernel = "";
let initramfs = "";
let rootImage = "";
let monitor: Monitor | undefined;

beforeAll(async () => {
  const { vmlinux, initramfs: archive, busybox } = await bootFiles();
  kernel = vmlinux;
  initramfs = archive;
  const root = join(dir.path, "root");
  for (const folder of ["bin", "sbin", "proc", "sys", "dev"])
    mkdirSync(join(root, folder), { recursive: true });
  copyFileSync(busybox, join(root, "bin/busybox"));
  const init = `#!/bin/busybox sh\n/bin/busybox echo "${ROOT_BOOTED}"\nwhile :; do /bin/busybox echo tick; /bin/busybox sleep 1; done\n`;
  writeFileSync(join(root, "sbin/init"), init, { mode: 0o755 });
  rootImage = join(dir.path, "root.img");
  await makeExt4(root, rootImage);
}, 120_000);

afterEach(async () => {
  await monitor?.kill();
  monitor = undefined;
});

function disk(name: string, content: string): string {
  const path = join(dir.path, name);
  writeFileSync(path, Buffer.alloc(64 * 512, content));
  return path;
}

function fifo(name: string): string {
  const path = join(dir.path, name);
  expect(Bun.spawnSync(["mkfifo", path]).exitCode).toBe(0);
  return path;
}

const bootSource = (args: string) => ({
  kernel_image_path: kernel,
  initrd_path: initramfs,
  boot_args: `console=ttyS0 reboot=k panic=1 ${args}`,
});

/** A call that must be done, and soon enough for the SDK. */
async function done(call: Promise<{ status: number; body: unknown }>): Promise<void> {
  const start = performance.now();
  const { status, body } = await call;
  expect({ status, body }).toEqual({ status: 204, body: undefined });
  expect(performance.now() - start).toBeLessThan(4 * SDK_REQUEST_TIMEOUT);
}

describe("firecracker-go-sdk", () => {
  test(
    "machine.go: spawn, poll, configure, start, pause, resume, stop",
    async () => {
      const socket = join(dir.path, "sdk.sock");
      const logFifo = fifo("sdk.log");
      const metricsFifo = fifo("sdk.metrics");
      const id = crypto.randomUUID();
      monitor = await Monitor.program(socket, ["--api-sock", socket, "--id", id, "--no-seccomp"]).ready();
      await done(
        monitor.put("/logger", {
          log_path: logFifo,
          level: "Debug",
          show_level: true,
          show_log_origin: false,
        }),
      );
      await done(monitor.put("/metrics", { metrics_path: metricsFifo }));
      await done(
        monitor.put("/machine-config", {
          vcpu_count: 1,
          mem_size_mib: 256,
          smt: false,
          track_dirty_pages: false,
        }),
      );
      expect((await monitor.get("/machine-config")).body).toMatchObject({ vcpu_count: 1, mem_size_mib: 256 });
      await done(monitor.put("/boot-source", bootSource("quiet")));
      await done(
        monitor.put("/drives/1", {
          drive_id: "1",
          is_root_device: true,
          is_read_only: false,
          path_on_host: rootImage,
          cache_type: "Unsafe",
          io_engine: "Sync",
        }),
      );
      await done(monitor.action("InstanceStart"));
      expect((await monitor.get("/")).body).toEqual({
        id,
        state: "Running",
        vmm_version: expect.any(String),
        app_name: "Firecracker",
      });
      await done(monitor.patch("/vm", { state: "Paused" }));
      const paused = monitor.stdout;
      await Bun.sleep(200);
      expect(monitor.stdout).toBe(paused);
      await done(monitor.patch("/vm", { state: "Resumed" }));
      await monitor.printed(ROOT_BOOTED, BOOT_TIMEOUT);
      await monitor.printed(/tick\n?/, BOOT_TIMEOUT);
      // Now the guest sleeps in HLT, and the pause must neither end that nor the timer be lost by it.
      await done(monitor.patch("/vm", { state: "Paused" }));
      await Bun.sleep(100);
      const idle = monitor.stdout;
      await Bun.sleep(1500);
      expect(monitor.stdout).toBe(idle);
      await done(monitor.patch("/vm", { state: "Resumed" }));
      const ticks = idle.split("tick").length + 2;
      await monitor.printed(new RegExp(`(tick[^]*){${ticks - 1}}`), BOOT_TIMEOUT);
      await done(monitor.action("FlushMetrics"));
      await done(monitor.action("SendCtrlAltDel"));
      expect(await monitor.kill()).toBe(143);
    },
    2 * BOOT_TIMEOUT,
  );
});

describe("firectl", () => {
  test(
    "its default command line and machine, the SDK's calls without an id, metadata once the guest runs",
    async () => {
      const socket = join(dir.path, "firectl.sock");
      monitor = await Monitor.program(socket, ["--api-sock", socket, "--no-seccomp"]).ready();
      await done(monitor.put("/machine-config", { vcpu_count: 1, mem_size_mib: 512, smt: true }));
      const source = {
        kernel_image_path: kernel,
        initrd_path: initramfs,
        boot_args: "ro console=ttyS0 noapic reboot=k panic=1 pci=off nomodules",
      };
      await done(monitor.put("/boot-source", source));
      const root = { drive_id: "1", path_on_host: rootImage, is_root_device: true, is_read_only: false };
      await done(monitor.put("/drives/1", root));
      await done(monitor.action("InstanceStart"));
      await done(monitor.put("/mmds", { latest: { "meta-data": { id: 1 } } }));
      expect((await monitor.get("/mmds")).body).toEqual({ latest: { "meta-data": { id: 1 } } });
      // The root file system came through the virtio disk's interrupts, and those through the PIC.
      await monitor.printed(ROOT_BOOTED, BOOT_TIMEOUT);
      expect(monitor.stdout).toContain("Skipping IOAPIC probe due to 'noapic' option.");
      expect(monitor.stdout).toContain("Using PIC for interrupt routing");
      await monitor.printed(/tick\n?/, BOOT_TIMEOUT);
      expect(await monitor.kill()).toBe(143);
    },
    2 * BOOT_TIMEOUT,
  );
});

describe("flintlock", () => {
  test(
    "create.go: no API, a configuration and a metadata file, output to files",
    async () => {
      const config = join(dir.path, "flintlock.json");
      const metadata = join(dir.path, "metadata.json");
      writeFileSync(metadata, JSON.stringify({ latest: { "meta-data": "" } }));
      writeFileSync(
        config,
        JSON.stringify({
          "boot-source": bootSource("quiet"),
          drives: [
            {
              drive_id: "root",
              path_on_host: rootImage,
              is_root_device: true,
              is_read_only: false,
              cache_type: "Unsafe",
            },
          ],
          "machine-config": { vcpu_count: 1, mem_size_mib: 256, smt: false },
          "network-interfaces": [],
          logger: { log_path: join(dir.path, "flintlock.log"), level: "Debug" },
          metrics: { metrics_path: join(dir.path, "flintlock.metrics") },
        }),
      );
      const flags = [
        "--id",
        "flint",
        "--boot-timer",
        "--no-api",
        "--config-file",
        config,
        "--metadata",
        metadata,
      ];
      monitor = Monitor.program("", flags);
      await monitor.printed(ROOT_BOOTED, BOOT_TIMEOUT);
      expect(await monitor.kill()).toBe(143);
      expect(readFileSync(join(dir.path, "flintlock.log"), "utf8")).toContain(" [flint:main] ");
      const metrics = readFileSync(join(dir.path, "flintlock.metrics"), "utf8").trimEnd().split("\n");
      expect(JSON.parse(metrics[metrics.length - 1]!).uart.write_count).toBeGreaterThan(0);
    },
    2 * BOOT_TIMEOUT,
  );
});

describe("Kata's runtime", () => {
  test(
    "fc_api.rs: placeholder drives, swapped under the running guest",
    async () => {
      const socket = join(dir.path, "kata.sock");
      monitor = Monitor.program(socket, ["--api-sock", socket, "--id", "kata-1"]);
      const call = async (method: string, path: string, body: unknown) => {
        // Each of its calls is tried 500 times, 10 ms apart, until the socket is there and says yes.
        for (let attempt = 0; ; attempt++) {
          try {
            return await request(socket, method, path, body);
          } catch (error) {
            if (attempt === 500) throw error;
            await Bun.sleep(10);
          }
        }
      };
      await done(call("PUT", "/boot-source", bootSource("quiet")));
      await done(call("PUT", "/machine-config", { vcpu_count: 1, mem_size_mib: 256 }));
      const rootfs = disk("kata.img", "k");
      const drive = (drive_id: string, path_on_host: string) => ({
        drive_id,
        path_on_host,
        is_root_device: false,
        is_read_only: false,
      });
      await done(call("PUT", "/drives/rootfs", drive("rootfs", rootfs)));
      for (let i = 1; i <= 5; i++) {
        await done(call("PUT", `/drives/drive${i}`, drive(`drive${i}`, disk(`placeholder${i}`, "p"))));
      }
      const uds_path = join(dir.path, "kata.hvsock");
      const vsock = await call("PUT", "/vsock", { guest_cid: 3, uds_path, vsock_id: "root" });
      expect([vsock.status, vsock.headers.get("deprecation")]).toEqual([204, "true"]);
      const net = await call("PUT", "/network-interfaces/eth0", {
        iface_id: "eth0",
        host_dev_name: "tap0_kata",
      });
      if (canOpenTap()) expect(net.status).toBe(204);
      else
        expect(fault(net)).toStartWith("Network config error: Could not create the network device: Open tap");
      await done(call("PUT", "/actions", { action_type: "InstanceStart" }));
      await monitor.printed(BOOTED, BOOT_TIMEOUT);
      await done(
        call("PATCH", "/drives/drive1", { drive_id: "drive1", path_on_host: disk("container.img", "c") }),
      );
      const config = await call("GET", "/vm/config", undefined);
      expect(config.body).toMatchObject({
        drives: [
          { drive_id: "rootfs" },
          { drive_id: "drive1", path_on_host: join(dir.path, "container.img") },
          {},
          {},
          {},
          {},
        ],
      });
    },
    2 * BOOT_TIMEOUT,
  );
});
