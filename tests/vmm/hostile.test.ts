/** A guest that breaks each of its devices, in a whole machine: the others go on, and so does the monitor. */

import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Namespace, noNamespaces } from "../net/namespace.ts";
import { DATAGRAMS, DEAF_PORT } from "./deaf-guest.ts";
import { tinyKernel } from "./tiny-kernel.ts";

const LIMIT = 120_000;
const entry = new URL("./entry.ts", import.meta.url).pathname;
const dir = mkdtempSync(join(tmpdir(), "sparkler-hostile-"));
const at = (name: string) => join(dir, name);

const reason = noNamespaces();
if (reason !== undefined) console.log(`skip: network devices against a hostile guest: ${reason}`);
const space = reason === undefined ? new Namespace() : undefined;
afterAll(() => {
  space?.remove();
  rmSync(dir, { recursive: true });
});

writeFileSync(at("kernel"), tinyKernel());
writeFileSync(at("disk"), "d".repeat(64 * 512));

/** Starts a machine with a drive whose guest plays `script`. */
function start(script: string, more: object, flags: object = {}) {
  const drive = { drive_id: "data", is_root_device: false, path_on_host: at("disk") };
  const boot = { kernel_image_path: at("kernel"), boot_args: `script=${script}` };
  writeFileSync(at(script), JSON.stringify({ "boot-source": boot, drives: [drive], ...more }));
  const all = { api: false, configFile: at(script), id: "test", accel: "auto", level: "Warn", ...flags };
  const argv = [process.execPath, entry, "firecracker", JSON.stringify(all)];
  return Bun.spawn([...(space?.prefix ?? []), ...argv], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    timeout: LIMIT - 5000,
    killSignal: "SIGKILL",
  });
}

test(
  "each device asks for a reset, works after it, and meanwhile the drive does",
  async () => {
    space?.addTap("tap0", "172.30.0.1/24");
    const monitor = start("hostile", {
      "network-interfaces": space === undefined ? [] : [{ iface_id: "net1", host_dev_name: "tap0" }],
      vsock: { guest_cid: 3, uds_path: at("vsock") },
      balloon: { amount_mib: 0, deflate_on_oom: false },
      entropy: {},
    });
    const [stdout, stderr, code] = await Promise.all([
      new Response(monitor.stdout).text(),
      new Response(monitor.stderr).text(),
      monitor.exited,
    ]);
    const names = [...(space === undefined ? [] : ["net"]), "balloon", "entropy", "vsock"];
    expect({ code, said: stdout.trim().split("\n").sort() }).toEqual({
      code: 0,
      said: names.map((name) => `${name} is well`).sort(),
    });
    // Told, but not as often as the guest likes.
    expect(stderr).toContain("the device is stopped until its driver resets it");
    expect(stderr.split("\n").length).toBeLessThan(200);
    expect(readFileSync(at("disk"), "utf8")).toBe("d".repeat(64 * 512));
  },
  LIMIT,
);

test.skipIf(space === undefined)(
  "a guest that gives no receive buffers for a while loses no frame that the TAP device holds, and nothing else waits",
  async () => {
    const mac = "06:00:ac:1e:01:02";
    space!.addTap("tap1", "172.30.1.1/24");
    space!.run(["ip", "neigh", "add", "172.30.1.2", "lladdr", mac, "dev", "tap1"]);
    const net = { iface_id: "net1", host_dev_name: "tap1", guest_mac: mac };
    const monitor = start("deaf", { "network-interfaces": [net] }, { metricsPath: at("metrics") });
    const chunks = monitor.stdout[Symbol.asyncIterator]();
    let said = "";
    while (!said.includes("deaf\n")) {
      const { value, done } = await chunks.next();
      if (done) throw new Error(await new Response(monitor.stderr).text());
      said += new TextDecoder().decode(value);
    }
    await space!.peer("number", "172.30.1.2", String(DEAF_PORT), String(DATAGRAMS));
    for (;;) {
      const { value, done } = await chunks.next();
      if (done) break;
      said += new TextDecoder().decode(value);
    }
    expect(said).toBe("deaf\nthe drive and what is sent go on\nall came\n");
    expect(await monitor.exited).toBe(0);
    const { net_net1 } = JSON.parse(readFileSync(at("metrics"), "utf8").trimEnd().split("\n").pop()!);
    expect(net_net1.no_rx_avail_buffer).toBeGreaterThan(0);
    expect(net_net1.rx_fails).toBe(0);
  },
  LIMIT,
);
