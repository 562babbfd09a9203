/** A guest of tests: makes frames for a network stack and reads the ones that come back. */

import {
  ETHERNET_HEADER_BYTES,
  ETHERTYPE_ARP,
  ETHERTYPE_IPV4,
  etherType,
  writeEthernetHeader,
} from "../ethernet.ts";
import { IPV4_HEADER_BYTES, ipv4Number, parseIpv4, writeIpv4Header } from "../ipv4.ts";
import type { MmdsStack } from "../network-stack.ts";
import { ACK, FIN, isChecksumRight, parseTcp, SYN, type TcpSegment, writeTcp } from "../tcp-segment.ts";

export const GUEST_MAC = Uint8Array.of(6, 0, 0xac, 0x1e, 0, 2);
export const MMDS_MAC = Uint8Array.of(6, 1, 0x23, 0x45, 0x67, 1);
export const GUEST_IP = ipv4Number("172.30.0.2");
export const MMDS_IP = ipv4Number("169.254.169.254");

/** A frame with a TCP segment from the guest to the service. */
export function tcpFrame(segment: Partial<TcpSegment>, source = GUEST_IP): Uint8Array {
  const whole: TcpSegment = {
    sourcePort: 40000,
    destinationPort: 80,
    sequence: 0,
    acknowledgment: 0,
    flags: 0,
    window: 64000,
    payload: new Uint8Array(0),
    ...segment,
  };
  const headers = ETHERNET_HEADER_BYTES + IPV4_HEADER_BYTES;
  const frame = new Uint8Array(headers + 24 + whole.payload.length);
  const addresses = { source, destination: MMDS_IP };
  writeEthernetHeader(frame, MMDS_MAC, GUEST_MAC, ETHERTYPE_IPV4);
  const length = writeTcp(frame.subarray(headers), whole, addresses);
  writeIpv4Header(frame.subarray(ETHERNET_HEADER_BYTES), addresses, length);
  return frame.subarray(0, headers + length);
}

export function arpFrame(target = MMDS_IP): Uint8Array {
  const frame = new Uint8Array(ETHERNET_HEADER_BYTES + 28);
  writeEthernetHeader(frame, new Uint8Array(6).fill(0xff), GUEST_MAC, ETHERTYPE_ARP);
  const view = new DataView(frame.buffer, ETHERNET_HEADER_BYTES);
  view.setUint16(0, 1);
  view.setUint16(2, 0x0800);
  view.setUint8(4, 6);
  view.setUint8(5, 4);
  view.setUint16(6, 1);
  frame.set(GUEST_MAC, ETHERNET_HEADER_BYTES + 8);
  view.setUint32(14, GUEST_IP);
  view.setUint32(24, target);
  return frame;
}

/** All frames that the stack has now. */
export function pull(stack: MmdsStack): Uint8Array[] {
  const frames: Uint8Array[] = [];
  const into = new Uint8Array(1514);
  for (let length = stack.next(into); length > 0; length = stack.next(into)) {
    frames.push(into.slice(0, length));
  }
  return frames;
}

/** The segment in a frame of the stack. Throws if anything of it is wrong. */
export function segmentIn(frame: Uint8Array): TcpSegment {
  const packet = parseIpv4(frame.subarray(ETHERNET_HEADER_BYTES));
  const segment = packet === undefined ? undefined : parseTcp(packet.payload);
  if (etherType(frame) !== ETHERTYPE_IPV4 || packet === undefined || segment === undefined) {
    throw new Error("not a TCP segment");
  }
  if (!isChecksumRight(packet.payload, packet)) throw new Error("wrong TCP checksum");
  return segment;
}

/** A program in the guest with one connection. It acknowledges what comes in order. */
export class TestClient {
  sequence: number;
  next = 0;
  received = "";
  /** The last flags that came. */
  flags = 0;
  ended = false;

  constructor(
    private readonly stack: MmdsStack,
    readonly port: number,
    start = 1000,
    private readonly window = 64000,
  ) {
    this.sequence = start;
  }

  send(flags: number, payload = "", checksummed = true): void {
    const bytes = Buffer.from(payload);
    const fields = { sequence: this.sequence, acknowledgment: this.next, window: this.window };
    const mss = (flags & SYN) === 0 ? {} : { mss: 1460 };
    const frame = tcpFrame({ sourcePort: this.port, flags, payload: bytes, ...fields, ...mss });
    // What a guest leaves in the checksum field for a device that completes it.
    if (!checksummed) frame[ETHERNET_HEADER_BYTES + IPV4_HEADER_BYTES + 16]! ^= 0xff;
    this.stack.take(frame, checksummed);
    this.sequence += bytes.length + ((flags & (SYN | FIN)) === 0 ? 0 : 1);
  }

  /** Takes the frames that the stack has for it, and answers until there are no more. */
  pump(): void {
    for (let frames = pull(this.stack); frames.length > 0; frames = pull(this.stack)) {
      let took = false;
      for (const segment of frames.map(segmentIn)) {
        if (segment.destinationPort !== this.port) continue;
        this.flags = segment.flags;
        if ((segment.flags & SYN) !== 0) this.next = segment.sequence;
        else if (segment.sequence !== this.next) continue;
        this.received += Buffer.from(segment.payload).toString();
        const count =
          segment.payload.length +
          ((segment.flags & SYN) === 0 ? 0 : 1) +
          ((segment.flags & FIN) === 0 ? 0 : 1);
        this.next = (this.next + count) >>> 0;
        this.ended ||= (segment.flags & FIN) !== 0;
        took ||= count > 0;
      }
      if (took) this.send(ACK);
    }
  }

  connect(): void {
    this.send(SYN);
    this.pump();
  }

  /** Sends a request and returns what comes. */
  request(text: string): string {
    this.received = "";
    this.send(ACK, text);
    this.pump();
    return this.received;
  }
}
