/** Reading and writing many buffers with one system call (readv(2), writev(2)). */

import { dlopen, FFIType, ptr } from "bun:ffi";
import { lastErrno, retrying, SystemError } from "./errno.ts";
import { ERRNO } from "./errno-numbers.ts";
import { libc } from "./libc.ts";

const SYMBOLS = {
  readv: { args: ["i32", "ptr", "i32"], returns: FFIType.i64_fast },
  writev: { args: ["i32", "ptr", "i32"], returns: FFIType.i64_fast },
} as const;

function load() {
  // What reads errno: opening it between a failed call and that would overwrite it.
  libc();
  return dlopen("libc.so.6", SYMBOLS).symbols;
}

let symbols: ReturnType<typeof load> | undefined;

const SYMBOLS_NOW = {
  preadv2: { args: ["i32", "ptr", "i32", "i64", "i32"], returns: FFIType.i64_fast },
} as const;

function loadNow() {
  libc();
  return dlopen("libc.so.6", SYMBOLS_NOW).symbols;
}

let symbolsNow: ReturnType<typeof loadNow> | undefined;

/** Of preadv2(2): only what is there without waiting for a device. */
const RWF_NOWAIT = 8;

const SYMBOLS_AT = {
  preadv: { args: ["i32", "ptr", "i32", "i64"], returns: FFIType.i64_fast },
  pwritev: { args: ["i32", "ptr", "i32", "i64"], returns: FFIType.i64_fast },
} as const;

function loadAt() {
  libc();
  return dlopen("libc.so.6", SYMBOLS_AT).symbols;
}

let symbolsAt: ReturnType<typeof loadAt> | undefined;

/** Buffers beyond this many (IOV_MAX) are left to a further call. */
const MAX_VECTORS = 1024;
/** struct iovec: base and length, 64 bits each. */
export const IOVEC_WORDS = 4;

let vector = new Uint32Array(64 * IOVEC_WORDS);

/** struct iovec for each buffer; returns how many. */
function fill(buffers: readonly Uint8Array[]): number {
  const count = Math.min(buffers.length, MAX_VECTORS);
  if (count * IOVEC_WORDS > vector.length) vector = new Uint32Array(MAX_VECTORS * IOVEC_WORDS);
  for (let i = 0; i < count; i++) setIovec(vector, i, buffers[i]!);
  return count;
}

/** Makes entry `i` of `vector`, a row of struct iovec, name `buffer`. */
export function setIovec(vector: Uint32Array, i: number, buffer: Uint8Array): void {
  const address = ptr(buffer);
  vector[i * IOVEC_WORDS] = address;
  vector[i * IOVEC_WORDS + 1] = address / 2 ** 32;
  vector[i * IOVEC_WORDS + 2] = buffer.length;
}

function transfer(call: "readv" | "writev", fd: number, buffers: readonly Uint8Array[]): number | undefined {
  symbols ??= load();
  const run = symbols[call];
  const count = fill(buffers);
  for (;;) {
    const value = Number(run(fd, vector, count));
    if (value >= 0) return value;
    const errno = lastErrno();
    if (errno === ERRNO.EAGAIN) return undefined;
    if (errno !== ERRNO.EINTR) throw new SystemError(call, errno);
  }
}

/** One read into `into`, in order; no buffer may be empty. undefined is EAGAIN. Throws {@link SystemError}. */
export function readVector(fd: number, into: readonly Uint8Array[]): number | undefined {
  return transfer("readv", fd, into);
}

/** One write of `from`; no buffer may be empty. Returns the bytes taken; undefined is EAGAIN. Throws {@link SystemError}. */
export function writeVector(fd: number, from: readonly Uint8Array[]): number | undefined {
  return transfer("writev", fd, from);
}

/** What is left of `buffers` after their first `done` bytes. */
export function buffersAfter(buffers: readonly Uint8Array[], done: number): Uint8Array[] {
  const rest: Uint8Array[] = [];
  let skip = done;
  for (const buffer of buffers) {
    if (skip >= buffer.length) {
      skip -= buffer.length;
      continue;
    }
    rest.push(skip === 0 ? buffer : buffer.subarray(skip));
    skip = 0;
  }
  return rest;
}

function transferAt(
  call: "preadv" | "pwritev",
  fd: number,
  buffers: readonly Uint8Array[],
  offset: number,
): number {
  symbolsAt ??= loadAt();
  const run = symbolsAt[call];
  let rest = buffers;
  let done = 0;
  while (rest.length > 0) {
    const count = fill(rest);
    const moved = retrying(call, () => run(fd, vector, count, offset + done));
    if (moved === 0) break;
    done += moved;
    rest = buffersAfter(rest, moved);
  }
  return done;
}

/**
 * Reads from `offset` (bytes) until `into` is full, in order, or the file ends; no buffer may be empty. Returns the bytes
 * read. Throws {@link SystemError}.
 */
export function readVectorAt(fd: number, into: readonly Uint8Array[], offset: number): number {
  return transferAt("preadv", fd, into, offset);
}

/**
 * Reads from `offset` (bytes) what is in the page cache, up to all of `into`, and returns the bytes read; undefined if
 * that would have to wait. Throws {@link SystemError}: EOPNOTSUPP on file systems that cannot tell.
 */
export function readVectorNow(fd: number, into: readonly Uint8Array[], offset: number): number | undefined {
  symbolsNow ??= loadNow();
  const count = fill(into);
  const value = Number(symbolsNow.preadv2(fd, vector, count, offset, RWF_NOWAIT));
  if (value >= 0) return value;
  const errno = lastErrno();
  if (errno === ERRNO.EAGAIN || errno === ERRNO.EINTR) return undefined;
  throw new SystemError("preadv2", errno);
}

/** Writes all of `from` at `offset`, and returns fewer bytes only if the kernel takes no more without an error. */
export function writeVectorAt(fd: number, from: readonly Uint8Array[], offset: number): number {
  return transferAt("pwritev", fd, from, offset);
}
