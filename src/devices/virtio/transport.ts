/**
 * What every transport (MMIO now, PCI later) does with a device on the vmm thread: activation from the driver's
 * queue set-up, the queue loop, reset, and failure. A transport adds where registers and interrupts live.
 */

import type { GuestMemory } from "../../memory/guest-memory.ts";
import type { DescriptorChain } from "./chain.ts";
import {
  type DeviceQueue,
  type HandlerResult,
  HOLD,
  type Served,
  STOP,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_INDIRECT_DESC,
  type VirtioDevice,
} from "./device.ts";
import { Queue, QueueError, type QueueFeatures, type QueueSetup } from "./queue.ts";
import type { QueueShare } from "./queue-share.ts";

/** What a transport can signal to the driver. */
export interface TransportSignals {
  /** Used buffers in queue `index`. */
  queueInterrupt(index: number): void;
  /** Makes the device's `config` bytes visible. */
  publishConfig(): void;
  configInterrupt(): void;
  /** Sets DEVICE_NEEDS_RESET and interrupts the driver (virtio 1.2, 2.1.2). */
  needsReset(): void;
}

/** What the monitor wants to hear and can do for a device. All of it may be left out. */
export interface TransportEvents {
  log?(message: string): void;
  /** A device or queue was put out of order by its driver, or failed to activate. */
  failed?(device: VirtioDevice): void;
  /**
   * Calls `MmioBack.notify(index)` from the event loop soon. With it a guest that keeps a queue filled cannot keep
   * the vmm thread to itself: a pass ends after as many chains as the queue holds.
   */
  requeue?(index: number): void;
  /**
   * The guest takes longer over a completed chain than a device over a request, as on a software CPU: chains are shown to
   * it one by one, so that it works on the first while the device does the next.
   */
  readonly slowGuest?: boolean;
  /** A pass over a queue has ended, which took `chains` from it. */
  served?(chains: number): void;
}

/** A guest can make a device log as often as it likes; more than this many lines in a period are dropped. */
const LOG_LINES = 10;
const LOG_PERIOD_MS = 5000;

/** A queue that the driver has set up or not (`setup` undefined), of an active device. */
class QueueRunner implements DeviceQueue {
  private readonly queue: Queue | undefined;
  private serving = false;
  private again = false;
  private out = false;
  /** Chains that the device keeps. */
  private held = 0;
  /** Calls under way that need the lock of `share`. */
  private locks = 0;
  private readonly slowGuest: boolean;
  private holdsInterrupts = false;
  /** Chains of the pass that goes on. */
  private taken = 0;

  constructor(
    readonly index: number,
    memory: GuestMemory,
    setup: QueueSetup | undefined,
    features: QueueFeatures,
    private readonly owner: DeviceRunner,
    private readonly share: QueueShare | undefined,
  ) {
    if (setup !== undefined) this.queue = new Queue(memory, setup, features);
    // Without EVENT_IDX the driver would be interrupted for each.
    this.slowGuest = owner.events.slowGuest === true && features.eventIdx;
    const { queue } = this;
    if (queue === undefined || share === undefined) return;
    const { position } = queue;
    this.exclusive(() => {
      queue.position = position;
    });
  }

  get size(): number {
    return this.queue?.size ?? 0;
  }

  get ready(): boolean {
    return this.queue !== undefined;
  }

  get failed(): boolean {
    return this.out;
  }

  /** Puts the queue out of order: after a failure, or because the device was reset. */
  stop(): void {
    this.exclusive(() => this.share?.close());
    this.out = true;
  }

  /** Runs `action` while no vCPU's thread serves the queue. */
  private exclusive<T>(action: () => T): T {
    const { queue, share } = this;
    if (queue === undefined || share === undefined) return action();
    if (this.locks++ === 0) {
      share.lock();
      queue.position = share.position;
    }
    try {
      return action();
    } finally {
      if (--this.locks === 0) {
        share.position = queue.position;
        share.unlock();
      }
    }
  }

  serve(handler: (chain: DescriptorChain) => HandlerResult): Served {
    const queue = this.queue;
    if (queue === undefined) return "empty";
    if (this.out) return "failed";
    if (this.serving) {
      this.again = true;
      return "more";
    }
    this.serving = true;
    try {
      return this.exclusive(() => this.pass(queue, handler));
    } catch (error) {
      this.broken(error);
      return "failed";
    } finally {
      this.serving = false;
      this.again = false;
      this.owner.events.served?.(this.taken);
      this.taken = 0;
    }
  }

  complete(chain: DescriptorChain, written: number): void {
    if (this.queue === undefined || this.out) return;
    try {
      this.held--;
      const { queue } = this;
      this.exclusive(() => queue.complete(chain, written));
    } catch (error) {
      this.broken(error);
    }
  }

  flush(): void {
    if (this.queue === undefined || this.out) return;
    try {
      const { queue } = this;
      this.exclusive(() => this.publish(queue));
    } catch (error) {
      this.broken(error);
    }
  }

  holdInterrupts(): boolean {
    this.holdsInterrupts = this.slowGuest;
    return this.holdsInterrupts;
  }

