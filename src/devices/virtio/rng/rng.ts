/** virtio-rng (virtio 1.2, 5.4): random bytes from the host. */

import type { DescriptorChain } from "../chain.ts";
import {
  type DeviceContext,
  type DeviceHost,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_VERSION_1,
  VIRTIO_ID_ENTROPY,
  type VirtioDevice,
} from "../device.ts";

const QUEUE_SIZE = 256;
/** A larger request gets this much, as in Firecracker; the driver asks again. */
const MAX_REQUEST_BYTES = 64 * 1024;
const SCRATCH_BYTES = 4096;

/** Fills all of `into`, which is never shared memory. Throws if the host has no random bytes. */
export type FillRandom = (into: Uint8Array) => void;

export interface RngMetrics {
  bytes: number;
  requests: number;
  fails: number;
}

export class RngDevice implements VirtioDevice {
  readonly name = "entropy";
  readonly type = VIRTIO_ID_ENTROPY;
  readonly features = VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX;
  readonly queueSizes = [QUEUE_SIZE];
  readonly config = new Uint8Array(0);
  readonly metrics: RngMetrics = { bytes: 0, requests: 0, fails: 0 };

  private readonly scratch = new Uint8Array(SCRATCH_BYTES);
  private host: DeviceHost | undefined;
  private context: DeviceContext | undefined;

  constructor(private readonly fillRandom: FillRandom) {}

  attach(host: DeviceHost): void {
    this.host = host;
  }

  activate(context: DeviceContext): void {
    this.context = context;
  }

  reset(): void {
    this.context = undefined;
  }

  processQueue(index: number): void {
    this.context?.queues[index]?.serve((chain) => this.fill(chain));
  }

  private fill(chain: DescriptorChain): number {
    this.metrics.requests++;
    const wanted = Math.min(chain.writableLength, MAX_REQUEST_BYTES);
    let done = 0;
    try {
      while (done < wanted) {
        const piece = this.scratch.subarray(0, Math.min(SCRATCH_BYTES, wanted - done));
        this.fillRandom(piece);
        chain.write(piece, done);
        done += piece.length;
      }
    } catch (error) {
      this.metrics.fails++;
      this.host?.log(`no random bytes: ${error instanceof Error ? error.message : String(error)}`);
    }
    this.metrics.bytes += done;
    return done;
  }
}
