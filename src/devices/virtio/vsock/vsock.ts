/**
 * virtio-vsock (virtio 1.2, 5.10) with the host side of Firecracker's: host programs connect to one unix socket and
 * name the guest's port, guest programs reach the unix socket of the host port they name.
 */

import type { TimerSource } from "../../../ratelimit/rate-limiter.ts";
import type { DescriptorChain } from "../chain.ts";
import {
  type DeviceContext,
  type DeviceHost,
  STOP,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_VERSION_1,
  VIRTIO_ID_VSOCK,
  type VirtioDevice,
} from "../device.ts";
import { Connection, type ConnectionOwner, type VsockMetrics } from "./connection.ts";
import { HostCommand } from "./host-command.ts";
import type { HostSockets, HostStream } from "./host-sockets.ts";
import * as op from "./packet.ts";

const QUEUE_SIZE = 256;
const RX_QUEUE = 0;
const TX_QUEUE = 1;

/** Connections at a time, with those whose host program has not yet named a port. */
export const MAX_CONNECTIONS = 1023;
/** While this many RST packets wait for the guest to take them, nothing more is taken from it. */
const MAX_WAITING_RESETS = 256;
/** Ports of host programs that connect: 2^30 to 2^31 - 1, as in Firecracker. */
const FIRST_HOST_PORT = 2 ** 30;
const LAST_HOST_PORT = 2 ** 31 - 1;

/** An RST packet for a connection that does not exist. */
interface LooseReset {
  readonly hostPort: number;
  readonly guestPort: number;
}

export interface VsockOptions {
  /** From 3 to 2^32 - 1. */
  readonly guestCid: number;
  readonly sockets: HostSockets;
  readonly timers: TimerSource;
}

export class VsockDevice implements VirtioDevice, ConnectionOwner {
  readonly name = "vsock";
  readonly type = VIRTIO_ID_VSOCK;
  readonly features = VIRTIO_F_VERSION_1 | VIRTIO_F_IN_ORDER | VIRTIO_F_EVENT_IDX;
  /** Receive, transmit, events. Of events there is only one, for a guest whose snapshot was loaded. */
  readonly queueSizes = [QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE];
  readonly config = new Uint8Array(8);
  readonly timers: TimerSource;
  readonly metrics: VsockMetrics = {
    rxQueueEvents: 0,
    txQueueEvents: 0,
    rxBytes: 0,
    txBytes: 0,
    rxPackets: 0,
    txPackets: 0,
    connectionsAdded: 0,
    connectionsRemoved: 0,
    connectionsKilled: 0,
    rxReadFails: 0,
    txWriteFails: 0,
    txFlushFails: 0,
  };

  private readonly guestCid: bigint;
  private readonly sockets: HostSockets;
  /** By host port and guest port. */
  private readonly connections = new Map<number, Map<number, Connection>>();
  private count = 0;
  /** Streams of host programs that have not yet named a port. */
  private readonly greeting = new Set<HostStream>();
  /** Connections with something to send, served in turn. */
  private sending: Connection[] = [];
  private resets: LooseReset[] = [];
  private lastHostPort = FIRST_HOST_PORT - 1;
  private readonly header = new Uint8Array(op.HEADER_BYTES);
  private host: DeviceHost | undefined;
  private context: DeviceContext | undefined;
  /** True while a queue is being served: what comes up meanwhile is sent afterwards. */
  private serving = false;

  constructor(options: VsockOptions) {
    const { guestCid, sockets, timers } = options;
    this.guestCid = BigInt(guestCid);
    this.sockets = sockets;
    this.timers = timers;
    new DataView(this.config.buffer).setBigUint64(0, this.guestCid, true);
  }

  /** Open connections, with those that host programs are about to ask for. */
  get connectionCount(): number {
    return this.count + this.greeting.size;
  }

  attach(host: DeviceHost): void {
    this.host = host;
  }

  activate(context: DeviceContext): void {
    this.context = context;
    this.sockets.listen((stream) => this.greet(stream));
  }

  reset(): void {
    this.context = undefined;
    this.sockets.stopListening();
    for (const stream of this.greeting) stream.close();
    this.greeting.clear();
    for (const byGuestPort of [...this.connections.values()]) {
      for (const connection of [...byGuestPort.values()]) connection.end();
    }
    this.sending = [];
    this.resets = [];
  }

  processQueue(index: number): void {
    if (index === RX_QUEUE) {
      this.metrics.rxQueueEvents++;
      this.serveReceive();
    } else if (index === TX_QUEUE) {
      this.metrics.txQueueEvents++;
      this.serveTransmit();
    }
  }

  enqueue(connection: Connection): void {
    if (!connection.queued) {
      connection.queued = true;
      this.sending.push(connection);
    }
    this.serveReceive();
  }

  remove(connection: Connection): void {
    const byGuestPort = this.connections.get(connection.hostPort);
    if (!byGuestPort?.delete(connection.guestPort)) return;
    if (byGuestPort.size === 0) this.connections.delete(connection.hostPort);
    this.count--;
    this.metrics.connectionsRemoved++;
  }

  connect(port: number): HostStream | "busy" | undefined {
    return this.sockets.connect(port);
  }

  private add(connection: Connection): void {
    let byGuestPort = this.connections.get(connection.hostPort);
    if (byGuestPort === undefined) {
      byGuestPort = new Map();
      this.connections.set(connection.hostPort, byGuestPort);
    }
    byGuestPort.set(connection.guestPort, connection);
    this.count++;
    this.metrics.connectionsAdded++;
  }

