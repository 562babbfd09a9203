/** The Internet checksum (RFC 1071). */

/** Adds the 16-bit big-endian words of `bytes` to `sum`; an odd last byte is the high byte of a word. */
export function sumWords(bytes: Uint8Array, sum = 0): number {
  let total = sum;
  const even = bytes.length & ~1;
  for (let i = 0; i < even; i += 2) total += (bytes[i]! << 8) | bytes[i + 1]!;
  if (even < bytes.length) total += bytes[even]! << 8;
  return total;
}

/** The checksum of what was summed. Over data that contains its right checksum it is 0. */
export function checksum(sum: number): number {
  let folded = sum;
  while (folded > 0xffff) folded = (folded % 0x10000) + Math.floor(folded / 0x10000);
  return ~folded & 0xffff;
}
