/** Addresses that make a memory operand hit the window, cross a page, or fault on purpose. */

import type { CaseBatch } from "./batch.ts";
import {
  DATA_CROSS,
  DATA_END,
  DATA_FIRST,
  DATA_READ_ONLY,
  DATA_READ_ONLY_END,
  DATA_THIRD,
} from "./layout.ts";
import type { Random } from "./random.ts";

/** Aligned to its size (rounded up to a power of two, at most 64), in the window. */
export const POINTER_ALIGNED = 0;
/** Anywhere in the window, also across the boundary of the two mappings. */
export const POINTER_ANYWHERE = 1;
/** Across {@link DATA_CROSS}: two pages, no fault. */
export const POINTER_CROSS = 2;
/** Starts in the data page and ends in a page that is not mapped. */
export const POINTER_PAST_END = 3;
/** Starts in a page that is not mapped and ends in the data page. */
export const POINTER_BEFORE_START = 4;
/** Wholly in the read-only mapping: faults if written. */
export const POINTER_READ_ONLY = 5;
/** Across the boundary of a writable and the read-only mapping. */
export const POINTER_CROSS_READ_ONLY = 6;
/** Wholly in a page that is not mapped. */
export const POINTER_UNMAPPED = 7;
/** The last bytes before a page that is not mapped: no fault. */
export const POINTER_LAST = 8;

/** Kinds as drawn by {@link randomPointer}: most accesses succeed. */
const USUAL = Uint8Array.of(0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 8);

/** The pages not mapped that touch a data mapping, as first bytes. */
const UNMAPPED = Uint32Array.of(DATA_FIRST - 0x1000, DATA_END, DATA_READ_ONLY_END);

/**
 * The address of an access of `size` bytes (1 to half a window) of the given kind, below 4 GiB. Whatever part
 * of it is mapped lies in the window, so that its effect is seen. A size-1 access cannot straddle a boundary:
 * it then lies just behind it.
 */
export function pointer(random: Random, cases: CaseBatch, size: number, kind: number): number {
  const half = cases.windowBytes / 2;
  if (!Number.isInteger(size) || size < 1 || size > half) {
    throw new RangeError(`access size is ${size}: must be 1 to ${half}, half the window`);
  }
  const straddle = (boundary: number): number => boundary - (size > 1 ? 1 + random.below(size - 1) : 0);
  switch (kind) {
    case POINTER_ALIGNED: {
      const alignment = Math.min(64, 2 ** Math.ceil(Math.log2(size)));
      const slots = Math.floor((half - size) / alignment) + 1;
      return (random.oneIn(2) ? cases.windowAddress : DATA_CROSS) + alignment * random.below(slots);
    }
    case POINTER_ANYWHERE:
      return cases.windowAddress + random.below(cases.windowBytes - size + 1);
    case POINTER_CROSS:
      return straddle(DATA_CROSS);
    case POINTER_PAST_END:
      return straddle(random.oneIn(2) ? DATA_END : DATA_READ_ONLY_END);
    case POINTER_BEFORE_START:
      return straddle(random.oneIn(2) ? DATA_FIRST : DATA_THIRD);
    case POINTER_READ_ONLY:
      return (
        DATA_READ_ONLY +
        (random.oneIn(2) ? random.below(half - size + 1) : 0x1000 - size - random.below(half - size + 1))
      );
    case POINTER_CROSS_READ_ONLY:
      return straddle(DATA_READ_ONLY);
    case POINTER_UNMAPPED:
      return random.pick(UNMAPPED) + random.below(0x1000 - size + 1);
    case POINTER_LAST:
      return (random.oneIn(2) ? DATA_END : DATA_READ_ONLY) - size;
    default:
      throw new RangeError(`pointer kind is ${kind}: use one of the POINTER_ constants`);
  }
}

/** {@link pointer} of a random kind; most accesses through it succeed. */
export function randomPointer(random: Random, cases: CaseBatch, size: number): number {
  return pointer(random, cases, size, random.pick(USUAL));
}

/**
 * Sets `base` of case `i` so that `[base + index * scale + displacement]` is `address` (modulo 2^64). The
 * index register keeps its value and must not be `base`; leave it out for `[base + displacement]`.
 * `displacement` is a signed 32-bit number, `scale` 1, 2, 4 or 8.
 */
export function setPointer(
  cases: CaseBatch,
  i: number,
  base: number,
  address: number,
  displacement = 0,
  index?: { reg: number; scale: number },
): void {
  if (index?.reg === base) throw new RangeError(`register ${base} is base and index: use two registers`);
  let low = address - displacement;
  let high = Math.floor(low / 0x1_0000_0000);
  low >>>= 0;
  if (index) {
    const shift = Math.log2(index.scale);
    const at = cases.gprIndex(i, index.reg);
    const scaledLow = (cases.u32[at]! << shift) >>> 0;
    const carried = shift === 0 ? 0 : cases.u32[at]! >>> (32 - shift);
    high -= ((cases.u32[at + 1]! << shift) | carried) + (low < scaledLow ? 1 : 0);
    low = (low - scaledLow) >>> 0;
  }
  cases.setGpr(i, base, low, high);
}
