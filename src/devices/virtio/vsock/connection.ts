/** One vsock connection: a stream of the guest's on one side, a stream socket of the host's on the other. */

import type { Timer, TimerSource } from "../../../ratelimit/rate-limiter.ts";
import { bufferViews, type DescriptorChain } from "../chain.ts";
import type { HostStream, HostStreamEvents } from "./host-sockets.ts";
import * as op from "./packet.ts";
import { TX_BUFFER_BYTES, TxBuffer } from "./tx-buffer.ts";

/** How long the guest may take to answer a connection request or to end a connection, ms. */
const REQUEST_TIMEOUT_MS = 2000;
const SHUTDOWN_TIMEOUT_MS = 2000;
/** How often a host program whose queue of connections is full is tried again, ms. */
const RETRY_MS = 10;
/** The guest is told of room in the buffer when this much more of it is free than it knows. */
const CREDIT_UPDATE_BYTES = TX_BUFFER_BYTES / 2;

/** What a connection needs of the device. */
export interface ConnectionOwner {
  readonly timers: TimerSource;
  /** The connection has something to send to the guest: {@link Connection.nextPacket}. */
  enqueue(connection: Connection): void;
  /** It is over: forget it. */
  remove(connection: Connection): void;
  /** Tries to reach the host program of a connection that the guest asked for. */
  connect(port: number): HostStream | "busy" | undefined;
  readonly metrics: VsockMetrics;
}

/** Counters since the device was created. */
export interface VsockMetrics {
  rxQueueEvents: number;
  txQueueEvents: number;
  rxBytes: number;
  txBytes: number;
  rxPackets: number;
  txPackets: number;
  connectionsAdded: number;
  connectionsRemoved: number;
  /** Those that were ended because a time ran out. */
  connectionsKilled: number;
  rxReadFails: number;
  txWriteFails: number;
  txFlushFails: number;
}

export class Connection implements HostStreamEvents {
  /** True while in the device's queue of connections with something to send. */
  queued = false;
  private over = false;
  /** Both ends have agreed. */
  private open = false;
  private readonly outgoing = new TxBuffer();
  private readonly timer: Timer;

  /** Packets that are owed to the guest. */
  private owesReset = false;
  private owesRequest = false;
  private owesResponse = false;
  private owesShutdown = 0;
  private owesCredit = false;

  /** The host's stream may have something to read. */
  private readable = true;
  private hostEnded = false;
  /** Flags of the SHUTDOWN packets that were sent and received. */
  private sentShutdown = 0;
  private gotShutdown = 0;
  private writeShutDone = false;

  /** Credit (virtio 1.2, 5.10.6.3), all modulo 2^32. */
  private fwdCnt = 0;
  private toldFwdCnt = 0;
  private rxCnt = 0;
  private peerBufAlloc = 0;
  private peerFwdCnt = 0;
  private creditRequested = false;

  private constructor(
    readonly hostPort: number,
    readonly guestPort: number,
    private readonly owner: ConnectionOwner,
    private stream: HostStream | undefined,
  ) {
    this.timer = owner.timers.create(() => this.timeout());
  }

  /** A host program wants to reach `guestPort`. */
  static fromHost(
    owner: ConnectionOwner,
    hostPort: number,
    guestPort: number,
    stream: HostStream,
  ): Connection {
    const connection = new Connection(hostPort, guestPort, owner, stream);
    connection.owesRequest = true;
    connection.timer.set(REQUEST_TIMEOUT_MS);
    stream.watch(connection);
    owner.enqueue(connection);
    return connection;
  }

  /** The guest wants to reach the host program at `header.dstPort`. */
  static fromGuest(owner: ConnectionOwner, header: op.VsockHeader, stream: HostStream | "busy"): Connection {
    const connection = new Connection(
      header.dstPort,
      header.srcPort,
      owner,
      stream === "busy" ? undefined : stream,
    );
    connection.takeCredit(header);
    if (stream === "busy") connection.retry(owner.timers.now() + REQUEST_TIMEOUT_MS);
    else connection.accept(stream);
    return connection;
  }

  /** True if {@link nextPacket} has something to send. */
  get pending(): boolean {
    if (this.over) return false;
    return (
      this.owesReset ||
      this.owesResponse ||
      this.owesRequest ||
      this.owesShutdown !== 0 ||
      this.owesCredit ||
      this.wantsRead
    );
  }

  private get wantsRead(): boolean {
    return (
      this.open &&
      this.readable &&
      !this.hostEnded &&
      (this.gotShutdown & op.VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE) === 0 &&
      (this.credit > 0 || !this.creditRequested)
    );
  }

