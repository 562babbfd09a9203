/** Memory statistics of the guest (virtio 1.2, 5.5.6.4), under the names of Firecracker's API. */

import type { DescriptorChain } from "../chain.ts";

/** By VIRTIO_BALLOON_S_* tag. Those from 10 on are Linux's (include/uapi/linux/virtio_balloon.h). */
export const STATISTIC_NAMES = [
  "swap_in",
  "swap_out",
  "major_faults",
  "minor_faults",
  "free_memory",
  "total_memory",
  "available_memory",
  "disk_caches",
  "hugetlb_allocations",
  "hugetlb_failures",
  "oom_kill",
  "alloc_stall",
  "async_scan",
  "direct_scan",
  "async_reclaim",
  "direct_reclaim",
] as const;

export type StatisticName = (typeof STATISTIC_NAMES)[number];

/** What the guest has told, in bytes or events. Values beyond 2^53 lose precision. */
export type Statistics = Partial<Record<StatisticName, number>>;

/** le16 tag, le64 value, packed. */
const STATISTIC_BYTES = 10;
/** More than any driver has; the rest of a longer list is not read. */
const MAX_STATISTICS = 64;

/**
 * Takes over the statistics in the readable buffers of `chain`; those that are not in it keep their values. Returns
 * how many were of an unknown kind or cut off.
 */
export function readStatistics(chain: DescriptorChain, into: Statistics): number {
  const bytes = new Uint8Array(Math.min(chain.readableLength, MAX_STATISTICS * STATISTIC_BYTES));
  chain.read(bytes);
  const view = new DataView(bytes.buffer);
  let wrong = chain.readableLength % STATISTIC_BYTES === 0 ? 0 : 1;
  for (let at = 0; at + STATISTIC_BYTES <= bytes.length; at += STATISTIC_BYTES) {
    const name = STATISTIC_NAMES[view.getUint16(at, true)];
    if (name === undefined) wrong++;
    else into[name] = Number(view.getBigUint64(at + 2, true));
  }
  return wrong;
}
