/** What the guest has sent and the host program has not yet taken. */

/** Room that the guest may fill (`buf_alloc`), as in Firecracker. */
export const TX_BUFFER_BYTES = 64 * 1024;

export class TxBuffer {
  /** Made when first needed: most host programs keep up. */
  private ring: Uint8Array | undefined;
  private start = 0;
  private used = 0;

  get length(): number {
    return this.used;
  }

  /** Adds what `views` hold. Throws RangeError if there is no room for all of it. */
  push(views: readonly Uint8Array[]): void {
    this.ring ??= new Uint8Array(TX_BUFFER_BYTES);
    for (const view of views) {
      if (this.used + view.length > TX_BUFFER_BYTES) throw new RangeError("no room in the buffer");
      const at = (this.start + this.used) % TX_BUFFER_BYTES;
      const first = Math.min(view.length, TX_BUFFER_BYTES - at);
      this.ring.set(view.subarray(0, first), at);
      this.ring.set(view.subarray(first), 0);
      this.used += view.length;
    }
  }

  /** All that is in it, in order, in at most two pieces. */
  get pieces(): Uint8Array[] {
    if (this.ring === undefined || this.used === 0) return [];
    const first = Math.min(this.used, TX_BUFFER_BYTES - this.start);
    const pieces = [this.ring.subarray(this.start, this.start + first)];
    if (first < this.used) pieces.push(this.ring.subarray(0, this.used - first));
    return pieces;
  }

  /** Drops the first `count` bytes. */
  drop(count: number): void {
    this.start = (this.start + count) % TX_BUFFER_BYTES;
    this.used -= count;
  }

  clear(): void {
    this.drop(this.used);
  }
}
