/** What a vCPU's thread needs to know of a block device to read for it, in shared memory. */

import { QUEUE_SHARE_BYTES, QueueShare } from "../queue-share.ts";

/** After the queue's, as 64-bit floats: descriptor of the file, sectors, and what was read. */
const FD = 0;
const SECTORS = 1;
const READS = 2;
const READ_BYTES = 3;
const NOTIFICATIONS = 4;
const FIELDS = 8;
export const DISK_SHARE_BYTES = QUEUE_SHARE_BYTES + 8 * FIELDS;

/** All of it may be used with the lock only, but for {@link counts}. */
export class DiskShare extends QueueShare {
  private readonly fields: Float64Array;

  /** See {@link QueueShare}; `offset` is that of {@link DISK_SHARE_BYTES}. */
  constructor(shared: SharedArrayBuffer, offset: number) {
    super(shared, offset);
    this.fields = new Float64Array(shared, offset + QUEUE_SHARE_BYTES, FIELDS);
  }

  /** The vCPU's thread may read from `fd`, which is open in this process, up to `sectors`. */
  openDisk(fd: number, sectors: number): void {
    this.fields[FD] = fd;
    this.fields[SECTORS] = sectors;
    this.open();
  }

  get fd(): number {
    return this.fields[FD]!;
  }

  get sectors(): number {
    return this.fields[SECTORS]!;
  }

  countRead(bytes: number): void {
    this.fields[READS]!++;
    this.fields[READ_BYTES]! += bytes;
  }

  countNotification(): void {
    this.fields[NOTIFICATIONS]!++;
  }

  /** What the vCPU's thread has done, for metrics. */
  get counts(): { reads: number; bytes: number; notifications: number } {
    const { fields } = this;
    return { reads: fields[READS]!, bytes: fields[READ_BYTES]!, notifications: fields[NOTIFICATIONS]! };
  }
}
