/** Holes and zeros in files and block devices (fallocate(2)). Apart from files.ts because most machines need neither. */

import { dlopen } from "bun:ffi";
import { retrying, SystemError } from "./errno.ts";
import { ERRNO } from "./errno-numbers.ts";
import { libc } from "./libc.ts";

/** linux/falloc.h */
const FALLOC_FL_KEEP_SIZE = 0x01;
const FALLOC_FL_PUNCH_HOLE = 0x02;
const FALLOC_FL_ZERO_RANGE = 0x10;

const errno = ERRNO;

const SYMBOLS = { fallocate: { args: ["i32", "i32", "i64", "i64"], returns: "i32" } } as const;

function load() {
  // What reads errno: opening it between a failed call and that would overwrite it.
  libc();
  return dlopen("libc.so.6", SYMBOLS).symbols;
}

let symbols: ReturnType<typeof load> | undefined;

function fallocate(fd: number, mode: number, offset: number, length: number): boolean {
  symbols ??= load();
  const { fallocate: call } = symbols;
  try {
    retrying("fallocate", () => call(fd, mode, offset, length));
    return true;
  } catch (error) {
    const absent = error instanceof SystemError && [errno.EOPNOTSUPP, errno.ENOSYS].includes(error.errno);
    if (absent) return false;
    throw error;
  }
}

/**
 * Gives back what `length` bytes (at least 1) from `offset` on take up of the disk; they read as zeros and the file
 * keeps its size. False if the file system or the device cannot do this. Throws {@link SystemError}.
 */
export function punchHole(fd: number, offset: number, length: number): boolean {
  return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
}

/** Makes `length` bytes (at least 1) zero, with the disk's room for them kept. As {@link punchHole} otherwise. */
export function zeroRange(fd: number, offset: number, length: number): boolean {
  return fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length);
}
