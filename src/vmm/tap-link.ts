/** A network device's frames through a TAP device. */

import type { LinkEvents, NetLink } from "../devices/virtio/net/link.ts";
import * as net from "../devices/virtio/net/net.ts";
import { EPOLLET, EPOLLIN, EPOLLOUT, type Epoll } from "../platform/epoll.ts";
import { SystemError } from "../platform/errno.ts";
import { ERRNO } from "../platform/errno-numbers.ts";
import { readSome } from "../platform/files.ts";
import { writeVector } from "../platform/iovec.ts";
import { setTapOffload, TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_UFO } from "../platform/tap.ts";

/** What the driver accepts to receive, and how the TAP device calls it. */
const RECEIVE_OFFLOADS: readonly [bigint, number][] = [
  [net.VIRTIO_NET_F_GUEST_CSUM, TUN_F_CSUM],
  [net.VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4],
  [net.VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6],
  [net.VIRTIO_NET_F_GUEST_UFO, TUN_F_UFO],
];

export class TapLink implements NetLink {
  readonly offloads =
    net.VIRTIO_NET_F_CSUM |
    net.VIRTIO_NET_F_HOST_TSO4 |
    net.VIRTIO_NET_F_HOST_TSO6 |
    net.VIRTIO_NET_F_HOST_UFO |
    net.VIRTIO_NET_F_GUEST_CSUM |
    net.VIRTIO_NET_F_GUEST_TSO4 |
    net.VIRTIO_NET_F_GUEST_TSO6 |
    net.VIRTIO_NET_F_GUEST_UFO;

  constructor(
    private readonly epoll: Epoll,
    private readonly fd: number,
  ) {}

  start(accepted: bigint, events: LinkEvents): void {
    // All others rest on checksums being left out.
    const checksum = (accepted & net.VIRTIO_NET_F_GUEST_CSUM) !== 0n;
    let flags = 0;
    for (const [feature, flag] of RECEIVE_OFFLOADS)
      if (checksum && (accepted & feature) !== 0n) flags |= flag;
    try {
      setTapOffload(this.fd, flags);
    } catch (error) {
      // Kernels from 4.14 to 6.1 without UFO: the guest then just gets no such frames.
      if (!(error instanceof SystemError) || error.errno !== ERRNO.EINVAL) throw error;
      setTapOffload(this.fd, flags & ~TUN_F_UFO);
    }
    this.epoll.watch(this.fd, EPOLLET | EPOLLIN | EPOLLOUT, (ready) => {
      if ((ready & EPOLLOUT) !== 0) events.onWritable();
      events.onReadable();
    });
  }

  stop(): void {
    this.epoll.forget(this.fd);
  }

  receive(into: Uint8Array): number | undefined {
    return readSome(this.fd, into);
  }

  send(header: Uint8Array, frame: readonly Uint8Array[]): boolean {
    return writeVector(this.fd, [header, ...frame]) !== undefined;
  }
}
