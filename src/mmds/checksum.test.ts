import { expect, test } from "bun:test";
import { checksum, sumWords } from "./checksum.ts";

test("the example of RFC 1071, section 3", () => {
  const bytes = Uint8Array.of(0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7);
  expect(checksum(sumWords(bytes))).toBe(~0xddf2 & 0xffff);
});

test("is zero over data with its checksum, of even and odd length, and carries are not lost", () => {
  for (const length of [2, 3, 1499, 1500, 65535]) {
    const bytes = new Uint8Array(length + 2 + (length % 2)).fill(0xff, 0, length);
    new DataView(bytes.buffer).setUint16(bytes.length - 2, checksum(sumWords(bytes)));
    expect(checksum(sumWords(bytes))).toBe(0);
  }
  expect(checksum(sumWords(Uint8Array.of(0x12)))).toBe(~0x1200 & 0xffff);
});
