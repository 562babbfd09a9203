/** Requests of the main thread to the vmm thread while the guest runs, and the answers to them. */

import type { BalloonMetrics, BalloonState } from "../devices/virtio/balloon/balloon.ts";
import type { BlockMetrics } from "../devices/virtio/block/options.ts";
import type { NetMetrics } from "../devices/virtio/net/net.ts";
import type { RngMetrics } from "../devices/virtio/rng/rng.ts";
import type { VsockMetrics } from "../devices/virtio/vsock/connection.ts";
import type { MmdsMetrics } from "../mmds/mmds.ts";
import type { RateLimiterConfig } from "../ratelimit/rate-limiter.ts";
import { CONTROL_COMMAND, type Doorbell, SLOT_CONTROL } from "./doorbell.ts";
import type { OpenDisk } from "./file-disk.ts";
import type { HostRange } from "./reclaim.ts";

/** Counters of the devices since the machine was built. */
export interface DeviceMetrics {
  /** By drive id. */
  readonly blocks: Readonly<Record<string, BlockMetrics>>;
  /** By interface id. */
  readonly nets: Readonly<Record<string, NetMetrics>>;
  readonly entropy: RngMetrics | undefined;
  readonly vsock: VsockMetrics | undefined;
  readonly mmds: MmdsMetrics | undefined;
  readonly balloon: BalloonMetrics | undefined;
  readonly uart: UartMetrics;
}

export interface UartMetrics {
  /** Bytes that the guest sent. */
  sent: number;
  /** Bytes handed to the guest. */
  received: number;
  /** Bytes lost because the guest sent while the port was not ready. */
  lost: number;
  /** Bytes lost because the guest sent more than its rate limiter allows. */
  dropped: number;
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
  /** Ask the guest for a balloon of this size. Not done if its driver is not there. */
  | { readonly kind: "balloon-amount"; readonly mib: number }
  | { readonly kind: "balloon-stats-interval"; readonly seconds: number }
  /** Begin or end a run of free page hinting. Not done if the driver is not there. */
  | { readonly kind: "hinting-start"; readonly acknowledge: boolean }
  | { readonly kind: "hinting-stop" }
  /** Guest RAM where files are mapped: see `MemoryReclaim`. */
  | { readonly kind: "file-ranges"; readonly ranges: readonly HostRange[] }
  /** Replace the metadata. */
  | { readonly kind: "metadata"; readonly data: unknown }
  /** Finish what the guest, which is paused, has asked of its drives. */
  | { readonly kind: "drain-drives" }
  /** Report the counters and the state. */
  | { readonly kind: "metrics" };

export interface VmmCommand {
  readonly sequence: number;
  readonly request: VmmRequest;
}

export interface VmmReply {
  readonly sequence: number;
  /** False if a device could not do it at this moment. */
  readonly done: boolean;
  readonly metrics: DeviceMetrics;
  /** Undefined if there is no balloon. */
  readonly balloon: BalloonState | undefined;
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
    private readonly devices: { post(command: VmmCommand): void },
    private readonly doorbell: Doorbell,
  ) {}

  /** Resolves when the vmm thread has done it. Rejects if the microVM ends first. */
  send(request: VmmRequest): Promise<VmmReply> {
    if (this.closed) return Promise.reject(new Error("the microVM has ended"));
    const sequence = this.sequence++;
    return new Promise((resolve, reject) => {
      this.waiting.set(sequence, { resolve, reject });
      this.devices.post({ sequence, request });
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
  }
}
