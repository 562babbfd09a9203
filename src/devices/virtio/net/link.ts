/** What a network device's frames go through on the host. No call blocks. */

/** Length of struct virtio_net_hdr with `num_buffers` (virtio 1.2, 5.1.6), which VERSION_1 always has. */
export const NET_HEADER_BYTES = 12;

/** The longest frame: 64 KiB of IP packet, what TCP segmentation offload makes, and an Ethernet header with VLAN tag. */
export const MAX_FRAME_BYTES = 65535 + 18;

/** Calls that come from the event loop. */
export interface LinkEvents {
  /** There may be frames, after {@link NetLink.receive} gave undefined or since {@link NetLink.start}. */
  onReadable(): void;
  /** There may be room, after {@link NetLink.send} gave false. */
  onWritable(): void;
}

export interface NetLink {
  /** Offload features (VIRTIO_NET_F_*) that can be offered to the driver. */
  readonly offloads: bigint;
  /** `accepted`: those of {@link offloads} that the driver took. Throws if the host refuses them. */
  start(accepted: bigint, events: LinkEvents): void;
  stop(): void;
  /**
   * Reads a frame, behind {@link NET_HEADER_BYTES} of header, and returns the bytes of both; undefined: none now.
   * Throws if it cannot receive any more. `into` has room for the longest frame.
   */
  receive(into: Uint8Array): number | undefined;
  /**
   * Sends a frame. `header` is as the driver wrote it. False: no room now, and nothing was taken. Throws if this
   * frame cannot be sent; it is lost.
   */
  send(header: Uint8Array, frame: readonly Uint8Array[], length: number): boolean;
}
