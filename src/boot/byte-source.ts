/** Random access to a kernel or initrd file, so that it can be read straight into guest RAM. */

import type { GuestMemory } from "../memory/guest-memory.ts";
import { BootError, type BootErrorKind } from "./boot-error.ts";

/** `size` bytes from `offset` of a file on, and where they go, guest-physical. */
export interface KernelPiece {
  readonly offset: number;
  readonly gpa: number;
  readonly size: number;
}

export interface ByteSource {
  /** Size in bytes. */
  readonly size: number;
  /**
   * Reads from `offset` on into `into` and returns how many bytes were read: between 1 and `into.length`,
   * or 0 at the end of the file. May throw when the file cannot be read.
   */
  read(offset: number, into: Uint8Array): number;
  /**
   * Puts the pieces into guest RAM, which is zero there, faster than by {@link read}. False if it cannot: then they
   * are to be read, and RAM is unchanged or already holds some of what would be read.
   */
  place?(memory: GuestMemory, pieces: readonly KernelPiece[]): boolean;
}

/** A source over bytes that are already in memory. */
export function bufferSource(bytes: Uint8Array): ByteSource {
  return {
    size: bytes.length,
    read(offset, into) {
      const piece = bytes.subarray(offset, offset + into.length);
      into.set(piece);
      return piece.length;
    },
  };
}

/**
 * Fills all of `into` from `offset` on. Throws {@link BootError} of the given kind if the file ends before
 * or cannot be read.
 */
export function readExact(source: ByteSource, offset: number, into: Uint8Array, kind: BootErrorKind): void {
  let done = 0;
  while (done < into.length) {
    let count: number;
    try {
      count = source.read(offset + done, done === 0 ? into : into.subarray(done));
    } catch (cause) {
      const reason = cause instanceof Error ? cause.message : String(cause);
      throw new BootError(kind, `reading the file failed at byte ${offset + done}: ${reason}`, { cause });
    }
    if (!Number.isInteger(count) || count <= 0 || count > into.length - done) {
      throw truncated(kind, offset + done, offset + into.length);
    }
    done += count;
  }
}

/** The error for a file of `size` bytes that must have at least `needed`. */
export function truncated(kind: BootErrorKind, size: number, needed: number): BootError {
  const detail = `the file is truncated at byte ${size} of ${needed}. Copy or download it again.`;
  return new BootError(kind, detail);
}
