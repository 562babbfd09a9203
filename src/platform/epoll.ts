/** Waiting for many descriptors at once (epoll(7)), level-triggered unless {@link EPOLLET} is asked for. */

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

export const EPOLLIN = 1;
export const EPOLLOUT = 4;
export const EPOLLERR = 8;
export const EPOLLHUP = 16;
/** Edge-triggered: a call comes when something becomes ready, not as long as it is. */
export const EPOLLET = 0x8000_0000;

/** `events`: EPOLL bits. EPOLLERR and EPOLLHUP come without being asked for. */
export type ReadyHandler = (events: number) => void;

export class Epoll {
  private readonly fd: number;
  private readonly handlers = new Map<number, { wanted: number; handler: ReadyHandler }>();
  private readonly event = new Uint8Array(EVENT_BYTES);
  private readonly eventView = new DataView(this.event.buffer);
  private readonly ready = new Uint8Array(EVENT_BYTES * MAX_EVENTS);
  private readonly readyView = new DataView(this.ready.buffer);

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
   * nothing was: time is up, or a signal interrupted the sleep.
   */
  wait(timeoutMs: number): boolean {
    const count = libc().epoll_wait(this.fd, this.ready, MAX_EVENTS, timeoutMs);
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

  close(): void {
    this.handlers.clear();
    closeFile(this.fd);
  }
}
