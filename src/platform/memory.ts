/** Memory mappings (mmap(2)) as byte arrays, and what can be said to the kernel about memory. */

import { type Pointer, ptr, toArrayBuffer } from "bun:ffi";
import { check, lastErrno, SystemError } from "./errno.ts";
import { libcKvm } from "./libc-kvm.ts";

const PROT_READ = 1;
const PROT_WRITE = 2;
const MAP_SHARED = 0x01;
const MAP_PRIVATE = 0x02;
const MAP_FIXED = 0x10;
const MAP_ANONYMOUS = 0x20;
const MAP_NORESERVE = 0x4000;
/** User addresses lie below this; MAP_FAILED, which is -1, does not. */
const ADDRESS_LIMIT = 2 ** 47;

/** Advice that {@link adviseMemory} can give (madvise(2)). */
const ADVICE = { dontNeed: 4, hugePage: 14, noHugePage: 15, dontDump: 16 } as const;

/** A mapping that stays until {@link unmap}: nothing else takes it away. */
export class Mapping {
  private address: Pointer | undefined;
  private view: Uint8Array;

  private constructor(address: Pointer, length: number) {
    this.address = address;
    this.view = new Uint8Array(toArrayBuffer(address, 0, length));
  }

  /** The mapped bytes. Throws after {@link unmap}; views taken before it must not be used after it. */
  get bytes(): Uint8Array {
    if (this.address === undefined) throw new Error("memory is used after it was unmapped");
    return this.view;
  }

  /**
   * `length` bytes (at most 2 GiB) of `fd` from `offset` on, a multiple of the page size, shared with everyone who maps
   * them. Throws {@link SystemError}.
   */
  static shared(fd: number, length: number, offset = 0): Mapping {
    return Mapping.create(length, MAP_SHARED, fd, offset);
  }

  /** `length` zero bytes (at most 2 GiB); host memory is taken when they are first touched. Throws {@link SystemError}. */
  static anonymous(length: number): Mapping {
    return Mapping.create(length, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
  }

  private static create(length: number, flags: number, fd: number, offset = 0): Mapping {
    const address = libcKvm().mmap(0, length, PROT_READ | PROT_WRITE, flags, fd, offset);
    if (typeof address !== "number" || address >= ADDRESS_LIMIT) throw new SystemError("mmap", lastErrno());
    return new Mapping(address, length);
  }

  /** Where the mapping lies: for {@link unmapAt}, if the thread that made it should not come to {@link unmap}. */
  get at(): number {
    if (this.address === undefined) throw new Error("memory is used after it was unmapped");
    return this.address;
  }

  /** Takes the mapping away. Harmless the second time. */
  unmap(): void {
    const { address, view } = this;
    if (address === undefined) return;
    this.address = undefined;
    const { length } = view;
    this.view = new Uint8Array(0);
    check(libcKvm().munmap(address, length), "munmap");
  }
}

/**
 * `size` zero bytes, however many, at a multiple of `alignment` (a power of two, at least a page): their address, for
 * {@link memoryAt} on any thread and for {@link unmapAt}. Host memory is taken when they are first touched. Throws
 * {@link SystemError}.
 */
export function reserveMemory(size: number, alignment: number): number {
  const { mmap } = libcKvm();
  const flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  const start = mmap(0, size + alignment, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (typeof start !== "number" || start >= ADDRESS_LIMIT) throw new SystemError("mmap", lastErrno());
  const address = Math.ceil(start / alignment) * alignment;
  if (address > start) unmapAt(start, address - start);
  const rest = start + alignment - address;
  if (rest > 0) unmapAt(address + size, rest);
  return address;
}

/**
 * The `length` bytes (at most 2 GiB) at `address`, which must be mapped and must not be used any more once they are
 * not.
 */
export function memoryAt(address: number, length: number): Uint8Array {
  return new Uint8Array(toArrayBuffer(address as Pointer, 0, length));
}

/** Where `bytes` lie. */
export function addressOf(bytes: Uint8Array): number {
  return ptr(bytes);
}

/** Takes away what lies mapped at `address`. Throws {@link SystemError}. */
export function unmapAt(address: number, length: number): void {
  check(libcKvm().munmap(address as Pointer, length), "munmap");
}

/** Bytes by which the host address of `bytes` lies above a multiple of `alignment`, a power of two. */
export function misalignment(bytes: Uint8Array, alignment: number): number {
  return ptr(bytes) % alignment;
}

/**
 * Maps `fd` from `offset` on in place of the memory under `into`; writes stay this process's. `into` and `offset` must
 * be whole pages, inside the file and of a mapping that nobody else gives back in parts. Throws {@link SystemError}.
 */
export function mapFilePrivately(into: Uint8Array, fd: number, offset: number): void {
  const flags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE;
  const at = ptr(into);
  if (libcKvm().mmap(at, into.length, PROT_READ | PROT_WRITE, flags, fd, offset) !== at) {
    throw new SystemError("mmap", lastErrno());
  }
}

/**
 * Maps zeros in place of the memory under `into`, which must be whole pages of a mapping that nobody else gives back in
 * parts. What was there is gone, and host memory is taken when a page is touched. Throws {@link SystemError}.
 */
export function mapZeros(into: Uint8Array): void {
  const flags = MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_NORESERVE;
  const at = ptr(into);
  if (libcKvm().mmap(at, into.length, PROT_READ | PROT_WRITE, flags, -1, 0) !== at) {
    throw new SystemError("mmap", lastErrno());
  }
}

/** Tells the kernel what is planned with whole pages of memory (madvise(2)). Throws {@link SystemError}. */
export function adviseMemory(bytes: Uint8Array, advice: keyof typeof ADVICE): void {
  check(libcKvm().madvise(ptr(bytes), bytes.length, ADVICE[advice]), "madvise");
}
