import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openFile, readSome } from "../platform/files.ts";
import { Metrics } from "./metrics.ts";

const dir = mkdtempSync(join(tmpdir(), "sparkler-metrics-"));
afterAll(() => rmSync(dir, { recursive: true }));

const block = {
  readBytes: 0,
  readCount: 0,
  writeBytes: 0,
  writeCount: 0,
  flushCount: 0,
  invalidRequests: 0,
  executeFails: 0,
  queueEvents: 0,
  engineThrottled: 0,
  throttled: 0,
};

const net = {
  rxQueueEvents: 0,
  txQueueEvents: 0,
  rxLinkEvents: 0,
  rxBytes: 0,
  rxPackets: 0,
  rxFails: 0,
  noRxBuffers: 0,
  txBytes: 0,
  txPackets: 0,
  txMalformed: 0,
  linkReadFails: 0,
  linkWriteFails: 0,
  rxThrottled: 0,
  txThrottled: 0,
};

const vsock = {
  rxQueueEvents: 0,
  txQueueEvents: 0,
  rxBytes: 0,
  txBytes: 0,
  rxPackets: 0,
  txPackets: 0,
  connectionsAdded: 0,
  connectionsRemoved: 0,
  connectionsKilled: 0,
  rxReadFails: 0,
  txWriteFails: 0,
  txFlushFails: 0,
};

const mmds = {
  rxAccepted: 0,
  rxAcceptedErr: 0,
  rxAcceptedUnusual: 0,
  rxCount: 0,
  rxInvalidToken: 0,
  rxNoToken: 0,
  txCount: 0,
  txBytes: 0,
  txFrames: 0,
  connectionsCreated: 0,
  connectionsDestroyed: 0,
};

const balloon = {
  inflateCount: 0,
  deflateCount: 0,
  statsUpdates: 0,
  statsFails: 0,
  eventFails: 0,
  reportCount: 0,
  reportFreed: 0,
  reportFails: 0,
  hintCount: 0,
  hintFreed: 0,
  hintFails: 0,
};

test("a line of JSON: counters since the last line, gauges as they are", () => {
  const path = join(dir, "metrics");
  const metrics = new Metrics();
  expect(metrics.flush()).toBe(false);
  metrics.open(path);
  metrics.add("put_api_requests", "drive_count");
  metrics.store("latencies_us", "pause_vm", 7);
  const devices = (read: number) => ({
    blocks: { a: { ...block, readBytes: read }, b: { ...block, readBytes: 1 } },
    nets: { eth0: { ...net, rxPackets: 3 }, eth1: { ...net, rxPackets: 4, txThrottled: 1 } },
    vsock: { ...vsock, connectionsAdded: 9 },
    entropy: { bytes: 64, requests: 1, fails: 0, throttled: 2 },
    mmds: { ...mmds, rxNoToken: 5 },
    balloon: { ...balloon, inflateCount: 3, reportFreed: 4096 },
    uart: { sent: 10, received: 2, lost: 0, dropped: 5 },
  });
  metrics.setDevices(devices(512));
  expect(metrics.flush()).toBe(true);
  metrics.setDevices(devices(1024));
  metrics.flush();
  metrics.close();
  const lines = readFileSync(path, "utf8").trimEnd().split("\n");
  const [first, second] = lines.map((line) => JSON.parse(line));
  expect(lines.length).toBe(2);
  expect(Object.keys(first)[0]).toBe("utc_timestamp_ms");
  expect(Math.abs(first.utc_timestamp_ms - Date.now())).toBeLessThan(5000);
  expect(first).toMatchObject({
    put_api_requests: { drive_count: 1, drive_fails: 0, actions_count: 0 },
    latencies_us: { pause_vm: 7, resume_vm: 0 },
    block_a: { read_bytes: 512 },
    block: { read_bytes: 513, write_count: 0 },
    net_eth0: { rx_packets_count: 3, tx_bytes_count: 0 },
    net: { rx_packets_count: 7, tx_rate_limiter_throttled: 1 },
    vsock: { conns_added: 9, conns_killed: 0 },
    mmds: { rx_no_token: 5, tx_frames: 0 },
    balloon: { inflate_count: 3, free_page_report_freed: 4096, free_page_hint_fails: 0, deflate_count: 0 },
    entropy: { entropy_bytes: 64, entropy_rate_limiter_throttled: 2 },
    uart: { write_count: 10, read_count: 2, missed_write_count: 0, rate_limiter_dropped_bytes: 5 },
  });
  expect(second).toMatchObject({
    put_api_requests: { drive_count: 0 },
    latencies_us: { pause_vm: 7 },
    block_a: { read_bytes: 512 },
    block_b: { read_bytes: 0 },
    block: { read_bytes: 512 },
    uart: { write_count: 0 },
  });
});

test("a FIFO that nobody reads does not block, and no count is lost", () => {
  const path = join(dir, "fifo");
  Bun.spawnSync(["mkfifo", path]);
  const metrics = new Metrics();
  metrics.open(path);
  let missed = 0;
  for (let i = 0; i < 200; i++) {
    metrics.add("get_api_requests", "mmds_count");
    if (!metrics.flush()) missed++;
  }
  expect(missed).toBeGreaterThan(0);
  const fd = openFile(path, { nonblock: true });
  const buffer = new Uint8Array(1 << 20);
  let text = "";
  const drain = () => {
    for (let n = readSome(fd, buffer); n !== undefined && n > 0; n = readSome(fd, buffer)) {
      text += new TextDecoder().decode(buffer.subarray(0, n));
    }
  };
  drain();
  expect(metrics.flush()).toBe(true);
  drain();
  const lines = text
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line));
  const sum = (group: string, name: string) => lines.reduce((total, line) => total + line[group][name], 0);
  expect(sum("get_api_requests", "mmds_count")).toBe(200);
  expect(sum("logger", "missed_metrics_count")).toBe(missed);
  metrics.close();
});

test("a place that cannot be opened is an error, one that cannot be written is counted", () => {
  const metrics = new Metrics();
  expect(() => metrics.open(join(dir, "none", "x"))).toThrow("No such file or directory (os error 2)");
  expect(metrics.isOpen).toBe(false);
  metrics.open("/dev/full");
  expect(metrics.flush()).toBe(false);
  metrics.close();
});
