/** virtio-net (virtio 1.2, 5.1) with one receive and one transmit queue. */

import {
  RateLimiter,
  type RateLimiterConfig,
  type Timer,
  type TimerSource,
} from "../../../ratelimit/rate-limiter.ts";
import { bufferViews, type DescriptorChain } from "../chain.ts";
import {
  type DeviceContext,
  type DeviceHost,
  type DeviceQueue,
  type HandlerResult,
  HOLD,
  STOP,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_VERSION_1,
  VIRTIO_ID_NET,
  type VirtioDevice,
} from "../device.ts";
import { DETOUR_START_BYTES, type Detour } from "./detour.ts";
import { type LinkEvents, MAX_FRAME_BYTES, NET_HEADER_BYTES, type NetLink } from "./link.ts";
import { TransmitInterrupts } from "./transmit-interrupts.ts";

/** Feature bits (5.1.3). */
export const VIRTIO_NET_F_CSUM = 1n << 0n;
export const VIRTIO_NET_F_GUEST_CSUM = 1n << 1n;
export const VIRTIO_NET_F_MTU = 1n << 3n;
export const VIRTIO_NET_F_MAC = 1n << 5n;
export const VIRTIO_NET_F_GUEST_TSO4 = 1n << 7n;
export const VIRTIO_NET_F_GUEST_TSO6 = 1n << 8n;
export const VIRTIO_NET_F_GUEST_UFO = 1n << 10n;
export const VIRTIO_NET_F_HOST_TSO4 = 1n << 11n;
export const VIRTIO_NET_F_HOST_TSO6 = 1n << 12n;
export const VIRTIO_NET_F_HOST_UFO = 1n << 14n;
export const VIRTIO_NET_F_MRG_RXBUF = 1n << 15n;

/** Offset of le16 num_buffers in the header (5.1.6), and the flag in its first byte that a checksum is missing. */
const HEADER_NUM_BUFFERS = 10;
const VIRTIO_NET_HDR_F_NEEDS_CSUM = 1;

/** Configuration space (5.1.4): mac[6], le16 status, le16 max_virtqueue_pairs, le16 mtu. */
const CONFIG_BYTES = 12;
const CONFIG_MAX_PAIRS = 8;
const CONFIG_MTU = 10;

const QUEUE_SIZE = 256;
const RX_QUEUE = 0;
const TX_QUEUE = 1;

const MIN_FRAME_BYTES = 14;
const MAX_PACKET_BYTES = NET_HEADER_BYTES + MAX_FRAME_BYTES;
/** Receive buffers taken from the guest ahead of need, so that its queue is not looked at for every frame. */
const AHEAD_BYTES = 2 * MAX_PACKET_BYTES;
/** Frames received before other work gets its turn. */
const FRAMES_PER_TURN = 64;

export const MAC_BYTES = 6;

export interface NetOptions {
  readonly ifaceId: string;
  readonly link: NetLink;
  /** Gets its frames before the link. They are not limited on their way to it. */
  readonly detour?: Detour | undefined;
  readonly timers: TimerSource;
  /** Without one the guest makes one up. */
  readonly mac?: Uint8Array | undefined;
  /** 68 to 65535. Without one the guest takes 1500. */
  readonly mtu?: number | undefined;
  readonly rxRateLimiter?: RateLimiterConfig | undefined;
  readonly txRateLimiter?: RateLimiterConfig | undefined;
}

/** Counters since the device was created. Bytes are those of frames with their 12-byte header, as in Firecracker. */
export interface NetMetrics {
  rxQueueEvents: number;
  txQueueEvents: number;
  /** Times that there were frames at the link. */
  rxLinkEvents: number;
  rxBytes: number;
  rxPackets: number;
  /** Frames lost because they fit no receive buffers. */
  rxFails: number;
  /** Times that a frame had to wait for receive buffers. */
  noRxBuffers: number;
  txBytes: number;
  txPackets: number;
  txMalformed: number;
  linkReadFails: number;
  /** Frames of the guest that the link refused. */
  linkWriteFails: number;
  rxThrottled: number;
  txThrottled: number;
}

export class NetDevice implements VirtioDevice, LinkEvents {
  readonly name: string;
  readonly type = VIRTIO_ID_NET;
  readonly features: bigint;
  readonly queueSizes = [QUEUE_SIZE, QUEUE_SIZE];
  readonly config = new Uint8Array(CONFIG_BYTES);

  private readonly counts: NetMetrics = {
    rxQueueEvents: 0,
    txQueueEvents: 0,
    rxLinkEvents: 0,
    rxBytes: 0,
    rxPackets: 0,
    rxFails: 0,
    noRxBuffers: 0,
    txBytes: 0,
    txPackets: 0,
    txMalformed: 0,
    linkReadFails: 0,
    linkWriteFails: 0,
    rxThrottled: 0,
    txThrottled: 0,
  };
  private readonly link: NetLink;
  private readonly detour: Detour | undefined;
  private readonly rxLimiter: RateLimiter;
  private readonly txLimiter: RateLimiter;
  /** Goes on with receiving after other work had its turn. */
  private readonly resume: Timer;
  private readonly transmitInterrupts: TransmitInterrupts;
  private host: DeviceHost | undefined;
  private context: DeviceContext | undefined;
  private mergeable = false;

