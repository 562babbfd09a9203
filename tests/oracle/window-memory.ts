/** The part of guest memory that a case's record holds, by linear address. */

import type { CaseBatch } from "./batch.ts";
import { DATA_END, DATA_FIRST, DATA_READ_ONLY_END, DATA_THIRD, PAGE_SIZE } from "./layout.ts";

/** Offset in the window of a byte at a linear address, through whichever mapping; -1 if it is not in it. */
export function windowOffset(cases: CaseBatch, address: bigint): number {
  if (address < BigInt(DATA_FIRST) || address >= BigInt(DATA_READ_ONLY_END)) return -1;
  const linear = Number(address);
  if (linear >= DATA_END && linear < DATA_THIRD) return -1;
  const half = cases.windowBytes / 2;
  const inPage = linear % PAGE_SIZE;
  if (inPage < half) return half + inPage;
  return inPage >= PAGE_SIZE - half ? inPage - (PAGE_SIZE - half) : -1;
}

/** Writes those of the `bytes` low bytes of `value` that lie in the window of case `i`. */
export function poke(cases: CaseBatch, i: number, address: bigint, value: bigint, bytes: number): void {
  const window = cases.window(i);
  for (let n = 0; n < bytes; n++) {
    const at = windowOffset(cases, address + BigInt(n));
    if (at >= 0) window[at] = Number((value >> BigInt(8 * n)) & 0xffn);
  }
}

/** Reads `bytes` bytes; those outside the window are 0. */
export function peek(cases: CaseBatch, i: number, address: bigint, bytes: number): bigint {
  const window = cases.window(i);
  let value = 0n;
  for (let n = 0; n < bytes; n++) {
    const at = windowOffset(cases, address + BigInt(n));
    if (at >= 0) value |= BigInt(window[at]!) << BigInt(8 * n);
  }
  return value;
}
