/** virtio-balloon (virtio 1.2, 5.5) with the features of Firecracker's: memory of the guest goes back to the host. */

import type { Timer, TimerSource } from "../../../ratelimit/rate-limiter.ts";
import type { DescriptorChain } from "../chain.ts";
import {
  type DeviceContext,
  type DeviceHost,
  type DeviceQueue,
  type HandlerResult,
  HOLD,
  VIRTIO_F_VERSION_1,
  VIRTIO_ID_BALLOON,
  type VirtioDevice,
} from "../device.ts";
import { Hinting } from "./hinting.ts";
import { discardPages, forEachRun, PAGE_BYTES, PAGES_PER_MIB, readPfns } from "./pages.ts";
import { readStatistics, type Statistics } from "./statistics.ts";

/** Feature bits (5.5.3). */
export const VIRTIO_BALLOON_F_STATS_VQ = 1n << 1n;
export const VIRTIO_BALLOON_F_DEFLATE_ON_OOM = 1n << 2n;
export const VIRTIO_BALLOON_F_FREE_PAGE_HINT = 1n << 3n;
export const VIRTIO_BALLOON_F_PAGE_REPORTING = 1n << 5n;

const QUEUE_SIZE = 256;

/** Configuration space (5.5.4): le32 num_pages, le32 actual, le32 free_page_hint_cmd_id. */
const CONFIG_NUM_PAGES = 0;
const CONFIG_ACTUAL = 4;
const CONFIG_FREE_PAGE_HINT_CMD_ID = 8;
const CONFIG_BYTES = 12;

export interface BalloonOptions {
  /** Memory that the balloon is to take, MiB, at most 2^24 - 1. */
  readonly amountMib: number;
  /** Lets the driver take pages back when the guest has no other memory left. */
  readonly deflateOnOom: boolean;
  /** Seconds between two statistics; 0: none, and none can be asked for later. */
  readonly statsPollingIntervalS: number;
  readonly freePageHinting: boolean;
  readonly freePageReporting: boolean;
  readonly timers: TimerSource;
  /** Gives whole pages of guest RAM back to the host; they read as zeros afterwards. Throws if that cannot be. */
  readonly discard: (pages: Uint8Array) => void;
}

/** Counters since the device was created. */
export interface BalloonMetrics {
  /** Notifications of the inflate and the deflate queue. */
  inflateCount: number;
  deflateCount: number;
  /** Lists of statistics. */
  statsUpdates: number;
  /** Statistics of an unknown kind, or cut off. */
  statsFails: number;
  /** Requests that were malformed, named pages that are not RAM, or failed on the host. */
  eventFails: number;
  /** Ranges that were reported free, the bytes that went back to the host, and ranges that did not. */
  reportCount: number;
  reportFreed: number;
  reportFails: number;
  /** The same of ranges that were hinted at. */
  hintCount: number;
  hintFreed: number;
  hintFails: number;
}

export interface BalloonState {
  readonly targetPages: number;
  /** As the driver says. */
  readonly actualPages: number;
  readonly statistics: Readonly<Statistics>;
  /** Last commands of free page hinting. */
  readonly hostCmd: number;
  readonly guestCmd: number | undefined;
}

/** What one queue is for. */
type Role = "inflate" | "deflate" | "statistics" | "hinting" | "reporting";

export class BalloonDevice implements VirtioDevice {
  readonly name = "balloon";
  readonly type = VIRTIO_ID_BALLOON;
  readonly features: bigint;
  readonly queueSizes: readonly number[];
  readonly config = new Uint8Array(CONFIG_BYTES);

