/**
 * Guest physical memory: where it lies, and the only way to reach it.
 *
 * RAM below the MMIO gap sits in one `SharedArrayBuffer` (the buffer of a shared `WebAssembly.Memory`), starting `base`
 * bytes into it; what lies below `base` belongs to the CPU backend and cannot be named by a guest-physical address. RAM
 * above the gap is a mapping of the host. An ArrayBuffer ends at 4 GiB, so that is seen through windows that overlap:
 * whatever is no longer than {@link WINDOW_STRIDE} lies wholly inside one of them, wherever it starts.
 *
 * Every address and length that reaches this class may come from the guest: each access is checked against RAM, and one
 * that leaves it throws {@link GuestMemoryError}, which costs the guest its request and never the monitor.
 */

import { memoryAt } from "../platform/memory.ts";

/** End of the RAM region below the MMIO gap (guest-physical). */
export const MMIO_GAP_START = 0xc000_0000;
/** First guest-physical address above the MMIO gap. */
export const MMIO_GAP_END = 0x1_0000_0000;
/** The gap for devices that lie above 4 GiB, where Firecracker has it: 256 to 512 GiB. */
export const MMIO64_GAP_START = 0x40_0000_0000;
export const MMIO64_GAP_END = 0x80_0000_0000;

/** The windows onto RAM above the gap begin at multiples of this, in bytes. */
export const WINDOW_STRIDE = 2 ** 30;
/** Bytes that a window shows: positions in it are 31-bit numbers, which the engine is quickest with. */
const WINDOW_BYTES = 2 * WINDOW_STRIDE;

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

/** One contiguous piece of guest-physical memory, in bytes. */
export interface MemoryRegion {
  readonly gpa: number;
  readonly size: number;
}

/** What another thread needs to rebuild the same {@link GuestMemory}. Structured-cloneable. */
export interface GuestMemoryLayout {
  /** Holds RAM below the MMIO gap from byte `base` on. */
  readonly buffer: SharedArrayBuffer;
  readonly base: number;
  /** All RAM, in bytes. */
  readonly size: number;
  /** Host address of the mapping that holds RAM above the MMIO gap, if there is some; it has no holes. */
  readonly high?: number | undefined;
}

/** RAM regions for `size` bytes: all of it from 0, split around the gaps if it does not fit below. */
export function memoryRegions(size: number): MemoryRegion[] {
  const regions: MemoryRegion[] = [];
  let left = size;
  for (const [gpa, end] of [
    [0, MMIO_GAP_START],
    [MMIO_GAP_END, MMIO64_GAP_START],
    [MMIO64_GAP_END, Number.POSITIVE_INFINITY],
  ] as const) {
    if (left <= 0) break;
    const part = Math.min(left, end - gpa);
    regions.push({ gpa, size: part });
    left -= part;
  }
  return regions;
}

/** Guest RAM from `gpa` on as one ArrayBuffer shows it. */
export class MemoryWindow {
  /** The whole ArrayBuffer; guest RAM may be less than that. */
  readonly bytes: Uint8Array;
  readonly view: DataView;
  private readonly shift: number;

  /** @param offset where `gpa` lies in `buffer`. */
  constructor(
    readonly gpa: number,
    readonly size: number,
    readonly buffer: ArrayBufferLike,
    offset: number,
  ) {
    this.bytes = new Uint8Array(buffer);
    this.view = new DataView(buffer);
    this.shift = offset - gpa;
  }

  /** Where `gpa`, which must be in the window, lies in the buffer, in bytes. */
  at(gpa: number): number {
    return gpa + this.shift;
  }
}

/** Called after a device has written `length` bytes at `gpa` (dirty tracking, stale translated code). */
export type WriteHook = (gpa: number, length: number) => void;

export class GuestMemory {
  readonly regions: readonly MemoryRegion[];
  readonly size: number;
  /** Guest-physical address one past the last byte of RAM. */
  readonly end: number;
  /** RAM below the MMIO gap. */
  private readonly low: MemoryWindow;
  private readonly lowSize: number;
  /** Those that have been looked through, by the number of strides below them. */
  private readonly windows: (MemoryWindow | undefined)[] = [];
  private onWrite: WriteHook | undefined;

  /** Throws RangeError if `layout` has no place for RAM above the MMIO gap and needs one. */
  constructor(readonly layout: GuestMemoryLayout) {
    this.size = layout.size;
    this.regions = memoryRegions(layout.size);
    if (this.regions.length > 1 && layout.high === undefined) {
      throw new RangeError(`${layout.size} bytes of RAM do not fit below the MMIO gap`);
    }
    const last = this.regions[this.regions.length - 1]!;
    this.end = last.gpa + last.size;
    this.lowSize = Math.min(layout.size, MMIO_GAP_START);
    this.low = new MemoryWindow(0, this.lowSize, layout.buffer, layout.base);
  }

  /** Sets the hook that hears of every write made through this object. */
  setWriteHook(hook: WriteHook): void {
    this.onWrite = hook;
  }

