/** Requests of the main thread to the vmm thread while the guest runs, and the answers to them. */

import type { BlockMetrics } from "../devices/virtio/block/block.ts";
import type { NetMetrics } from "../devices/virtio/net/net.ts";
import type { RngMetrics } from "../devices/virtio/rng/rng.ts";
import type { VsockMetrics } from "../devices/virtio/vsock/connection.ts";
import type { RateLimiterConfig } from "../ratelimit/rate-limiter.ts";
import { CONTROL_COMMAND, type Doorbell, SLOT_CONTROL } from "./doorbell.ts";
import type { OpenDisk } from "./file-disk.ts";

/** Counters of the devices since the machine was built. */
export interface DeviceMetrics {
  /** By drive id. */
  readonly blocks: Readonly<Record<string, BlockMetrics>>;
  /** By interface id. */
  readonly nets: Readonly<Record<string, NetMetrics>>;
  readonly entropy: RngMetrics | undefined;
  readonly vsock: VsockMetrics | undefined;
  readonly uart: UartMetrics;
}

export interface UartMetrics {
  /** Bytes that the guest sent. */
  sent: number;
  /** Bytes handed to the guest. */
  received: number;
  /** Bytes lost because the guest sent while the port was not ready. */
  lost: number;
}

export type VmmRequest =
  /** Put another disk behind block device `id`. */
  | { readonly kind: "update-disk"; readonly id: string; readonly disk: OpenDisk }
  /** Change rate limiters; what is left out stays. */
  | { readonly kind: "limit-drive"; readonly id: string; readonly rateLimiter: RateLimiterConfig | undefined }
  | {
      readonly kind: "limit-net";
      readonly id: string;
      readonly rx: RateLimiterConfig | undefined;
      readonly tx: RateLimiterConfig | undefined;
    }
  /** Report the counters. */
  | { readonly kind: "metrics" };

export interface VmmCommand {
  readonly sequence: number;
  readonly request: VmmRequest;
}

export interface VmmReply {
  readonly sequence: number;
  readonly metrics: DeviceMetrics;
}

interface Waiting {
  resolve(reply: VmmReply): void;
  reject(error: Error): void;
}

/** The main thread's end. */
export class CommandSender {
  private sequence = 0;
  private readonly waiting = new Map<number, Waiting>();
  private closed = false;

  constructor(
    private readonly port: MessagePort,
    private readonly doorbell: Doorbell,
  ) {}

  /** Resolves when the vmm thread has done it. Rejects if the microVM ends first. */
  send(request: VmmRequest): Promise<VmmReply> {
    if (this.closed) return Promise.reject(new Error("the microVM has ended"));
    const sequence = this.sequence++;
    return new Promise((resolve, reject) => {
      this.waiting.set(sequence, { resolve, reject });
      this.port.postMessage({ sequence, request } satisfies VmmCommand);
      this.doorbell.ring(SLOT_CONTROL, CONTROL_COMMAND);
    });
  }

  answered(reply: VmmReply): void {
    this.waiting.get(reply.sequence)?.resolve(reply);
    this.waiting.delete(reply.sequence);
  }

  /** Nothing will be answered any more. */
  close(): void {
    for (const { reject } of this.waiting.values()) reject(new Error("the microVM has ended"));
    this.waiting.clear();
    this.closed = true;
    this.port.close();
  }
}
