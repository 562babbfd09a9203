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
  logger: ["metrics_fails", "missed_metrics_count"],
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
} as const;

function counted(...names: string[][]): string[] {
  return names.flat().flatMap((name) => [`${name}_count`, `${name}_fails`]);
}

/** What devices have counted since they were made. */
export interface DeviceCounters {
  readonly blocks: Readonly<Record<string, Readonly<Record<keyof typeof BLOCK_COUNTERS, number>>>>;
  readonly entropy: { readonly bytes: number; readonly requests: number; readonly fails: number } | undefined;
  readonly uart: { readonly sent: number; readonly received: number; readonly lost: number };
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

  /** Sets a gauge. */
  store(group: string, name: string, value: number): void {
    this.value(group, name, true).total = value;
  }

  /** Takes over what the devices have counted. */
  setDevices(devices: DeviceCounters): void {
    const sums = new Map<string, number>();
    for (const [id, block] of Object.entries(devices.blocks)) {
      for (const [field, total] of Object.entries(block)) {
        const name: string | undefined = Reflect.get(BLOCK_COUNTERS, field);
        if (name === undefined) continue;
        this.value(`block_${id}`, name).total = total;
        sums.set(name, (sums.get(name) ?? 0) + total);
      }
    }
    for (const [name, total] of sums) this.value("block", name).total = total;
    if (devices.entropy !== undefined) {
      this.value("entropy", "entropy_bytes").total = devices.entropy.bytes;
      this.value("entropy", "entropy_event_count").total = devices.entropy.requests;
      this.value("entropy", "host_rng_fails").total = devices.entropy.fails;
    }
    this.value("uart", "write_count").total = devices.uart.sent;
    this.value("uart", "read_count").total = devices.uart.received;
    this.value("uart", "missed_write_count").total = devices.uart.lost;
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