  /** True if `[gpa, gpa+length)` lies wholly inside one RAM region. */
  contains(gpa: number, length: number): boolean {
    for (const r of this.regions) {
      if (gpa >= r.gpa && length >= 0 && gpa + length <= r.gpa + r.size) return true;
    }
    return false;
  }

  /**
   * A window with all of `[gpa, gpa+length)` in it; undefined if that is not RAM, or longer than a window shows: up to
   * {@link WINDOW_STRIDE} never is.
   */
  window(gpa: number, length: number): MemoryWindow | undefined {
    if (gpa >= 0 && length >= 0 && gpa + length <= this.lowSize) return this.low;
    const window = this.windowAt(gpa);
    return window !== undefined && length >= 0 && gpa + length <= window.gpa + window.size
      ? window
      : undefined;
  }

  /** `[gpa, gpa+length)` as pieces that have a {@link window} each. Throws {@link GuestMemoryError} outside RAM. */
  pieces(gpa: number, length: number): MemoryRegion[] {
    if (!this.contains(gpa, length)) throw new GuestMemoryError(gpa, length);
    const end = gpa + length;
    const pieces: MemoryRegion[] = [];
    for (let at = gpa; at < end; ) {
      const window = this.windowAt(at)!;
      const size = Math.min(end, window.gpa + window.size) - at;
      pieces.push({ gpa: at, size });
      at += size;
    }
    return pieces;
  }

  /** The window that shows most of what follows on `gpa`; undefined if that is not RAM. */
  private windowAt(gpa: number): MemoryWindow | undefined {
    if (gpa >= 0 && gpa < this.lowSize) return this.low;
    if (!(gpa >= MMIO_GAP_END && gpa < this.end)) return undefined;
    const index = Math.floor(gpa / WINDOW_STRIDE);
    const window = this.windows[index] ?? this.openWindow(index);
    return window !== undefined && gpa < window.gpa + window.size ? window : undefined;
  }

  private openWindow(index: number): MemoryWindow | undefined {
    const start = index * WINDOW_STRIDE;
    let before = 0;
    for (const { gpa, size } of this.regions.slice(1)) {
      if (start >= gpa && start < gpa + size) {
        const shown = Math.min(WINDOW_BYTES, gpa + size - start);
        const { buffer } = memoryAt(this.layout.high! + before + start - gpa, shown);
        const window = new MemoryWindow(start, shown, buffer, 0);
        this.windows[index] = window;
        return window;
      }
      before += size;
    }
    return undefined;
  }

  /** Like {@link window}, and throws {@link GuestMemoryError}. */
  private windowOf(gpa: number, length: number): MemoryWindow {
    const window = this.window(gpa, length);
    if (window === undefined) throw new GuestMemoryError(gpa, length);
    return window;
  }

  /**
   * A view of guest bytes to read from. It aliases guest RAM: the guest may change it at any time. Throws
   * {@link GuestMemoryError}, as all that follow.
   */
  slice(gpa: number, length: number): Uint8Array {
    const window = this.windowOf(gpa, length);
    const at = window.at(gpa);
    return window.bytes.subarray(at, at + length);
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

  /** Reports `length` bytes at `gpa`, which were written through a {@link window}. */
  reportWritten(gpa: number, length: number): void {
    this.onWrite?.(gpa, length);
  }

  /** Copies `data` into the guest. */
  write(gpa: number, data: Uint8Array): void {
    const window = this.windowOf(gpa, data.length);
    window.bytes.set(data, window.at(gpa));
    this.onWrite?.(gpa, data.length);
  }

  readU8(gpa: number): number {
    const window = this.windowOf(gpa, 1);
    return window.view.getUint8(window.at(gpa));
  }
  readU16(gpa: number): number {
    const window = this.windowOf(gpa, 2);
    return window.view.getUint16(window.at(gpa), true);
  }
  readU32(gpa: number): number {
    const window = this.windowOf(gpa, 4);
    return window.view.getUint32(window.at(gpa), true);
  }
  readU64(gpa: number): bigint {
    const window = this.windowOf(gpa, 8);
    return window.view.getBigUint64(window.at(gpa), true);
  }
  writeU8(gpa: number, value: number): void {
    const window = this.windowOf(gpa, 1);
    window.view.setUint8(window.at(gpa), value);
    this.onWrite?.(gpa, 1);
  }
  writeU16(gpa: number, value: number): void {
    const window = this.windowOf(gpa, 2);
    window.view.setUint16(window.at(gpa), value, true);
    this.onWrite?.(gpa, 2);
  }
  writeU32(gpa: number, value: number): void {
    const window = this.windowOf(gpa, 4);
    window.view.setUint32(window.at(gpa), value, true);
    this.onWrite?.(gpa, 4);
  }
  writeU64(gpa: number, value: bigint): void {
    const window = this.windowOf(gpa, 8);
    window.view.setBigUint64(window.at(gpa), value, true);
    this.onWrite?.(gpa, 8);
  }
}