  get untold(): number {
    return this.queue?.untold ?? 0;
  }

  interrupt(): void {
    if (this.queue === undefined || this.out) return;
    if (this.queue.wantsInterrupt()) this.owner.signals.queueInterrupt(this.index);
  }

  private broken(error: unknown): void {
    this.stop();
    this.owner.fail(`queue ${this.index}: ${error instanceof Error ? error.message : String(error)}`);
  }

  private pass(queue: Queue, handler: (chain: DescriptorChain) => HandlerResult): Served {
    const requeue = this.owner.events.requeue;
    let budget = queue.size;
    for (;;) {
      this.again = false;
      queue.disableNotify();
      for (let chain = queue.pop(); chain !== undefined; chain = queue.pop()) {
        this.taken++;
        const written = handler(chain);
        // The handler may have led to a reset; guest memory is no longer ours to write then.
        if (this.out) return "failed";
        if (written === STOP) {
          queue.undoPop();
          this.publish(queue);
          if (!this.again) return "stopped";
          this.again = false;
          continue;
        }
        if (written === HOLD) {
          // The driver can make the same descriptors available again without end; the device must not keep them all.
          if (++this.held > queue.size) {
            throw new QueueError(
              `more chains made available than the ${queue.size} descriptors of the queue`,
            );
          }
        } else {
          queue.complete(chain, written);
          if (this.slowGuest) this.publish(queue);
        }
        if (--budget === 0) {
          budget = queue.size;
          if (requeue !== undefined) {
            this.publish(queue);
            requeue(this.index);
            return "more";
          }
          this.publish(queue);
        }
      }
      this.publish(queue);
      if (!queue.enableNotify() && !this.again) return "empty";
    }
  }

  private publish(queue: Queue): void {
    queue.show();
    if (!this.holdsInterrupts && queue.wantsInterrupt()) this.owner.signals.queueInterrupt(this.index);
  }
}

export class DeviceRunner {
  private queues: QueueRunner[] = [];
  private active = false;
  private logPeriodStart = Number.NEGATIVE_INFINITY;
  private logLines = 0;

  constructor(
    readonly device: VirtioDevice,
    private readonly memory: GuestMemory,
    readonly signals: TransportSignals,
    readonly events: TransportEvents,
  ) {
    device.attach?.({
      configChanged: () => {
        signals.publishConfig();
        if (this.active) signals.configInterrupt();
      },
      publishConfig: () => signals.publishConfig(),
      log: (message) => this.log(message),
    });
  }

  /** DRIVER_OK. `setups` has one entry per queue, undefined if not ready. What is wrong costs the driver a reset. */
  activate(features: bigint, setups: readonly (QueueSetup | undefined)[]): void {
    if (this.active) return;
    const queueFeatures = {
      eventIdx: (features & VIRTIO_F_EVENT_IDX) !== 0n,
      indirect: (features & VIRTIO_F_INDIRECT_DESC) !== 0n,
    };
    try {
      this.queues = setups.map(
        (setup, index) =>
          new QueueRunner(index, this.memory, setup, queueFeatures, this, this.device.queueShares?.[index]),
      );
      this.active = true;
      this.device.activate({ memory: this.memory, features, queues: this.queues });
    } catch (error) {
      this.reset();
      this.fail(`activation: ${error instanceof Error ? error.message : String(error)}`);
    }
  }

  /** The driver writes 0 to the status register. */
  reset(): void {
    if (!this.active) return;
    this.active = false;
    for (const queue of this.queues) queue.stop();
    this.queues = [];
    this.guard("reset", () => this.device.reset());
  }

  /** The driver has made buffers available in queue `index`. A stray notification is dropped. */
  notify(index: number): void {
    if (this.queues[index] === undefined) return;
    this.guard(`queue ${index}`, () => this.device.processQueue(index));
  }

  /** The driver writes configuration space. A write that leaves it is dropped. */
  writeConfig(offset: number, bytes: Uint8Array): void {
    const { device } = this;
    if (offset < 0 || offset + bytes.length > device.config.length) return;
    this.guard("configuration write", () => device.writeConfig?.(offset, bytes));
  }

  /** Marks the device as in need of a reset and tells driver and monitor. */
  fail(reason: string): void {
    this.log(`${reason}; the device is stopped until its driver resets it`);
    this.events.failed?.(this.device);
    this.signals.needsReset();
  }

  private log(message: string): void {
    if (this.events.log === undefined) return;
    const now = performance.now();
    if (now - this.logPeriodStart >= LOG_PERIOD_MS) {
      const dropped = this.logLines - LOG_LINES;
      if (dropped > 0) this.events.log(`${this.device.name}: ${dropped} more messages were dropped`);
      this.logPeriodStart = now;
      this.logLines = 0;
    }
    if (++this.logLines <= LOG_LINES) this.events.log(`${this.device.name}: ${message}`);
  }

  private guard(what: string, action: () => void): void {
    try {
      action();
    } catch (error) {
      this.fail(`${what}: ${error instanceof Error ? error.message : String(error)}`);
    }
  }
}
