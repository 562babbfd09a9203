/** Files by descriptor. Buffers may be views of shared memory: bytes go straight between them and the kernel. */

import { check, lastErrno, retrying, SystemError } from "./errno.ts";
import { ERRNO } from "./errno-numbers.ts";
import { cString, libc } from "./libc.ts";

/** Flags of open(2) and file types of inode(7) on x86-64. */
const O_RDONLY = 0;
const O_RDWR = 2;
const O_CREAT = 0o100;
const O_APPEND = 0o2000;
const O_NONBLOCK = 0o4000;
const O_CLOEXEC = 0o2000000;
const S_IFMT = 0o170000;
const S_IFIFO = 0o010000;
const S_IFCHR = 0o020000;
const S_IFDIR = 0o040000;
const S_IFBLK = 0o060000;
const S_IFREG = 0o100000;
const S_IFSOCK = 0o140000;
/** Modes of access(2). */
const R_OK = 4;
const W_OK = 2;
const LOCK_SH = 1;
const LOCK_EX = 2;
const LOCK_NB = 4;
/** _IOR(0x12, 114, size_t), linux/fs.h: size of a block device in bytes. */
const BLKGETSIZE64 = 0x8008_1272;
const TEXT_CHUNK = 16_384;
/** struct stat of x86-64: size and the offsets used here. */
const STAT_BYTES = 144;
const ST_DEV = 0;
const ST_INO = 8;
const ST_MODE = 24;
const ST_RDEV = 40;
const ST_SIZE = 48;
const ST_MTIME = 88;
const ST_CTIME = 104;
/** pollfd.events: write will not block. */
const POLLOUT = 4;

export interface OpenOptions {
  /** Open for writing as well as reading. */
  write?: boolean;
  /** Create the file (mode 0644) if it is not there. */
  create?: boolean;
  /** Every write goes to the end. */
  append?: boolean;
  /** O_NONBLOCK: also opens a FIFO that has no reader yet, together with `write`. */
  nonblock?: boolean;
}

/** Opens `path` (close-on-exec) and returns its descriptor. Throws {@link SystemError}. */
export function openFile(path: string, options: OpenOptions = {}): number {
  let flags = O_CLOEXEC | (options.write ? O_RDWR : O_RDONLY);
  if (options.create) flags |= O_CREAT;
  if (options.append) flags |= O_APPEND;
  if (options.nonblock) flags |= O_NONBLOCK;
  const name = cString(path);
  return retrying("open", () => libc().open(name, flags, 0o644));
}

/** Throws {@link SystemError} if this process may not open `path` for reading and writing. Does not open it. */
export function checkAccess(path: string): void {
  check(libc().access(cString(path), R_OK | W_OK), "access");
}

export function closeFile(fd: number): void {
  check(libc().close(fd), "close");
}

/** Takes `path` out of the file system; harmless if it is not there or cannot be removed. */
export function removeFile(path: string): void {
  libc().unlink(cString(path));
}

/** A second descriptor for the same open file. Throws {@link SystemError}. */
export function duplicateFile(fd: number): number {
  return check(libc().dup(fd), "dup");
}

/**
 * Reads from `offset` (bytes) until `into` is full or the file ends. Returns the number of bytes read.
 * Throws {@link SystemError}.
 */
export function readAt(fd: number, into: Uint8Array, offset: number): number {
  let done = 0;
  while (done < into.length) {
    const rest = done === 0 ? into : into.subarray(done);
    const n = retrying("pread", () => libc().pread(fd, rest, rest.length, offset + done));
    if (n === 0) break;
    done += n;
  }
  return done;
}

/**
 * Writes all of `from` at `offset` (bytes). Returns its length, or fewer if the kernel took nothing more
 * without an error. Throws {@link SystemError}.
 */
export function writeAt(fd: number, from: Uint8Array, offset: number): number {
  let done = 0;
  while (done < from.length) {
    const rest = done === 0 ? from : from.subarray(done);
    const n = retrying("pwrite", () => libc().pwrite(fd, rest, rest.length, offset + done));
    if (n === 0) break;
    done += n;
  }
  return done;
}

function mayBlock(call: string, run: () => number | bigint): number | undefined {
  for (;;) {
    const value = Number(run());
    if (value >= 0) return value;
    const errno = lastErrno();
    if (errno === ERRNO.EAGAIN) return undefined;
    if (errno !== ERRNO.EINTR) throw new SystemError(call, errno);
  }
}

