/** Errors of system calls: which call, which errno, and the C library's own words for it. */

import { read } from "bun:ffi";
import { ERRNO } from "./errno-numbers.ts";
import { libc } from "./libc.ts";

/** Name of an errno (`2` is `ENOENT`), or `E<number>` if it has none here. */
export function errnoName(errno: number): string {
  for (const [name, value] of Object.entries(ERRNO)) if (value === errno) return name;
  return `E${errno}`;
}

/**
 * A failed system call. The message reads like Firecracker's: `No such file or directory (os error 2)`,
 * so that it can be put behind a sentence that says what was being done.
 */
export class SystemError extends Error {
  /** Errno name, e.g. `ENOENT`. */
  readonly code: string;

  constructor(
    /** The system call that failed, e.g. `open`. */
    readonly call: string,
    readonly errno: number,
  ) {
    super(`${libc().strerror(errno)} (os error ${errno})`);
    this.code = errnoName(errno);
    this.name = this.code;
  }
}

/** errno of the last failed call on this thread. Only meaningful right after a call returned an error. */
export function lastErrno(): number {
  const at = libc().__errno_location();
  return typeof at === "number" ? read.i32(at, 0) : 0;
}

/** Passes on the result of a system call. Throws {@link SystemError} if it is negative. */
export function check(result: number | bigint, call: string): number {
  const value = Number(result);
  if (value < 0) throw new SystemError(call, lastErrno());
  return value;
}

/** Repeats a system call that a signal interrupted (EINTR). Throws {@link SystemError} on any other error. */
export function retrying(call: string, run: () => number | bigint): number {
  for (;;) {
    const value = Number(run());
    if (value >= 0) return value;
    const errno = lastErrno();
    if (errno !== ERRNO.EINTR) throw new SystemError(call, errno);
  }
}
