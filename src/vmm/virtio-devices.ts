/** The virtio devices of a machine, made from its plan over the host's files and sockets. */

import { BlockDevice } from "../devices/virtio/block/block.ts";
import type { VirtioDevice } from "../devices/virtio/device.ts";
import { NetDevice } from "../devices/virtio/net/net.ts";
import { RngDevice } from "../devices/virtio/rng/rng.ts";
import { VsockDevice } from "../devices/virtio/vsock/vsock.ts";
import type { Epoll } from "../platform/epoll.ts";
import { fillRandom } from "../platform/random.ts";
import type { TimerSource } from "../ratelimit/rate-limiter.ts";
import type { DeviceMetrics, VmmRequest } from "./commands.ts";
import { FileDisk } from "./file-disk.ts";
import type { VirtioDevicePlan } from "./machine.ts";
import { StreamLink } from "./stream-link.ts";
import { TapLink } from "./tap-link.ts";
import { VsockSockets } from "./vsock-sockets.ts";

/**
 * Data buffers per block request. Firecracker has one; with more the guest joins scattered pages into one
 * request, and asks fewer times.
 */
const BLOCK_SEG_MAX = 128;

/** What the vmm thread gives its devices. */
export interface DeviceServices {
  readonly epoll: Epoll;
  readonly timers: TimerSource;
  readonly log: (message: string) => void;
}

export class VirtioDevices {
  private readonly blocks = new Map<string, BlockDevice>();
  private readonly nets = new Map<string, NetDevice>();
  private entropy: RngDevice | undefined;
  private vsock: VsockDevice | undefined;

  constructor(private readonly services: DeviceServices) {}

  create(plan: Exclude<VirtioDevicePlan, { kind: "console" }>): VirtioDevice {
    const { epoll, timers, log } = this.services;
    switch (plan.kind) {
      case "block": {
        const device = new BlockDevice({
          driveId: plan.id,
          disk: new FileDisk(plan.disk),
          id: plan.disk.id,
          readOnly: plan.readOnly,
          cacheType: plan.cacheType,
          segMax: BLOCK_SEG_MAX,
          rateLimiter: plan.rateLimiter,
          timers,
        });
        this.blocks.set(plan.id, device);
        return device;
      }
      case "net": {
        const { id, link, ...options } = plan.net;
        const device = new NetDevice({
          ifaceId: id,
          link: link.kind === "tap" ? new TapLink(epoll, link.fd) : new StreamLink(epoll, link.fd),
          timers,
          ...options,
        });
        this.nets.set(id, device);
        return device;
      }
      case "vsock": {
        const { guestCid, ...options } = plan.vsock;
        const sockets = new VsockSockets(epoll, timers, { ...options, log });
        this.vsock = new VsockDevice({ guestCid, sockets, timers });
        return this.vsock;
      }
      case "rng":
        this.entropy = new RngDevice({ fillRandom, timers, rateLimiter: plan.rateLimiter });
        return this.entropy;
    }
  }

  /** Does what is asked for while the guest runs. */
  serve(request: VmmRequest): void {
    switch (request.kind) {
      case "update-disk":
        this.blocks.get(request.id)?.updateDisk(new FileDisk(request.disk), request.disk.id);
        break;
      case "limit-drive":
        this.blocks.get(request.id)?.updateRateLimiter(request.rateLimiter);
        break;
      case "limit-net":
        this.nets.get(request.id)?.updateRateLimiters(request.rx, request.tx);
        break;
      case "metrics":
        break;
    }
  }

  get metrics(): Omit<DeviceMetrics, "uart"> {
    return {
      blocks: metricsById(this.blocks),
      nets: metricsById(this.nets),
      entropy: this.entropy?.metrics,
      vsock: this.vsock?.metrics,
    };
  }
}

function metricsById<M>(devices: ReadonlyMap<string, { readonly metrics: M }>): Record<string, M> {
  return Object.fromEntries([...devices].map(([id, device]) => [id, device.metrics]));
}
