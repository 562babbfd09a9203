import { beforeEach, describe, expect, test } from "bun:test";
import { ManualTimers } from "../../../ratelimit/testing/manual-timers.ts";
import { VIRTIO_F_EVENT_IDX, VIRTIO_F_VERSION_1 } from "../device.ts";
import { type BufferSpec, TestDriver } from "../testing/driver.ts";
import { FUZZ_COUNT, fuzzDevice } from "../testing/fuzz.ts";
import type { LinkEvents, NetLink } from "./link.ts";
import { NetDevice, type NetOptions, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MRG_RXBUF } from "./net.ts";

const HEADER = 12;
const RX = 0;
const TX = 1;

/** The host's end in memory. */
class FakeLink implements NetLink {
  offloads = VIRTIO_NET_F_GUEST_CSUM;
  accepted: bigint | undefined;
  events: LinkEvents | undefined;
  readonly incoming: Uint8Array[] = [];
  readonly sent: Uint8Array[] = [];
  room = Number.POSITIVE_INFINITY;
  sendError: Error | undefined;
  receiveError: Error | undefined;

  start(accepted: bigint, events: LinkEvents): void {
    this.accepted = accepted;
    this.events = events;
  }

  stop(): void {
    this.events = undefined;
  }

  receive(into: Uint8Array): number | undefined {
    if (this.receiveError !== undefined) throw this.receiveError;
    const frame = this.incoming.shift();
    if (frame === undefined) return undefined;
    into.fill(0x77, 0, HEADER);
    into.set(frame, HEADER);
    return HEADER + frame.length;
  }

  send(header: Uint8Array, frame: readonly Uint8Array[], length: number): boolean {
    if (this.sendError !== undefined) throw this.sendError;
    if (this.room === 0) return false;
    this.room--;
    const bytes = Buffer.concat([header, ...frame]);
    expect(bytes.length).toBe(HEADER + length);
    this.sent.push(bytes);
    return true;
  }

  /** Frames arrive. */
  arrive(...frames: Uint8Array[]): void {
    this.incoming.push(...frames);
    this.events?.onReadable();
  }
}

let link: FakeLink;
let timers: ManualTimers;
let logs: string[];
let device: NetDevice;
let driver: TestDriver;
/** Receive buffers by the head of their chain. */
let buffers: Map<number, BufferSpec[]>;

function start(options: Partial<NetOptions> = {}, features?: bigint): void {
  link = new FakeLink();
  timers = new ManualTimers();
  logs = [];
  buffers = new Map();
  device = new NetDevice({ ifaceId: "eth0", link, timers, ...options });
  driver = TestDriver.start(device, {
    ramBytes: 4 << 20,
    events: { log: (line) => logs.push(line) },
    ...(features === undefined ? {} : { features }),
  });
}

beforeEach(() => start());

const bytes = (count: number, seed = 0) =>
  Uint8Array.from({ length: count }, (_, i) => (i * 13 + seed) & 0xff);

/** Gives receive chains, each of buffers of these sizes. */
function give(count: number, ...sizes: number[]): void {
  const queue = driver.queues[RX]!;
  for (let i = 0; i < count; i++) {
    const chain = sizes.map((size) => driver.writable(size));
    buffers.set(queue.add(chain), chain);
  }
  queue.kick();
}

/** Frames that have come, with their headers, put together again from the buffers that each spans. */
function received(): Uint8Array[] {
  const frames: Uint8Array[] = [];
  const used = driver.queues[RX]!.takeUsed();
  while (used.length > 0) {
    const pieces: Uint8Array[] = [];
    let count = 1;
    for (let i = 0; i < count; i++) {
      const { id, length } = used.shift()!;
      const chain = buffers.get(id)!;
      const all = Buffer.concat(chain.map(({ gpa, length: size }) => driver.ram(gpa, size))).subarray(
        0,
        length,
      );
      if (i === 0) count = new DataView(all.buffer, all.byteOffset).getUint16(10, true);
      pieces.push(all);
    }
    frames.push(Buffer.concat(pieces));
  }
  return frames;
}

const bodies = () => received().map((frame) => frame.subarray(HEADER));
const same = (a: Uint8Array | undefined, b: Uint8Array) => Buffer.from(a ?? []).equals(Buffer.from(b));

function transmit(frame: Uint8Array, header = new Uint8Array(HEADER)): number | undefined {
  return driver.request(TX, [driver.readable(header), driver.readable(frame)]);
}

