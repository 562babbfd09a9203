/** Whether the kernel lets this process use a facility, found out by asking for it with as little as possible. */

import { dlopen, FFIType } from "bun:ffi";
import { errnoName, lastErrno } from "./errno.ts";
import { ERRNO } from "./errno-numbers.ts";
import { closeFile } from "./files.ts";
import { libc } from "./libc.ts";

/** System call numbers of x86-64. */
const SYS_USERFAULTFD = 323;
const SYS_IO_URING_SETUP = 425;

const O_CLOEXEC = 0o2000000;
const IO_URING_PARAMS_BYTES = 120;

function systemCall() {
  // What reads errno: opening it between a failed call and that would overwrite it.
  libc();
  const { symbols } = dlopen("libc.so.6", {
    syscall: { args: ["i64", "u64", "ptr"], returns: FFIType.i64_fast },
  });
  return (number: number, first: number, second: Uint8Array): number =>
    Number(symbols.syscall(number, first, second));
}

/** Name of the errno with which io_uring_setup(2) is refused, or undefined if there is io_uring. */
export function ioUringRefusal(): string | undefined {
  const call = systemCall();
  // A ring without entries: an invalid argument to a kernel that looks at it at all.
  call(SYS_IO_URING_SETUP, 0, new Uint8Array(IO_URING_PARAMS_BYTES));
  const errno = lastErrno();
  return errno === ERRNO.EINVAL ? undefined : errnoName(errno);
}

/** What to do about a refusal of io_uring, or undefined. */
export function ioUringProblem(refusal: string | undefined): string | undefined {
  if (refusal === undefined) return undefined;
  if (refusal === "ENOSYS") return "The host's kernel has no io_uring: use 5.10.51 or newer.";
  return `io_uring is refused (${refusal}): set kernel.io_uring_disabled=0, or allow it in the container's seccomp filter.`;
}

/** Name of the errno with which userfaultfd(2), for faults of the kernel too, is refused, or undefined. */
export function userfaultfdRefusal(): string | undefined {
  const call = systemCall();
  const fd = call(SYS_USERFAULTFD, O_CLOEXEC, new Uint8Array(1));
  if (fd < 0) return errnoName(lastErrno());
  closeFile(fd);
  return undefined;
}
