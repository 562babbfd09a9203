/** A device for transport tests: copies what a chain holds to its writable buffers. Two queues. */

import type { DescriptorChain } from "../chain.ts";
import {
  type DeviceContext,
  type DeviceHost,
  type HandlerResult,
  type Served,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_VERSION_1,
  type VirtioDevice,
} from "../device.ts";

export class EchoDevice implements VirtioDevice {
  readonly name = "echo";
  readonly type = 63;
  readonly features = VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC | 1n;
  readonly queueSizes = [16, 8];
  readonly config = Uint8Array.of(1, 2, 3, 4, 5, 6);
  readonly chains: DescriptorChain[] = [];
  context: DeviceContext | undefined;
  host: DeviceHost | undefined;
  lastServed: Served | undefined;
  /** Replaces what a request does. */
  handler: ((chain: DescriptorChain) => HandlerResult) | undefined;

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
    this.lastServed = this.context!.queues[index]!.serve((chain) => {
      this.chains.push(chain);
      if (this.handler !== undefined) return this.handler(chain);
      const bytes = new Uint8Array(Math.min(chain.readableLength, chain.writableLength));
      chain.read(bytes);
      return chain.write(bytes);
    });
  }

  writeConfig(offset: number, bytes: Uint8Array): void {
    this.config.set(bytes, offset);
    this.host!.configChanged();
  }
}
