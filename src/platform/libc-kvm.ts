/**
 * Functions of the C library that only a machine on KVM needs. Apart from those of {@link libc} because every
 * function that is opened costs start-up time, which the software CPU must not pay.
 */

import { dlopen } from "bun:ffi";
import { libc } from "./libc.ts";

const SYMBOLS = {
  /** For requests whose argument is a number, not a structure. */
  ioctl: { args: ["i32", "u64", "u64"], returns: "i32" },
  mmap: { args: ["u64", "usize", "i32", "i32", "i32", "i64"], returns: "ptr" },
  munmap: { args: ["ptr", "usize"], returns: "i32" },
  madvise: { args: ["ptr", "usize", "i32"], returns: "i32" },
  dlsym: { args: ["u64", "ptr"], returns: "ptr" },
  sigaction: { args: ["i32", "ptr", "u64"], returns: "i32" },
  getpid: { args: [], returns: "i32" },
  gettid: { args: [], returns: "i32" },
  timer_create: { args: ["i32", "ptr", "ptr"], returns: "i32" },
  timer_settime: { args: ["u64", "i32", "ptr", "u64"], returns: "i32" },
  timer_delete: { args: ["u64"], returns: "i32" },
  tgkill: { args: ["i32", "i32", "i32"], returns: "i32" },
} as const;

function load() {
  // What reads errno: opening it between a failed call and that would overwrite it.
  libc();
  return dlopen("libc.so.6", SYMBOLS).symbols;
}

let symbols: ReturnType<typeof load> | undefined;

/** Throws if the system's C library is not glibc 2.34 or newer. */
export function libcKvm(): ReturnType<typeof load> {
  symbols ??= load();
  return symbols;
}
