/**
 * Reads that the vCPU's thread does itself when the guest notifies: short ones, of what is in the host's page cache.
 * Telling another thread and waiting for it takes the guest longer than that. All else is left to the device's thread,
 * which takes the queue up where this leaves it, and which finds every error anew.
 */

import type { GuestMemory } from "../../../memory/guest-memory.ts";
import { bufferViews, type DescriptorChain } from "../chain.ts";
import { VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC } from "../device.ts";
import { driverFeatures, queueSetup } from "../mmio/setup.ts";
import { Queue } from "../queue.ts";
import type { DiskShare } from "./disk-share.ts";
import {
  HEADER_BYTES,
  HEADER_SECTOR,
  SECTOR_BYTES,
  STATUS_BYTES,
  VIRTIO_BLK_S_OK,
  VIRTIO_BLK_T_IN,
} from "./request.ts";

/** Longest read, bytes. The copy of a longer one takes as long as the way to the other thread, which does it meanwhile. */
const MAX_READ_BYTES = 65_536;
/** Requests done in a row, so that a guest with a full queue leaves the lock to the device's thread at times. */
const MAX_REQUESTS = 64;

/**
 * Reads into views of guest RAM from `offset` (bytes) of `fd` without waiting for a device. Returns the bytes read;
 * undefined if it would have to wait. Throws if it cannot be done at all.
 */
export type ReadNow = (fd: number, into: readonly Uint8Array[], offset: number) => number | undefined;

export interface VcpuReadsOptions {
  readonly memory: GuestMemory;
  /** Words of the device's register file. */
  readonly registers: Int32Array;
  readonly share: DiskShare;
  readonly readNow: ReadNow;
  /** The guest is to hear of used buffers. */
  interrupt(): void;
  /** A notification has been served, and led to `requests`. */
  served?(requests: number): void;
}

export class VcpuReads {
  private readonly header = new Uint8Array(HEADER_BYTES);
  private readonly headerView = new DataView(this.header.buffer);
  private queue: Queue | undefined;
  private epoch = 0;

  constructor(private readonly options: VcpuReadsOptions) {}

  /** The queue was notified. False if there is something in it for the device's thread, or may be. Never throws. */
  serve(): boolean {
    const { share } = this.options;
    if (!share.tryLock()) return false;
    try {
      const queue = this.currentQueue();
      return queue !== undefined && this.pass(queue);
    } catch {
      // Whatever is wrong with file or guest, the device's thread comes upon it as well, and says so.
      share.close();
      return false;
    } finally {
      share.unlock();
    }
  }

  /** The queue as it is set up now; undefined if it is not to be served here. */
  private currentQueue(): Queue | undefined {
    const { memory, registers, share } = this.options;
    const { epoch } = share;
    if (epoch === 0) return undefined;
    if (epoch !== this.epoch) {
      this.queue = undefined;
      this.epoch = epoch;
      const features = driverFeatures(registers);
      const setup = queueSetup(registers, 0);
      if (setup === undefined || (features & VIRTIO_F_EVENT_IDX) === 0n) return undefined;
      const indirect = (features & VIRTIO_F_INDIRECT_DESC) !== 0n;
      this.queue = new Queue(memory, setup, { eventIdx: true, indirect });
    }
    return this.queue;
  }

  private pass(queue: Queue): boolean {
    const { share } = this.options;
    queue.position = share.position;
    let count = 0;
    try {
      for (; count < MAX_REQUESTS; count++) {
        const chain = queue.pop();
        if (chain === undefined) {
          if (queue.enableNotify()) continue;
          share.countNotification();
          return true;
        }
        if (!this.serveChain(queue, chain)) return false;
      }
      return false;
    } finally {
      queue.show();
      if (queue.wantsInterrupt()) this.options.interrupt();
      share.position = queue.position;
      this.options.served?.(count);
    }
  }

  /** Completes the chain, or gives it back to the queue and returns false, or throws. */
  private serveChain(queue: Queue, chain: DescriptorChain): boolean {
    let written: number | undefined;
    try {
      written = this.read(chain);
    } finally {
      if (written === undefined) queue.undoPop();
      else queue.complete(chain, written);
    }
    return written !== undefined;
  }

  /** Does a read, and returns the bytes written to the chain. Undefined if it is something else. */
  private read(chain: DescriptorChain): number | undefined {
    const { headerView } = this;
    const { share, readNow } = this.options;
    const length = chain.writableLength - STATUS_BYTES;
    if (length <= 0 || length > MAX_READ_BYTES || length % SECTOR_BYTES !== 0) return undefined;
    if (chain.read(this.header) < HEADER_BYTES) return undefined;
    if (headerView.getUint32(0, true) !== VIRTIO_BLK_T_IN) return undefined;
    const sector =
      headerView.getUint32(HEADER_SECTOR, true) + headerView.getUint32(HEADER_SECTOR + 4, true) * 2 ** 32;
    if (sector + length / SECTOR_BYTES > share.sectors) return undefined;
    const into = bufferViews(chain.writable, 0, length);
    if (readNow(share.fd, into, sector * SECTOR_BYTES) !== length) return undefined;
    const status = chain.writable[chain.writable.length - 1]!;
    status.bytes[status.length - 1] = VIRTIO_BLK_S_OK;
    share.countRead(length);
    return chain.writableLength;
  }
}
