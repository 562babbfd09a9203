/**
 * The metadata service at one network interface: takes the guest's frames to its address before they reach the link,
 * and makes the frames that answer them.
 */

import type { Timer, TimerSource } from "../ratelimit/rate-limiter.ts";
import { ARP_BYTES, ARP_TPA, type ArpRequest, parseArpRequest, writeArpReply } from "./arp.ts";
import {
  ETHERNET_HEADER_BYTES,
  ETHERTYPE_ARP,
  ETHERTYPE_IPV4,
  etherType,
  sourceMac,
  writeEthernetHeader,
} from "./ethernet.ts";
import { HttpEndpoint } from "./http-endpoint.ts";
import { IPV4_DESTINATION, IPV4_HEADER_BYTES, PROTOCOL_TCP, parseIpv4, writeIpv4Header } from "./ipv4.ts";
import type { MmdsService } from "./service.ts";
import { TcpListener } from "./tcp-listener.ts";
import { isChecksumRight, parseTcp, writeTcp } from "./tcp-segment.ts";

const BROADCAST = new Uint8Array(6).fill(0xff);
/** Firecracker's. */
const MMDS_MAC = Uint8Array.of(0x06, 0x01, 0x23, 0x45, 0x67, 0x01);
const MMDS_PORT = 80;
/** Guests' addresses that are remembered: more than there can be connections. */
const MAX_NEIGHBOURS = 64;

/** What {@link MmdsStack.wants} has to see of a frame, in bytes. */
const WANTED_BYTES = ETHERNET_HEADER_BYTES + ARP_BYTES;

/** Under Firecracker's names, in camel case. */
export interface StackCounts {
  /** Frames that were taken. */
  rxAccepted: number;
  /** Of these: malformed, with a wrong checksum or to another port. */
  rxAcceptedErr: number;
  /** Of these: no TCP, or TCP out of place. */
  rxAcceptedUnusual: number;
  /** TCP segments that were handled. */
  rxCount: number;
  /** Frames that were sent, under both of its names there. */
  txCount: number;
  txBytes: number;
  txFrames: number;
  connectionsCreated: number;
  connectionsDestroyed: number;
}

export interface StackOptions {
  readonly service: MmdsService;
  /** IPv4 address of the service. */
  readonly address: number;
  readonly timers: TimerSource;
}

export class MmdsStack {
  private readonly listener: TcpListener;
  private readonly timer: Timer;
  private onFrame: (() => void) | undefined;
  /** MAC addresses by IPv4 address: a guest may have containers with addresses of their own on its interface. */
  private readonly neighbours = new Map<number, Uint8Array>();
  private arpRequest: ArpRequest | undefined;
  private accepted = 0;
  private errors = 0;
  private unusual = 0;
  private segments = 0;
  private sentFrames = 0;
  private sentBytes = 0;

  constructor(private readonly options: StackOptions) {
    const { service, timers } = options;
    this.listener = new TcpListener({
      port: MMDS_PORT,
      now: () => timers.now(),
      accept: (connection) => new HttpEndpoint(connection, (request) => service.respond(request)),
      initialSequence: () => crypto.getRandomValues(new Uint32Array(1))[0]!,
    });
    this.timer = timers.create(() => this.onFrame?.());
  }

  get counts(): StackCounts {
    const { created, destroyed, unusual, wrongPort } = this.listener.counts;
    return {
      rxAccepted: this.accepted,
      rxAcceptedErr: this.errors + wrongPort,
      rxAcceptedUnusual: this.unusual + unusual,
      rxCount: this.segments,
      txCount: this.sentFrames,
      txBytes: this.sentBytes,
      txFrames: this.sentFrames,
      connectionsCreated: created,
      connectionsDestroyed: destroyed,
    };
  }

  /** `onFrame`: there may be a frame though the guest has sent none. */
  start(onFrame: () => void): void {
    this.onFrame = onFrame;
  }

  /** Forgets all that was going on. */
  stop(): void {
    this.onFrame = undefined;
    this.timer.cancel();
    this.arpRequest = undefined;
    this.neighbours.clear();
    this.listener.clear();
  }