describe("configuration", () => {
  test("MAC and MTU are offered if they are given", () => {
    expect(driver.features & 0b101000n).toBe(0n);
    start({ mac: Uint8Array.of(6, 0, 0, 0, 0, 9), mtu: 9000 });
    expect(driver.features & 0b101000n).toBe(0b101000n);
    expect([...device.config]).toEqual([6, 0, 0, 0, 0, 9, 0, 0, 1, 0, 0x28, 0x23]);
  });

  test("the link is told which of its offloads the driver took", () => {
    expect(link.accepted).toBe(VIRTIO_NET_F_GUEST_CSUM);
    start({}, VIRTIO_F_VERSION_1 | VIRTIO_NET_F_MRG_RXBUF);
    expect(link.accepted).toBe(0n);
  });
});

describe("transmit", () => {
  test("header and frame go out as they are, from any number of buffers", () => {
    const header = bytes(HEADER, 40);
    const frame = bytes(1514);
    expect(transmit(frame, header)).toBe(0);
    const whole = Buffer.concat([header, frame]);
    const parts = [whole.subarray(0, 5), whole.subarray(5, 13), whole.subarray(13, 14), whole.subarray(14)];
    driver.request(
      TX,
      parts.map((part) => driver.readable(part)),
    );
    expect(link.sent.map((sent) => same(sent, whole))).toEqual([true, true]);
    expect(device.metrics).toMatchObject({ txPackets: 2, txBytes: 2 * 1526 });
  });

  test("frames that are too short or too long are dropped, the largest goes out", () => {
    expect(transmit(bytes(13))).toBe(0);
    expect(transmit(bytes(65554))).toBe(0);
    expect(driver.request(TX, [driver.writable(100)])).toBe(0);
    expect(link.sent).toEqual([]);
    expect(device.metrics.txMalformed).toBe(3);
    transmit(bytes(65553));
    expect(link.sent.length).toBe(1);
  });

  test("a full link makes frames wait, and none is lost", () => {
    link.room = 1;
    for (let i = 0; i < 5; i++) transmit(bytes(100, i));
    expect(link.sent.length).toBe(1);
    link.arrive();
    give(4, 2000);
    link.arrive(bytes(60));
    expect(bodies().length).toBe(1);
    link.room = 10;
    link.events?.onWritable();
    expect(link.sent.map((sent, i) => same(sent.subarray(HEADER), bytes(100, i)))).toEqual(
      Array(5).fill(true),
    );
  });

  test("a link that refuses loses the frame and says so, and the next one goes", () => {
    link.sendError = new Error("Input/output error");
    expect(transmit(bytes(100))).toBe(0);
    link.sendError = undefined;
    expect(transmit(bytes(100))).toBe(0);
    expect(device.metrics).toMatchObject({ linkWriteFails: 1, txPackets: 1 });
    expect(logs).toEqual(["net eth0: frame lost: Input/output error"]);
  });

  test("the rate limiter lets a frame wait, and charges it once", () => {
    start({ txRateLimiter: { ops: { size: 2, refill_time: 1000 } } });
    link.room = 0;
    transmit(bytes(100, 0));
    transmit(bytes(100, 1));
    transmit(bytes(100, 2));
    link.room = 10;
    link.events?.onWritable();
    expect(link.sent.length).toBe(2);
    timers.advance(500);
    expect(link.sent.length).toBe(3);
    expect(device.metrics.txThrottled).toBe(1);
  });
});

