/**
 * virtio-block (virtio 1.2, 5.2) over a file, with the features and limits of Firecracker's, and with discard and
 * write-zeroes on drives that can be written.
 */

import { RateLimiter, type RateLimiterConfig, type Timer } from "../../../ratelimit/rate-limiter.ts";
import { bufferViews, type DescriptorChain, type GuestBuffer } from "../chain.ts";
import {
  type DeviceContext,
  type DeviceHost,
  type DeviceQueue,
  type HandlerResult,
  HOLD,
  STOP,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_VERSION_1,
  VIRTIO_ID_BLOCK,
  type VirtioDevice,
} from "../device.ts";
import {
  CONFIG_BYTES_WITH_DISCARD,
  readSegments,
  setDiscardConfig,
  VIRTIO_BLK_T_DISCARD,
  VIRTIO_BLK_T_WRITE_ZEROES,
} from "./discard.ts";
import { type AsyncDisk, type DiskFile, isAsync, type TransferEnd } from "./disk.ts";
import type { DiskShare } from "./disk-share.ts";
import { BLOCK_ID_BYTES, type BlockMetrics, type BlockOptions, type CacheType } from "./options.ts";
import {
  HEADER_BYTES,
  HEADER_SECTOR,
  SECTOR_BYTES,
  STATUS_BYTES,
  VIRTIO_BLK_S_IOERR,
  VIRTIO_BLK_S_OK,
  VIRTIO_BLK_S_UNSUPP,
  VIRTIO_BLK_T_FLUSH,
  VIRTIO_BLK_T_GET_ID,
  VIRTIO_BLK_T_IN,
  VIRTIO_BLK_T_OUT,
} from "./request.ts";

/** Feature bits (5.2.3). */
export const VIRTIO_BLK_F_SEG_MAX = 1n << 2n;
export const VIRTIO_BLK_F_RO = 1n << 5n;
export const VIRTIO_BLK_F_FLUSH = 1n << 9n;
export const VIRTIO_BLK_F_DISCARD = 1n << 13n;
export const VIRTIO_BLK_F_WRITE_ZEROES = 1n << 14n;

const QUEUE_SIZE = 256;

/** Configuration space: le64 capacity in sectors, le32 size_max, le32 seg_max. */
const CONFIG_CAPACITY_BYTES = 8;
const CONFIG_SEG_MAX = 12;
const CONFIG_BYTES_WITH_SEG_MAX = 16;

export class BlockDevice implements VirtioDevice {
  readonly name: string;
  readonly type = VIRTIO_ID_BLOCK;
  readonly features: bigint;
  readonly queueSizes = [QUEUE_SIZE];
  readonly config: Uint8Array;
  private readonly counts: Omit<BlockMetrics, "throttled"> = {
    readBytes: 0,
    readCount: 0,
    writeBytes: 0,
    writeCount: 0,
    flushCount: 0,
    invalidRequests: 0,
    executeFails: 0,
    queueEvents: 0,
    engineThrottled: 0,
  };

  private readonly readOnly: boolean;
  private readonly cacheType: CacheType;
  private disk: DiskFile | AsyncDisk;
  /** `disk`, if it is one. */
  private asyncDisk: AsyncDisk | undefined;
  /** Requests wait for room in `asyncDisk`. */
  private full = false;
  /** Goes on after other work had its turn. */
  private readonly resume: Timer;
  private sectors = 0;
  private readonly id = new Uint8Array(BLOCK_ID_BYTES);
  private readonly header = new Uint8Array(HEADER_BYTES);
  private readonly headerView = new DataView(this.header.buffer);
  private readonly limiter: RateLimiter;
  readonly queueShares: readonly (DiskShare | undefined)[];
  private host: DeviceHost | undefined;
  private context: DeviceContext | undefined;

  /** Throws RangeError if `segMax` is out of range. */
  constructor(options: BlockOptions) {
    const { driveId, disk, id, readOnly, cacheType, segMax = 1 } = options;
    if (!Number.isInteger(segMax) || segMax < 1 || segMax > QUEUE_SIZE - 2) {
      throw new RangeError(`segMax ${segMax} is not from 1 to ${QUEUE_SIZE - 2}`);
    }
    this.limiter = new RateLimiter(options.rateLimiter, options.timers, () => this.serve());
    this.resume = options.timers.create(() => this.serve());
    this.name = `block ${driveId}`;
    this.readOnly = readOnly;
    this.cacheType = cacheType;
    let features = VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX;
    if (cacheType === "Writeback") features |= VIRTIO_BLK_F_FLUSH;
    features |= readOnly ? VIRTIO_BLK_F_RO : VIRTIO_BLK_F_DISCARD | VIRTIO_BLK_F_WRITE_ZEROES;
    if (segMax > 1) features |= VIRTIO_BLK_F_SEG_MAX | VIRTIO_F_INDIRECT_DESC;
    this.features = features;
    this.config = new Uint8Array(
      readOnly ? (segMax > 1 ? CONFIG_BYTES_WITH_SEG_MAX : CONFIG_CAPACITY_BYTES) : CONFIG_BYTES_WITH_DISCARD,
    );
    if (!readOnly) setDiscardConfig(this.config);
    if (segMax > 1) new DataView(this.config.buffer).setUint32(CONFIG_SEG_MAX, segMax, true);
    this.queueShares = [options.share];
    this.disk = disk;
    this.useDisk(disk, id);
  }

