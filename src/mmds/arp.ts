/** ARP for IPv4 over Ethernet (RFC 826). */

import { MAC_BYTES } from "./ethernet.ts";

export const ARP_BYTES = 28;

/** Offsets: hardware type, protocol type, lengths of their addresses, operation, then the four addresses. */
const HTYPE = 0;
const PTYPE = 2;
const HLEN = 4;
const PLEN = 5;
const OPER = 6;
const SHA = 8;
const SPA = 14;
const THA = 18;
/** Offset of the protocol address that is asked for. */
export const ARP_TPA = 24;

const HTYPE_ETHERNET = 1;
const PTYPE_IPV4 = 0x0800;
const IPV4_BYTES = 4;
const REQUEST = 1;
const REPLY = 2;

export interface ArpRequest {
  readonly senderMac: Uint8Array;
  /** IPv4 addresses as 32-bit numbers. */
  readonly sender: number;
  readonly target: number;
}

/** The request in the payload of a frame; undefined if it is none, or one for other protocols. */
export function parseArpRequest(payload: Uint8Array): ArpRequest | undefined {
  if (payload.length < ARP_BYTES) return undefined;
  const view = new DataView(payload.buffer, payload.byteOffset, ARP_BYTES);
  const known =
    view.getUint16(HTYPE) === HTYPE_ETHERNET &&
    view.getUint16(PTYPE) === PTYPE_IPV4 &&
    payload[HLEN] === MAC_BYTES &&
    payload[PLEN] === IPV4_BYTES &&
    view.getUint16(OPER) === REQUEST;
  if (!known) return undefined;
  return {
    senderMac: payload.slice(SHA, SHA + MAC_BYTES),
    sender: view.getUint32(SPA),
    target: view.getUint32(ARP_TPA),
  };
}

/** Writes the reply that says `target` of `request` is at `mac`: {@link ARP_BYTES} bytes. */
export function writeArpReply(into: Uint8Array, request: ArpRequest, mac: Uint8Array): void {
  const view = new DataView(into.buffer, into.byteOffset, ARP_BYTES);
  view.setUint16(HTYPE, HTYPE_ETHERNET);
  view.setUint16(PTYPE, PTYPE_IPV4);
  view.setUint8(HLEN, MAC_BYTES);
  view.setUint8(PLEN, IPV4_BYTES);
  view.setUint16(OPER, REPLY);
  into.set(mac, SHA);
  view.setUint32(SPA, request.target);
  into.set(request.senderMac, THA);
  view.setUint32(ARP_TPA, request.sender);
}
