/** The network device of a machine, over the host's link. Loaded only for machines with a network. */

import { NetDevice } from "../devices/virtio/net/net.ts";
import type { Mmds } from "../mmds/mmds.ts";
import type { Epoll } from "../platform/epoll.ts";
import type { TimerSource } from "../ratelimit/rate-limiter.ts";
import type { NetSpec } from "./spec.ts";
import { StreamLink } from "./stream-link.ts";
import { TapLink } from "./tap-link.ts";

/** `mmds`: takes what the guest sends to the metadata service out of its network. */
export function makeNet(spec: NetSpec, epoll: Epoll, timers: TimerSource, mmds: Mmds | undefined): NetDevice {
  const { id, link, ...options } = spec;
  return new NetDevice({
    ifaceId: id,
    link: link.kind === "tap" ? new TapLink(epoll, link.fd) : new StreamLink(epoll, link.fd),
    detour: mmds?.stack(id, timers),
    timers,
    ...options,
  });
}