  get metrics(): BlockMetrics {
    const { counts } = this;
    const there = this.queueShares[0]?.counts ?? { reads: 0, bytes: 0, notifications: 0 };
    return {
      ...counts,
      readBytes: counts.readBytes + there.bytes,
      readCount: counts.readCount + there.reads,
      queueEvents: counts.queueEvents + there.notifications,
      throttled: this.limiter.throttled,
    };
  }

  attach(host: DeviceHost): void {
    this.host = host;
    this.warnOfTail();
  }

  activate(context: DeviceContext): void {
    this.context = context;
    this.shareDisk();
  }

  reset(): void {
    this.asyncDisk?.drain();
    this.context = undefined;
    this.limiter.reset();
    this.resume.cancel();
    this.full = false;
  }

  /**
   * Begins all that the driver has asked for so far, as far as the rate limiter lets it, and returns when it is done. For
   * a time when the guest does not run.
   */
  drain(): void {
    do {
      this.serve();
      this.asyncDisk?.drain();
      this.context?.queues[0]?.flush();
    } while (this.full);
  }

  /**
   * Puts another file behind the device and tells the driver of its size (PATCH /drives). Nothing uses the one before
   * any more when this returns.
   */
  updateDisk(disk: DiskFile | AsyncDisk, id: Uint8Array): void {
    this.unshareDisk();
    this.asyncDisk?.drain();
    this.context?.queues[0]?.flush();
    this.useDisk(disk, id);
    // Those that waited for room in the one before.
    if (this.full) this.resume.set(0);
    this.shareDisk();
    this.warnOfTail();
    this.host?.configChanged();
  }

  /** Changes limits while the guest runs; what is left out stays. */
  updateRateLimiter(config: RateLimiterConfig | undefined): void {
    this.unshareDisk();
    this.limiter.update(config);
    this.shareDisk();
  }

  /** Lets the vCPU's thread read, if nothing limits how much. */
  private shareDisk(): void {
    const [share] = this.queueShares;
    const { fd } = this.disk;
    if (share === undefined || fd === undefined || this.limiter.limits || this.context === undefined) return;
    share.lock();
    share.openDisk(fd, this.sectors);
    share.unlock();
  }

  /** When this returns the vCPU's thread does not use the disk any more. */
  private unshareDisk(): void {
    const [share] = this.queueShares;
    share?.lock();
    share?.close();
    share?.unlock();
  }

  processQueue(): void {
    this.counts.queueEvents++;
    this.serve();
  }

  private serve(): void {
    const queue = this.context?.queues[0];
    if (queue === undefined) return;
    this.full = false;
    queue.serve((chain) => {
      if (this.asyncDisk?.room === 0) {
        this.full = true;
        this.counts.engineThrottled++;
        return STOP;
      }
      // Of a request that is too short the rest is counted as nothing.
      const data = Math.max(0, chain.readableLength + chain.writableLength - HEADER_BYTES - STATUS_BYTES);
      return this.limiter.allow(data) ? this.execute(queue, chain) : STOP;
    });
    if (this.asyncDisk === undefined || this.asyncDisk.submit() === 0) return;
    queue.flush();
    // Not at once: a guest that keeps its queue filled must not keep the thread to itself.
    if (this.full) this.resume.set(0);
  }

  private transfersEnded(): void {
    this.context?.queues[0]?.flush();
    if (this.full) this.serve();
  }

  private useDisk(disk: DiskFile | AsyncDisk, id: Uint8Array): void {
    this.disk = disk;
    this.asyncDisk = isAsync(disk) ? disk : undefined;
    this.asyncDisk?.watch(() => this.transfersEnded());
    this.sectors = Math.floor(disk.size / SECTOR_BYTES);
    this.id.fill(0);
    this.id.set(id.subarray(0, BLOCK_ID_BYTES));
    new DataView(this.config.buffer).setBigUint64(0, BigInt(this.sectors), true);
  }

