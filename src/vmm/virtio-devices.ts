/** Makes the virtio devices that a plan names, over the host's files. */

import { BlockDevice } from "../devices/virtio/block/block.ts";
import type { VirtioDevice } from "../devices/virtio/device.ts";
import { RngDevice } from "../devices/virtio/rng/rng.ts";
import { fillRandom } from "../platform/random.ts";
import { FileDisk } from "./file-disk.ts";
import type { VirtioDevicePlan } from "./machine.ts";

/**
 * Data buffers per block request. Firecracker has one; with more the guest joins scattered pages into one
 * request, and asks fewer times.
 */
const BLOCK_SEG_MAX = 128;

/** The device of a plan that needs nothing but the host's files. */
export function createVirtioDevice(plan: Exclude<VirtioDevicePlan, { kind: "console" }>): VirtioDevice {
  switch (plan.kind) {
    case "block":
      return new BlockDevice({
        driveId: plan.id,
        disk: new FileDisk(plan.disk),
        id: plan.disk.id,
        readOnly: plan.readOnly,
        cacheType: plan.cacheType,
        segMax: BLOCK_SEG_MAX,
      });
    case "rng":
      return new RngDevice(fillRandom);
  }
}
