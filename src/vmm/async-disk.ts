/** Drives with `io_engine` Async: transfers through io_uring. Few machines have one, so this is loaded only for those. */

import type { AsyncDisk, TransferEnd } from "../devices/virtio/block/disk.ts";
import { EPOLLIN, type Epoll } from "../platform/epoll.ts";
import { SystemError } from "../platform/errno.ts";
import { ERRNO } from "../platform/errno-numbers.ts";
import { clearStatusFlags, IoUring } from "../platform/io-uring.ts";
import { buffersAfter } from "../platform/iovec.ts";
import { FileDisk, type OpenDisk } from "./file-disk.ts";

/** Transfers in flight at once, as in Firecracker. */
const RING_ENTRIES = 128;
/** The kernel may ask for a transfer to be tried again; not for ever. */
const MAX_RETRIES = 16;

interface Transfer {
  readonly kind: "read" | "write" | "sync";
  readonly fd: number;
  readonly end: TransferEnd;
  /** Where to go on, and with which buffers. */
  offset: number;
  buffers: readonly Uint8Array[];
  done: number;
  retries: number;
}

/** The ring of one drive; it stays when the drive gets another file. */
export class DiskRing {
  private readonly ring = new IoUring(RING_ENTRIES);
  /** By token. */
  private readonly transfers: (Transfer | undefined)[] = new Array(this.ring.entries).fill(undefined);
  private readonly freeTokens = Array.from({ length: this.ring.entries }, (_, token) => token);
  private onEnds = () => {};

  /** Throws {@link SystemError} if the host refuses io_uring. */
  constructor(private readonly epoll: Epoll) {
    epoll.watch(this.ring.event.fd, EPOLLIN, () => {
      this.ring.event.clear();
      if (this.look() > 0) this.onEnds();
    });
  }

  get room(): number {
    return this.freeTokens.length;
  }

  watch(onEnds: () => void): void {
    this.onEnds = onEnds;
  }

  /** Needs {@link room}. */
  begin(transfer: Omit<Transfer, "done" | "retries">): void {
    const token = this.freeTokens.pop();
    if (token === undefined) throw new RangeError("a transfer was begun without room for it");
    this.transfers[token] = { ...transfer, done: 0, retries: 0 };
    this.push(token);
  }

  submit(): number {
    if (this.ring.busy === 0) return 0;
    // What ends while it is submitted, as reads from the page cache do, is found without the event loop.
    this.ring.quiet(true);
    let ended = this.look();
    this.ring.quiet(false);
    ended += this.look();
    return ended;
  }

  drain(): void {
    while (this.ring.busy > 0) {
      this.handOver(() => this.ring.wait());
      this.ring.reap((token, result) => this.completed(token, result));
    }
  }

  /** Ends with what is in flight. */
  close(): void {
    this.drain();
    this.epoll.forget(this.ring.event.fd);
    this.ring.close();
  }

  /** Hands over what was pushed and takes what has ended, until neither leads to the other. */
  private look(): number {
    let ended = 0;
    for (;;) {
      this.handOver(() => this.ring.submit());
      const before = this.room;
      if (this.ring.reap((token, result) => this.completed(token, result)) === 0) return ended;
      ended += this.room - before;
    }
  }

  /** What the kernel does not take fails. */
  private handOver(submit: () => void): void {
    try {
      submit();
    } catch (error) {
      if (!(error instanceof SystemError)) throw error;
      this.ring.withdraw((token) => this.finish(token, error));
    }
  }

  private push(token: number): void {
    const { kind, fd, offset, buffers } = this.transfers[token]!;
    if (kind === "read") this.ring.pushRead(token, fd, offset, buffers);
    else if (kind === "write") this.ring.pushWrite(token, fd, offset, buffers);
    else this.ring.pushDataSync(token, fd);
  }

  private completed(token: number, result: number): void {
    const transfer = this.transfers[token]!;
    const { EAGAIN, EINTR } = ERRNO;
    if (result < 0) {
      if ((result === -EAGAIN || result === -EINTR) && transfer.retries++ < MAX_RETRIES) this.push(token);
      else this.finish(token, new SystemError("io_uring", -result));
      return;
    }
    transfer.done += result;
    transfer.offset += result;
    transfer.buffers = buffersAfter(transfer.buffers, result);
    // Nothing more: the end of the file.
    if (transfer.buffers.length === 0 || result === 0) this.finish(token);
    else this.push(token);
  }

  private finish(token: number, error?: Error): void {
    const { done, end } = this.transfers[token]!;
    this.transfers[token] = undefined;
    this.freeTokens.push(token);
    end(done, error);
  }
}

/** The file of a drive behind its ring. Discards and zeros are done when the call returns. */
export class AsyncFileDisk implements AsyncDisk {
  readonly size: number;
  readonly fd: number;
  private readonly file: FileDisk;

  constructor(
    private readonly ring: DiskRing,
    disk: OpenDisk,
  ) {
    clearStatusFlags(disk.fd);
    this.fd = disk.fd;
    this.size = disk.size;
    this.file = new FileDisk(disk);
  }

  get room(): number {
    return this.ring.room;
  }

  read(offset: number, buffers: readonly Uint8Array[], end: TransferEnd): void {
    this.ring.begin({ kind: "read", fd: this.fd, offset, buffers, end });
  }

  write(offset: number, buffers: readonly Uint8Array[], end: TransferEnd): void {
    this.ring.begin({ kind: "write", fd: this.fd, offset, buffers, end });
  }

  sync(end: TransferEnd): void {
    this.ring.begin({ kind: "sync", fd: this.fd, offset: 0, buffers: [], end });
  }

  discard(offset: number, length: number): void {
    this.file.discard(offset, length);
  }

  writeZeros(offset: number, length: number, unmap: boolean): void {
    this.file.writeZeros(offset, length, unmap);
  }

  submit(): number {
    return this.ring.submit();
  }

  drain(): void {
    this.ring.drain();
  }

  watch(onEnds: () => void): void {
    this.ring.watch(onEnds);
  }
}
