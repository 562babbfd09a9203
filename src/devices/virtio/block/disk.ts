/** What a block device needs of the file behind it. */

export interface DiskFile {
  /** Bytes. */
  readonly size: number;
  /**
   * Reads into guest RAM from `offset` and returns the bytes read, fewer than `into.length` only at the end of
   * the file. Throws on an I/O error.
   */
  readAt(offset: number, into: Uint8Array): number;
  /** Writes from guest RAM and returns the bytes written. Throws on an I/O error. */
  writeAt(offset: number, from: Uint8Array): number;
  /** Returns when all that was written is on stable storage (fdatasync). Throws on an I/O error. */
  sync(): void;
}
