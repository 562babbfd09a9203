/** virtio-block (virtio 1.2, 5.2) over a file, with the features and limits of Firecracker's. */

import { RateLimiter, type RateLimiterConfig, type TimerSource } from "../../../ratelimit/rate-limiter.ts";
import type { DescriptorChain, GuestBuffer } from "../chain.ts";
import {
  type DeviceContext,
  type DeviceHost,
  STOP,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_VERSION_1,
  VIRTIO_ID_BLOCK,
  type VirtioDevice,
} from "../device.ts";
import type { DiskFile } from "./disk.ts";

/** Feature bits (5.2.3). */
export const VIRTIO_BLK_F_SEG_MAX = 1n << 2n;
export const VIRTIO_BLK_F_RO = 1n << 5n;
export const VIRTIO_BLK_F_FLUSH = 1n << 9n;

/** Request types (5.2.6). */
const VIRTIO_BLK_T_IN = 0;
const VIRTIO_BLK_T_OUT = 1;
const VIRTIO_BLK_T_FLUSH = 4;
const VIRTIO_BLK_T_GET_ID = 8;

const VIRTIO_BLK_S_OK = 0;
const VIRTIO_BLK_S_IOERR = 1;
const VIRTIO_BLK_S_UNSUPP = 2;

/** Request header: le32 type, le32 reserved, le64 sector. */
const HEADER_BYTES = 16;
const HEADER_SECTOR = 8;
const STATUS_BYTES = 1;
const SECTOR_BYTES = 512;
const QUEUE_SIZE = 256;

/** Configuration space: le64 capacity in sectors, le32 size_max, le32 seg_max. */
const CONFIG_CAPACITY_BYTES = 8;
const CONFIG_SEG_MAX = 12;
const CONFIG_BYTES_WITH_SEG_MAX = 16;

/** Length of the id that GET_ID returns. */
export const BLOCK_ID_BYTES = 20;

/** `Unsafe`: the guest is offered no flush. `Writeback`: a flush is done when it is reported as done. */
export type CacheType = "Unsafe" | "Writeback";

export interface BlockOptions {
  /** For log lines. */
  readonly driveId: string;
  readonly disk: DiskFile;
  /** At most {@link BLOCK_ID_BYTES}; padded with zeros. */
  readonly id: Uint8Array;
  readonly readOnly: boolean;
  readonly cacheType: CacheType;
  /**
   * Data buffers per request, up to 254. Firecracker offers no more than one, which is the default; more lets
   * the driver join scattered pages into one request, and offers indirect descriptors for it.
   */
  readonly segMax?: number;
  readonly rateLimiter?: RateLimiterConfig | undefined;
  readonly timers: TimerSource;
}

