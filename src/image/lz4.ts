/** LZ4 legacy frames (`lz4 -l`), as Linux uses them for its own image. LZ4 block format 1.6.2, frame format 1.6.3. */

import { ImageError } from "./errors.ts";

export const LZ4_LEGACY_MAGIC = 0x184c2102;
/** Largest number of bytes that one block of a legacy frame decompresses to. */
const LEGACY_BLOCK_SIZE = 8 * 2 ** 20;
const MIN_MATCH = 4;
/** Copies up to this length are done bytewise: the call to `copyWithin` costs more. */
const SHORT_COPY = 32;

class Lz4Error extends ImageError {
  constructor(why: string) {
    super(`corrupt LZ4 data: ${why}`);
  }
}

/**
 * Decompresses one block, `input[start, end)`, to `output` from `at`; returns where the output ends.
 * @throws ImageError on a block that reads or writes outside these.
 */
function decompressBlock(
  input: Uint8Array,
  start: number,
  end: number,
  output: Uint8Array,
  at: number,
): number {
  const blockStart = at;
  const limit = Math.min(output.length, at + LEGACY_BLOCK_SIZE);
  let i = start;
  let o = at;
  while (i < end) {
    const token = input[i++];
    let literals = token >>> 4;
    if (literals === 15) {
      let more = 255;
      while (more === 255) {
        if (i >= end) throw new Lz4Error("literal length cut off");
        more = input[i++];
        literals += more;
      }
    }
    if (i + literals > end) throw new Lz4Error("literals cut off");
    if (o + literals > limit) throw new Lz4Error("more data than announced");
    if (literals <= SHORT_COPY) {
      for (let n = 0; n < literals; n++) output[o + n] = input[i + n];
    } else {
      output.set(input.subarray(i, i + literals), o);
    }
    i += literals;
    o += literals;
    // The last sequence of a block has literals only.
    if (i === end) return o;
    if (i + 2 > end) throw new Lz4Error("offset cut off");
    const offset = input[i] | (input[i + 1] << 8);
    i += 2;
    if (offset === 0 || o - offset < blockStart) throw new Lz4Error("match before the start of its block");
    let match = token & 15;
    if (match === 15) {
      let more = 255;
      while (more === 255) {
        if (i >= end) throw new Lz4Error("match length cut off");
        more = input[i++];
        match += more;
      }
    }
    match += MIN_MATCH;
    if (o + match > limit) throw new Lz4Error("more data than announced");
    if (match <= SHORT_COPY || offset < match) {
      for (let n = 0; n < match; n++) output[o + n] = output[o - offset + n];
    } else {
      output.copyWithin(o, o - offset, o - offset + match);
    }
    o += match;
  }
  throw new Lz4Error("block does not end with literals");
}

/**
 * Decompresses a legacy frame to exactly `size` bytes. Bytes after the frame are ignored.
 * @throws ImageError if the data is corrupt or has another size.
 */
export function decompressLz4Legacy(input: Uint8Array, size: number): Uint8Array {
  const view = new DataView(input.buffer, input.byteOffset, input.byteLength);
  if (input.length < 4 || view.getUint32(0, true) !== LZ4_LEGACY_MAGIC) throw new Lz4Error("no magic number");
  const output = new Uint8Array(size);
  let i = 4;
  let o = 0;
  while (o < size) {
    if (i + 4 > input.length) throw new Lz4Error(`ends after ${o} of ${size} bytes`);
    const length = view.getUint32(i, true);
    i += 4;
    // Two frames may follow one another, each with its magic number.
    if (length === LZ4_LEGACY_MAGIC) continue;
    if (i + length > input.length) throw new Lz4Error(`ends after ${o} of ${size} bytes`);
    o = decompressBlock(input, i, i + length, output, o);
    i += length;
  }
  return output;
}
