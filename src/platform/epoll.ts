/** Waiting for many descriptors at once (epoll(7)), level-triggered unless {@link EPOLLET} is asked for. */

import { dlopen, FFIType } from "bun:ffi";
import { check, lastErrno, SystemError } from "./errno.ts";
import { ERRNO } from "./errno-numbers.ts";
import { closeFile } from "./files.ts";
import { libc } from "./libc.ts";

const EPOLL_CLOEXEC = 0o2000000;
const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;
const EPOLL_CTL_MOD = 3;
/** struct epoll_event is packed on x86-64: u32 events, u64 data. */
const EVENT_BYTES = 12;
const MAX_EVENTS = 16;
/** Number of epoll_pwait2(2) on x86-64, Linux 5.11. */
const SYS_EPOLL_PWAIT2 = 441;
/** A sleep that may be longer than this, ms, need not be exact to less than one. */
const LONG_SLEEP = 10;

export const EPOLLIN = 1;
export const EPOLLOUT = 4;
export const EPOLLERR = 8;
export const EPOLLHUP = 16;
/** Edge-triggered: a call comes when something becomes ready, not as long as it is. */
export const EPOLLET = 0x8000_0000;

function load() {
  // What reads errno: opening it between a failed call and that would overwrite it.
  libc();
  return dlopen("libc.so.6", {
    syscall: { args: ["i64", "i64", "ptr", "i64", "ptr", "ptr", "u64"], returns: FFIType.i64_fast },
  }).symbols;
}

let symbols: ReturnType<typeof load> | undefined;

/** `events`: EPOLL bits. EPOLLERR and EPOLLHUP come without being asked for. */
export type ReadyHandler = (events: number) => void;

export class Epoll {
  private readonly fd: number;
  private readonly handlers = new Map<number, { wanted: number; handler: ReadyHandler }>();
  private readonly event = new Uint8Array(EVENT_BYTES);
  private readonly eventView = new DataView(this.event.buffer);
  private readonly ready = new Uint8Array(EVENT_BYTES * MAX_EVENTS);
  private readonly readyView = new DataView(this.ready.buffer);
  /** struct timespec. */
  private readonly timeout = new BigInt64Array(2);
  /** The kernel has epoll_pwait2, as far as is known. */
  private exact = true;

  constructor() {
    this.fd = check(libc().epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
  }

  /**
   * Calls `handler` from {@link wait} while one of `events` holds for `fd`; `events` 0 stops that, and the
   * handler is kept. Returns false if `fd` cannot be waited for: a regular file, which is always ready.
   */
  watch(fd: number, events: number, handler: ReadyHandler): boolean {
    const known = this.handlers.get(fd);
    if (events === 0) {
      this.forget(fd);
      return true;
    }
    if (known?.wanted !== events) {
      this.eventView.setUint32(0, events, true);
      this.eventView.setBigUint64(4, BigInt(fd), true);
      const op = known === undefined ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
      if (libc().epoll_ctl(this.fd, op, fd, this.event) < 0) {
        const errno = lastErrno();
        if (errno === ERRNO.EPERM) return false;
        throw new SystemError("epoll_ctl", errno);
      }
    }
    this.handlers.set(fd, { wanted: events, handler });
    return true;
  }

  /** Stops waiting for `fd`. Harmless if it was not waited for. */
  forget(fd: number): void {
    if (!this.handlers.delete(fd)) return;
    check(libc().epoll_ctl(this.fd, EPOLL_CTL_DEL, fd, this.event), "epoll_ctl");
  }

  /**
   * Sleeps up to `timeoutMs` (-1: for ever; 0: not at all), then calls the handlers of what is ready. Returns false if
   * nothing was: time is up, or a signal interrupted the sleep. A fraction of a millisecond counts in short sleeps if the
   * kernel is Linux 5.11 or newer, and is rounded up otherwise.
   */
  wait(timeoutMs: number): boolean {
    const count = this.sleep(timeoutMs);
    if (count < 0) {
      const errno = lastErrno();
      if (errno === ERRNO.EINTR) return false;
      throw new SystemError("epoll_wait", errno);
    }
    for (let i = 0; i < count; i++) {
      const events = this.readyView.getUint32(i * EVENT_BYTES, true);
      const fd = Number(this.readyView.getBigUint64(i * EVENT_BYTES + 4, true));
      // A handler may have forgotten a descriptor whose event comes later in this batch.
      this.handlers.get(fd)?.handler(events);
    }
    return count > 0;
  }

  /** Fills `ready` and returns how many there are, or a negative number. */
  private sleep(timeoutMs: number): number {
    if (!this.exact || Number.isInteger(timeoutMs) || timeoutMs > LONG_SLEEP) {
      return libc().epoll_wait(this.fd, this.ready, MAX_EVENTS, Math.ceil(timeoutMs));
    }
    symbols ??= load();
    this.timeout[1] = BigInt(Math.ceil(timeoutMs * 1e6));
    const { syscall } = symbols;
    const count = Number(syscall(SYS_EPOLL_PWAIT2, this.fd, this.ready, MAX_EVENTS, this.timeout, null, 0));
    if (count >= 0 || lastErrno() !== ERRNO.ENOSYS) return count;
    this.exact = false;
    return this.sleep(timeoutMs);
  }

  close(): void {
    this.handlers.clear();
    closeFile(this.fd);
  }
}
