/**
 * Metrics in Firecracker's format: a line of JSON each time, groups and counters under Firecracker's names. Only
 * what this monitor can count is there. Counters show what was added since the last line that was written, gauges
 * their present value.
 */

import { closeFile, openFile, writeSome } from "../platform/files.ts";

/** Counters that are shown from the first line on. */
const COUNTERS = {
  deprecated_api: ["deprecated_http_api_calls"],
  get_api_requests: ["instance_info_count", "machine_cfg_count", "mmds_count", "vmm_version_count"],
  put_api_requests: counted(
    ["actions", "boot_source", "cpu_cfg", "drive", "hotplug_memory", "logger", "machine_cfg", "metrics"],
    ["mmds", "network", "pmem", "serial", "vsock"],
  ),
  patch_api_requests: counted(["drive", "hotplug_memory", "machine_cfg", "mmds", "network"]),
  logger: ["metrics_fails", "missed_log_count", "missed_metrics_count"],
  i8042: ["reset_count"],
  vcpu: ["failures"],
} as const;

const GAUGES = {
  api_server: ["process_startup_time_us", "process_startup_time_cpu_us"],
  latencies_us: ["pause_vm", "resume_vm", "vmm_pause_vm", "vmm_resume_vm"],
  vmm: ["panic_count"],
} as const;

/** Firecracker's name of each counter of a block device. `block` has their sums over all devices. */
const BLOCK_COUNTERS = {
  readBytes: "read_bytes",
  readCount: "read_count",
  writeBytes: "write_bytes",
  writeCount: "write_count",
  flushCount: "flush_count",
  invalidRequests: "invalid_reqs_count",
  executeFails: "execute_fails",
  queueEvents: "queue_event_count",
  throttled: "rate_limiter_throttled_events",
  engineThrottled: "io_engine_throttled_events",
} as const;

/** Of a network device. `net` has their sums over all devices. */
const NET_COUNTERS = {
  rxQueueEvents: "rx_queue_event_count",
  txQueueEvents: "tx_queue_event_count",
  rxLinkEvents: "rx_tap_event_count",
  rxBytes: "rx_bytes_count",
  rxPackets: "rx_packets_count",
  rxFails: "rx_fails",
  noRxBuffers: "no_rx_avail_buffer",
  txBytes: "tx_bytes_count",
  txPackets: "tx_packets_count",
  txMalformed: "tx_malformed_frames",
  linkReadFails: "tap_read_fails",
  linkWriteFails: "tap_write_fails",
  rxThrottled: "rx_rate_limiter_throttled",
  txThrottled: "tx_rate_limiter_throttled",
} as const;

const VSOCK_COUNTERS = {
  rxQueueEvents: "rx_queue_event_count",
  txQueueEvents: "tx_queue_event_count",
  rxBytes: "rx_bytes_count",
  txBytes: "tx_bytes_count",
  rxPackets: "rx_packets_count",
  txPackets: "tx_packets_count",
  connectionsAdded: "conns_added",
  connectionsRemoved: "conns_removed",
  connectionsKilled: "conns_killed",
  rxReadFails: "rx_read_fails",
  txWriteFails: "tx_write_fails",
  txFlushFails: "tx_flush_fails",
} as const;

const BALLOON_COUNTERS = {
  inflateCount: "inflate_count",
  deflateCount: "deflate_count",
  statsUpdates: "stats_updates_count",
  statsFails: "stats_update_fails",
  eventFails: "event_fails",
  reportCount: "free_page_report_count",
  reportFreed: "free_page_report_freed",
  reportFails: "free_page_report_fails",
  hintCount: "free_page_hint_count",
  hintFreed: "free_page_hint_freed",
  hintFails: "free_page_hint_fails",
} as const;

const ENTROPY_COUNTERS = {
  bytes: "entropy_bytes",
  requests: "entropy_event_count",
  fails: "host_rng_fails",
  throttled: "entropy_rate_limiter_throttled",
} as const;

const MMDS_COUNTERS = {
  rxAccepted: "rx_accepted",
  rxAcceptedErr: "rx_accepted_err",
  rxAcceptedUnusual: "rx_accepted_unusual",
  rxCount: "rx_count",
  rxInvalidToken: "rx_invalid_token",
  rxNoToken: "rx_no_token",
  txCount: "tx_count",
  txBytes: "tx_bytes",
  txFrames: "tx_frames",
  connectionsCreated: "connections_created",
  connectionsDestroyed: "connections_destroyed",
} as const;

type Counts<Names> = Readonly<Record<keyof Names, number>>;

function counted(...names: string[][]): string[] {
  return names.flat().flatMap((name) => [`${name}_count`, `${name}_fails`]);
}

/** What devices have counted since they were made. */
export interface DeviceCounters {
  readonly blocks: Readonly<Record<string, Counts<typeof BLOCK_COUNTERS>>>;
  readonly nets: Readonly<Record<string, Counts<typeof NET_COUNTERS>>>;
  readonly vsock: Counts<typeof VSOCK_COUNTERS> | undefined;
  readonly entropy: Counts<typeof ENTROPY_COUNTERS> | undefined;
  readonly balloon: Counts<typeof BALLOON_COUNTERS> | undefined;
  readonly mmds: Counts<typeof MMDS_COUNTERS> | undefined;
  readonly uart: {
    readonly sent: number;
    readonly received: number;
    readonly lost: number;
    readonly dropped: number;
  };
}