  /** Bytes that the guest has room for. */
  private get credit(): number {
    return Math.max(0, this.peerBufAlloc - ((this.rxCnt - this.peerFwdCnt) >>> 0));
  }

  onReadable(): void {
    this.readable = true;
    this.update();
  }

  onWritable(): void {
    if (this.over) return;
    this.flush();
    this.update();
  }

  onHangUp(): void {
    // What the host program has sent before it went away is delivered first, and the end is found by reading. A guest
    // that wants nothing more is told at once.
    if ((this.gotShutdown & op.VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE) !== 0) this.hostEnded = true;
    if (this.hostEnded && this.open) this.endFromHost();
    this.readable = true;
    this.update();
  }

  /** A packet from the guest, other than RST. `chain` has its data after the header. */
  receive(header: op.VsockHeader, chain: DescriptorChain): void {
    this.takeCredit(header);
    switch (header.op) {
      case op.VIRTIO_VSOCK_OP_RESPONSE:
        this.established();
        break;
      case op.VIRTIO_VSOCK_OP_RW:
        this.forward(header, chain);
        break;
      case op.VIRTIO_VSOCK_OP_SHUTDOWN:
        this.shutdownFromGuest(header.flags);
        break;
      case op.VIRTIO_VSOCK_OP_CREDIT_REQUEST:
        this.owesCredit = true;
        break;
      default:
        // A credit update has done its work. Nothing else means anything here.
        break;
    }
    this.update();
  }

  /**
   * Makes the next packet for the guest: fills the fields of `header` that depend on the connection and puts data,
   * if any, `HEADER_BYTES` into `chain`. False if there was nothing to send after all.
   */
  nextPacket(header: op.VsockHeader, chain: DescriptorChain): boolean {
    header.srcPort = this.hostPort;
    header.dstPort = this.guestPort;
    header.len = 0;
    header.flags = 0;
    if (this.over || !this.choose(header, chain)) return false;
    header.bufAlloc = TX_BUFFER_BYTES;
    header.fwdCnt = this.fwdCnt;
    this.toldFwdCnt = this.fwdCnt;
    this.owesCredit = false;
    return true;
  }

  private choose(header: op.VsockHeader, chain: DescriptorChain): boolean {
    if (this.owesReset) {
      header.op = op.VIRTIO_VSOCK_OP_RST;
      this.end();
      return true;
    }
    if (this.owesResponse) {
      this.owesResponse = false;
      this.open = true;
      header.op = op.VIRTIO_VSOCK_OP_RESPONSE;
      return true;
    }
    if (this.owesRequest) {
      this.owesRequest = false;
      header.op = op.VIRTIO_VSOCK_OP_REQUEST;
      return true;
    }
    if (this.wantsRead && this.read(header, chain)) return true;
    if (this.owesShutdown !== 0) {
      this.sentShutdown |= this.owesShutdown;
      this.owesShutdown = 0;
      header.op = op.VIRTIO_VSOCK_OP_SHUTDOWN;
      header.flags = this.sentShutdown;
      return true;
    }
    if (this.owesReset) return this.choose(header, chain);
    if (!this.owesCredit) return false;
    header.op = op.VIRTIO_VSOCK_OP_CREDIT_UPDATE;
    return true;
  }

  /** Data of the host's for the guest. False if there is none. */
  private read(header: op.VsockHeader, chain: DescriptorChain): boolean {
    const { credit } = this;
    if (credit === 0) {
      this.creditRequested = true;
      header.op = op.VIRTIO_VSOCK_OP_CREDIT_REQUEST;
      return true;
    }
    const into = bufferViews(chain.writable, op.HEADER_BYTES, credit);
    if (into.length === 0) return false;
    let count: number | undefined;
    try {
      count = this.stream?.read(into);
    } catch {
      this.owner.metrics.rxReadFails++;
      this.owesReset = true;
      return false;
    }
    if (count === undefined) {
      this.readable = false;
      return false;
    }
    if (count === 0) {
      this.hostEnded = true;
      this.endFromHost();
      return false;
    }
    this.owner.metrics.rxBytes += count;
    this.rxCnt = (this.rxCnt + count) >>> 0;
    header.op = op.VIRTIO_VSOCK_OP_RW;
    header.len = count;
    return true;
  }

  /** The host program has closed its end, or its sending half only. */
  private endFromHost(): void {
    const wholly = this.stream?.hungUp ?? true;
    this.owesShutdown |= wholly ? op.SHUTDOWN_BOTH : op.VIRTIO_VSOCK_SHUTDOWN_F_SEND;
    this.owesShutdown &= ~this.sentShutdown;
    if (!wholly) return;
    this.outgoing.clear();
    this.timer.set(SHUTDOWN_TIMEOUT_MS);
  }