  private warnOfTail(): void {
    if (this.disk.size % SECTOR_BYTES === 0) return;
    this.host?.log(
      `Disk size ${this.disk.size} is not a multiple of sector size ${SECTOR_BYTES}; ` +
        "the remainder will not be visible to the guest.",
    );
  }

  /** Does or begins one request; returns the bytes written to the guest (5.2.6), or HOLD. */
  private execute(queue: DeviceQueue, chain: DescriptorChain): HandlerResult {
    const statusBuffer = chain.writable[chain.writable.length - 1];
    if (statusBuffer === undefined || chain.read(this.header) < HEADER_BYTES) {
      // There is nowhere to put a status, or nothing to say what was asked.
      this.counts.invalidRequests++;
      this.host?.log("request without a 16-byte header or a status byte");
      if (statusBuffer === undefined) return 0;
      return this.finish(chain, statusBuffer, VIRTIO_BLK_S_IOERR, 0);
    }
    const type = this.headerView.getUint32(0, true);
    switch (type) {
      case VIRTIO_BLK_T_IN:
        return this.read(queue, chain, statusBuffer);
      case VIRTIO_BLK_T_OUT:
        return this.write(queue, chain, statusBuffer);
      case VIRTIO_BLK_T_FLUSH:
        return this.flush(queue, chain, statusBuffer);
      case VIRTIO_BLK_T_GET_ID:
        return this.getId(chain, statusBuffer);
      case VIRTIO_BLK_T_DISCARD:
      case VIRTIO_BLK_T_WRITE_ZEROES:
        return this.finish(chain, statusBuffer, this.clear(chain, type), 0);
      default:
        this.counts.invalidRequests++;
        this.host?.log(`unsupported request type ${type}`);
        return this.finish(chain, statusBuffer, VIRTIO_BLK_S_UNSUPP, 0);
    }
  }

  /** Writes the status byte, the last one of the chain, after `data` bytes were written from its start. */
  private finish(chain: DescriptorChain, statusBuffer: GuestBuffer, status: number, data: number): number {
    statusBuffer.bytes[statusBuffer.length - 1] = status;
    if (data + 1 === chain.writableLength) return data + 1;
    // The used length counts from the start without a gap, so it cannot say that the last byte was written.
    chain.reportWritten();
    return data;
  }

  /** Byte offset in the file of a request for `length` bytes, or -1 if it is not whole sectors inside the disk. */
  private place(length: number): number {
    const sector =
      this.headerView.getUint32(HEADER_SECTOR, true) +
      this.headerView.getUint32(HEADER_SECTOR + 4, true) * 2 ** 32;
    if (length % SECTOR_BYTES === 0 && sector + length / SECTOR_BYTES <= this.sectors) {
      return sector * SECTOR_BYTES;
    }
    this.counts.invalidRequests++;
    this.host?.log(`request for ${length} bytes at sector ${sector} of ${this.sectors}`);
    return -1;
  }

  private read(queue: DeviceQueue, chain: DescriptorChain, statusBuffer: GuestBuffer): HandlerResult {
    const length = chain.writableLength - STATUS_BYTES;
    const start = this.place(length);
    if (start < 0) return this.finish(chain, statusBuffer, VIRTIO_BLK_S_IOERR, 0);
    const { disk } = this;
    const into = bufferViews(chain.writable, 0, length);
    const ended = (done: number, error?: Error) => {
      const ok = this.succeeded("read", done, length, start, error);
      this.counts.readBytes += done;
      if (ok) this.counts.readCount++;
      return this.finish(chain, statusBuffer, ok ? VIRTIO_BLK_S_OK : VIRTIO_BLK_S_IOERR, done);
    };
    // The kernel's word for an operation without buffers differs by call; here it is done.
    if (length === 0) return ended(0);
    return isAsync(disk)
      ? this.later(queue, chain, ended, (end) => disk.read(start, into, end))
      : now(ended, () => disk.readAt(start, into));
  }

  private write(queue: DeviceQueue, chain: DescriptorChain, statusBuffer: GuestBuffer): HandlerResult {
    const length = chain.readableLength - HEADER_BYTES;
    const start = this.place(length);
    if (start < 0) return this.finish(chain, statusBuffer, VIRTIO_BLK_S_IOERR, 0);
    if (this.readOnly) {
      this.counts.invalidRequests++;
      this.host?.log("write to a read-only drive");
      return this.finish(chain, statusBuffer, VIRTIO_BLK_S_IOERR, 0);
    }
    const { disk } = this;
    const from = bufferViews(chain.readable, HEADER_BYTES, length);
    const ended = (done: number, error?: Error) => {
      const ok = this.succeeded("write", done, length, start, error);
      this.counts.writeBytes += done;
      if (ok) this.counts.writeCount++;
      return this.finish(chain, statusBuffer, ok ? VIRTIO_BLK_S_OK : VIRTIO_BLK_S_IOERR, 0);
    };
    if (length === 0) return ended(0);
    return isAsync(disk)
      ? this.later(queue, chain, ended, (end) => disk.write(start, from, end))
      : now(ended, () => disk.writeAt(start, from));
  }

