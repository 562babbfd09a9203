/** TCP segments (RFC 9293, 3.1). */

import { checksum, sumWords } from "./checksum.ts";
import { PROTOCOL_TCP } from "./ipv4.ts";

export const FIN = 0x01;
export const SYN = 0x02;
export const RST = 0x04;
export const PSH = 0x08;
export const ACK = 0x10;

/** Length of a header without options. */
export const TCP_HEADER_BYTES = 20;
/** Length of the Maximum Segment Size option. */
export const MSS_OPTION_BYTES = 4;

const SOURCE_PORT = 0;
const DESTINATION_PORT = 2;
const SEQUENCE = 4;
const ACKNOWLEDGMENT = 8;
const DATA_OFFSET = 12;
const FLAGS = 13;
const WINDOW = 14;
const CHECKSUM = 16;

const OPTION_END = 0;
const OPTION_NOP = 1;
const OPTION_MSS = 2;

/** What both directions have. Sequence numbers are unsigned 32-bit numbers. */
export interface SegmentFields {
  readonly sequence: number;
  readonly acknowledgment: number;
  readonly flags: number;
  readonly window: number;
  /** The Maximum Segment Size option. */
  readonly mss?: number | undefined;
  readonly payload: Uint8Array;
}

export interface TcpSegment extends SegmentFields {
  readonly sourcePort: number;
  readonly destinationPort: number;
}

interface Addresses {
  readonly source: number;
  readonly destination: number;
}

/** Sequence numbers that a segment takes. */
export function sequenceLength({ flags, payload }: SegmentFields): number {
  return payload.length + ((flags & SYN) === 0 ? 0 : 1) + ((flags & FIN) === 0 ? 0 : 1);
}

/** Sum of the pseudo header (RFC 9293, 3.1). */
function pseudoHeaderSum({ source, destination }: Addresses, length: number): number {
  const words = (address: number) => (address >>> 16) + (address & 0xffff);
  return words(source) + words(destination) + PROTOCOL_TCP + length;
}

/** True if the checksum of a segment is right. */
export function isChecksumRight(bytes: Uint8Array, addresses: Addresses): boolean {
  return checksum(sumWords(bytes, pseudoHeaderSum(addresses, bytes.length))) === 0;
}

/** The segment in a packet; undefined if it is malformed. The checksum is not looked at. */
export function parseTcp(bytes: Uint8Array): TcpSegment | undefined {
  if (bytes.length < TCP_HEADER_BYTES) return undefined;
  const headerBytes = (bytes[DATA_OFFSET]! >> 4) * 4;
  if (headerBytes < TCP_HEADER_BYTES || headerBytes > bytes.length) return undefined;
  const options = parseOptions(bytes.subarray(TCP_HEADER_BYTES, headerBytes));
  if (options === undefined) return undefined;
  const view = new DataView(bytes.buffer, bytes.byteOffset, headerBytes);
  return {
    sourcePort: view.getUint16(SOURCE_PORT),
    destinationPort: view.getUint16(DESTINATION_PORT),
    sequence: view.getUint32(SEQUENCE),
    acknowledgment: view.getUint32(ACKNOWLEDGMENT),
    flags: view.getUint8(FLAGS),
    window: view.getUint16(WINDOW),
    mss: options.mss,
    payload: bytes.subarray(headerBytes),
  };
}

/** Undefined if a length leads out of the options. */
function parseOptions(options: Uint8Array): { mss: number | undefined } | undefined {
  let mss: number | undefined;
  for (let at = 0; at < options.length; ) {
    const kind = options[at]!;
    if (kind === OPTION_END) break;
    if (kind === OPTION_NOP) {
      at++;
      continue;
    }
    const length = options[at + 1] ?? 0;
    if (length < 2 || at + length > options.length) return undefined;
    if (kind === OPTION_MSS) {
      if (length !== MSS_OPTION_BYTES) return undefined;
      mss = (options[at + 2]! << 8) | options[at + 3]!;
    }
    at += length;
  }
  return { mss };
}

/** Writes a segment with its checksum and returns its length. */
export function writeTcp(into: Uint8Array, segment: TcpSegment, addresses: Addresses): number {
  const headerBytes = TCP_HEADER_BYTES + (segment.mss === undefined ? 0 : MSS_OPTION_BYTES);
  const bytes = into.subarray(0, headerBytes + segment.payload.length);
  const view = new DataView(bytes.buffer, bytes.byteOffset, headerBytes);
  bytes.fill(0, 0, headerBytes);
  view.setUint16(SOURCE_PORT, segment.sourcePort);
  view.setUint16(DESTINATION_PORT, segment.destinationPort);
  view.setUint32(SEQUENCE, segment.sequence);
  view.setUint32(ACKNOWLEDGMENT, segment.acknowledgment);
  view.setUint8(DATA_OFFSET, (headerBytes / 4) << 4);
  view.setUint8(FLAGS, segment.flags);
  view.setUint16(WINDOW, segment.window);
  if (segment.mss !== undefined) {
    view.setUint8(TCP_HEADER_BYTES, OPTION_MSS);
    view.setUint8(TCP_HEADER_BYTES + 1, MSS_OPTION_BYTES);
    view.setUint16(TCP_HEADER_BYTES + 2, segment.mss);
  }
  bytes.set(segment.payload, headerBytes);
  view.setUint16(CHECKSUM, checksum(sumWords(bytes, pseudoHeaderSum(addresses, bytes.length))));
  return bytes.length;
}
