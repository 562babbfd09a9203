/** The balloon of a machine, over guest RAM. Few machines have one, so this is loaded only for those. */

import { BalloonDevice } from "../devices/virtio/balloon/balloon.ts";
import type { TimerSource } from "../ratelimit/rate-limiter.ts";
import { MemoryReclaim } from "./reclaim.ts";
import type { BalloonSpec } from "./spec.ts";

export interface HostBalloon {
  readonly device: BalloonDevice;
  readonly reclaim: MemoryReclaim;
}

export function makeBalloon(spec: BalloonSpec, timers: TimerSource): HostBalloon {
  const reclaim = new MemoryReclaim();
  const discard = (pages: Uint8Array) => reclaim.discard(pages);
  return { device: new BalloonDevice({ ...spec, timers, discard }), reclaim };
}
