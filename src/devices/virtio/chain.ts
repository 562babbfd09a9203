/** The buffers of one request, validated: each lies wholly inside guest RAM. */

import type { GuestMemory, MemoryWindow } from "../../memory/guest-memory.ts";

/** A guest buffer. `length` is at least 1. */
export class GuestBuffer {
  private view: Uint8Array | undefined;

  /** @param window has all of the buffer in it. */
  constructor(
    private readonly window: MemoryWindow,
    readonly gpa: number,
    readonly length: number,
  ) {}

  /** The guest's bytes themselves. The guest may change them at any time. */
  get bytes(): Uint8Array {
    if (this.view === undefined) {
      const at = this.window.at(this.gpa);
      this.view = this.window.bytes.subarray(at, at + this.length);
    }
    return this.view;
  }
}

export class DescriptorChain {
  /** Buffers that the device reads, in order. */
  readonly readable: GuestBuffer[] = [];
  /** Buffers that the device writes, in order. */
  readonly writable: GuestBuffer[] = [];
  /** Total bytes, at most 2^32 both together. */
  readableLength = 0;
  writableLength = 0;

  /** @param head index of the first descriptor: the id of the request in the used ring. */
  constructor(
    readonly head: number,
    private readonly memory: GuestMemory,
  ) {}

  /** Copies from the readable buffers, starting `offset` bytes into them; returns the bytes copied. */
  read(into: Uint8Array, offset = 0): number {
    let skip = offset;
    let done = 0;
    for (const buffer of this.readable) {
      if (done === into.length) break;
      if (skip >= buffer.length) {
        skip -= buffer.length;
        continue;
      }
      const count = Math.min(buffer.length - skip, into.length - done);
      into.set(buffer.bytes.subarray(skip, skip + count), done);
      done += count;
      skip = 0;
    }
    return done;
  }

  /** Copies into the writable buffers, starting `offset` bytes into them; returns the bytes copied. */
  write(from: Uint8Array, offset = 0): number {
    let skip = offset;
    let done = 0;
    for (const buffer of this.writable) {
      if (done === from.length) break;
      if (skip >= buffer.length) {
        skip -= buffer.length;
        continue;
      }
      const count = Math.min(buffer.length - skip, from.length - done);
      buffer.bytes.set(from.subarray(done, done + count), skip);
      done += count;
      skip = 0;
    }
    return done;
  }

  /**
   * Reports the first `length` writable bytes as written to the memory's write hook. The queue does this for
   * what a request says it wrote; a device calls it if it may have touched more than that.
   */
  reportWritten(length = this.writableLength): void {
    let left = length;
    for (const buffer of this.writable) {
      if (left <= 0) return;
      this.memory.reportWritten(buffer.gpa, Math.min(left, buffer.length));
      left -= buffer.length;
    }
  }
}

/** Views of up to `length` bytes of `buffers`, starting `offset` bytes into them. They alias guest RAM. */
export function bufferViews(buffers: readonly GuestBuffer[], offset: number, length: number): Uint8Array[] {
  const views: Uint8Array[] = [];
  let skip = offset;
  let left = length;
  for (const buffer of buffers) {
    if (left <= 0) break;
    if (skip >= buffer.length) {
      skip -= buffer.length;
      continue;
    }
    const count = Math.min(buffer.length - skip, left);
    views.push(count === buffer.length ? buffer.bytes : buffer.bytes.subarray(skip, skip + count));
    left -= count;
    skip = 0;
  }
  return views;
}
