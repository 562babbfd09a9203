/**
 * Guest physical memory: where it lies, and the only way to reach it.
 *
 * All RAM of a microVM sits in one `SharedArrayBuffer` (the buffer of a shared `WebAssembly.Memory`),
 * starting `base` bytes into it; what lies below `base` belongs to the software CPU and cannot be named
 * by a guest-physical address. Every address and length that reaches this class may come from the guest:
 * each access is checked against the RAM regions, and one that leaves them throws
 * {@link GuestMemoryError}, which costs the guest its request and never the monitor.
 */

/** End of the RAM region below the MMIO gap (guest-physical). */
export const MMIO_GAP_START = 0xc000_0000;
/** First guest-physical address above the MMIO gap. */
export const MMIO_GAP_END = 0x1_0000_0000;

/** A guest address or length that does not lie wholly inside guest RAM. */
export class GuestMemoryError extends Error {
  constructor(
    readonly gpa: number,
    readonly length: number,
  ) {
    super(`guest memory access outside RAM: 0x${gpa.toString(16)}, ${length} bytes`);
    this.name = "GuestMemoryError";
  }
}

/** One contiguous piece of guest RAM. `offset` is where it starts in the buffer, in bytes. */
export interface MemoryRegion {
  readonly gpa: number;
  readonly size: number;
  readonly offset: number;
}

/** What another thread needs to rebuild the same {@link GuestMemory}. Structured-cloneable. */
export interface GuestMemoryLayout {
  readonly buffer: SharedArrayBuffer;
  readonly base: number;
  readonly size: number;
}

/** RAM regions for `size` bytes: all of it from 0, split around the MMIO gap if it does not fit below. */
export function memoryRegions(size: number, base: number): MemoryRegion[] {
  const low = Math.min(size, MMIO_GAP_START);
  const regions: MemoryRegion[] = [{ gpa: 0, size: low, offset: base }];
  if (size > low) regions.push({ gpa: MMIO_GAP_END, size: size - low, offset: base + low });
  return regions;
}

/** Called after a device has written `length` bytes at `gpa` (dirty tracking, stale translated code). */
export type WriteHook = (gpa: number, length: number) => void;

export class GuestMemory {
  readonly regions: readonly MemoryRegion[];
  readonly size: number;
  readonly bytes: Uint8Array;
  private readonly view: DataView;
  private onWrite: WriteHook | undefined;

  constructor(readonly layout: GuestMemoryLayout) {
    this.size = layout.size;
    this.regions = memoryRegions(layout.size, layout.base);
    this.bytes = new Uint8Array(layout.buffer);
    this.view = new DataView(layout.buffer);
  }

  /** Sets the hook that hears of every write made through this object. */
  setWriteHook(hook: WriteHook): void {
    this.onWrite = hook;
  }

  /** Guest-physical address one past the last byte of RAM. */
  get end(): number {
    const last = this.regions[this.regions.length - 1]!;
    return last.gpa + last.size;
  }

  /** True if `[gpa, gpa+length)` lies wholly inside one RAM region. */
  contains(gpa: number, length: number): boolean {
    for (const r of this.regions) {
      if (gpa >= r.gpa && length >= 0 && gpa + length <= r.gpa + r.size) return true;
    }
    return false;
  }

  /** Byte offset in the buffer of `[gpa, gpa+length)`. Throws {@link GuestMemoryError} outside RAM. */
  offset(gpa: number, length: number): number {
    for (const r of this.regions) {
      if (gpa >= r.gpa && length >= 0 && gpa + length <= r.gpa + r.size) return r.offset + (gpa - r.gpa);
    }
    throw new GuestMemoryError(gpa, length);
  }

  /** A view of guest bytes to read from. It aliases guest RAM: the guest may change it at any time. */
  slice(gpa: number, length: number): Uint8Array {
    const at = this.offset(gpa, length);
    return this.bytes.subarray(at, at + length);
  }

  /** Runs `fill` on a view of guest bytes, then reports them written (also if `fill` throws). */
  fill<T>(gpa: number, length: number, fill: (into: Uint8Array) => T): T {
    const into = this.slice(gpa, length);
    try {
      return fill(into);
    } finally {
      this.onWrite?.(gpa, length);
    }
  }

  /** Copies `data` into the guest. */
  write(gpa: number, data: Uint8Array): void {
    this.bytes.set(data, this.offset(gpa, data.length));
    this.onWrite?.(gpa, data.length);
  }

  readU8(gpa: number): number {
    return this.view.getUint8(this.offset(gpa, 1));
  }
  readU16(gpa: number): number {
    return this.view.getUint16(this.offset(gpa, 2), true);
  }
  readU32(gpa: number): number {
    return this.view.getUint32(this.offset(gpa, 4), true);
  }
  readU64(gpa: number): bigint {
    return this.view.getBigUint64(this.offset(gpa, 8), true);
  }
  writeU8(gpa: number, value: number): void {
    this.view.setUint8(this.offset(gpa, 1), value);
    this.onWrite?.(gpa, 1);
  }
  writeU16(gpa: number, value: number): void {
    this.view.setUint16(this.offset(gpa, 2), value, true);
    this.onWrite?.(gpa, 2);
  }
  writeU32(gpa: number, value: number): void {
    this.view.setUint32(this.offset(gpa, 4), value, true);
    this.onWrite?.(gpa, 4);
  }
  writeU64(gpa: number, value: bigint): void {
    this.view.setBigUint64(this.offset(gpa, 8), value, true);
    this.onWrite?.(gpa, 8);
  }
}
