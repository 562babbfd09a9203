/**
 * io_uring(7): transfers that are handed to the kernel in batches and end in any order. Buffers may be views of shared
 * memory. Structures and numbers are those of linux/io_uring.h.
 */

import { dlopen, FFIType, ptr } from "bun:ffi";
import { lastErrno, SystemError } from "./errno.ts";
import { ERRNO } from "./errno-numbers.ts";
import { EventFd } from "./eventfd.ts";
import { closeFile } from "./files.ts";
import { IOVEC_WORDS, setIovec } from "./iovec.ts";
import { libc } from "./libc.ts";
import { Mapping } from "./memory.ts";

/** System call numbers of x86-64. */
const SYS_FCNTL = 72;
const SYS_IO_URING_SETUP = 425;
const SYS_IO_URING_ENTER = 426;
const SYS_IO_URING_REGISTER = 427;

const IORING_OP_READV = 1;
const IORING_OP_WRITEV = 2;
const IORING_OP_FSYNC = 3;
const IORING_OP_READ = 22;
const IORING_OP_WRITE = 23;
const IORING_FSYNC_DATASYNC = 1;
const IORING_ENTER_GETEVENTS = 1;
const IORING_REGISTER_EVENTFD = 4;
/** Set by us in the flags of the completion ring: no signal of the eventfd for now (Linux 5.8). */
const IORING_CQ_EVENTFD_DISABLED = 1;

const F_SETFL = 4;

/** Both rings in one mapping; no completion is dropped; a submission's vectors are read when it is taken. */
const IORING_FEAT_SINGLE_MMAP = 1;
const IORING_FEAT_NODROP = 2;
const IORING_FEAT_SUBMIT_STABLE = 4;
const NEEDED_FEATURES = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_SUBMIT_STABLE;

const IORING_OFF_SQ_RING = 0;
const IORING_OFF_SQES = 0x1000_0000;

/** struct io_uring_params, in 32-bit words; the ring offsets are in bytes. */
const PARAMS_WORDS = 30;
const P_SQ_ENTRIES = 0;
const P_CQ_ENTRIES = 1;
const P_FEATURES = 5;
const P_SQ_HEAD = 10;
const P_SQ_TAIL = 11;
const P_SQ_ARRAY = 16;
const P_CQ_HEAD = 20;
const P_CQ_TAIL = 21;
const P_CQ_CQES = 25;
const P_CQ_FLAGS = 26;

/** struct io_uring_sqe and io_uring_cqe, in 32-bit words. */
const SQE_WORDS = 16;
const SQE_FD = 1;
const SQE_OFF = 2;
const SQE_ADDR = 4;
const SQE_LEN = 6;
const SQE_OP_FLAGS = 7;
const SQE_USER_DATA = 8;
const CQE_WORDS = 4;
const CQE_RES = 2;

const NO_VECTOR = new Uint32Array(0);

function load() {
  // What reads errno: opening it between a failed call and that would overwrite it.
  libc();
  return dlopen("libc.so.6", {
    syscall: { args: ["i64", "u64", "u64", "u64", "u64", "u64", "u64"], returns: FFIType.i64_fast },
  }).symbols;
}

let symbols: ReturnType<typeof load> | undefined;

function systemCall(number: number, a: number, b: number, c = 0, d = 0): number {
  symbols ??= load();
  return Number(symbols.syscall(number, a, b, c, d, 0, 0));
}

/**
 * Clears the flags of an open file that fcntl(2) can change. With O_NONBLOCK kernels before 5.12 end a transfer of a file
 * with EAGAIN if it would have to wait. Throws {@link SystemError}.
 */
export function clearStatusFlags(fd: number): void {
  if (systemCall(SYS_FCNTL, fd, F_SETFL) < 0) throw new SystemError("fcntl", lastErrno());
}

/**
 * A ring with room for a number of transfers, each known by a token: a whole number below {@link entries} that no other
 * transfer in flight has.
 */
