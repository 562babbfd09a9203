/** A timer that interrupts system calls of the thread that made it (timer_create(2)). */

import { check } from "./errno.ts";
import { libcKvm } from "./libc-kvm.ts";
import { currentThread, installKickHandler, KICK_SIGNAL } from "./signals.ts";

const CLOCK_MONOTONIC = 1;
const SIGEV_THREAD_ID = 4;
/** struct sigevent of glibc, x86-64: sigev_value, sigev_signo, sigev_notify, sigev_notify_thread_id. */
const SIGEVENT_BYTES = 64;
const SIGEV_SIGNO = 8;
const SIGEV_NOTIFY = 12;
const SIGEV_NOTIFY_THREAD_ID = 16;

export class Interruption {
  private readonly id: bigint;

  /**
   * From now on, every `period` ms, the system call that the calling thread is in returns EINTR; nothing happens if it
   * is in none. Throws {@link SystemError}.
   */
  constructor(period: number) {
    installKickHandler();
    const event = new Uint8Array(SIGEVENT_BYTES);
    const view = new DataView(event.buffer);
    view.setInt32(SIGEV_SIGNO, KICK_SIGNAL, true);
    view.setInt32(SIGEV_NOTIFY, SIGEV_THREAD_ID, true);
    view.setInt32(SIGEV_NOTIFY_THREAD_ID, currentThread(), true);
    const id = new BigUint64Array(1);
    check(libcKvm().timer_create(CLOCK_MONOTONIC, event, id), "timer_create");
    this.id = id[0]!;
    this.setPeriod(period);
  }

  /** Every `period` ms, counted from now. */
  setPeriod(period: number): void {
    const seconds = BigInt(Math.floor(period / 1000));
    const nanoseconds = BigInt(Math.round((period % 1000) * 1e6));
    // struct itimerspec: it_interval and it_value.
    const times = BigInt64Array.of(seconds, nanoseconds, seconds, nanoseconds);
    check(libcKvm().timer_settime(this.id, 0, times, 0), "timer_settime");
  }

  close(): void {
    check(libcKvm().timer_delete(this.id), "timer_delete");
  }
}