  /** A host program has connected and is about to say to which port. */
  private greet(stream: HostStream): void {
    if (this.connectionCount >= MAX_CONNECTIONS) {
      this.host?.log("connection limit reached; refusing a new host connection");
      stream.close();
      return;
    }
    this.greeting.add(stream);
    const command = new HostCommand();
    const onReadable = () => {
      let port: number | undefined;
      try {
        port = command.read(stream);
      } catch (error) {
        this.greeting.delete(stream);
        stream.close();
        this.host?.log(`host connection refused: ${error instanceof Error ? error.message : String(error)}`);
        return;
      }
      if (port === undefined) return;
      this.greeting.delete(stream);
      this.add(Connection.fromHost(this, this.freeHostPort(), port, stream));
    };
    stream.watch({ onReadable, onWritable: () => {}, onHangUp: onReadable });
  }

  private freeHostPort(): number {
    do {
      this.lastHostPort = this.lastHostPort >= LAST_HOST_PORT ? FIRST_HOST_PORT : this.lastHostPort + 1;
    } while (this.connections.has(this.lastHostPort));
    return this.lastHostPort;
  }

  private serveTransmit(): void {
    this.serve(TX_QUEUE, (chain) => {
      if (this.resets.length >= MAX_WAITING_RESETS) return STOP;
      this.transmit(chain);
      return 0;
    });
    this.serveReceive();
  }

  private serve(index: number, handler: (chain: DescriptorChain) => number | typeof STOP): void {
    if (this.serving) return;
    this.serving = true;
    try {
      this.context?.queues[index]?.serve(handler);
    } finally {
      this.serving = false;
    }
  }

  /** A packet from the guest. */
  private transmit(chain: DescriptorChain): void {
    if (chain.read(this.header) < op.HEADER_BYTES) {
      this.host?.log("packet without a whole header");
      return;
    }
    this.metrics.txPackets++;
    const header = op.decodeHeader(this.header);
    // The guest can only speak for itself, and only to the host.
    if (header.dstCid !== BigInt(op.VSOCK_HOST_CID) || header.srcCid !== this.guestCid) return;
    const { dstPort, srcPort } = header;
    const connection = this.connections.get(dstPort)?.get(srcPort);
    if (header.op === op.VIRTIO_VSOCK_OP_RST) {
      connection?.end();
    } else if (header.type !== op.VIRTIO_VSOCK_TYPE_STREAM) {
      this.resets.push({ hostPort: dstPort, guestPort: srcPort });
    } else if (connection !== undefined) {
      connection.receive(header, chain);
    } else if (header.op !== op.VIRTIO_VSOCK_OP_REQUEST || !this.acceptGuest(header)) {
      this.resets.push({ hostPort: dstPort, guestPort: srcPort });
    }
  }

  private acceptGuest(header: op.VsockHeader): boolean {
    if (this.connectionCount >= MAX_CONNECTIONS) {
      this.host?.log("connection limit reached; refusing a connection of the guest");
      return false;
    }
    const stream = this.sockets.connect(header.dstPort);
    if (stream === undefined) return false;
    this.add(Connection.fromGuest(this, header, stream));
    return true;
  }

  /** Sends what is waiting, as far as the guest has given buffers for it. */
  private serveReceive(): void {
    if (this.sending.length === 0 && this.resets.length === 0) return;
    const blocked = this.resets.length >= MAX_WAITING_RESETS;
    this.serve(RX_QUEUE, (chain) => this.nextPacket(chain));
    if (blocked && this.resets.length < MAX_WAITING_RESETS) this.serveTransmit();
  }

  private nextPacket(chain: DescriptorChain): number | typeof STOP {
    if (this.resets.length === 0 && this.sending.length === 0) return STOP;
    if (chain.writableLength < op.HEADER_BYTES) {
      this.host?.log("receive buffer without room for a header");
      return 0;
    }
    const header: op.VsockHeader = {
      srcCid: BigInt(op.VSOCK_HOST_CID),
      dstCid: this.guestCid,
      srcPort: 0,
      dstPort: 0,
      len: 0,
      type: op.VIRTIO_VSOCK_TYPE_STREAM,
      op: op.VIRTIO_VSOCK_OP_RST,
      flags: 0,
      bufAlloc: 0,
      fwdCnt: 0,
    };
    const loose = this.resets.shift();
    if (loose !== undefined) {
      header.srcPort = loose.hostPort;
      header.dstPort = loose.guestPort;
      return this.send(header, chain);
    }
    for (let connection = this.sending.shift(); connection !== undefined; connection = this.sending.shift()) {
      connection.queued = false;
      const made = connection.nextPacket(header, chain);
      if (connection.pending) {
        connection.queued = true;
        this.sending.push(connection);
      }
      if (made) return this.send(header, chain);
      // A buffer for a header only cannot carry data: the next one may.
      if (chain.writableLength === op.HEADER_BYTES && connection.pending) return 0;
    }
    return STOP;
  }

  private send(header: op.VsockHeader, chain: DescriptorChain): number {
    op.encodeHeader(header, this.header);
    chain.write(this.header);
    this.metrics.rxPackets++;
    return op.HEADER_BYTES + header.len;
  }
}
