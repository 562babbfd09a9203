/**
 * A virtio device as its author writes it. The transport owns feature negotiation, the queue loop, the used
 * ring, notification suppression and interrupts; a device says what it is and what one request does.
 */

import type { GuestMemory } from "../../memory/guest-memory.ts";
import type { DescriptorChain } from "./chain.ts";
import type { QueueShare } from "./queue-share.ts";

/** Device types (virtio 1.2, 5). */
export const VIRTIO_ID_NET = 1;
export const VIRTIO_ID_BLOCK = 2;
export const VIRTIO_ID_CONSOLE = 3;
export const VIRTIO_ID_ENTROPY = 4;
export const VIRTIO_ID_BALLOON = 5;
export const VIRTIO_ID_VSOCK = 19;

/** Device-independent feature bits (virtio 1.2, 6). */
export const VIRTIO_F_INDIRECT_DESC = 1n << 28n;
export const VIRTIO_F_EVENT_IDX = 1n << 29n;
export const VIRTIO_F_VERSION_1 = 1n << 32n;
/** The device uses buffers in the order in which they were made available. */
export const VIRTIO_F_IN_ORDER = 1n << 35n;

/** What a request handler returns to leave the chain with the guest: it is offered again by the next `serve`. */
export const STOP = "stop";

/** What a request handler returns to keep the chain, which it gives back later with {@link DeviceQueue.complete}. */
export const HOLD = "hold";

export type HandlerResult = number | typeof STOP | typeof HOLD;

/**
 * How a pass over a queue ended. `empty`: all chains served. `stopped`: the handler said {@link STOP}. `more`: the
 * pass was long and goes on by itself later. `failed`: the queue is out of order until the driver resets.
 */
export type Served = "empty" | "stopped" | "more" | "failed";

/** One queue of an active device. */
export interface DeviceQueue {
  readonly index: number;
  /** Descriptors that the driver's queue has, 0 if it is not {@link ready}. */
  readonly size: number;
  /** False if the driver did not set this queue up; it is then always empty. */
  readonly ready: boolean;
  /** True if the driver has broken its rules, until it resets: what a device keeps of it must not be written to. */
  readonly failed: boolean;
  /**
   * The one queue loop: offers each available chain to `handler`, which returns the number of bytes it wrote to
   * the chain's writable buffers (counted from their start), {@link STOP} or {@link HOLD}. Interrupts the driver as
   * needed.
   * Never throws: what the handler throws fails the queue. A call from within `handler` of the same queue
   * returns "more" and makes the running pass go round again.
   */
  serve(handler: (chain: DescriptorChain) => HandlerResult): Served;
  /**
   * Gives back a chain that a handler kept with {@link HOLD}, in any order, `written` as a handler returns it. The
   * driver sees it after {@link flush} or the next `serve`. Dropped if the queue has been reset or has failed. Never
   * throws.
   */
  complete(chain: DescriptorChain, written: number): void;
  /** Shows completed chains to the driver and interrupts it if it wants that. */
  flush(): void;
  /**
   * From now on completed chains are shown without an interrupt, until {@link interrupt}. Returns false, and does nothing,
   * where the guest does not take so long over an interrupt that it is worth it.
   */
  holdInterrupts(): boolean;
  /** Chains that were shown without asking whether the driver wants an interrupt for them. */
  readonly untold: number;
  /** Interrupts the driver if it still wants that for what has been shown. */
  interrupt(): void;
}

/** What a device gets when the driver has set DRIVER_OK; valid until {@link VirtioDevice.reset}. */
export interface DeviceContext {
  readonly memory: GuestMemory;
  /** Features that device and driver agreed on. */
  readonly features: bigint;
  /** As many as `queueSizes`. */
  readonly queues: readonly DeviceQueue[];
}

/** What a device may ask for at any time. */
export interface DeviceHost {
  /** Makes the present `config` bytes visible, and interrupts the driver if the device is active. */
  configChanged(): void;
  /** Makes the present `config` bytes visible and interrupts nobody: for what the driver wrote itself. */
  publishConfig(): void;
  log(message: string): void;
}

export interface VirtioDevice {
  /** Used in log lines, e.g. "block rootfs". */
  readonly name: string;
  /** VIRTIO_ID_*. */
  readonly type: number;
  /** Features offered. VIRTIO_F_VERSION_1 must be among them. */
  readonly features: bigint;
  /** Maximum size of each queue, a power of two up to 32768. */
  readonly queueSizes: readonly number[];
  /** By queue: those that a vCPU's thread may serve too. */
  readonly queueShares?: readonly (QueueShare | undefined)[];
  /** The device-specific configuration space. The device may change bytes in place and say `configChanged`. */
  readonly config: Uint8Array;
  /** Called once, when the device is put behind a transport. */
  attach?(host: DeviceHost): void;
  activate(context: DeviceContext): void;
  /** Forgets the context and everything that belonged to it. Called only when active. */
  reset(): void;
  /** The driver has made buffers available in queue `index`. Called only when active. */
  processQueue(index: number): void;
  /** The driver writes 1, 2 or 4 bytes inside `config`. Without this method such writes are dropped. */
  writeConfig?(offset: number, bytes: Uint8Array): void;
}
