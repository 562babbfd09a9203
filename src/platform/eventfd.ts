/** A counter to wake another thread that sleeps in {@link Epoll.wait} (eventfd(2)). */

import { check } from "./errno.ts";
import { closeFile, readSome, writeSome } from "./files.ts";
import { libc } from "./libc.ts";

const EFD_CLOEXEC = 0o2000000;
const EFD_NONBLOCK = 0o4000;

const ONE = new Uint8Array(new BigUint64Array([1n]).buffer);

export class EventFd {
  private readonly counter = new Uint8Array(8);

  /** Wraps the descriptor of an existing eventfd: threads of one process share descriptors. */
  constructor(readonly fd: number) {}

  static create(): EventFd {
    return new EventFd(check(libc().eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd"));
  }

  /** Wakes the sleeper; counts as one if it is not asleep. A full counter means that it is awake already. */
  signal(): void {
    writeSome(this.fd, ONE);
  }

  /** Takes all signals sent so far. */
  clear(): void {
    readSome(this.fd, this.counter);
  }

  close(): void {
    closeFile(this.fd);
  }
}
