/** The service behind a network device whose rings and frames are hostile. */

import { expect, test } from "bun:test";
import type { NetLink } from "../devices/virtio/net/link.ts";
import { NetDevice } from "../devices/virtio/net/net.ts";
import { FUZZ_COUNT, fuzzDevice } from "../devices/virtio/testing/fuzz.ts";
import { ManualTimers } from "../ratelimit/testing/manual-timers.ts";
import { Mmds } from "./mmds.ts";
import { ACK, PSH, SYN } from "./tcp-segment.ts";
import { arpFrame, tcpFrame } from "./testing/guest.ts";

const RX = 0;
const HEADER = 12;

/** Takes all, and has nothing. */
const NO_LINK: NetLink = {
  offloads: 0n,
  start: () => {},
  stop: () => {},
  receive: () => undefined,
  send: () => true,
};

test(`survives ${FUZZ_COUNT} mutations`, () => {
  const timers = new ManualTimers();
  const mmds = new Mmds({
    version: "V1",
    ipv4Address: "169.254.169.254",
    imdsCompat: false,
    networkInterfaces: ["eth0"],
    instanceId: "vm",
    data: { large: "x".repeat(5000) },
  });
  expect(mmds.stack("eth1", timers)).toBeUndefined();
  const flags = [SYN, ACK, ACK | PSH];
  const result = fuzzDevice({
    seed: 21,
    device: () =>
      new NetDevice({ ifaceId: "eth0", link: NO_LINK, detour: mmds.stack("eth0", timers), timers }),
    request: (random, driver, queue) => {
      if (queue === RX) return [driver.writable(1 + random.below(400))];
      const segment = {
        sourcePort: random.below(40),
        sequence: random.below(3),
        acknowledgment: random.below(3),
        flags: random.pick(flags),
      };
      const frame = random.chance(5) ? arpFrame() : tcpFrame(segment);
      const cut = random.below(frame.length);
      return [new Uint8Array(HEADER), frame.subarray(0, cut), frame.subarray(cut)].map((bytes) =>
        driver.readable(bytes),
      );
    },
    host: (random) => timers.advance(random.below(500)),
  });
  expect(result.mutations).toBe(FUZZ_COUNT);
  expect(result.needsReset).toBeGreaterThan(FUZZ_COUNT / 100);
  const { rxAccepted, rxCount, txFrames, connectionsCreated } = mmds.metrics;
  for (const count of [rxAccepted, rxCount, txFrames, connectionsCreated]) {
    expect(count).toBeGreaterThan(FUZZ_COUNT / 100);
  }
}, 60_000);
