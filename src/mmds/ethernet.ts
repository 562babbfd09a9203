/** Ethernet II frames (IEEE 802.3) without VLAN tags. */

export const ETHERNET_HEADER_BYTES = 14;
export const MAC_BYTES = 6;
export const ETHERTYPE_IPV4 = 0x0800;
export const ETHERTYPE_ARP = 0x0806;

const SOURCE = 6;
const ETHERTYPE = 12;

/** The type of a frame of at least {@link ETHERNET_HEADER_BYTES}. */
export function etherType(frame: Uint8Array): number {
  return (frame[ETHERTYPE]! << 8) | frame[ETHERTYPE + 1]!;
}

export function sourceMac(frame: Uint8Array): Uint8Array {
  return frame.slice(SOURCE, SOURCE + MAC_BYTES);
}

export function writeEthernetHeader(
  into: Uint8Array,
  destination: Uint8Array,
  source: Uint8Array,
  type: number,
): void {
  into.set(destination, 0);
  into.set(source, SOURCE);
  into[ETHERTYPE] = type >> 8;
  into[ETHERTYPE + 1] = type & 0xff;
}
