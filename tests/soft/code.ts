/**
 * Machine code with its listing beside it. Each line is `bytes | instruction`; what follows the bar is for the
 * reader, as are lines without bytes (labels).
 */
export function code(listing: string): number[] {
  const bytes: number[] = [];
  for (const line of listing.split("\n")) {
    const column = line.split("|")[0]!.trim();
    if (column === "") continue;
    for (const word of column.split(/\s+/)) {
      if (!/^[0-9a-f]{2}$/.test(word)) throw new Error(`"${word}" in "${line.trim()}" is not a byte in hex`);
      bytes.push(Number.parseInt(word, 16));
    }
  }
  return bytes;
}

/** {@link code} for a 32-bit code segment. */
export const code32 = code;

/** `value` as 4 little-endian bytes. */
export function le32(value: number): number[] {
  return [value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24];
}

/** `value` as 8 little-endian bytes. */
export function le64(value: bigint): number[] {
  return [...le32(Number(value & 0xffff_ffffn)), ...le32(Number((value >> 32n) & 0xffff_ffffn))];
}