export class IoUring {
  /** Signalled when transfers have ended, unless {@link quiet}. */
  readonly event: EventFd;
  /** Transfers that may be in flight at once. */
  readonly entries: number;
  private readonly fd: number;
  private readonly rings: Mapping;
  private readonly sqes: Mapping;
  private readonly words: Uint32Array;
  private readonly sqe: Uint32Array;
  private readonly cqMask: number;
  /** Indices in `words`. */
  private readonly sqHead: number;
  private readonly sqTail: number;
  private readonly cqHead: number;
  private readonly cqTail: number;
  private readonly cqes: number;
  private readonly cqFlags: number;
  /** By token: what a transfer of several buffers points to. */
  private readonly vectors: Uint32Array[];
  private tail = 0;
  /** Pushed and not yet taken by the kernel. */
  private pending = 0;
  private inKernel = 0;

  /**
   * @param entries a power of two, up to 4096.
   * Throws {@link SystemError}: ENOSYS without io_uring or what is needed of it, EPERM if this process may not use it.
   */
  constructor(entries: number) {
    const params = new Uint32Array(PARAMS_WORDS);
    const fd = systemCall(SYS_IO_URING_SETUP, entries, ptr(params));
    if (fd < 0) throw new SystemError("io_uring_setup", lastErrno());
    this.fd = fd;
    this.event = EventFd.create();
    let rings: Mapping | undefined;
    try {
      if ((params[P_FEATURES]! & NEEDED_FEATURES) !== NEEDED_FEATURES) {
        throw new SystemError("io_uring_setup", ERRNO.ENOSYS);
      }
      const [sqEntries, cqEntries] = [params[P_SQ_ENTRIES]!, params[P_CQ_ENTRIES]!];
      const bytes = Math.max(
        params[P_SQ_ARRAY]! + 4 * sqEntries,
        params[P_CQ_CQES]! + 4 * CQE_WORDS * cqEntries,
      );
      rings = Mapping.shared(fd, bytes, IORING_OFF_SQ_RING);
      this.rings = rings;
      this.sqes = Mapping.shared(fd, 4 * SQE_WORDS * sqEntries, IORING_OFF_SQES);
      this.entries = sqEntries;
      this.cqMask = cqEntries - 1;
      this.words = new Uint32Array(rings.bytes.buffer, 0, Math.floor(bytes / 4));
      this.sqe = new Uint32Array(this.sqes.bytes.buffer, 0, SQE_WORDS * sqEntries);
    } catch (error) {
      rings?.unmap();
      this.event.close();
      closeFile(fd);
      throw error;
    }
    this.sqHead = params[P_SQ_HEAD]! / 4;
    this.sqTail = params[P_SQ_TAIL]! / 4;
    this.cqHead = params[P_CQ_HEAD]! / 4;
    this.cqTail = params[P_CQ_TAIL]! / 4;
    this.cqes = params[P_CQ_CQES]! / 4;
    this.cqFlags = params[P_CQ_FLAGS]! / 4;
    this.vectors = new Array<Uint32Array>(this.entries).fill(NO_VECTOR);
    // Each place of the ring names the entry of the same number, for good.
    const array = params[P_SQ_ARRAY]! / 4;
    for (let i = 0; i < this.entries; i++) this.words[array + i] = i;
    const eventFd = new Int32Array([this.event.fd]);
    if (systemCall(SYS_IO_URING_REGISTER, fd, IORING_REGISTER_EVENTFD, ptr(eventFd), 1) < 0) {
      const errno = lastErrno();
      this.close();
      throw new SystemError("io_uring_register", errno);
    }
  }

  /** Transfers that are pushed or in flight. */
  get busy(): number {
    return this.pending + this.inKernel;
  }

  /** Reads from `offset` (bytes) of `fd`. The buffers must stay until the transfer has ended; none may be empty. */
  pushRead(token: number, fd: number, offset: number, into: readonly Uint8Array[]): void {
    this.pushTransfer(into.length === 1 ? IORING_OP_READ : IORING_OP_READV, token, fd, offset, into);
  }

  pushWrite(token: number, fd: number, offset: number, from: readonly Uint8Array[]): void {
    this.pushTransfer(from.length === 1 ? IORING_OP_WRITE : IORING_OP_WRITEV, token, fd, offset, from);
  }

  /** fdatasync(2). */
  pushDataSync(token: number, fd: number): void {
    this.push(IORING_OP_FSYNC, token, fd, 0, 0, 0, IORING_FSYNC_DATASYNC);
  }