/** Counters since the device was created; byte counts include only what succeeded. */
export interface BlockMetrics {
  readBytes: number;
  readCount: number;
  writeBytes: number;
  writeCount: number;
  flushCount: number;
  /** Requests that were malformed, unsupported, or out of the disk's bounds. */
  invalidRequests: number;
  /** Requests that failed in the file. */
  executeFails: number;
  queueEvents: number;
  /** Times that requests had to wait for the rate limiter. */
  throttled: number;
}

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
  };

  private readonly readOnly: boolean;
  private readonly cacheType: CacheType;
  private disk: DiskFile;
  private sectors = 0;
  private readonly id = new Uint8Array(BLOCK_ID_BYTES);
  private readonly header = new Uint8Array(HEADER_BYTES);
  private readonly headerView = new DataView(this.header.buffer);
  private readonly limiter: RateLimiter;
  private host: DeviceHost | undefined;
  private context: DeviceContext | undefined;

  /** Throws RangeError if `segMax` is out of range. */
  constructor(options: BlockOptions) {
    const { driveId, disk, id, readOnly, cacheType, segMax = 1 } = options;
    if (!Number.isInteger(segMax) || segMax < 1 || segMax > QUEUE_SIZE - 2) {
      throw new RangeError(`segMax ${segMax} is not from 1 to ${QUEUE_SIZE - 2}`);
    }
    this.limiter = new RateLimiter(options.rateLimiter, options.timers, () => this.serve());
    this.name = `block ${driveId}`;
    this.readOnly = readOnly;
    this.cacheType = cacheType;
    let features = VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX;
    if (cacheType === "Writeback") features |= VIRTIO_BLK_F_FLUSH;
    if (readOnly) features |= VIRTIO_BLK_F_RO;
    if (segMax > 1) features |= VIRTIO_BLK_F_SEG_MAX | VIRTIO_F_INDIRECT_DESC;
    this.features = features;
    this.config = new Uint8Array(segMax > 1 ? CONFIG_BYTES_WITH_SEG_MAX : CONFIG_CAPACITY_BYTES);
    if (segMax > 1) new DataView(this.config.buffer).setUint32(CONFIG_SEG_MAX, segMax, true);
    this.disk = disk;
    this.useDisk(disk, id);
  }

  get metrics(): BlockMetrics {
    return { ...this.counts, throttled: this.limiter.throttled };
  }

  attach(host: DeviceHost): void {
    this.host = host;
    this.warnOfTail();
  }

  activate(context: DeviceContext): void {
    this.context = context;
  }

  reset(): void {
    this.context = undefined;
    this.limiter.reset();
  }

  /** Puts another file behind the device and tells the driver of its size (PATCH /drives). */
  updateDisk(disk: DiskFile, id: Uint8Array): void {
    this.useDisk(disk, id);
    this.warnOfTail();
    this.host?.configChanged();
  }

  /** Changes limits while the guest runs; what is left out stays. */
  updateRateLimiter(config: RateLimiterConfig | undefined): void {
    this.limiter.update(config);
  }

  processQueue(): void {
    this.counts.queueEvents++;
    this.serve();
  }

  private serve(): void {
    this.context?.queues[0]?.serve((chain) => {
      // Of a request that is too short the rest is counted as nothing.
      const data = Math.max(0, chain.readableLength + chain.writableLength - HEADER_BYTES - STATUS_BYTES);
      return this.limiter.allow(data) ? this.execute(chain) : STOP;
    });
  }

  private useDisk(disk: DiskFile, id: Uint8Array): void {
    this.disk = disk;
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

  /** Does one request and returns the bytes written to the guest (5.2.6). */
  private execute(chain: DescriptorChain): number {
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
        return this.read(chain, statusBuffer);
      case VIRTIO_BLK_T_OUT:
        return this.finish(chain, statusBuffer, this.write(chain), 0);
      case VIRTIO_BLK_T_FLUSH:
        return this.finish(chain, statusBuffer, this.flush(), 0);
      case VIRTIO_BLK_T_GET_ID:
        return this.getId(chain, statusBuffer);
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

  private read(chain: DescriptorChain, statusBuffer: GuestBuffer): number {
    const length = chain.writableLength - 1;
    const start = this.place(length);
    if (start < 0) return this.finish(chain, statusBuffer, VIRTIO_BLK_S_IOERR, 0);
    let done = 0;
    const ok = this.attempt("read", () => {
      for (const buffer of chain.writable) {
        const part = Math.min(buffer.length, length - done);
        if (part === 0) break;
        const got = this.disk.readAt(
          start + done,
          part === buffer.length ? buffer.bytes : buffer.bytes.subarray(0, part),
        );
        done += Math.min(got, part);
        if (got < part) throw new Error(`${got} of ${part} bytes at ${start + done}`);
      }
    });
    this.counts.readBytes += done;
    if (ok) this.counts.readCount++;
    return this.finish(chain, statusBuffer, ok ? VIRTIO_BLK_S_OK : VIRTIO_BLK_S_IOERR, done);
  }

  private write(chain: DescriptorChain): number {
    const length = chain.readableLength - HEADER_BYTES;
    const start = this.place(length);
    if (start < 0) return VIRTIO_BLK_S_IOERR;
    if (this.readOnly) {
      this.counts.invalidRequests++;
      this.host?.log("write to a read-only drive");
      return VIRTIO_BLK_S_IOERR;
    }
    let skip = HEADER_BYTES;
    let done = 0;
    const ok = this.attempt("write", () => {
      for (const buffer of chain.readable) {
        const from = Math.min(skip, buffer.length);
        skip -= from;
        const part = buffer.length - from;
        if (part === 0) continue;
        const put = this.disk.writeAt(start + done, from === 0 ? buffer.bytes : buffer.bytes.subarray(from));
        done += Math.min(put, part);
        if (put < part) throw new Error(`${put} of ${part} bytes at ${start + done}`);
      }
    });
    this.counts.writeBytes += done;
    if (ok) this.counts.writeCount++;
    return ok ? VIRTIO_BLK_S_OK : VIRTIO_BLK_S_IOERR;
  }

  private flush(): number {
    if (this.cacheType === "Writeback" && !this.attempt("flush", () => this.disk.sync())) {
      return VIRTIO_BLK_S_IOERR;
    }
    this.counts.flushCount++;
    return VIRTIO_BLK_S_OK;
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
