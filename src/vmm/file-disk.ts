/** A disk image or block device on the host. */

import type { DiskFile } from "../devices/virtio/block/disk.ts";
import { SystemError } from "../platform/errno.ts";
import {
  blockDeviceSize,
  closeFile,
  duplicateFile,
  type FileStatus,
  fileStatus,
  openFile,
  readAt,
  syncData,
  tryLock,
  writeAt,
} from "../platform/files.ts";
import { punchHole, zeroRange } from "../platform/holes.ts";
import { readVectorAt, writeVectorAt } from "../platform/iovec.ts";
import { ConfigError } from "./config-error.ts";

/** A backing file, opened and locked. Plain data: threads of one process share the descriptor. */
export interface OpenDisk {
  readonly fd: number;
  /** Bytes. */
  readonly size: number;
  /** What the guest reads with GET_ID, 20 bytes: the file's device and inode numbers, as Firecracker does. */
  readonly id: Uint8Array;
}

const DISK_ID_BYTES = 20;
/** Zeros are written in pieces of this size where the file system has no faster way, in bytes. */
const ZEROS_BYTES = 2 ** 18;

/**
 * Opens the backing file of drive `id`, and keeps another microVM from writing to it. `current` is the file that
 * the drive has now: it may be the same one, grown. Throws {@link ConfigError}.
 */
export function openDisk(id: string, path: string, readOnly: boolean, current?: OpenDisk): OpenDisk {
  let fd: number;
  try {
    // Non-blocking: a FIFO given by mistake must not hang here.
    fd = openFile(path, { write: !readOnly, nonblock: true });
  } catch (error) {
    if (!(error instanceof SystemError || error instanceof RangeError)) throw error;
    throw new ConfigError(`Unable to open the block device \`${id}\`: ${path}: ${error.message}`);
  }
  try {
    const status = fileStatus(fd);
    if (status.kind !== "file" && status.kind !== "block") {
      throw new ConfigError(
        `The backing file of block device \`${id}\` must be a file or a block device: ${path} is a ${status.kind}`,
      );
    }
    if (current !== undefined && isSameFile(status, fileStatus(current.fd))) {
      closeFile(fd);
      // A lock belongs to an opened file, and a second one of the same file would exclude the first.
      fd = duplicateFile(current.fd);
    } else if (!tryLock(fd, readOnly ? "shared" : "exclusive")) {
      const advice = readOnly ? "Stop that one." : "Stop that one, or use the drive read-only in both.";
      throw new ConfigError(
        `The backing file of block device \`${id}\` is in use by another microVM: ${path}. ${advice}`,
      );
    }
    const size = status.kind === "block" ? blockDeviceSize(fd) : status.size;
    return { fd, size, id: diskId(status) };
  } catch (error) {
    closeFile(fd);
    throw error;
  }
}

function isSameFile(a: FileStatus, b: FileStatus): boolean {
  return a.dev === b.dev && a.ino === b.ino;
}

/** The id of a file: st_dev, st_rdev and st_ino in decimal, cut to 20 bytes. */
export function diskId(status: Pick<FileStatus, "dev" | "rdev" | "ino">): Uint8Array {
  const id = new Uint8Array(DISK_ID_BYTES);
  id.set(new TextEncoder().encode(`${status.dev}${status.rdev}${status.ino}`).subarray(0, DISK_ID_BYTES));
  return id;
}

/** Transfers go straight between guest RAM and the file. All methods throw {@link SystemError}. */
export class FileDisk implements DiskFile {
  readonly size: number;
  readonly fd: number;

  constructor(disk: OpenDisk) {
    this.fd = disk.fd;
    this.size = disk.size;
  }

  readAt(offset: number, into: readonly Uint8Array[]): number {
    const [first] = into;
    return into.length === 1 && first !== undefined
      ? readAt(this.fd, first, offset)
      : readVectorAt(this.fd, into, offset);
  }

  writeAt(offset: number, from: readonly Uint8Array[]): number {
    const [first] = from;
    return from.length === 1 && first !== undefined
      ? writeAt(this.fd, first, offset)
      : writeVectorAt(this.fd, from, offset);
  }

  discard(offset: number, length: number): void {
    // Where the file system has no holes the disk stays as it is.
    punchHole(this.fd, offset, length);
  }

  writeZeros(offset: number, length: number, unmap: boolean): void {
    if (unmap && punchHole(this.fd, offset, length)) return;
    if (zeroRange(this.fd, offset, length)) return;
    const zeros = new Uint8Array(Math.min(length, ZEROS_BYTES));
    for (let done = 0; done < length; ) {
      const part = zeros.subarray(0, Math.min(zeros.length, length - done));
      const put = writeAt(this.fd, part, offset + done);
      if (put === 0) throw new Error(`zeros end at ${offset + done}`);
      done += put;
    }
  }

  sync(): void {
    syncData(this.fd);
  }
}