  /** A frame that was read from the link and is not yet with the guest; `pending` is its length. */
  private readonly packet = new Uint8Array(MAX_PACKET_BYTES);
  private readonly packetView = new DataView(this.packet.buffer);
  private pending = 0;
  /** The rate limiter has let the frame at hand pass, and need not be asked again. */
  private rxPaid = false;
  private txPaid = false;
  private linkBroken = false;
  /** The link had no room for the next frame of the guest. */
  private linkFull = false;
  /** Receive chains taken from the guest, and their bytes and descriptors. */
  private held: DescriptorChain[] = [];
  private heldBytes = 0;
  private heldDescriptors = 0;
  private readonly txHeader = new Uint8Array(NET_HEADER_BYTES);
  private readonly detourStart = new Uint8Array(DETOUR_START_BYTES);
  /** Whose turn it is to be asked for a frame first: the detour's or the link's. */
  private detourFirst = false;
  /** The detour has taken frames and may have answers. */
  private detoured = false;

  constructor(options: NetOptions) {
    const { ifaceId, link, timers, mac, mtu } = options;
    this.name = `net ${ifaceId}`;
    this.link = link;
    this.detour = options.detour;
    this.rxLimiter = new RateLimiter(options.rxRateLimiter, timers, () => this.receive());
    this.txLimiter = new RateLimiter(options.txRateLimiter, timers, () => this.transmit());
    this.resume = timers.create(() => this.receive());
    this.transmitInterrupts = new TransmitInterrupts(timers);
    let features = VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_NET_F_MRG_RXBUF | link.offloads;
    const view = new DataView(this.config.buffer);
    view.setUint16(CONFIG_MAX_PAIRS, 1, true);
    if (mac !== undefined) {
      features |= VIRTIO_NET_F_MAC;
      this.config.set(mac.subarray(0, MAC_BYTES));
    }
    if (mtu !== undefined) {
      features |= VIRTIO_NET_F_MTU;
      view.setUint16(CONFIG_MTU, mtu, true);
    }
    this.features = features;
  }

  get metrics(): NetMetrics {
    return { ...this.counts, rxThrottled: this.rxLimiter.throttled, txThrottled: this.txLimiter.throttled };
  }

  /** Changes limits while the guest runs; what is left out stays. */
  updateRateLimiters(rx: RateLimiterConfig | undefined, tx: RateLimiterConfig | undefined): void {
    this.rxLimiter.update(rx);
    this.txLimiter.update(tx);
  }

  attach(host: DeviceHost): void {
    this.host = host;
  }

  activate(context: DeviceContext): void {
    this.context = context;
    this.mergeable = (context.features & VIRTIO_NET_F_MRG_RXBUF) !== 0n;
    this.linkBroken = false;
    this.transmitInterrupts.start(context.queues[TX_QUEUE]!);
    this.link.start(context.features & this.link.offloads, this);
    this.detour?.start(() => this.receive());
  }

  reset(): void {
    this.context = undefined;
    this.link.stop();
    this.detour?.stop();
    this.resume.cancel();
    this.transmitInterrupts.stop();
    this.rxLimiter.reset();
    this.txLimiter.reset();
    this.pending = 0;
    this.rxPaid = false;
    this.txPaid = false;
    this.linkFull = false;
    this.detoured = false;
    this.held = [];
    this.heldBytes = 0;
    this.heldDescriptors = 0;
  }

  processQueue(index: number): void {
    if (index === RX_QUEUE) {
      this.counts.rxQueueEvents++;
      this.receive();
    } else {
      this.counts.txQueueEvents++;
      this.transmit();
    }
  }

  onReadable(): void {
    this.counts.rxLinkEvents++;
    this.receive();
  }

  onWritable(): void {
    if (this.linkFull) this.transmit();
  }

  private receive(): void {
    const queue = this.context?.queues[RX_QUEUE];
    if (queue === undefined) return;
    let frames = 0;
    while (this.nextFrame() && this.deliver(queue)) {
      this.pending = 0;
      this.rxPaid = false;
      if (++frames === FRAMES_PER_TURN) {
        this.resume.set(0);
        break;
      }
    }
    if (frames > 0) queue.flush();
  }

  /** True if there is a frame at hand that may go to the guest now. */
  private nextFrame(): boolean {
    if (this.rxLimiter.blocked) return false;
    if (this.pending === 0) {
      // In turn, so that neither can keep the other from the guest.
      this.detourFirst = !this.detourFirst;
      this.pending = this.detourFirst
        ? this.readDetour() || this.readLink()
        : this.readLink() || this.readDetour();
      if (this.pending === 0) return false;
    }
    this.rxPaid ||= this.rxLimiter.allow(this.pending);
    return this.rxPaid;
  }

