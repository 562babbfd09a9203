/**
 * A network device's frames through a stream socket, each after its length in four bytes, big-endian: the protocol
 * of QEMU's `-netdev stream`, which passt speaks.
 */

import {
  type LinkEvents,
  MAX_FRAME_BYTES,
  NET_HEADER_BYTES,
  type NetLink,
} from "../devices/virtio/net/link.ts";
import { VIRTIO_NET_F_GUEST_CSUM } from "../devices/virtio/net/net.ts";
import { EPOLLET, EPOLLIN, EPOLLOUT, type Epoll } from "../platform/epoll.ts";
import { readSome, writeSome } from "../platform/files.ts";
import { writeVector } from "../platform/iovec.ts";

const LENGTH_BYTES = 4;
const BUFFER_BYTES = 256 * 1024;
/** flags in struct virtio_net_hdr (virtio 1.2, 5.1.6): the checksum has been found right. */
const VIRTIO_NET_HDR_F_DATA_VALID = 2;

export class StreamLink implements NetLink {
  /** Frames cross no wire, so the guest need not check what the program at the other end has just computed. */
  readonly offloads = VIRTIO_NET_F_GUEST_CSUM;

  private readonly buffer = new Uint8Array(BUFFER_BYTES);
  private readonly view = new DataView(this.buffer.buffer);
  /** What was read and is not yet taken. */
  private head = 0;
  private tail = 0;
  private readonly length = new Uint8Array(LENGTH_BYTES);
  private readonly lengthView = new DataView(this.length.buffer);
  /** The end of a frame of which the socket took only the start. */
  private rest: Uint8Array = new Uint8Array(0);
  private validFlag = 0;

  constructor(
    private readonly epoll: Epoll,
    private readonly fd: number,
  ) {}

  start(accepted: bigint, events: LinkEvents): void {
    this.validFlag = (accepted & VIRTIO_NET_F_GUEST_CSUM) !== 0n ? VIRTIO_NET_HDR_F_DATA_VALID : 0;
    this.epoll.watch(this.fd, EPOLLET | EPOLLIN | EPOLLOUT, (ready) => {
      if ((ready & EPOLLOUT) !== 0 && this.flushed()) events.onWritable();
      events.onReadable();
    });
  }

  stop(): void {
    this.epoll.forget(this.fd);
  }

  receive(into: Uint8Array): number | undefined {
    for (;;) {
      const have = this.tail - this.head;
      if (have >= LENGTH_BYTES) {
        const length = this.view.getUint32(this.head);
        if (length > MAX_FRAME_BYTES) throw new Error(`the network program sent a frame of ${length} bytes`);
        if (have >= LENGTH_BYTES + length) {
          const from = this.head + LENGTH_BYTES;
          this.head = from + length;
          if (length === 0) continue;
          into.fill(0, 0, NET_HEADER_BYTES);
          into[0] = this.validFlag;
          into.set(this.buffer.subarray(from, from + length), NET_HEADER_BYTES);
          return NET_HEADER_BYTES + length;
        }
      }
      if (!this.fill()) return undefined;
    }
  }

  send(_header: Uint8Array, frame: readonly Uint8Array[], length: number): boolean {
    if (!this.flush()) return false;
    this.lengthView.setUint32(0, length);
    const taken = writeVector(this.fd, [this.length, ...frame]);
    if (taken === undefined) return false;
    if (taken < LENGTH_BYTES + length) {
      this.rest = Buffer.concat([this.length, ...frame]).subarray(taken);
    }
    return true;
  }

  /** Reads more. False if there is none now. */
  private fill(): boolean {
    if (this.head > 0) {
      this.buffer.copyWithin(0, this.head, this.tail);
      this.tail -= this.head;
      this.head = 0;
    }
    const count = readSome(this.fd, this.buffer.subarray(this.tail));
    if (count === 0) throw new Error("the network program has ended");
    this.tail += count ?? 0;
    return count !== undefined;
  }

  /** Like {@link flush}, but an error is left to the next frame to meet. */
  private flushed(): boolean {
    try {
      return this.flush();
    } catch {
      return true;
    }
  }

  private flush(): boolean {
    while (this.rest.length > 0) {
      const taken = writeSome(this.fd, this.rest);
      if (taken === undefined) return false;
      this.rest = this.rest.subarray(taken);
    }
    return true;
  }
}
