/**
 * The one microVM of a process, from its first configuration to its end. The API and the command line both drive
 * it through this class.
 */

import type { MmdsStore } from "../mmds/store.ts";
import type { LogTarget } from "../observe/log-target.ts";
import { METRICS_PERIOD_MS, type Metrics } from "../observe/metrics.ts";
import { SystemError } from "../platform/errno.ts";
import { closeFile, openFile } from "../platform/files.ts";
import { isTerminal, setRawMode } from "../platform/tty.ts";
import type { BalloonControl } from "./balloon-control.ts";
import { ConfigError } from "./config-error.ts";
import type { Microvm, MicrovmEnd } from "./microvm.ts";
import { Resources } from "./resources.ts";
import type { RateLimiter } from "./schema/resources.ts";
import type { SpareVcpu } from "./spare-vcpu.ts";

const STDIN = 0;
const STDOUT = 1;

export type InstanceState = "Not started" | "Running" | "Paused";

export interface InstanceOptions {
  readonly id: string;
  /** See `loadBackend`. */
  readonly backend: string;
  readonly bootTimer: boolean;
  readonly log: LogTarget;
  readonly metrics: Metrics;
  /** Time between two lines of metrics while the guest runs, in ms. */
  readonly metricsPeriod?: number | undefined;
  /** Call {@link Instance.metadataChanged} after a change. */
  readonly mmds: MmdsStore;
  /** As in `BuildOptions`. */
  readonly devicesHere?: boolean | undefined;
  readonly endsProcess?: boolean | undefined;
  readonly vcpuThread?: SpareVcpu | undefined;
}

export class Instance {
  readonly resources: Resources;
  /** Settles when the guest has ended. */
  readonly ended: Promise<MicrovmEnd>;
  private settle!: (end: MicrovmEnd) => void;
  private microvm: Microvm | undefined;
  private over = false;
  private timer: ReturnType<typeof setInterval> | undefined;

  constructor(readonly options: InstanceOptions) {
    this.resources = new Resources(options.backend);
    this.ended = new Promise((resolve) => {
      this.settle = resolve;
    });
  }

  get state(): InstanceState {
    if (this.microvm === undefined) return "Not started";
    return this.microvm.paused ? "Paused" : "Running";
  }

  /**
   * Builds the machine and starts its guest. Throws `ConfigError` or `BootError` if that cannot be; it may be
   * configured differently and started again then.
   */
  async start(): Promise<void> {
    if (this.microvm !== undefined) throw new Error("the microVM has been started before");
    const { serialOutPath, serialRateLimiter, ...machine } = this.resources.spec();
    const { backend, bootTimer, log, id, mmds, devicesHere, endsProcess, vcpuThread } = this.options;
    const { mmdsSettings } = this.resources;
    const opened = serialOutPath === undefined ? undefined : openSerialOutput(serialOutPath);
    let microvm: Microvm;
    try {
      const { buildMicrovm } = await import("./builder.ts");
      const serial = { outputFd: opened ?? STDOUT, inputFd: STDIN, rateLimiter: serialRateLimiter };
      const metadata =
        mmdsSettings === undefined ? undefined : { ...mmdsSettings, instanceId: id, data: mmds.get() };
      microvm = await buildMicrovm(
        { ...machine, serial, mmds: metadata, bootTimer, log: log.options },
        { backend, devicesHere, endsProcess, vcpuThread },
      );
    } catch (error) {
      if (opened !== undefined) closeFile(opened);
      throw error;
    }
    this.resources.closeBootFiles();
    this.microvm = microvm;
    if (isTerminal(STDIN)) process.on("exit", setRawMode(STDIN));
    void this.flushMetrics().catch(() => {});
    const period = this.options.metricsPeriod ?? METRICS_PERIOD_MS;
    this.timer = setInterval(() => void this.flushMetrics().catch(() => {}), period);
    void microvm.ended.then((end) => this.finish(end));
  }

  private finish(end: MicrovmEnd): void {
    clearInterval(this.timer);
    this.over = true;
    this.resources.removeVsock();
    const { metrics } = this.options;
    if (end.metrics !== undefined) metrics.setDevices(end.metrics);
    if (end.end.kind === "reset") metrics.add("i8042", "reset_count");
    if (end.end.kind === "error" || end.end.kind === "shutdown") metrics.add("vcpu", "failures");
    this.settle(end);
  }

  /** Ends a running guest as pulling the plug does. */
  stop(): void {
    this.microvm?.stop();
  }

  /** Returns when the guest executes nothing any more. Harmless if it is paused. */
  async pause(): Promise<void> {
    await this.timed("vmm_pause_vm", () => this.running.pause());
  }

  /** Lets a paused guest go on. Harmless if it is not paused. */
  async resume(): Promise<void> {
    await this.timed("vmm_resume_vm", async () => this.running.resume());
  }

  sendCtrlAltDel(): void {
    this.running.sendCtrlAltDel();
  }

  /** Puts the file at `path` behind a drive of the running guest. Throws {@link ConfigError}. */
  async updateDrive(id: string, path: string): Promise<void> {
    await this.running.updateDrive(id, path);
    this.resources.setDrivePath(id, path);
  }

  /** Changes limits of a drive of the running guest. Throws {@link ConfigError}. */
  async limitDrive(id: string, rateLimiter: RateLimiter | undefined): Promise<void> {
    await this.running.limitDrive(id, rateLimiter);
    this.resources.setDriveRateLimiter(id, rateLimiter);
  }

  /** Changes limits of a network interface of the running guest. Throws {@link ConfigError}. */
  async limitNetwork(id: string, rx: RateLimiter | undefined, tx: RateLimiter | undefined): Promise<void> {
    if (!this.resources.networkIds.includes(id)) {
      throw new ConfigError(`There is no network interface \`${id}\`.`);
    }
    await this.running.limitNetwork(id, rx, tx);
    this.resources.setNetworkRateLimiters(id, rx, tx);
  }

  /** Gives the metadata to a running guest that may see them. */
  async metadataChanged(): Promise<void> {
    if (this.microvm === undefined || this.over || this.resources.mmdsSettings === undefined) return;
    await this.microvm.updateMetadata(this.options.mmds.get());
  }

  /** The balloon of the running guest. */
  async balloon(): Promise<BalloonControl> {
    const { BalloonControl } = await import("./balloon-control.ts");
    return new BalloonControl(this.resources, this.running);
  }

  /** Writes a line of metrics. False if there is a place for them and it takes nothing. */
  async flushMetrics(): Promise<boolean> {
    const { metrics, log } = this.options;
    if (!metrics.isOpen) return true;
    metrics.setTotal("logger", "missed_log_count", log.lost);
    // The end of the machine has brought the last counts with it.
    if (this.microvm !== undefined && !this.over) metrics.setDevices(await this.microvm.deviceMetrics());
    return metrics.flush();
  }

  private get running(): Microvm {
    if (this.microvm === undefined) throw new Error("the microVM has not been started");
    return this.microvm;
  }

  private async timed(gauge: string, action: () => Promise<void>): Promise<void> {
    const start = performance.now();
    await action();
    this.options.metrics.store("latencies_us", gauge, Math.round((performance.now() - start) * 1000));
  }
}

function openSerialOutput(path: string): number {
  try {
    return openFile(path, { write: true, create: true, append: true, nonblock: true });
  } catch (error) {
    if (error instanceof SystemError || error instanceof RangeError) {
      throw new ConfigError(`Failed to open the serial output file ${path}: ${error.message}`);
    }
    throw error;
  }
}
