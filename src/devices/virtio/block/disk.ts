/** What a block device needs of the file behind it: transfers that are done when a call returns, or that end later. */

interface DiskBase {
  /** Bytes. */
  readonly size: number;
  /** Descriptor that another thread may read from. */
  readonly fd?: number;
  /** The content of `length` bytes from `offset` on is of no interest any more. Throws on an I/O error. */
  discard(offset: number, length: number): void;
  /** Makes `length` bytes from `offset` on zero; `unmap`: they may give back their room. Throws on an I/O error. */
  writeZeros(offset: number, length: number, unmap: boolean): void;
}

/** Buffers are views of guest RAM; none is empty. */
export interface DiskFile extends DiskBase {
  /**
   * Reads from `offset` on into the buffers, in order, and returns the bytes read, fewer than there is room for only at
   * the end of the file. Throws on an I/O error.
   */
  readAt(offset: number, into: readonly Uint8Array[]): number;
  /** Writes from guest RAM and returns the bytes written. Throws on an I/O error. */
  writeAt(offset: number, from: readonly Uint8Array[]): number;
  /** Returns when all that was written is on stable storage (fdatasync). Throws on an I/O error. */
  sync(): void;
}

/** How a transfer ended: the bytes moved, fewer than asked for at the end of the file, or an error. Must not throw. */
export type TransferEnd = (done: number, error?: Error) => void;

/**
 * Transfers go on while the guest does, and end in any order. The calls that begin one need {@link room}; its end comes
 * from {@link submit}, {@link drain} or the event loop.
 */
export interface AsyncDisk extends DiskBase {
  /** Transfers that can be begun now. */
  readonly room: number;
  read(offset: number, into: readonly Uint8Array[], end: TransferEnd): void;
  write(offset: number, from: readonly Uint8Array[], end: TransferEnd): void;
  /** What had been written when this begins is on stable storage when it ends. */
  sync(end: TransferEnd): void;
  /** Gives what was begun to the host. Returns how many transfers have ended by that. Does not throw. */
  submit(): number;
  /** Returns when nothing is in flight: no buffer is touched after that. */
  drain(): void;
  /** `onEnds` is called after each batch of ends that came from the event loop. */
  watch(onEnds: () => void): void;
}

export function isAsync(disk: DiskFile | AsyncDisk): disk is AsyncDisk {
  return "submit" in disk;
}
