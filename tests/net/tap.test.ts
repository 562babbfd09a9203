/** virtio-net on a TAP device in a network namespace: a Debian guest and programs of the host talk TCP. */

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { request } from "../api/support.ts";
import { bootFiles } from "../guests/boot-files.ts";
import { finishRuns, TEST_LIMIT, temporaryDirectory } from "../guests/sparkler.ts";
import { type GuestOptions, startGuest } from "./guest.ts";
import { Namespace, noNamespaces } from "./namespace.ts";

const reason = noNamespaces();
if (reason !== undefined) console.log(`skip: network on a TAP device: ${reason}`);

const dir = temporaryDirectory();
const MIB = 2 ** 20;
const FILE_BYTES = Number(process.env.SPARKLER_NET_MIB ?? 16) * MIB;
const file = join(dir.path, "data");
const HOST = "172.30.0.1";
const GUEST = "172.30.0.2";

/** CSUM, GUEST_CSUM, MTU, MAC, GUEST_TSO4, _TSO6 and _UFO, HOST_TSO4, _TSO6 and _UFO, MRG_RXBUF, EVENT_IDX, VERSION_1. */
const FEATURES = [0, 1, 3, 5, 7, 8, 10, 11, 12, 14, 15, 29, 32];

let space: Namespace;

beforeAll(() => {
  if (reason !== undefined) return;
  const content = Buffer.alloc(FILE_BYTES);
  for (let at = 0; at < FILE_BYTES; at += 65536) crypto.getRandomValues(content.subarray(at, at + 65536));
  writeFileSync(file, content);
  space = new Namespace();
  space.addTap("tap0", `${HOST}/24`);
  space.addTap("tap1", "172.30.1.1/24", 9000);
  space.addTap("tap2", "172.30.2.1/24");
  space.addTap("tap3", "172.30.3.1/24");
  space.addTap("tap4", "172.30.4.1/24");
});

afterAll(() => {
  space?.remove();
  dir.remove();
  finishRuns();
});

function boot(script: string, network: object, more: Partial<GuestOptions> = {}) {
  const net = { iface_id: "net1", host_dev_name: "tap0", guest_mac: "06:00:ac:1e:00:02", ...network };
  return startGuest({
    dir: dir.path,
    config: { "network-interfaces": [net] },
    script,
    bootArgs: `sparkler.ip=${GUEST}/24,${HOST}`,
    prefix: space.prefix,
    ...more,
  });
}

