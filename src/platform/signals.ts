/** Interrupting a system call that another thread of this process sleeps in. */

import { check, lastErrno, SystemError } from "./errno.ts";
import { ERRNO } from "./errno-numbers.ts";
import { cString } from "./libc.ts";
import { libcKvm } from "./libc-kvm.ts";

/** A real-time signal that neither glibc (32, 33) nor the runtime uses. */
export const KICK_SIGNAL = 36;
/** struct sigaction of glibc, x86-64: handler, 128 bytes of mask, flags, restorer. */
const SIGACTION_BYTES = 152;
const RTLD_DEFAULT = 0;

let installed = false;

/**
 * Must have been called once, on any thread, before {@link kickThread}. The handler does nothing, and is there so
 * that the signal interrupts a system call: without one it would end the process, ignored it would do nothing.
 */
export function installKickHandler(): void {
  if (installed) return;
  // getpid is safe in a signal handler and has no effect.
  const handler = libcKvm().dlsym(RTLD_DEFAULT, cString("getpid"));
  if (handler === null) throw new Error("the C library has no getpid");
  const action = new Uint8Array(SIGACTION_BYTES);
  new DataView(action.buffer).setBigUint64(0, BigInt(handler), true);
  check(libcKvm().sigaction(KICK_SIGNAL, action, 0), "sigaction");
  installed = true;
}

/** Linux id of the calling thread. */
export function currentThread(): number {
  return libcKvm().gettid();
}

/**
 * Makes the system call in which thread `tid` of this process sleeps return EINTR. Nothing happens if it is in
 * none, or has ended.
 */
export function kickThread(tid: number): void {
  if (libcKvm().tgkill(libcKvm().getpid(), tid, KICK_SIGNAL) === 0) return;
  const errno = lastErrno();
  if (errno !== ERRNO.ESRCH) throw new SystemError("tgkill", errno);
}
