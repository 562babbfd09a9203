/** The virtio devices of a machine, made from its plan over the host's files and sockets. */

import type { BalloonState } from "../devices/virtio/balloon/balloon.ts";
import { BlockDevice } from "../devices/virtio/block/block.ts";
import type { AsyncDisk, DiskFile } from "../devices/virtio/block/disk.ts";
import type { DiskShare } from "../devices/virtio/block/disk-share.ts";
import type { VirtioDevice } from "../devices/virtio/device.ts";
import type { NetDevice } from "../devices/virtio/net/net.ts";
import { RngDevice } from "../devices/virtio/rng/rng.ts";
import type { VsockDevice } from "../devices/virtio/vsock/vsock.ts";
import type { Mmds } from "../mmds/mmds.ts";
import type { Epoll } from "../platform/epoll.ts";
import { fillRandom } from "../platform/random.ts";
import type { TimerSource } from "../ratelimit/rate-limiter.ts";
import type { DiskRing } from "./async-disk.ts";
import type { HostBalloon, makeBalloon } from "./balloon-device.ts";
import type { DeviceMetrics, VmmRequest } from "./commands.ts";
import { FileDisk, type OpenDisk } from "./file-disk.ts";
import type { VirtioDevicePlan } from "./machine.ts";
import type { makeNet } from "./net-device.ts";
import type { makeVsock } from "./vsock-device.ts";

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
  readonly mmds: Mmds | undefined;
  /** Needed for network interfaces. */
  readonly makeNet: typeof makeNet | undefined;
  /** Needed for a vsock device. */
  readonly makeVsock: typeof makeVsock | undefined;
  /** Needed for a balloon. */
  readonly makeBalloon: typeof makeBalloon | undefined;
  /** Needed for drives with an asynchronous engine. */
  readonly asyncDisks: typeof import("./async-disk.ts") | undefined;
}

function loaded<T>(code: T | undefined, what: string): T {
  if (code === undefined) throw new Error(`the code of ${what} was not loaded`);
  return code;
}

export class VirtioDevices {
  private readonly blocks = new Map<string, BlockDevice>();
  private readonly rings = new Map<string, DiskRing>();
  private readonly nets = new Map<string, NetDevice>();
  private entropy: RngDevice | undefined;
  private vsock: VsockDevice | undefined;
  private balloon: HostBalloon | undefined;

  constructor(private readonly services: DeviceServices) {}

  /** `share`: of a block device whose requests a vCPU's thread may do too. */
  create(plan: Exclude<VirtioDevicePlan, { kind: "console" }>, share?: DiskShare): VirtioDevice {
    const { epoll, timers, log } = this.services;
    switch (plan.kind) {
      case "block": {
        if (plan.ioEngine === "Async") {
          const { DiskRing } = loaded(this.services.asyncDisks, "asynchronous drives");
          this.rings.set(plan.id, new DiskRing(epoll));
        }
        const device = new BlockDevice({
          driveId: plan.id,
          disk: this.disk(plan.id, plan.disk),
          id: plan.disk.id,
          readOnly: plan.readOnly,
          cacheType: plan.cacheType,
          segMax: BLOCK_SEG_MAX,
          rateLimiter: plan.rateLimiter,
          timers,
          share,
        });
        this.blocks.set(plan.id, device);
        return device;
      }
      case "net": {
        const makeNet = loaded(this.services.makeNet, "the network");
        const device = makeNet(plan.net, epoll, timers, this.services.mmds);
        this.nets.set(plan.net.id, device);
        return device;
      }
      case "vsock": {
        this.vsock = loaded(this.services.makeVsock, "vsock")(plan.vsock, epoll, timers, log);
        return this.vsock;
      }
      case "balloon":
        this.balloon = loaded(this.services.makeBalloon, "the balloon")(plan.balloon, timers);
        return this.balloon.device;
      case "rng":
        this.entropy = new RngDevice({ fillRandom, timers, rateLimiter: plan.rateLimiter });
        return this.entropy;
    }
  }

  /** Does what is asked for while the guest runs. False if a device cannot do it at this moment. */
  serve(request: VmmRequest): boolean {
    switch (request.kind) {
      case "update-disk":
        this.blocks.get(request.id)?.updateDisk(this.disk(request.id, request.disk), request.disk.id);
        break;
      case "limit-drive":
        this.blocks.get(request.id)?.updateRateLimiter(request.rateLimiter);
        break;
      case "limit-net":
        this.nets.get(request.id)?.updateRateLimiters(request.rx, request.tx);
        break;
      case "balloon-amount":
        return this.balloon?.device.setAmount(request.mib) ?? false;
      case "balloon-stats-interval":
        this.balloon?.device.setStatsInterval(request.seconds);
        break;
      case "hinting-start":
        return this.balloon?.device.startHinting(request.acknowledge) ?? false;
      case "hinting-stop":
        return this.balloon?.device.stopHinting() ?? false;
      case "file-ranges":
        this.balloon?.reclaim.addFileRanges(request.ranges);
        break;
      case "metadata":
        this.services.mmds?.update(request.data);
        break;
      case "drain-drives":
        for (const block of this.blocks.values()) block.drain();
        break;
      case "metrics":
        break;
    }
    return true;
  }

  /** A file for drive `id`, with its ring if it has one. */
  private disk(id: string, disk: OpenDisk): DiskFile | AsyncDisk {
    const ring = this.rings.get(id);
    const { asyncDisks } = this.services;
    return ring === undefined || asyncDisks === undefined
      ? new FileDisk(disk)
      : new asyncDisks.AsyncFileDisk(ring, disk);
  }

  /** Waits for what is in flight. The devices must not be used after that. */
  close(): void {
    for (const ring of this.rings.values()) ring.close();
    this.rings.clear();
  }

  get balloonState(): BalloonState | undefined {
    return this.balloon?.device.state;
  }

  get metrics(): Omit<DeviceMetrics, "uart"> {
    return {
      blocks: metricsById(this.blocks),
      nets: metricsById(this.nets),
      entropy: this.entropy?.metrics,
      vsock: this.vsock?.metrics,
      mmds: this.services.mmds?.metrics,
      balloon: this.balloon?.device.metrics,
    };
  }
}

function metricsById<M>(devices: ReadonlyMap<string, { readonly metrics: M }>): Record<string, M> {
  return Object.fromEntries([...devices].map(([id, device]) => [id, device.metrics]));
}