/** The last line of a metrics file. */
function metrics(path: string): Record<string, Record<string, number>> {
  const lines = readFileSync(path, "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line));
  const sums: Record<string, Record<string, number>> = {};
  for (const line of lines) {
    for (const [group, values] of Object.entries<Record<string, number>>(line)) {
      if (typeof values !== "object") continue;
      sums[group] ??= {};
      for (const [name, value] of Object.entries(values))
        sums[group][name] = (sums[group][name] ?? 0) + value;
    }
  }
  return sums;
}

describe.skipIf(reason !== undefined)("a guest on a TAP device", () => {
  test(
    "ping, a file down and up again over TCP, with segments joined, and the host reaches the guest",
    async () => {
      await space.peer("serve", file, "7001");
      const take = await space.peer("take", file, "7002");
      const metricsPath = join(dir.path, "metrics");
      const guest = await boot(
        `cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu
         ping -c 3 -A ${HOST} | tail -2
         count() { cat /sys/class/net/eth0/statistics/$1_packets; }
         before=$(count rx); nc ${HOST} 7001 >/tmp/data; echo frames down $(($(count rx) - before)) .
         before=$(count tx); nc ${HOST} 7002 </tmp/data; echo frames up $(($(count tx) - before)) .
         wc -c </tmp/data
         echo waiting; echo from the guest | nc -l -p 7003; echo over`,
        {},
        { flags: ["--metrics-path", metricsPath] },
      );
      expect(await guest.expect("\r\n")).toContain("06:00:ac:1e:00:02");
      await guest.expect("1500\r\n");
      expect(await guest.expect("round-trip")).toContain("3 packets transmitted, 3 packets received");
      expect(await take.line()).toBe("same");
      // Longer than the MTU: TCP segmentation is left to the device, both ways.
      for (const way of ["down", "up"]) {
        await guest.expect(`frames ${way} `);
        expect(FILE_BYTES / Number.parseInt(await guest.expect("."), 10)).toBeGreaterThan(1600);
      }
      await guest.expect(`${FILE_BYTES}`);
      await guest.expect("waiting\r\n");
      const { busybox } = await bootFiles();
      expect(space.run([busybox, "ping", "-c", "2", "-i", "0.2", GUEST])).toContain("2 packets received");
      const fetch = await space.peer("fetch", GUEST, "7003");
      expect(await fetch.line()).toBe("from the guest");
      await guest.expect("over\r\n");
      const { stderr } = await guest.result();
      expect(stderr).toBe("");
      const { net, net_net1 } = metrics(metricsPath);
      expect(net).toEqual(net_net1!);
      expect(net).toMatchObject({
        rx_fails: 0,
        tap_read_fails: 0,
        tap_write_fails: 0,
        tx_malformed_frames: 0,
      });
      expect(net!.rx_bytes_count!).toBeGreaterThan(FILE_BYTES);
      expect(net!.tx_bytes_count!).toBeGreaterThan(FILE_BYTES);
    },
    2 * TEST_LIMIT,
  );

  test(
    "jumbo frames with an MTU of 9000; the guest takes every offload, and mergeable buffers",
    async () => {
      const guest = await boot(
        "cat /sys/class/net/eth0/mtu /sys/class/net/eth0/device/features; ping -c 3 -A -s 8900 172.30.1.1 | tail -2",
        { host_dev_name: "tap1", mtu: 9000 },
        { bootArgs: "sparkler.ip=172.30.1.2/24" },
      );
      await guest.expect("9000\r\n");
      const features = (await guest.expect("\r\n")).trim();
      const taken = [...features].flatMap((bit, i) => (bit === "1" ? [i] : []));
      expect(taken).toEqual(FEATURES);
      await guest.expect("3 packets transmitted, 3 packets received");
      await guest.result();
    },
    TEST_LIMIT,
  );

  test(
    "the rate limiters hold both directions to what is configured",
    async () => {
      const seconds = 10;
      const rate = 1_500_000;
      // A second's worth, so that a busy host which lets the guest wait for less does not count.
      const limiter = { bandwidth: { size: rate, refill_time: 1000 } };
      const count = await space.peer("count", "7004");
      await space.peer("pour", "7005");
      const guest = await boot(
        // Up first: what is left in the host's queue of the way down would delay acknowledgements. Of the way down the
        // first seconds are left out, in which the full bucket and TCP's start count.
        `timeout ${seconds} dd if=/dev/zero bs=64k 2>/dev/null | nc 172.30.2.1 7004
         nc 172.30.2.1 7005 >/dev/null & sleep 3
         a=$(cat /sys/class/net/eth0/statistics/rx_bytes); s=$(cut -d' ' -f1 /proc/uptime)
         sleep ${seconds}
         b=$(cat /sys/class/net/eth0/statistics/rx_bytes); e=$(cut -d' ' -f1 /proc/uptime)
         echo down $a $b $s $e`,
        { host_dev_name: "tap2", rx_rate_limiter: limiter, tx_rate_limiter: limiter },
        { bootArgs: "sparkler.ip=172.30.2.2/24" },
      );
      const [bytes, ms] = (await count.line()).split(" ").map(Number);
      const up = (1000 * (bytes! - limiter.bandwidth.size)) / ms!;
      await guest.expect("down ");
      const [a, b, start, end] = (await guest.expect("\r\n")).split(" ").map(Number);
      const down = (b! - a!) / (end! - start!);
      guest.child.kill("SIGTERM");
      await guest.result();
      expect(Math.abs(down / rate - 1)).toBeLessThan(0.05);
      expect(Math.abs(up / rate - 1)).toBeLessThan(0.05);
    },
    2 * TEST_LIMIT,
  );

  test(
    "PATCH changes the limits of a guest in the middle of its traffic, and takes them away",
    async () => {
      const api = join(dir.path, "api");
      const count = await space.peer("count", "7006");
      await space.peer("pour", "7007");
      // One way after the other: acknowledgements would wait behind the data of the other way.
      const guest = await boot(
        `echo pouring up; dd if=/dev/zero bs=64k 2>/dev/null | nc 172.30.3.1 7006
         echo pouring down; nc 172.30.3.1 7007 >/dev/null`,
        { host_dev_name: "tap3" },
        { bootArgs: "sparkler.ip=172.30.3.2/24", api },
      );
      const rate = 1_500_000;
      const seconds = 5;
      const limiter = { bandwidth: { size: rate / 10, refill_time: 100 } };
      const none = { bandwidth: { size: 0, refill_time: 0 } };
      const limit = async (way: string, limits: object) => {
        const body = { iface_id: "net1", [way]: limits };
        expect((await request(api, "PATCH", "/network-interfaces/net1", body)).status).toBe(204);
      };
      /** Bytes per second that the host's end of the device counts, over `ms`. */
      const measure = async (counter: string, ms: number) => {
        const bytes = () => Number(space.run(["cat", `/sys/class/net/tap3/statistics/${counter}`]));
        const [start, before] = [performance.now(), bytes()];
        await Bun.sleep(ms);
        return (1000 * (bytes() - before)) / (performance.now() - start);
      };
      for (const [way, counter, said] of [
        ["tx_rate_limiter", "rx_bytes", "pouring up"],
        ["rx_rate_limiter", "tx_bytes", "pouring down"],
      ] as const) {
        await guest.expect(said);
        while ((await measure(counter, 500)) < 2 * rate);
        await limit(way, limiter);
        while ((await measure(counter, 500)) > 1.5 * rate);
        expect(Math.abs((await measure(counter, 1000 * seconds)) / rate - 1)).toBeLessThan(0.05);
        await limit(way, none);
        while ((await measure(counter, 500)) < 2 * rate);
        count.kill();
      }
      guest.child.kill("SIGTERM");
      expect((await guest.result()).stderr).toBe("");
    },
    2 * TEST_LIMIT,
  );

  test(
    "a TAP device that goes down and away costs frames, and neither the guest nor its other interface",
    async () => {
      const metricsPath = join(dir.path, "metrics-gone");
      const other = { iface_id: "net2", host_dev_name: "tap0", guest_mac: "06:00:ac:1e:00:03" };
      const guest = await boot(
        `ip addr add ${GUEST}/24 dev eth1; ip link set eth1 up
         reach() { ping -c 1 -W 1 $1 >/dev/null; }
         until reach 172.30.4.1; do :; done; echo up
         while reach 172.30.4.1; do :; done; echo down
         until reach 172.30.4.1; do :; done; echo up again
         while reach 172.30.4.1; do :; done; echo gone
         ping -c 3 -A ${HOST} | grep received; echo over`,
        {},
        {
          config: {
            "network-interfaces": [
              { iface_id: "net1", host_dev_name: "tap4", guest_mac: "06:00:ac:1e:00:02" },
              other,
            ],
          },
          bootArgs: "sparkler.ip=172.30.4.2/24",
          flags: ["--metrics-path", metricsPath],
        },
      );
      await guest.expect("up\r\n");
      space.run(["ip", "link", "set", "tap4", "down"]);
      await guest.expect("down\r\n");
      space.run(["ip", "link", "set", "tap4", "up"]);
      await guest.expect("up again\r\n");
      space.run(["ip", "link", "delete", "tap4"]);
      await guest.expect("gone\r\n");
      await guest.expect("3 packets received");
      await guest.expect("over\r\n");
      const { stderr } = await guest.result();
      expect(stderr).toContain("net net1: frame lost: ");
      expect(stderr).not.toContain("net net2");
      const { net_net1, net_net2 } = metrics(metricsPath);
      expect(net_net1!.tap_write_fails).toBeGreaterThan(0);
      expect(net_net2!.tap_write_fails).toBe(0);
    },
    TEST_LIMIT,
  );
});
