/** Discard and write-zeroes requests (virtio 1.2, 5.2.6): lists of sector ranges, checked before any is touched. */

import type { DescriptorChain } from "../chain.ts";

export const VIRTIO_BLK_T_DISCARD = 11;
export const VIRTIO_BLK_T_WRITE_ZEROES = 13;

/** The range may give back its room on the disk. */
const VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP = 1;

/** struct virtio_blk_discard_write_zeroes: le64 sector, le32 num_sectors, le32 flags. */
const SEGMENT_BYTES = 16;
const SEGMENT_NUM_SECTORS = 8;
const SEGMENT_FLAGS = 12;

/** Offsets in the configuration space (5.2.4). */
const CONFIG_MAX_DISCARD_SECTORS = 36;
const CONFIG_MAX_DISCARD_SEG = 40;
const CONFIG_DISCARD_SECTOR_ALIGNMENT = 44;
const CONFIG_MAX_WRITE_ZEROES_SECTORS = 48;
const CONFIG_MAX_WRITE_ZEROES_SEG = 52;
const CONFIG_WRITE_ZEROES_MAY_UNMAP = 56;
export const CONFIG_BYTES_WITH_DISCARD = 60;

/** A request is done in one go, so its size bounds how long the other devices wait: 2 GiB of holes. */
const MAX_DISCARD_SECTORS = 2 ** 22;
const MAX_DISCARD_SEGMENTS = 32;
/** 32 MiB: a file system without a faster way has them written. */
const MAX_WRITE_ZEROES_SECTORS = 2 ** 16;
const MAX_WRITE_ZEROES_SEGMENTS = 1;
/** Host file systems give back whole blocks of 4 KiB. */
const DISCARD_ALIGNMENT_SECTORS = 8;

export interface SectorRange {
  readonly sector: number;
  readonly count: number;
  readonly unmap: boolean;
}

/** Why a request is refused: flags that must not be there, or anything else that is wrong with it. */
export type BadSegments = { readonly reason: string; readonly unsupported: boolean };

/** Fills in the fields of discard and write-zeroes. `config` has {@link CONFIG_BYTES_WITH_DISCARD}. */
export function setDiscardConfig(config: Uint8Array): void {
  const view = new DataView(config.buffer, config.byteOffset);
  view.setUint32(CONFIG_MAX_DISCARD_SECTORS, MAX_DISCARD_SECTORS, true);
  view.setUint32(CONFIG_MAX_DISCARD_SEG, MAX_DISCARD_SEGMENTS, true);
  view.setUint32(CONFIG_DISCARD_SECTOR_ALIGNMENT, DISCARD_ALIGNMENT_SECTORS, true);
  view.setUint32(CONFIG_MAX_WRITE_ZEROES_SECTORS, MAX_WRITE_ZEROES_SECTORS, true);
  view.setUint32(CONFIG_MAX_WRITE_ZEROES_SEG, MAX_WRITE_ZEROES_SEGMENTS, true);
  view.setUint8(CONFIG_WRITE_ZEROES_MAY_UNMAP, 1);
}

/** Ranges of a request of `type` behind its header of `headerBytes`, all inside a disk of `sectors`. */
export function readSegments(
  chain: DescriptorChain,
  headerBytes: number,
  type: typeof VIRTIO_BLK_T_DISCARD | typeof VIRTIO_BLK_T_WRITE_ZEROES,
  sectors: number,
): SectorRange[] | BadSegments {
  const discard = type === VIRTIO_BLK_T_DISCARD;
  const maxSegments = discard ? MAX_DISCARD_SEGMENTS : MAX_WRITE_ZEROES_SEGMENTS;
  const maxSectors = discard ? MAX_DISCARD_SECTORS : MAX_WRITE_ZEROES_SECTORS;
  const length = chain.readableLength - headerBytes;
  if (length < SEGMENT_BYTES || length % SEGMENT_BYTES !== 0 || length > maxSegments * SEGMENT_BYTES) {
    return bad(`${length} bytes are not 1 to ${maxSegments} segments`);
  }
  const bytes = new Uint8Array(length);
  chain.read(bytes, headerBytes);
  const view = new DataView(bytes.buffer);
  const ranges: SectorRange[] = [];
  for (let at = 0; at < length; at += SEGMENT_BYTES) {
    const sector = view.getUint32(at, true) + view.getUint32(at + 4, true) * 2 ** 32;
    const count = view.getUint32(at + SEGMENT_NUM_SECTORS, true);
    const flags = view.getUint32(at + SEGMENT_FLAGS, true);
    const allowed = discard ? 0 : VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    if ((flags & ~allowed) !== 0) {
      return { reason: `flags 0x${flags.toString(16)}`, unsupported: true };
    }
    if (count > maxSectors) return bad(`${count} sectors in one segment, at most ${maxSectors}`);
    if (sector + count > sectors) return bad(`${count} sectors at ${sector} of ${sectors}`);
    ranges.push({ sector, count, unmap: flags !== 0 });
  }
  return ranges;
}

function bad(reason: string): BadSegments {
  return { reason, unsupported: false };
}