interface Value {
  total: number;
  /** Part of `total` that has been written. Always 0 for a gauge. */
  written: number;
  readonly gauge: boolean;
}

/** Time between two lines, in ms. */
export const METRICS_PERIOD_MS = 60_000;

export class Metrics {
  private readonly groups = new Map<string, Map<string, Value>>();
  private fd: number | undefined;
  /** The end of a line of which a FIFO took only the start. */
  private rest: Uint8Array = new Uint8Array(0);

  constructor() {
    for (const [group, names] of Object.entries(COUNTERS)) for (const name of names) this.value(group, name);
    for (const [group, names] of Object.entries(GAUGES))
      for (const name of names) this.value(group, name, true);
  }

  /** True once {@link open} has succeeded. */
  get isOpen(): boolean {
    return this.fd !== undefined;
  }

  /** Where the lines go: a file, or a FIFO that need not have a reader. Throws {@link SystemError}. */
  open(path: string): void {
    this.fd = openFile(path, { write: true, create: true, append: true, nonblock: true });
  }

  close(): void {
    if (this.fd !== undefined) closeFile(this.fd);
    this.fd = undefined;
  }

  /** Adds to a counter. */
  add(group: string, name: string, amount = 1): void {
    this.value(group, name).total += amount;
  }

  /** Takes over a counter that is kept elsewhere. */
  setTotal(group: string, name: string, total: number): void {
    this.value(group, name).total = total;
  }

  /** Sets a gauge. */
  store(group: string, name: string, value: number): void {
    this.value(group, name, true).total = value;
  }

  /** Takes over what the devices have counted. */
  setDevices(devices: DeviceCounters): void {
    this.setEach("block", BLOCK_COUNTERS, devices.blocks);
    this.setEach("net", NET_COUNTERS, devices.nets);
    if (devices.vsock !== undefined) this.setCounts("vsock", VSOCK_COUNTERS, devices.vsock);
    if (devices.mmds !== undefined) this.setCounts("mmds", MMDS_COUNTERS, devices.mmds);
    if (devices.balloon !== undefined) this.setCounts("balloon", BALLOON_COUNTERS, devices.balloon);
    if (devices.entropy !== undefined) this.setCounts("entropy", ENTROPY_COUNTERS, devices.entropy);
    this.value("uart", "write_count").total = devices.uart.sent;
    this.value("uart", "read_count").total = devices.uart.received;
    this.value("uart", "missed_write_count").total = devices.uart.lost;
    this.value("uart", "rate_limiter_dropped_bytes").total = devices.uart.dropped;
  }

  private setCounts(group: string, names: Readonly<Record<string, string>>, counts: object): void {
    for (const [field, name] of Object.entries(names)) {
      this.value(group, name).total = Number(Reflect.get(counts, field));
    }
  }

  /** Counts of several devices of a kind, and their sums. */
  private setEach(
    kind: string,
    names: Readonly<Record<string, string>>,
    devices: Readonly<Record<string, object>>,
  ): void {
    const all = Object.entries(devices);
    for (const [id, counts] of all) this.setCounts(`${kind}_${id}`, names, counts);
    if (all.length === 0) return;
    for (const [field, name] of Object.entries(names)) {
      const sum = all.reduce((total, [, counts]) => total + Number(Reflect.get(counts, field)), 0);
      this.value(kind, name).total = sum;
    }
  }

  /**
   * Writes a line. Returns false if it could not be written: nobody reads the FIFO, or the disk is full. Its
   * counts are then in the next line. Never blocks and never throws.
   */
  flush(): boolean {
    if (this.fd === undefined) return false;
    if (!this.flushRest()) {
      this.add("logger", "missed_metrics_count");
      return false;
    }
    const line = new TextEncoder().encode(`${JSON.stringify(this.toJson())}\n`);
    const taken = this.write(line);
    if (taken === 0) {
      this.add("logger", "missed_metrics_count");
      return false;
    }
    this.rest = line.subarray(taken);
    for (const values of this.groups.values()) {
      for (const value of values.values()) if (!value.gauge) value.written = value.total;
    }
    return true;
  }

  private flushRest(): boolean {
    if (this.rest.length > 0) this.rest = this.rest.subarray(this.write(this.rest));
    return this.rest.length === 0;
  }

  /** Bytes taken; 0 if there is no room. */
  private write(bytes: Uint8Array): number {
    try {
      return writeSome(this.fd!, bytes) ?? 0;
    } catch {
      this.add("logger", "metrics_fails");
      return 0;
    }
  }

  private toJson(): Record<string, unknown> {
    const groups = [...this.groups].sort(([a], [b]) => (a < b ? -1 : 1));
    const json: Record<string, unknown> = { utc_timestamp_ms: Date.now() };
    for (const [group, values] of groups) {
      json[group] = Object.fromEntries([...values].map(([name, v]) => [name, v.total - v.written]));
    }
    return json;
  }

  private value(group: string, name: string, gauge = false): Value {
    let values = this.groups.get(group);
    if (values === undefined) {
      values = new Map();
      this.groups.set(group, values);
    }
    let value = values.get(name);
    if (value === undefined) {
      value = { total: 0, written: 0, gauge };
      values.set(name, value);
    }
    return value;
  }
}
