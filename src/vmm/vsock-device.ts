/** The vsock device of a machine, over the host's sockets. Loaded only for machines with one. */

import { VsockDevice } from "../devices/virtio/vsock/vsock.ts";
import type { Epoll } from "../platform/epoll.ts";
import type { TimerSource } from "../ratelimit/rate-limiter.ts";
import type { VsockSpec } from "./spec.ts";
import { VsockSockets } from "./vsock-sockets.ts";

export function makeVsock(
  spec: VsockSpec,
  epoll: Epoll,
  timers: TimerSource,
  log: (message: string) => void,
): VsockDevice {
  const { guestCid, ...options } = spec;
  const sockets = new VsockSockets(epoll, timers, { ...options, log });
  return new VsockDevice({ guestCid, sockets, timers });
}
