/** Rate limiters of drives and of the entropy device: the rate over ten seconds is the configured one, also after PATCH. */

import { afterAll, expect, test } from "bun:test";
import { readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { request } from "../api/support.ts";
import { startGuest } from "../net/guest.ts";
import { finishRuns, TEST_LIMIT, temporaryDirectory } from "./sparkler.ts";

const dir = temporaryDirectory();
afterAll(() => {
  dir.remove();
  finishRuns();
});

const SECONDS = 10;
const TOLERANCE = 0.05;
/** More than is read at the rates below, so that nothing comes out of the guest's cache. */
const DISK_BYTES = 2 ** 30;

/** A full bucket holds a second's worth, so that a busy host which lets the guest wait for less does not count. */
const perSecond = (rate: number) => ({ size: rate, refill_time: 1000 });

test(
  "bytes and operations of drives, and bytes of entropy, over ten seconds",
  async () => {
    const api = join(dir.path, "api");
    const metricsPath = join(dir.path, "metrics");
    const drive = (id: string, rate_limiter: object) => {
      const path = join(dir.path, id);
      writeFileSync(path, "");
      truncateSync(path, DISK_BYTES);
      return { drive_id: id, is_root_device: false, path_on_host: path, rate_limiter };
    };
    const guest = await startGuest({
      dir: dir.path,
      config: {
        drives: [
          drive("bytes", { bandwidth: perSecond(2_000_000) }),
          drive("requests", { ops: perSecond(50) }),
        ],
        entropy: { rate_limiter: { bandwidth: perSecond(20_000) } },
      },
      script: `for device in vda vdb hwrng; do
          while :; do cat /dev/$device; done >/dev/null &
        done; echo reading; wait`,
      api,
      flags: ["--metrics-path", metricsPath],
    });
    await guest.expect("reading\r\n");

    /** What the counters were raised by since the last call. */
    let lines = 0;
    const counts = async () => {
      expect((await request(api, "PUT", "/actions", { action_type: "FlushMetrics" })).status).toBe(204);
      const all = readFileSync(metricsPath, "utf8").trimEnd().split("\n");
      const fresh = all.slice(lines).map((line) => JSON.parse(line));
      lines = all.length;
      const sum = (group: string, name: string) =>
        fresh.reduce((total, line) => total + (line[group]?.[name] ?? 0), 0);
      return [
        sum("block_bytes", "read_bytes"),
        sum("block_requests", "read_count"),
        sum("entropy", "entropy_bytes"),
      ];
    };
    const expectRates = async (expected: readonly number[]) => {
      // The buckets are full at first, and empty as soon as the guest has had as much again.
      const had = expected.map(() => 0);
      while (had.some((count, i) => count < 2 * expected[i]!)) {
        await Bun.sleep(200);
        (await counts()).forEach((count, i) => {
          had[i]! += count;
        });
      }
      const start = performance.now();
      await counts();
      await Bun.sleep(1000 * SECONDS);
      const counted = await counts();
      const seconds = (performance.now() - start) / 1000;
      const ratios = counted.map((count, i) => count / seconds / expected[i]!);
      console.log(`measured / configured: ${ratios.map((ratio) => ratio.toFixed(3)).join(", ")}`);
      for (const ratio of ratios) expect(Math.abs(ratio - 1)).toBeLessThan(TOLERANCE);
    };
    await expectRates([2_000_000, 50, 20_000]);
    const patch = async (id: string, rate_limiter: object) => {
      const answer = await request(api, "PATCH", `/drives/${id}`, { drive_id: id, rate_limiter });
      expect(answer.status).toBe(204);
    };
    await patch("bytes", { bandwidth: perSecond(4_000_000) });
    await patch("requests", { ops: perSecond(20) });
    await expectRates([4_000_000, 20, 20_000]);
    guest.child.kill("SIGTERM");
    await guest.result();
  },
  2 * TEST_LIMIT,
);
