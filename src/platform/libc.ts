/**
 * The C library, opened once per thread and only when something first needs it.
 *
 * x86-64 Linux with glibc: structure layouts in this folder are that ABI's. Variadic functions (`open`,
 * `ioctl`) are called as plain ones, which the System V calling convention allows for integer arguments.
 */

import { dlopen, FFIType } from "bun:ffi";

const SYMBOLS = {
  __errno_location: { args: [], returns: "ptr" },
  strerror: { args: ["i32"], returns: "cstring" },
  open: { args: ["ptr", "i32", "i32"], returns: "i32" },
  access: { args: ["ptr", "i32"], returns: "i32" },
  unlink: { args: ["ptr"], returns: "i32" },
  dup: { args: ["i32"], returns: "i32" },
  close: { args: ["i32"], returns: "i32" },
  read: { args: ["i32", "ptr", "usize"], returns: FFIType.i64_fast },
  write: { args: ["i32", "ptr", "usize"], returns: FFIType.i64_fast },
  pread: { args: ["i32", "ptr", "usize", "i64"], returns: FFIType.i64_fast },
  pwrite: { args: ["i32", "ptr", "usize", "i64"], returns: FFIType.i64_fast },
  ftruncate: { args: ["i32", "i64"], returns: "i32" },
  fdatasync: { args: ["i32"], returns: "i32" },
  fstat: { args: ["i32", "ptr"], returns: "i32" },
  flock: { args: ["i32", "i32"], returns: "i32" },
  ioctl: { args: ["i32", "u64", "ptr"], returns: "i32" },
  poll: { args: ["ptr", "u64", "i32"], returns: "i32" },
  localtime_r: { args: ["ptr", "ptr"], returns: "ptr" },
  clock_gettime: { args: ["i32", "ptr"], returns: "i32" },
  eventfd: { args: ["u32", "i32"], returns: "i32" },
  epoll_create1: { args: ["i32"], returns: "i32" },
  epoll_ctl: { args: ["i32", "i32", "i32", "ptr"], returns: "i32" },
  epoll_wait: { args: ["i32", "ptr", "i32", "i32"], returns: "i32" },
  isatty: { args: ["i32"], returns: "i32" },
  tcgetattr: { args: ["i32", "ptr"], returns: "i32" },
  tcsetattr: { args: ["i32", "i32", "ptr"], returns: "i32" },
  getrandom: { args: ["ptr", "usize", "u32"], returns: FFIType.i64_fast },
} as const;

function load() {
  return dlopen("libc.so.6", SYMBOLS).symbols;
}

let symbols: ReturnType<typeof load> | undefined;

/** The C functions of this folder. Throws if the system's C library is not glibc. */
export function libc(): ReturnType<typeof load> {
  symbols ??= load();
  return symbols;
}

/** `text` as a NUL-terminated C string. Throws a RangeError if it has a NUL inside. */
export function cString(text: string): Uint8Array {
  if (text.includes("\0")) throw new RangeError(`a path may not contain a NUL byte: ${JSON.stringify(text)}`);
  return new TextEncoder().encode(`${text}\0`);
}
