/** IPv4 packets (RFC 791). */

import { checksum, sumWords } from "./checksum.ts";

/** Length of a header without options. */
export const IPV4_HEADER_BYTES = 20;
export const PROTOCOL_TCP = 6;
/** Offset of the destination address. */
export const IPV4_DESTINATION = 16;

const VERSION_IHL = 0;
const TOTAL_LENGTH = 2;
const IDENTIFICATION = 4;
const FLAGS_FRAGMENT = 6;
const TTL = 8;
const PROTOCOL = 9;
const HEADER_CHECKSUM = 10;
const SOURCE = 12;

const VERSION = 4;
const MORE_FRAGMENTS = 0x2000;
const DONT_FRAGMENT = 0x4000;
const FRAGMENT_OFFSET = 0x1fff;
/** As Firecracker's: what answers must not be forwarded by the guest. */
const ANSWER_TTL = 1;

export interface Ipv4Packet {
  readonly protocol: number;
  /** Addresses as 32-bit numbers. */
  readonly source: number;
  readonly destination: number;
  readonly payload: Uint8Array;
}

/** The packet at the start of `bytes`, without padding behind it. Undefined if it is malformed or a fragment. */
export function parseIpv4(bytes: Uint8Array): Ipv4Packet | undefined {
  if (bytes.length < IPV4_HEADER_BYTES) return undefined;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const headerBytes = (bytes[VERSION_IHL]! & 0xf) * 4;
  const total = view.getUint16(TOTAL_LENGTH);
  const wellFormed =
    bytes[VERSION_IHL]! >> 4 === VERSION &&
    headerBytes >= IPV4_HEADER_BYTES &&
    total >= headerBytes &&
    total <= bytes.length;
  if (!wellFormed || checksum(sumWords(bytes.subarray(0, headerBytes))) !== 0) return undefined;
  if ((view.getUint16(FLAGS_FRAGMENT) & (MORE_FRAGMENTS | FRAGMENT_OFFSET)) !== 0) return undefined;
  return {
    protocol: view.getUint8(PROTOCOL),
    source: view.getUint32(SOURCE),
    destination: view.getUint32(IPV4_DESTINATION),
    payload: bytes.subarray(headerBytes, total),
  };
}

/** Writes the header of a packet with `length` bytes of TCP segment: {@link IPV4_HEADER_BYTES} bytes. */
export function writeIpv4Header(
  into: Uint8Array,
  addresses: { readonly source: number; readonly destination: number },
  length: number,
): void {
  const header = into.subarray(0, IPV4_HEADER_BYTES);
  const view = new DataView(header.buffer, header.byteOffset, header.length);
  header.fill(0);
  view.setUint8(VERSION_IHL, (VERSION << 4) | (IPV4_HEADER_BYTES / 4));
  view.setUint16(TOTAL_LENGTH, IPV4_HEADER_BYTES + length);
  // A packet that is never fragmented needs no identification of its own (RFC 6864).
  view.setUint16(IDENTIFICATION, 0);
  view.setUint16(FLAGS_FRAGMENT, DONT_FRAGMENT);
  view.setUint8(TTL, ANSWER_TTL);
  view.setUint8(PROTOCOL, PROTOCOL_TCP);
  view.setUint32(SOURCE, addresses.source);
  view.setUint32(IPV4_DESTINATION, addresses.destination);
  view.setUint16(HEADER_CHECKSUM, checksum(sumWords(header)));
}

/** The number of an address in dotted form. */
export function ipv4Number(address: string): number {
  return address.split(".").reduce((number, part) => number * 256 + Number(part), 0);
}