describe("receive", () => {
  test("a frame fills as many buffers as it needs, the header counts them", () => {
    give(8, 1000);
    link.arrive(bytes(60), bytes(1000 - HEADER, 1), bytes(2500, 2));
    const frames = received();
    expect(frames.map((frame) => new DataView(frame.buffer, frame.byteOffset).getUint16(10, true))).toEqual([
      1, 1, 3,
    ]);
    expect(frames[0]![0]).toBe(0x77);
    expect(
      [bytes(60), bytes(1000 - HEADER, 1), bytes(2500, 2)].every((b, i) =>
        same(frames[i]!.subarray(HEADER), b),
      ),
    ).toBe(true);
    expect(device.metrics).toMatchObject({ rxPackets: 3, rxBytes: 60 + 1000 - HEADER + 2500 + 3 * HEADER });
  });

  test("waits for buffers without losing anything, also in the middle of a large frame", () => {
    const large = bytes(65000, 5);
    link.arrive(bytes(60), large, bytes(61));
    give(1, 1500);
    expect(bodies().map((frame) => frame.length)).toEqual([60]);
    give(40, 1500);
    expect(bodies()).toEqual([]);
    give(4, 1500);
    const [first, ...rest] = bodies();
    expect(same(first, large)).toBe(true);
    expect(rest.length).toBe(0);
    give(1, 1500);
    expect(bodies().map((frame) => frame.length)).toEqual([61]);
    expect(device.metrics.rxFails).toBe(0);
  });

  test("all of a burst, in turns of 64, with an interrupt for each turn and not for each frame", () => {
    give(200, 1500);
    const before = driver.interrupts;
    link.arrive(...Array.from({ length: 150 }, (_, i) => bytes(60 + i)));
    expect(bodies().length).toBe(64);
    timers.advance(0);
    timers.advance(0);
    expect(bodies().map((frame) => frame.length)).toEqual(Array.from({ length: 86 }, (_, i) => 60 + 64 + i));
    expect(driver.interrupts - before).toBeLessThanOrEqual(3);
  });

  test("a frame too large for all buffers that the driver has is dropped, and the next one comes", () => {
    give(256, 100);
    link.arrive(bytes(60000), bytes(50));
    expect(bodies().map((frame) => frame.length)).toEqual([50]);
    expect(device.metrics.rxFails).toBe(1);
  });

  test("buffers of several descriptors, and some too small for a header", () => {
    give(1, 5);
    give(2, HEADER, 100, 400);
    link.arrive(bytes(700));
    expect(driver.queues[RX]!.takeUsed().map(({ length }) => length)).toEqual([0, 512, 200]);
  });

  test("without mergeable buffers each frame gets one chain, or is dropped", () => {
    start({}, VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX);
    give(2, HEADER, 1514);
    link.arrive(bytes(3000), bytes(1514, 1), bytes(60, 2));
    expect(bodies().map((frame) => frame.length)).toEqual([1514, 60]);
    expect(device.metrics.rxFails).toBe(1);
  });

  test("the rate limiter lets frames wait", () => {
    start({ rxRateLimiter: { bandwidth: { size: 2000, refill_time: 1000 } } });
    give(8, 1500);
    link.arrive(bytes(988), bytes(988), bytes(988));
    expect(bodies().length).toBe(2);
    timers.advance(499);
    expect(bodies().length).toBe(0);
    timers.advance(1);
    expect(bodies().length).toBe(1);
    device.updateRateLimiters({ bandwidth: { size: 0, refill_time: 0 } }, undefined);
    link.arrive(...Array.from({ length: 5 }, () => bytes(1400)));
    expect(bodies().length).toBe(5);
    expect(device.metrics.rxThrottled).toBe(1);
  });

  test("a broken link is told once, and the guest still runs", () => {
    give(8, 1500);
    link.receiveError = new Error("File descriptor in bad state");
    link.arrive();
    link.arrive();
    expect(logs).toEqual(["net eth0: nothing is received any more: File descriptor in bad state"]);
    expect(transmit(bytes(60))).toBe(0);
    expect(device.metrics.linkReadFails).toBe(1);
  });

  test("a reset in the middle forgets what was at hand", () => {
    link.arrive(bytes(60, 1));
    give(2, 1500);
    link.arrive(bytes(5000));
    driver.reset();
    expect(link.events).toBeUndefined();
    driver.start();
    buffers = new Map();
    give(4, 1500);
    link.arrive(bytes(70, 2));
    expect(bodies().map((frame) => frame.length)).toEqual([70]);
  });
});

for (const [seed, features] of [
  [11, undefined],
  [12, VIRTIO_F_VERSION_1],
] as const) {
  test(`survives ${FUZZ_COUNT} mutations${features === undefined ? "" : " without mergeable buffers"}`, () => {
    let fake = new FakeLink();
    let clock = new ManualTimers();
    const result = fuzzDevice({
      seed,
      device: () => {
        fake = new FakeLink();
        clock = new ManualTimers();
        const limit = { ops: { size: 100, refill_time: 100 } };
        const made = new NetDevice({
          ifaceId: "x",
          link: fake,
          timers: clock,
          rxRateLimiter: limit,
          txRateLimiter: limit,
        });
        if (features !== undefined) Object.defineProperty(made, "features", { value: features });
        return made;
      },
      request: (random, d, queue) => {
        const sizes = Array.from({ length: 1 + random.below(4) }, () => 1 + random.below(200));
        return sizes.map((size) => (queue === RX ? d.writable(size) : d.readable(new Uint8Array(size))));
      },
      host: (random) => {
        if (random.chance(10)) fake.room = random.below(50);
        const action = random.below(4);
        if (action === 0) clock.advance(random.below(100));
        else if (action === 1) fake.events?.onWritable();
        else fake.arrive(...Array.from({ length: random.below(20) }, () => bytes(14 + random.below(900))));
        fake.sent.length = 0;
        fake.incoming.length = 0;
      },
    });
    expect(result.mutations).toBe(FUZZ_COUNT);
    expect(result.completed).toBeGreaterThan(FUZZ_COUNT / 10);
    expect(result.needsReset).toBeGreaterThan(FUZZ_COUNT / 100);
  }, 600_000);
}
