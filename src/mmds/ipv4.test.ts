import { expect, test } from "bun:test";
import { checksum, sumWords } from "./checksum.ts";
import { ipv4Number, parseIpv4, writeIpv4Header } from "./ipv4.ts";

const addresses = { source: ipv4Number("10.1.2.3"), destination: ipv4Number("169.254.169.254") };

function packet(payload = Uint8Array.of(1, 2, 3)): Uint8Array {
  const bytes = new Uint8Array(20 + payload.length);
  writeIpv4Header(bytes, addresses, payload.length);
  bytes.set(payload, 20);
  return bytes;
}

/** Makes the header's checksum right again. */
function repaired(bytes: Uint8Array, headerBytes = 20): Uint8Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  view.setUint16(10, 0);
  view.setUint16(10, checksum(sumWords(bytes.subarray(0, headerBytes))));
  return bytes;
}

test("reads what it writes, and leaves padding out", () => {
  const padded = Buffer.concat([packet(), new Uint8Array(23)]);
  expect(parseIpv4(padded)).toEqual({ protocol: 6, ...addresses, payload: Uint8Array.of(1, 2, 3) });
});

test("a header with options is passed over", () => {
  const bytes = new Uint8Array(24 + 1);
  bytes.set(packet(new Uint8Array(0)));
  bytes[0] = 0x46;
  bytes[3] = 25;
  bytes.set([1, 1, 1, 0, 9], 20);
  expect([...parseIpv4(repaired(bytes, 24))!.payload]).toEqual([9]);
});

test("refuses what is cut off at any byte, and any header with a bit turned over", () => {
  for (let length = 0; length < 23; length++) {
    expect(parseIpv4(packet().subarray(0, length))).toBeUndefined();
  }
  for (let bit = 0; bit < 160; bit++) {
    const bytes = packet();
    bytes[bit >> 3]! ^= 1 << (bit & 7);
    expect(parseIpv4(bytes)).toBeUndefined();
  }
});

test("refuses hostile lengths, other versions and fragments though their checksums are right", () => {
  const changes: [number, number][] = [
    [0, 0x44],
    [0, 0x4f],
    [0, 0x65],
    [2, 0xff],
    [3, 19],
    [3, 24],
    [6, 0x20],
    [7, 1],
  ];
  for (const [at, value] of changes) {
    const bytes = packet();
    bytes[at] = value;
    expect(parseIpv4(repaired(bytes))).toBeUndefined();
  }
});
