import { expect, test } from "bun:test";
import { isChecksumRight, parseTcp, SYN, type TcpSegment, writeTcp } from "./tcp-segment.ts";

const addresses = { source: 0xa9fea9fe, destination: 0xac1e0002 };
const segment: TcpSegment = {
  sourcePort: 80,
  destinationPort: 65535,
  sequence: 0xfffffff0,
  acknowledgment: 0x80000000,
  flags: SYN,
  window: 65535,
  mss: 1460,
  payload: Uint8Array.of(1, 2, 3),
};

function bytes(fields: Partial<TcpSegment> = {}): Uint8Array {
  const into = new Uint8Array(100);
  return into.slice(0, writeTcp(into, { ...segment, ...fields }, addresses));
}

/** A segment with these options. */
function withOptions(...options: number[]): Uint8Array {
  const padded = [...options, ...Array(-options.length & 3).fill(0)];
  const header = bytes({ mss: undefined, payload: new Uint8Array(0) });
  header[12] = ((20 + padded.length) / 4) << 4;
  return Uint8Array.of(...header, ...padded);
}

test("reads what it writes", () => {
  expect(parseTcp(bytes())).toEqual(segment);
  expect(parseTcp(bytes({ mss: undefined }))).toEqual({ ...segment, mss: undefined });
});

test("the checksum finds a bit turned over anywhere, in the addresses too", () => {
  for (const payload of [segment.payload, new Uint8Array(0)]) {
    const right = bytes({ payload });
    expect(isChecksumRight(right, addresses)).toBe(true);
    expect(isChecksumRight(right, { ...addresses, source: 1 })).toBe(false);
    for (let bit = 0; bit < right.length * 8; bit++) {
      const wrong = right.slice();
      wrong[bit >> 3]! ^= 1 << (bit & 7);
      expect(isChecksumRight(wrong, addresses)).toBe(false);
    }
  }
});

test("refuses what is cut off within its header", () => {
  const whole = bytes();
  for (let length = 0; length < 24; length++) expect(parseTcp(whole.subarray(0, length))).toBeUndefined();
  expect(parseTcp(whole.subarray(0, 24))!.payload.length).toBe(0);
  for (const offset of [0, 4]) {
    const wrong = bytes();
    wrong[12] = offset << 4;
    expect(parseTcp(wrong)).toBeUndefined();
  }
});

test("options: finds the segment size among others, refuses lengths that lead out of them", () => {
  expect(parseTcp(withOptions(1, 1, 4, 2, 2, 4, 0x05, 0xb4))!.mss).toBe(1460);
  expect(parseTcp(withOptions(0, 2, 4, 5))!.mss).toBeUndefined();
  expect(parseTcp(withOptions(3, 3, 7, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8))!.mss).toBeUndefined();
  for (const options of [
    [2, 0],
    [2, 1],
    [2, 5, 1, 1, 1],
    [8, 200],
    [1, 1, 1, 2],
    [2, 3, 5],
  ]) {
    expect(parseTcp(withOptions(...options))).toBeUndefined();
  }
});