  /** Reads a frame of the link into `packet` and returns its length with the header; 0: none now. */
  private readLink(): number {
    if (this.linkBroken) return 0;
    try {
      return this.link.receive(this.packet) ?? 0;
    } catch (error) {
      this.counts.linkReadFails++;
      this.linkBroken = true;
      const reason = error instanceof Error ? error.message : String(error);
      this.host?.log(`nothing is received any more: ${reason}`);
      return 0;
    }
  }

  /** Likewise of the detour. */
  private readDetour(): number {
    const length = this.detour?.next(this.packet.subarray(NET_HEADER_BYTES)) ?? 0;
    if (length === 0) return 0;
    this.packet.fill(0, 0, NET_HEADER_BYTES);
    return NET_HEADER_BYTES + length;
  }

  /** Puts the frame at hand into receive buffers. False if it has to wait for some. */
  private deliver(queue: DeviceQueue): boolean {
    const { pending: length } = this;
    if (this.mergeable ? this.heldBytes < length : this.held.length === 0) {
      queue.serve((chain) => this.hold(queue, chain));
    }
    if (queue.failed) return false;
    const fits = this.mergeable ? this.heldBytes >= length : (this.held[0]?.writableLength ?? 0) >= length;
    if (!fits) {
      // More buffers may come, unless the driver has given all it has.
      if (this.mergeable ? this.heldDescriptors < queue.size : this.held.length === 0) {
        this.counts.noRxBuffers++;
        return false;
      }
      this.counts.rxFails++;
      return true;
    }
    this.packetView.setUint16(HEADER_NUM_BUFFERS, this.buffersFor(length), true);
    for (let done = 0; done < length; ) {
      const chain = this.held.shift()!;
      this.heldBytes -= chain.writableLength;
      this.heldDescriptors -= chain.writable.length;
      const count = Math.min(chain.writableLength, length - done);
      chain.write(this.packet.subarray(done, done + count));
      queue.complete(chain, count);
      done += count;
    }
    this.counts.rxBytes += length;
    this.counts.rxPackets++;
    return true;
  }

  /** Takes a receive chain from the guest. */
  private hold(queue: DeviceQueue, chain: DescriptorChain): HandlerResult {
    if (this.heldBytes >= AHEAD_BYTES || this.heldDescriptors >= queue.size) return STOP;
    if (chain.writableLength < NET_HEADER_BYTES) {
      this.host?.log("receive buffer without room for a header");
      return 0;
    }
    this.held.push(chain);
    this.heldBytes += chain.writableLength;
    this.heldDescriptors += chain.writable.length;
    return HOLD;
  }

  private buffersFor(length: number): number {
    let count = 0;
    for (let left = length; left > 0; count++) left -= this.held[count]!.writableLength;
    return count;
  }

  private transmit(): void {
    this.context?.queues[TX_QUEUE]?.serve((chain) => this.sendFrame(chain));
    this.transmitInterrupts.served(this.counts.rxBytes + this.counts.txBytes);
    if (!this.detoured) return;
    this.detoured = false;
    this.receive();
  }

  /** Gives the frame in `chain` to the detour if it is for it. */
  private detourFrame(chain: DescriptorChain): boolean {
    const { detour } = this;
    if (detour === undefined) return false;
    const count = chain.read(this.detourStart, NET_HEADER_BYTES);
    if (!detour.wants(this.detourStart.subarray(0, count))) return false;
    const frame = new Uint8Array(chain.readableLength - NET_HEADER_BYTES);
    chain.read(frame, NET_HEADER_BYTES);
    detour.take(frame, (this.txHeader[0]! & VIRTIO_NET_HDR_F_NEEDS_CSUM) === 0);
    this.detoured = true;
    return true;
  }

  private sendFrame(chain: DescriptorChain): HandlerResult {
    const length = chain.readableLength;
    if (length < NET_HEADER_BYTES + MIN_FRAME_BYTES || length > MAX_PACKET_BYTES) {
      this.counts.txMalformed++;
      this.host?.log(`frame of ${length} bytes with its header, dropped`);
      return 0;
    }
    chain.read(this.txHeader);
    if (this.detourFrame(chain)) return 0;
    this.txPaid ||= this.txLimiter.allow(length);
    if (!this.txPaid) return STOP;
    const frame = bufferViews(chain.readable, NET_HEADER_BYTES, length - NET_HEADER_BYTES);
    try {
      this.linkFull = !this.link.send(this.txHeader, frame, length - NET_HEADER_BYTES);
      if (this.linkFull) return STOP;
      this.counts.txBytes += length;
      this.counts.txPackets++;
    } catch (error) {
      this.counts.linkWriteFails++;
      this.host?.log(`frame lost: ${error instanceof Error ? error.message : String(error)}`);
    }
    this.txPaid = false;
    return 0;
  }
}
