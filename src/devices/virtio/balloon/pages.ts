/** Page frame numbers as a balloon driver lists them, and guest memory as whole pages. */

import type { GuestMemory } from "../../../memory/guest-memory.ts";
import type { DescriptorChain } from "../chain.ts";

/** Size of a page of the balloon, whatever the guest's own pages are (virtio 1.2, 5.5.6): 4096 bytes. */
export const PAGE_BYTES = 4096;
export const PAGES_PER_MIB = 2 ** 20 / PAGE_BYTES;

/** Page frame numbers in one request. Linux sends 256 at most, and Firecracker takes no more. */
export const MAX_PFNS = 256;
const PFN_BYTES = 4;

/**
 * The page frame numbers in the readable buffers of `chain`, sorted. Undefined if they are no whole numbers or more
 * than {@link MAX_PFNS}.
 */
export function readPfns(chain: DescriptorChain): Uint32Array | undefined {
  const { readableLength } = chain;
  if (readableLength % PFN_BYTES !== 0 || readableLength > MAX_PFNS * PFN_BYTES) return undefined;
  const bytes = new Uint8Array(readableLength);
  chain.read(bytes);
  return new Uint32Array(bytes.buffer).sort();
}

/** Calls `visit` with each run of neighbouring numbers in `pfns`, which is sorted and may have duplicates. */
export function forEachRun(pfns: Uint32Array, visit: (first: number, count: number) => void): void {
  let first = 0;
  let count = 0;
  for (const pfn of pfns) {
    if (count > 0 && pfn < first + count) continue;
    if (count > 0 && pfn === first + count) {
      count++;
      continue;
    }
    if (count > 0) visit(first, count);
    first = pfn;
    count = 1;
  }
  if (count > 0) visit(first, count);
}

/**
 * Runs `discard` on the whole pages of guest RAM inside `[gpa, gpa+length)`, one call for as much as lies together, and
 * reports them written. Returns their size in bytes: less than `length` if part of the range is not RAM or not a whole page.
 */
export function discardPages(
  memory: GuestMemory,
  gpa: number,
  length: number,
  discard: (pages: Uint8Array) => void,
): number {
  const first = Math.ceil(gpa / PAGE_BYTES) * PAGE_BYTES;
  const last = Math.floor((gpa + length) / PAGE_BYTES) * PAGE_BYTES;
  let discarded = 0;
  for (const region of memory.regions) {
    const start = Math.max(first, region.gpa);
    const end = Math.min(last, region.gpa + Math.floor(region.size / PAGE_BYTES) * PAGE_BYTES);
    if (start >= end) continue;
    for (const piece of memory.pieces(start, end - start)) memory.fill(piece.gpa, piece.size, discard);
    discarded += end - start;
  }
  return discarded;
}
