/** A service on the monitor's side of a network interface, which answers some of the guest's frames itself. */
export interface Detour {
  /** `onFrame`: there may be a frame though the guest has sent none. Comes from the event loop. */
  start(onFrame: () => void): void;
  stop(): void;
  /** True if a frame that starts with `start` is for it. `start`: {@link DETOUR_START_BYTES}, or the whole frame. */
  wants(start: Uint8Array): boolean;
  /** Takes such a frame. `checksummed`: false if the guest has left the checksum of TCP to the device. */
  take(frame: Uint8Array, checksummed: boolean): void;
  /** Writes the next frame for the guest, of at most 1,514 bytes. Returns its length; 0: none now. */
  next(into: Uint8Array): number;
}

/** Ethernet header and ARP packet, or IPv4 header. */
export const DETOUR_START_BYTES = 42;