/** One read. 0 is the end of the stream (or an empty `into`), undefined is EAGAIN. Throws {@link SystemError}. */
export function readSome(fd: number, into: Uint8Array): number | undefined {
  if (into.length === 0) return 0;
  return mayBlock("read", () => libc().read(fd, into, into.length));
}

/** All that is left to read, as text in UTF-8. Throws {@link SystemError}. */
export function readText(fd: number): string {
  const decoder = new TextDecoder();
  const chunk = new Uint8Array(TEXT_CHUNK);
  let text = "";
  for (;;) {
    const count = retrying("read", () => libc().read(fd, chunk, chunk.length));
    if (count === 0) return text + decoder.decode();
    text += decoder.decode(chunk.subarray(0, count), { stream: true });
  }
}

/** One write. Returns the bytes taken; undefined is EAGAIN. Throws {@link SystemError}. */
export function writeSome(fd: number, from: Uint8Array): number | undefined {
  if (from.length === 0) return 0;
  return mayBlock("write", () => libc().write(fd, from, from.length));
}

/** Writes all of `from`, waiting for room if the descriptor is non-blocking. Throws {@link SystemError}. */
export function writeAll(fd: number, from: Uint8Array): void {
  let done = 0;
  while (done < from.length) {
    const n = writeSome(fd, from.subarray(done));
    if (n === undefined) waitWritable(fd, -1);
    else done += n;
  }
}

/** Waits up to `timeoutMs` (-1: for ever, 0: only asks) until a write would not block, or would fail. */
export function waitWritable(fd: number, timeoutMs: number): boolean {
  const pollfd = new Int32Array([fd, POLLOUT]);
  return retrying("poll", () => libc().poll(pollfd, 1, timeoutMs)) > 0;
}

/** Data of the file is on the storage device when this returns. Throws {@link SystemError} (EIO, ENOSPC...). */
export function syncData(fd: number): void {
  retrying("fdatasync", () => libc().fdatasync(fd));
}

export interface FileStatus {
  /** Bytes; 0 for a block device (see {@link blockDeviceSize}). */
  size: number;
  dev: bigint;
  ino: bigint;
  rdev: bigint;
  /** Last change of content, and of content or attributes: nanoseconds of Unix time. */
  mtime: bigint;
  ctime: bigint;
  kind: "file" | "directory" | "block" | "character device" | "fifo" | "socket" | "other";
}

const KINDS: ReadonlyMap<number, FileStatus["kind"]> = new Map([
  [S_IFREG, "file"],
  [S_IFDIR, "directory"],
  [S_IFBLK, "block"],
  [S_IFCHR, "character device"],
  [S_IFIFO, "fifo"],
  [S_IFSOCK, "socket"],
]);

/** What the descriptor refers to. Throws {@link SystemError}. */
export function fileStatus(fd: number): FileStatus {
  const bytes = new Uint8Array(STAT_BYTES);
  check(libc().fstat(fd, bytes), "fstat");
  const stat = new DataView(bytes.buffer);
  return {
    size: Number(stat.getBigInt64(ST_SIZE, true)),
    dev: stat.getBigUint64(ST_DEV, true),
    ino: stat.getBigUint64(ST_INO, true),
    rdev: stat.getBigUint64(ST_RDEV, true),
    mtime: timespec(stat, ST_MTIME),
    ctime: timespec(stat, ST_CTIME),
    kind: KINDS.get(stat.getUint32(ST_MODE, true) & S_IFMT) ?? "other",
  };
}

function timespec(stat: DataView, at: number): bigint {
  return stat.getBigInt64(at, true) * 1_000_000_000n + stat.getBigInt64(at + 8, true);
}

/** Makes a file `size` bytes long; what is added is zero and takes no room. Throws {@link SystemError}. */
export function setFileSize(fd: number, size: number): void {
  retrying("ftruncate", () => libc().ftruncate(fd, size));
}

/** Size of a block device in bytes. Throws {@link SystemError} if `fd` is not one. */
export function blockDeviceSize(fd: number): number {
  const size = new BigUint64Array(1);
  check(libc().ioctl(fd, BLKGETSIZE64, size), "ioctl(BLKGETSIZE64)");
  return Number(size[0]);
}

/**
 * Takes an advisory lock that lasts as long as the descriptor. Returns false if someone else holds a lock
 * that excludes it. Throws {@link SystemError}.
 */
export function tryLock(fd: number, kind: "shared" | "exclusive"): boolean {
  return (
    mayBlock("flock", () => libc().flock(fd, LOCK_NB | (kind === "shared" ? LOCK_SH : LOCK_EX))) !== undefined
  );
}