  private pushTransfer(
    opcode: number,
    token: number,
    fd: number,
    offset: number,
    buffers: readonly Uint8Array[],
  ): void {
    const [first] = buffers;
    if (first === undefined) throw new RangeError("a transfer without a buffer");
    if (buffers.length === 1) {
      this.push(opcode, token, fd, offset, ptr(first), first.length, 0);
      return;
    }
    let vector = this.vectors[token]!;
    if (vector.length < buffers.length * IOVEC_WORDS) {
      vector = new Uint32Array(buffers.length * IOVEC_WORDS);
      this.vectors[token] = vector;
    }
    for (const [i, buffer] of buffers.entries()) setIovec(vector, i, buffer);
    this.push(opcode, token, fd, offset, ptr(vector), buffers.length, 0);
  }

  private push(
    opcode: number,
    token: number,
    fd: number,
    offset: number,
    address: number,
    length: number,
    flags: number,
  ): void {
    if (this.busy >= this.entries) throw new RangeError(`more than ${this.entries} transfers in flight`);
    const { sqe } = this;
    const at = (this.tail & (this.entries - 1)) * SQE_WORDS;
    sqe.fill(0, at, at + SQE_WORDS);
    sqe[at] = opcode;
    sqe[at + SQE_FD] = fd;
    sqe[at + SQE_OFF] = offset;
    sqe[at + SQE_OFF + 1] = offset / 2 ** 32;
    sqe[at + SQE_ADDR] = address;
    sqe[at + SQE_ADDR + 1] = address / 2 ** 32;
    sqe[at + SQE_LEN] = length;
    sqe[at + SQE_OP_FLAGS] = flags;
    sqe[at + SQE_USER_DATA] = token;
    this.tail = (this.tail + 1) >>> 0;
    this.pending++;
    Atomics.store(this.words, this.sqTail, this.tail);
  }

  /** Hands what was pushed to the kernel. Throws {@link SystemError} if it takes no more: see {@link withdraw}. */
  submit(): void {
    while (this.pending > 0) this.enter(0);
  }

  /** Hands over what was pushed and sleeps until a transfer has ended. Throws {@link SystemError}. */
  wait(): void {
    this.submit();
    if (this.inKernel > 0 && this.completions === 0) this.enter(1);
  }

  private enter(minimum: number): void {
    const flags = minimum > 0 ? IORING_ENTER_GETEVENTS : 0;
    const taken = systemCall(SYS_IO_URING_ENTER, this.fd, this.pending, minimum, flags);
    if (taken >= 0) {
      this.pending -= taken;
      this.inKernel += taken;
      return;
    }
    const errno = lastErrno();
    if (errno !== ERRNO.EINTR) throw new SystemError("io_uring_enter", errno);
  }

  /** Takes back what was pushed and the kernel has not taken, and calls `each` with its tokens. */
  withdraw(each: (token: number) => void): void {
    const head = Atomics.load(this.words, this.sqHead);
    const tokens: number[] = [];
    for (let at = head; at !== this.tail; at = (at + 1) >>> 0) {
      tokens.push(this.sqe[(at & (this.entries - 1)) * SQE_WORDS + SQE_USER_DATA]!);
    }
    this.tail = head;
    this.pending = 0;
    Atomics.store(this.words, this.sqTail, head);
    for (const token of tokens) each(token);
  }

  private get completions(): number {
    return (Atomics.load(this.words, this.cqTail) - Atomics.load(this.words, this.cqHead)) >>> 0;
  }

  /**
   * Calls `each` for the transfers that have ended, with bytes moved or a negative errno; it may push others. Returns how
   * many there were.
   */
  reap(each: (token: number, result: number) => void): number {
    const { words } = this;
    let head = Atomics.load(words, this.cqHead);
    let count = 0;
    while (head !== Atomics.load(words, this.cqTail)) {
      const at = this.cqes + (head & this.cqMask) * CQE_WORDS;
      const token = words[at]!;
      const result = words[at + CQE_RES]! | 0;
      head = (head + 1) >>> 0;
      Atomics.store(words, this.cqHead, head);
      this.inKernel--;
      count++;
      each(token, result);
    }
    return count;
  }

  /** No signals of {@link event} while `on`: for a thread that looks itself. It must look once more after that. */
  quiet(on: boolean): void {
    Atomics.store(this.words, this.cqFlags, on ? IORING_CQ_EVENTFD_DISABLED : 0);
  }

  /** Nothing may be in flight. */
  close(): void {
    this.rings.unmap();
    this.sqes.unmap();
    this.event.close();
    closeFile(this.fd);
  }
}
