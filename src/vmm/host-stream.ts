/**
 * The host's ends of a guest's byte streams: fds 0, 1, 2 or a file. The descriptors are shared with whoever
 * started the monitor, so they are not made non-blocking: a read or write is done only when poll says that
 * it will not block.
 */

import { EPOLLIN, EPOLLOUT, type Epoll } from "../platform/epoll.ts";
import { SystemError } from "../platform/errno.ts";
import { ERRNO } from "../platform/errno-numbers.ts";
import {
  closeFile,
  duplicateFile,
  fileStatus,
  readSome,
  waitWritable,
  writeSome,
} from "../platform/files.ts";

/** A write of up to PIPE_BUF does not block when poll says a pipe is writable (pipe(7)). */
const PIPE_BUF = 4096;
const READ_BYTES = 16 * 1024;

/** Bytes to a descriptor. */
export class OutputStream {
  private readonly direct: boolean;
  private broken = false;
  /** What is waited for: its own descriptor, since two streams may go to the same one. */
  private waitFd: number | undefined;

  constructor(
    private readonly epoll: Epoll,
    readonly fd: number,
    /** Takes bytes again, after {@link write} took fewer than it was given. */
    private readonly onRoom: () => void,
    /** The reader is gone (EPIPE) or the file cannot be written (EIO, ENOSPC). Bytes are dropped from then on. */
    private readonly onBroken: (error: SystemError) => void,
  ) {
    this.direct = fileStatus(fd).kind === "file";
  }

  /** Returns how many bytes were taken. If fewer than given, `onRoom` is called later. */
  write(bytes: Uint8Array): number {
    if (this.broken) return bytes.length;
    let done = 0;
    try {
      while (done < bytes.length) {
        if (!this.direct && !waitWritable(this.fd, 0)) break;
        const end = this.direct ? bytes.length : Math.min(bytes.length, done + PIPE_BUF);
        const count = writeSome(this.fd, bytes.subarray(done, end));
        if (count === undefined) break;
        done += count;
      }
    } catch (error) {
      if (!(error instanceof SystemError)) throw error;
      this.broken = true;
      this.onBroken(error);
      return bytes.length;
    }
    if (done < bytes.length) this.waitForRoom();
    return done;
  }

  /** Releases what the stream itself holds; `fd` stays open. */
  close(): void {
    if (this.waitFd === undefined) return;
    this.epoll.forget(this.waitFd);
    closeFile(this.waitFd);
    this.waitFd = undefined;
  }

  private waitForRoom(): void {
    this.waitFd ??= duplicateFile(this.fd);
    const fd = this.waitFd;
    this.epoll.watch(fd, EPOLLOUT, () => {
      this.epoll.forget(fd);
      this.onRoom();
    });
  }
}

/** Bytes from a descriptor, as fast as the guest takes them. */
export class InputStream {
  private readonly buffer = new Uint8Array(READ_BYTES);
  /** What was read and not yet taken. */
  private held: Uint8Array = this.buffer.subarray(0, 0);
  private state: "idle" | "watching" | "ready" | "ended" = "idle";

  constructor(
    private readonly epoll: Epoll,
    readonly fd: number,
    /** Returns how many bytes were taken. If fewer than given, nothing comes until {@link resume}. */
    private readonly onData: (bytes: Uint8Array) => number,
    private readonly onEnd: () => void,
  ) {}

  /** True if {@link pump} has work without any event: a regular file is always ready. */
  get wantsPump(): boolean {
    return this.state === "ready";
  }

  /** False at the end of the stream, and while it is stopped. */
  get isOpen(): boolean {
    return this.state === "watching" || this.state === "ready" || this.blocked;
  }

  /** True while bytes wait for {@link resume}. */
  get blocked(): boolean {
    return this.held.length > 0;
  }

  /** Starts, or goes on after bytes were refused. */
  resume(): void {
    if (this.state === "ended" || !this.deliver()) return;
    if (this.state === "idle") {
      const waits = this.epoll.watch(this.fd, EPOLLIN, () => this.pump());
      this.state = waits ? "watching" : "ready";
    }
  }

  /** Reads once. Call only when that does not block. */
  pump(): void {
    let count: number | undefined;
    try {
      count = readSome(this.fd, this.buffer);
    } catch (error) {
      // EIO: the terminal hung up, or this is a background process of it. EISDIR and EBADF: nothing to read.
      if (!(error instanceof SystemError)) throw error;
      count = error.errno === ERRNO.EAGAIN ? undefined : 0;
    }
    if (count === undefined) return;
    if (count === 0) {
      this.stop();
      this.state = "ended";
      this.onEnd();
      return;
    }
    this.held = this.buffer.subarray(0, count);
    if (!this.deliver()) this.stop();
  }

  /** No bytes until {@link resume}. */
  stop(): void {
    if (this.state === "watching") this.epoll.forget(this.fd);
    if (this.state !== "ended") this.state = "idle";
  }

  private deliver(): boolean {
    if (this.held.length > 0) this.held = this.held.subarray(this.onData(this.held));
    return this.held.length === 0;
  }
}
