/** The host's side of vsock: one listening socket, and one per port that host programs listen on. */

import type { HostSockets, HostStream, HostStreamEvents } from "../devices/virtio/vsock/host-sockets.ts";
import { EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, type Epoll } from "../platform/epoll.ts";
import { SystemError } from "../platform/errno.ts";
import { ERRNO } from "../platform/errno-numbers.ts";
import { closeFile } from "../platform/files.ts";
import { readVector, writeVector } from "../platform/iovec.ts";
import { acceptUnix, connectUnix, hasHungUp, shutdownSocket } from "../platform/unix-socket.ts";
import type { Timer, TimerSource } from "../ratelimit/rate-limiter.ts";

/** Connections taken before other work gets its turn. */
const ACCEPTS_PER_TURN = 32;
/** Pause when there are no descriptors left, ms: the kernel would report the waiting connection again at once. */
const PAUSE_MS = 100;

/** What is told of a vsock device on the host. `udsPath`: ports of the host are at `<udsPath>_<port>`. */
export interface VsockSocketOptions {
  readonly listenFd: number;
  readonly udsPath: string;
  readonly log: (message: string) => void;
}

export class VsockSockets implements HostSockets {
  private accept: ((stream: HostStream) => void) | undefined;
  private readonly pause: Timer;

  constructor(
    private readonly epoll: Epoll,
    timers: TimerSource,
    private readonly options: VsockSocketOptions,
  ) {
    this.pause = timers.create(() => this.watch());
  }

  listen(accept: (stream: HostStream) => void): void {
    this.accept = accept;
    this.watch();
  }

  stopListening(): void {
    this.accept = undefined;
    this.pause.cancel();
    this.epoll.forget(this.options.listenFd);
  }

  connect(port: number): HostStream | "busy" | undefined {
    try {
      const fd = connectUnix(`${this.options.udsPath}_${port}`);
      return fd === "busy" ? fd : new SocketStream(this.epoll, fd);
    } catch (error) {
      if (!(error instanceof SystemError)) throw error;
      const absent = error.errno === ERRNO.ENOENT || error.errno === ERRNO.ECONNREFUSED;
      if (!absent) this.options.log(`vsock: cannot connect to the host's port ${port}: ${error.message}`);
      return undefined;
    }
  }

  private watch(): void {
    if (this.accept === undefined) return;
    this.epoll.watch(this.options.listenFd, EPOLLIN, () => this.take());
  }

  private take(): void {
    for (let i = 0; i < ACCEPTS_PER_TURN; i++) {
      let fd: number | undefined;
      try {
        fd = acceptUnix(this.options.listenFd);
      } catch (error) {
        if (!(error instanceof SystemError)) throw error;
        this.options.log(`vsock: cannot accept a host connection: ${error.message}`);
        this.epoll.forget(this.options.listenFd);
        this.pause.set(PAUSE_MS);
        return;
      }
      if (fd === undefined) return;
      const stream = new SocketStream(this.epoll, fd);
      if (this.accept === undefined) stream.close();
      else this.accept(stream);
    }
  }
}

class SocketStream implements HostStream {
  private closed = false;

  constructor(
    private readonly epoll: Epoll,
    private readonly fd: number,
  ) {}

  watch(events: HostStreamEvents): void {
    // Asked for once: edges cost no system call for each change of mind, and there are many connections.
    this.epoll.forget(this.fd);
    this.epoll.watch(this.fd, EPOLLET | EPOLLIN | EPOLLOUT, (ready) => {
      if ((ready & EPOLLOUT) !== 0 && !this.closed) events.onWritable();
      if ((ready & (EPOLLHUP | EPOLLERR)) !== 0 && !this.closed) events.onHangUp();
      else if ((ready & EPOLLIN) !== 0 && !this.closed) events.onReadable();
    });
  }

  read(into: readonly Uint8Array[]): number | undefined {
    return readVector(this.fd, into);
  }

  write(from: readonly Uint8Array[]): number {
    return from.length === 0 ? 0 : (writeVector(this.fd, from) ?? 0);
  }

  shutdownWrite(): void {
    shutdownSocket(this.fd, "write");
  }

  shutdownRead(): void {
    shutdownSocket(this.fd, "read");
  }

  get hungUp(): boolean {
    return hasHungUp(this.fd);
  }

  close(): void {
    if (this.closed) return;
    this.closed = true;
    this.epoll.forget(this.fd);
    closeFile(this.fd);
  }
}