  /** A driver flushes what it has been told is written; the disk may flush before writes that are still in flight. */
  private flush(queue: DeviceQueue, chain: DescriptorChain, statusBuffer: GuestBuffer): HandlerResult {
    const { disk } = this;
    const ended = (_: number, error?: Error) => {
      const ok = this.succeeded("flush", 0, 0, 0, error);
      if (ok) this.counts.flushCount++;
      return this.finish(chain, statusBuffer, ok ? VIRTIO_BLK_S_OK : VIRTIO_BLK_S_IOERR, 0);
    };
    if (this.cacheType !== "Writeback") return ended(0);
    if (isAsync(disk)) return this.later(queue, chain, ended, (end) => disk.sync(end));
    return now(ended, () => {
      disk.sync();
      return 0;
    });
  }

  /** Begins a transfer of an asynchronous disk. `ended` completes its request and returns the bytes written. */
  private later(
    queue: DeviceQueue,
    chain: DescriptorChain,
    ended: (done: number, error?: Error) => number,
    begin: (end: TransferEnd) => void,
  ): HandlerResult {
    begin((done, error) => {
      if (!queue.failed) queue.complete(chain, ended(done, error));
      // What has come is told all the same: guest memory has changed.
      else chain.reportWritten();
    });
    return HOLD;
  }

  private succeeded(
    what: string,
    done: number,
    length: number,
    start: number,
    error: Error | undefined,
  ): boolean {
    if (error === undefined && done >= length) return true;
    this.counts.executeFails++;
    this.host?.log(`${what} failed: ${error?.message ?? `${done} of ${length} bytes at ${start}`}`);
    return false;
  }

  private clear(
    chain: DescriptorChain,
    type: typeof VIRTIO_BLK_T_DISCARD | typeof VIRTIO_BLK_T_WRITE_ZEROES,
  ): number {
    const what = type === VIRTIO_BLK_T_DISCARD ? "discard" : "write of zeroes";
    const ranges = readSegments(chain, HEADER_BYTES, type, this.sectors);
    if (this.readOnly || !Array.isArray(ranges)) {
      this.counts.invalidRequests++;
      const wrong = Array.isArray(ranges) ? undefined : ranges;
      this.host?.log(this.readOnly ? `${what} on a read-only drive` : `${what} of ${wrong?.reason}`);
      return !this.readOnly && wrong?.unsupported === true ? VIRTIO_BLK_S_UNSUPP : VIRTIO_BLK_S_IOERR;
    }
    const ok = this.attempt(what, () => {
      for (const { sector, count, unmap } of ranges) {
        if (count === 0) continue;
        const [start, length] = [sector * SECTOR_BYTES, count * SECTOR_BYTES];
        if (type === VIRTIO_BLK_T_DISCARD) this.disk.discard(start, length);
        else this.disk.writeZeros(start, length, unmap);
      }
    });
    return ok ? VIRTIO_BLK_S_OK : VIRTIO_BLK_S_IOERR;
  }

  private getId(chain: DescriptorChain, statusBuffer: GuestBuffer): number {
    if (chain.writableLength - 1 < BLOCK_ID_BYTES) {
      this.counts.invalidRequests++;
      this.host?.log(`id asked for with room for ${chain.writableLength - 1} of ${BLOCK_ID_BYTES} bytes`);
      return this.finish(chain, statusBuffer, VIRTIO_BLK_S_IOERR, 0);
    }
    chain.write(this.id);
    return this.finish(chain, statusBuffer, VIRTIO_BLK_S_OK, BLOCK_ID_BYTES);
  }

  private attempt(what: string, action: () => void): boolean {
    try {
      action();
      return true;
    } catch (error) {
      this.counts.executeFails++;
      this.host?.log(`${what} failed: ${error instanceof Error ? error.message : String(error)}`);
      return false;
    }
  }
}

/** Does a transfer of a synchronous disk. */
function now(ended: (done: number, error?: Error) => number, transfer: () => number): number {
  let done: number;
  try {
    done = transfer();
  } catch (error) {
    return ended(0, error instanceof Error ? error : new Error(String(error)));
  }
  return ended(done);
}