  private takeCredit(header: op.VsockHeader): void {
    this.peerBufAlloc = header.bufAlloc;
    this.peerFwdCnt = header.fwdCnt;
    if (this.credit > 0) this.creditRequested = false;
  }

  /** The guest has accepted a host program's connection. */
  private established(): void {
    if (this.open || this.owesRequest || this.owesResponse || this.stream === undefined) return;
    const answer = new TextEncoder().encode(`OK ${this.hostPort}\n`);
    try {
      if (this.stream.write([answer]) < answer.length) throw new Error("no room");
    } catch {
      this.owner.metrics.txWriteFails++;
      this.owesReset = true;
      return;
    }
    this.timer.cancel();
    this.open = true;
  }

  private forward(header: op.VsockHeader, chain: DescriptorChain): void {
    const { len } = header;
    const mayNot = !this.open || (this.gotShutdown & op.VIRTIO_VSOCK_SHUTDOWN_F_SEND) !== 0;
    // More than it was told there is room for, or than there is.
    if (
      mayNot ||
      this.outgoing.length + len > TX_BUFFER_BYTES ||
      op.HEADER_BYTES + len > chain.readableLength
    ) {
      this.owesReset = true;
      return;
    }
    // The host program is gone and the guest, which was told, will hear of it.
    if ((this.sentShutdown | this.owesShutdown) === op.SHUTDOWN_BOTH) return;
    let written = 0;
    if (this.outgoing.length === 0) {
      try {
        written = this.stream?.write(bufferViews(chain.readable, op.HEADER_BYTES, len)) ?? 0;
      } catch {
        this.owner.metrics.txWriteFails++;
        this.owesReset = true;
        return;
      }
      this.forwarded(written);
    }
    if (written < len) {
      this.outgoing.push(bufferViews(chain.readable, op.HEADER_BYTES + written, len - written));
    }
  }

  private forwarded(count: number): void {
    this.owner.metrics.txBytes += count;
    this.fwdCnt = (this.fwdCnt + count) >>> 0;
    if ((this.fwdCnt - this.toldFwdCnt) >>> 0 >= CREDIT_UPDATE_BYTES) this.owesCredit = true;
  }

  /** Writes what waits for the host program. */
  private flush(): void {
    while (this.outgoing.length > 0) {
      let count: number;
      try {
        count = this.stream?.write(this.outgoing.pieces) ?? 0;
      } catch {
        this.owner.metrics.txFlushFails++;
        this.outgoing.clear();
        this.owesReset = true;
        break;
      }
      if (count === 0) return;
      this.outgoing.drop(count);
      this.forwarded(count);
    }
    this.afterFlush();
  }

  private shutdownFromGuest(flags: number): void {
    this.gotShutdown |= flags & op.SHUTDOWN_BOTH;
    if (this.gotShutdown === op.SHUTDOWN_BOTH && this.outgoing.length > 0) {
      this.timer.set(SHUTDOWN_TIMEOUT_MS);
    }
    if ((this.gotShutdown & op.VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE) !== 0) this.stream?.shutdownRead();
    if (this.outgoing.length === 0) this.afterFlush();
  }

  /** Nothing waits for the host program any more: does what the guest has asked for after that. */
  private afterFlush(): void {
    if (this.gotShutdown === op.SHUTDOWN_BOTH) {
      this.owesReset = true;
    } else if ((this.gotShutdown & op.VIRTIO_VSOCK_SHUTDOWN_F_SEND) !== 0 && !this.writeShutDone) {
      this.writeShutDone = true;
      this.stream?.shutdownWrite();
    }
  }

  private accept(stream: HostStream): void {
    this.stream = stream;
    this.owesResponse = true;
    stream.watch(this);
    this.update();
  }

  private retry(deadline: number): void {
    const timer = this.owner.timers.create(() => {
      if (this.over) return;
      const stream = this.owner.connect(this.hostPort);
      if (stream !== "busy" && stream !== undefined) {
        this.accept(stream);
      } else if (stream === undefined || this.owner.timers.now() >= deadline) {
        this.owesReset = true;
        this.update();
      } else {
        timer.set(RETRY_MS);
      }
    });
    timer.set(RETRY_MS);
  }

  private timeout(): void {
    this.owner.metrics.connectionsKilled++;
    this.owesReset = true;
    this.update();
  }

  private update(): void {
    if (this.pending) this.owner.enqueue(this);
  }

  /** Ends it without a word to the guest: it has sent RST, or its driver has reset the device. */
  end(): void {
    if (this.over) return;
    this.over = true;
    this.timer.cancel();
    this.stream?.close();
    this.stream = undefined;
    this.owner.remove(this);
  }
}
