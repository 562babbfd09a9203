/**
 * A byte ring in shared memory between one writing and one reading thread.
 *
 * The indices count bytes ever written and read, modulo 2^32, so that a full ring and an empty one differ.
 * If two threads do use one end at once, bytes get lost or doubled; memory outside the ring is never touched.
 */

/** Bytes before the data: one cache line for each index. */
const HEADER_BYTES = 128;
const HEAD_WORD = 0;
const TAIL_WORD = 16;

/** What became of a pushed byte. `wake`: queued, and the reader had taken all before it, so it may be asleep. */
export type Pushed = "full" | "queued" | "wake";

/** Bytes of shared memory that a ring of `capacity` bytes takes. */
export function ringBytes(capacity: number): number {
  return HEADER_BYTES + capacity;
}

export class ByteRing {
  private readonly words: Int32Array;
  private readonly data: Uint8Array;
  private readonly mask: number;

  /**
   * @param offset where the ring starts in `shared`, a multiple of 4. Zeroed memory is an empty ring.
   * @param capacity bytes, a power of two up to 2^30.
   */
  constructor(
    shared: SharedArrayBuffer,
    offset: number,
    readonly capacity: number,
  ) {
    if (capacity < 1 || capacity > 2 ** 30 || (capacity & (capacity - 1)) !== 0) {
      throw new RangeError(`ring capacity ${capacity} is not a power of two up to 2^30`);
    }
    this.words = new Int32Array(shared, offset, HEADER_BYTES / 4);
    this.data = new Uint8Array(shared, offset + HEADER_BYTES, capacity);
    this.mask = capacity - 1;
  }

  /** Bytes waiting to be read. */
  get length(): number {
    const used = (Atomics.load(this.words, TAIL_WORD) - Atomics.load(this.words, HEAD_WORD)) >>> 0;
    return Math.min(used, this.capacity);
  }

  /** Bytes that can be pushed now. */
  get free(): number {
    return this.capacity - this.length;
  }

  /** Writer: appends one byte. */
  push(byte: number): Pushed {
    const tail = Atomics.load(this.words, TAIL_WORD);
    if (this.free === 0) return "full";
    this.data[tail & this.mask] = byte;
    Atomics.store(this.words, TAIL_WORD, (tail + 1) | 0);
    // Read after the store: either the reader sees this byte before it sleeps, or we see that it had caught up.
    return Atomics.load(this.words, HEAD_WORD) === tail ? "wake" : "queued";
  }

  /** Writer: appends as many of `bytes` as fit and returns how many that were. */
  pushAll(bytes: Uint8Array): number {
    const tail = Atomics.load(this.words, TAIL_WORD);
    const count = Math.min(bytes.length, this.free);
    const start = tail & this.mask;
    const first = Math.min(count, this.capacity - start);
    this.data.set(bytes.subarray(0, first), start);
    this.data.set(bytes.subarray(first, count), 0);
    Atomics.store(this.words, TAIL_WORD, (tail + count) | 0);
    return count;
  }

  /** Reader: takes one byte, or -1 if there is none. */
  pop(): number {
    if (this.length === 0) return -1;
    const head = Atomics.load(this.words, HEAD_WORD);
    const byte = this.data[head & this.mask]!;
    Atomics.store(this.words, HEAD_WORD, (head + 1) | 0);
    return byte;
  }

  /**
   * Reader: hands everything to `sink` in pieces, until the ring is empty, and returns the number of bytes.
   * A piece is a view of the ring and valid only during the call; it stays in the ring if `sink` throws.
   */
  drain(sink: (bytes: Uint8Array) => void): number {
    let total = 0;
    for (let count = this.length; count > 0; count = this.length) {
      const head = Atomics.load(this.words, HEAD_WORD);
      const start = head & this.mask;
      const piece = Math.min(count, this.capacity - start);
      sink(this.data.subarray(start, start + piece));
      Atomics.store(this.words, HEAD_WORD, (head + piece) | 0);
      total += piece;
    }
    return total;
  }

  /** Reader: drops everything. */
  clear(): void {
    Atomics.store(this.words, HEAD_WORD, Atomics.load(this.words, TAIL_WORD));
  }
}
