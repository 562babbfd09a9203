/** Reading and writing many buffers with one system call (readv(2), writev(2)). */

import { dlopen, FFIType, ptr } from "bun:ffi";
import { constants } from "node:os";
import { lastErrno, SystemError } from "./errno.ts";
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

/** Buffers beyond this many (IOV_MAX) are left to a further call. */
const MAX_VECTORS = 1024;
/** struct iovec: base and length, 64 bits each. */
const IOVEC_WORDS = 4;

let vector = new Uint32Array(64 * IOVEC_WORDS);

/** struct iovec for each buffer; returns how many. */
function fill(buffers: readonly Uint8Array[]): number {
  const count = Math.min(buffers.length, MAX_VECTORS);
  if (count * IOVEC_WORDS > vector.length) vector = new Uint32Array(MAX_VECTORS * IOVEC_WORDS);
  for (let i = 0; i < count; i++) {
    const buffer = buffers[i]!;
    const address = ptr(buffer);
    vector[i * IOVEC_WORDS] = address;
    vector[i * IOVEC_WORDS + 1] = address / 2 ** 32;
    vector[i * IOVEC_WORDS + 2] = buffer.length;
  }
  return count;
}

function transfer(call: "readv" | "writev", fd: number, buffers: readonly Uint8Array[]): number | undefined {
  symbols ??= load();
  const run = symbols[call];
  const count = fill(buffers);
  for (;;) {
    const value = Number(run(fd, vector, count));
    if (value >= 0) return value;
    const errno = lastErrno();
    if (errno === constants.errno.EAGAIN) return undefined;
    if (errno !== constants.errno.EINTR) throw new SystemError(call, errno);
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