  /** True if a frame that starts with `start` goes to the service. `start`: {@link WANTED_BYTES}, or the frame. */
  wants(start: Uint8Array): boolean {
    if (start.length < ETHERNET_HEADER_BYTES + IPV4_HEADER_BYTES) return false;
    const type = etherType(start);
    if (type !== ETHERTYPE_IPV4 && (type !== ETHERTYPE_ARP || start.length < WANTED_BYTES)) return false;
    const at = ETHERNET_HEADER_BYTES + (type === ETHERTYPE_IPV4 ? IPV4_DESTINATION : ARP_TPA);
    return new DataView(start.buffer, start.byteOffset, start.length).getUint32(at) === this.options.address;
  }

  /**
   * Takes a frame of the guest. It must not change meanwhile. `checksummed`: false if the guest has left the TCP
   * checksum to the device.
   */
  take(frame: Uint8Array, checksummed: boolean): void {
    this.accepted++;
    const payload = frame.subarray(ETHERNET_HEADER_BYTES);
    if (frame.length < ETHERNET_HEADER_BYTES) this.errors++;
    else if (etherType(frame) === ETHERTYPE_ARP) this.takeArp(payload);
    else this.takeIpv4(payload, sourceMac(frame), checksummed);
    this.schedule();
  }

  /** Writes the next frame for the guest and returns its length; 0: none now. `into` has room for 1,514 bytes. */
  next(into: Uint8Array): number {
    const length = this.writeArp(into) || this.writeSegment(into);
    if (length > 0) {
      this.sentFrames++;
      this.sentBytes += length;
    } else {
      this.schedule();
    }
    return length;
  }

  private takeArp(payload: Uint8Array): void {
    const request = parseArpRequest(payload);
    if (request === undefined || request.target !== this.options.address) this.unusual++;
    else this.arpRequest = request;
  }

  private takeIpv4(payload: Uint8Array, sender: Uint8Array, checksummed: boolean): void {
    const packet = parseIpv4(payload);
    if (packet === undefined || packet.destination !== this.options.address) {
      this.errors++;
      return;
    }
    if (packet.protocol !== PROTOCOL_TCP) {
      this.unusual++;
      return;
    }
    const segment = parseTcp(packet.payload);
    if (segment === undefined || (checksummed && !isChecksumRight(packet.payload, packet))) {
      this.errors++;
      return;
    }
    this.segments++;
    this.remember(packet.source, sender);
    this.listener.receive(packet.source, segment);
  }

  private remember(address: number, mac: Uint8Array): void {
    const { neighbours } = this;
    neighbours.delete(address);
    neighbours.set(address, mac);
    for (const oldest of neighbours.keys()) {
      if (neighbours.size <= MAX_NEIGHBOURS) break;
      neighbours.delete(oldest);
    }
  }

  private writeArp(into: Uint8Array): number {
    const request = this.arpRequest;
    if (request === undefined) return 0;
    this.arpRequest = undefined;
    writeEthernetHeader(into, request.senderMac, MMDS_MAC, ETHERTYPE_ARP);
    writeArpReply(into.subarray(ETHERNET_HEADER_BYTES), request, MMDS_MAC);
    return ETHERNET_HEADER_BYTES + ARP_BYTES;
  }

  private writeSegment(into: Uint8Array): number {
    const next = this.listener.next();
    if (next === undefined) return 0;
    const addresses = { source: this.options.address, destination: next.address };
    const headers = ETHERNET_HEADER_BYTES + IPV4_HEADER_BYTES;
    writeEthernetHeader(into, this.neighbours.get(next.address) ?? BROADCAST, MMDS_MAC, ETHERTYPE_IPV4);
    const length = writeTcp(into.subarray(headers), next.segment, addresses);
    writeIpv4Header(into.subarray(ETHERNET_HEADER_BYTES), addresses, length);
    return headers + length;
  }

  private schedule(): void {
    const { deadline } = this.listener;
    if (deadline === Number.POSITIVE_INFINITY) this.timer.cancel();
    else this.timer.set(Math.max(0, deadline - this.options.timers.now()));
  }
}