  private readonly counts: BalloonMetrics = {
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
  private readonly view = new DataView(this.config.buffer);
  private readonly discard: (pages: Uint8Array) => void;
  private readonly statsTimer: Timer;
  private statsIntervalMs: number;
  private readonly statistics: Statistics = {};
  /** The statistics buffer, which the device keeps until it wants new statistics. */
  private statsChain: DescriptorChain | undefined;
  private readonly hinting = new Hinting();
  private host: DeviceHost | undefined;
  private context: DeviceContext | undefined;
  private roles: readonly Role[] = [];

  constructor(options: BalloonOptions) {
    let features = VIRTIO_F_VERSION_1;
    if (options.deflateOnOom) features |= VIRTIO_BALLOON_F_DEFLATE_ON_OOM;
    if (options.statsPollingIntervalS > 0) features |= VIRTIO_BALLOON_F_STATS_VQ;
    if (options.freePageHinting) features |= VIRTIO_BALLOON_F_FREE_PAGE_HINT;
    if (options.freePageReporting) features |= VIRTIO_BALLOON_F_PAGE_REPORTING;
    this.features = features;
    this.queueSizes = queueRoles(features).map(() => QUEUE_SIZE);
    this.discard = options.discard;
    this.statsIntervalMs = options.statsPollingIntervalS * 1000;
    this.statsTimer = options.timers.create(() => this.askForStatistics());
    this.setField(CONFIG_NUM_PAGES, options.amountMib * PAGES_PER_MIB);
  }

  get metrics(): BalloonMetrics {
    return { ...this.counts };
  }

  get state(): BalloonState {
    return {
      targetPages: this.view.getUint32(CONFIG_NUM_PAGES, true),
      actualPages: this.view.getUint32(CONFIG_ACTUAL, true),
      statistics: { ...this.statistics },
      hostCmd: this.hinting.hostCmd,
      guestCmd: this.hinting.guestCmd,
    };
  }

  attach(host: DeviceHost): void {
    this.host = host;
  }

  activate(context: DeviceContext): void {
    this.context = context;
    this.roles = queueRoles(context.features);
    const statistics = this.roles.indexOf("statistics");
    if (statistics < 0) return;
    this.statsTimer.set(this.statsIntervalMs);
    // Linux makes its buffer available and notifies of it before DRIVER_OK, and never again by itself.
    this.processQueue(statistics);
  }

  reset(): void {
    this.context = undefined;
    this.statsChain = undefined;
    this.statsTimer.cancel();
    this.hinting.reset();
    // Whatever drives the device next has all of its memory.
    this.setField(CONFIG_ACTUAL, 0);
    this.setField(CONFIG_FREE_PAGE_HINT_CMD_ID, this.hinting.hostCmd);
    this.host?.publishConfig();
  }

  /** Asks the driver for a balloon of this size in MiB. False if there is no driver yet. */
  setAmount(mib: number): boolean {
    if (this.context === undefined) return false;
    this.setField(CONFIG_NUM_PAGES, mib * PAGES_PER_MIB);
    this.host?.configChanged();
    return true;
  }

  /** Seconds between two statistics, at least 1, of a device that has statistics. */
  setStatsInterval(seconds: number): void {
    this.statsIntervalMs = seconds * 1000;
    if (this.roles.includes("statistics") && this.context !== undefined) this.askForStatistics();
  }

  /** Begins a run of free page hinting; see {@link Hinting.start}. False if there is no driver yet. */
  startHinting(acknowledge: boolean): boolean {
    if (this.context === undefined) return false;
    this.hinting.start(acknowledge);
    this.showHintCommand();
    return true;
  }

  /** Ends the run of free page hinting. False if there is no driver yet. */
  stopHinting(): boolean {
    if (this.context === undefined) return false;
    this.hinting.stop();
    this.showHintCommand();
    return true;
  }

  /** Only `actual` is the driver's to write. */
  writeConfig(offset: number, bytes: Uint8Array): void {
    for (const [i, byte] of bytes.entries()) {
      const at = offset + i;
      if (at >= CONFIG_ACTUAL && at < CONFIG_ACTUAL + 4) this.config[at] = byte;
    }
    this.host?.publishConfig();
  }

  processQueue(index: number): void {
    const queue = this.context?.queues[index];
    const role = this.roles[index];
    if (queue === undefined) return;
    switch (role) {
      case "inflate":
        this.counts.inflateCount++;
        queue.serve((chain) => this.inflate(chain));
        break;
      case "deflate":
        // The pages come back by being touched.
        this.counts.deflateCount++;
        queue.serve(() => 0);
        break;
      case "statistics":
        queue.serve((chain) => this.takeStatistics(queue, chain));
        break;
      case "hinting":
        queue.serve((chain) => this.hint(chain));
        break;
      case "reporting":
        queue.serve((chain) => this.report(chain));
        break;
      case undefined:
        break;
    }
  }

  private inflate(chain: DescriptorChain): HandlerResult {
    const pfns = readPfns(chain);
    if (pfns === undefined) {
      this.failed(`inflate request of ${chain.readableLength} bytes is no list of page frame numbers`);
      return 0;
    }
    forEachRun(pfns, (first, count) => {
      this.release(first * PAGE_BYTES, count * PAGE_BYTES);
    });
    return 0;
  }

  /** Named by the driver as device-writable buffers, whose content is then of no interest (5.5.6.8). */
  private report(chain: DescriptorChain): HandlerResult {
    for (const { gpa, length } of chain.writable) {
      this.counts.reportCount++;
      const freed = this.release(gpa, length);
      this.counts.reportFreed += freed;
      if (freed < length) this.counts.reportFails++;
    }
    return 0;
  }

  private hint(chain: DescriptorChain): HandlerResult {
    if (this.hinting.readCommand(chain)) {
      this.hinting.stop();
      this.showHintCommand();
    }
    for (const { gpa, length } of chain.writable) {
      // What belongs to no run, or to one that is over, may be in use again.
      if (!this.hinting.running) break;
      this.counts.hintCount++;
      const freed = this.release(gpa, length);
      this.counts.hintFreed += freed;
      if (freed < length) this.counts.hintFails++;
    }
    return 0;
  }

  private takeStatistics(queue: DeviceQueue, chain: DescriptorChain): HandlerResult {
    if (this.statsChain !== undefined) {
      // A driver has one; what it sends beyond that goes back.
      queue.complete(this.statsChain, 0);
    }
    this.statsChain = chain;
    this.counts.statsUpdates++;
    this.counts.statsFails += readStatistics(chain, this.statistics);
    return HOLD;
  }

  /** Giving the buffer back is what makes the driver fill it anew (5.5.6.3). */
  private askForStatistics(): void {
    const queue = this.context?.queues[this.roles.indexOf("statistics")];
    if (queue === undefined) return;
    this.statsTimer.set(this.statsIntervalMs);
    if (this.statsChain === undefined) return;
    const chain = this.statsChain;
    this.statsChain = undefined;
    queue.complete(chain, 0);
    queue.flush();
  }

  /** Returns the bytes that went back to the host. */
  private release(gpa: number, length: number): number {
    const memory = this.context?.memory;
    if (memory === undefined) return 0;
    try {
      const freed = discardPages(memory, gpa, length, this.discard);
      if (freed < length) {
        this.failed(`${length - freed} of ${length} bytes at 0x${gpa.toString(16)} are no pages of RAM`);
      }
      return freed;
    } catch (error) {
      this.failed(`memory not released: ${error instanceof Error ? error.message : String(error)}`);
      return 0;
    }
  }

  private failed(reason: string): void {
    this.counts.eventFails++;
    this.host?.log(reason);
  }

  private showHintCommand(): void {
    this.setField(CONFIG_FREE_PAGE_HINT_CMD_ID, this.hinting.hostCmd);
    this.host?.configChanged();
  }

  private setField(offset: number, value: number): void {
    this.view.setUint32(offset, value, true);
  }
}

/** Queues are numbered without gaps: those of features that are absent are not there (5.5.2, as Linux has it). */
function queueRoles(features: bigint): Role[] {
  const roles: Role[] = ["inflate", "deflate"];
  if ((features & VIRTIO_BALLOON_F_STATS_VQ) !== 0n) roles.push("statistics");
  if ((features & VIRTIO_BALLOON_F_FREE_PAGE_HINT) !== 0n) roles.push("hinting");
  if ((features & VIRTIO_BALLOON_F_PAGE_REPORTING) !== 0n) roles.push("reporting");
  return roles;
}
