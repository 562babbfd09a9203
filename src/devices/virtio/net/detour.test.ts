import { beforeEach, expect, test } from "bun:test";
import { ManualTimers } from "../../../ratelimit/testing/manual-timers.ts";
import { type BufferSpec, TestDriver } from "../testing/driver.ts";
import type { Detour } from "./detour.ts";
import type { LinkEvents, NetLink } from "./link.ts";
import { NetDevice, type NetOptions } from "./net.ts";

const HEADER = 12;
const RX = 0;
const TX = 1;
/** First byte of the frames that are for the detour. */
const MARK = 0xdd;

class FakeLink implements NetLink {
  readonly offloads = 0n;
  events: LinkEvents | undefined;
  readonly incoming: Uint8Array[] = [];
  readonly sent: Uint8Array[] = [];
  room = true;
  broken = false;

  start(_accepted: bigint, events: LinkEvents): void {
    this.events = events;
  }

  stop(): void {
    this.events = undefined;
  }

  receive(into: Uint8Array): number | undefined {
    if (this.broken) throw new Error("broken");
    const frame = this.incoming.shift();
    if (frame === undefined) return undefined;
    into.fill(0x77, 0, HEADER);
    into.set(frame, HEADER);
    return HEADER + frame.length;
  }

  send(_header: Uint8Array, frame: readonly Uint8Array[]): boolean {
    if (this.room) this.sent.push(Buffer.concat(frame));
    return this.room;
  }
}

class FakeDetour implements Detour {
  onFrame: (() => void) | undefined;
  readonly taken: { frame: Uint8Array; checksummed: boolean }[] = [];
  readonly answers: Uint8Array[] = [];
  /** Frames that each one taken is answered with. */
  echo = 0;
  starts: number[] = [];

  start(onFrame: () => void): void {
    this.onFrame = onFrame;
  }

  stop(): void {
    this.onFrame = undefined;
  }

  wants(start: Uint8Array): boolean {
    this.starts.push(start.length);
    return start[0] === MARK;
  }

  take(frame: Uint8Array, checksummed: boolean): void {
    this.taken.push({ frame, checksummed });
    for (let i = 0; i < this.echo; i++) this.answers.push(frame);
  }

  next(into: Uint8Array): number {
    const frame = this.answers.shift();
    if (frame !== undefined) into.set(frame);
    return frame?.length ?? 0;
  }
}

let link: FakeLink;
let detour: FakeDetour;
let timers: ManualTimers;
let device: NetDevice;
let driver: TestDriver;
let buffers: Map<number, BufferSpec>;

function start(options: Partial<NetOptions> = {}): void {
  link = new FakeLink();
  detour = new FakeDetour();
  timers = new ManualTimers();
  buffers = new Map();
  device = new NetDevice({ ifaceId: "eth0", link, detour, timers, ...options });
  driver = TestDriver.start(device, { ramBytes: 4 << 20, events: { log: () => {} } });
}

beforeEach(() => start());

function frame(first: number, length = 60): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => (i === 0 ? first : i & 0xff));
}

/** Gives receive buffers. */
function give(count: number): void {
  const queue = driver.queues[RX]!;
  for (let i = 0; i < count; i++) {
    const buffer = driver.writable(2000);
    buffers.set(queue.add([buffer]), buffer);
  }
  queue.kick();
}

/** What has come, with the headers. */
function received(): Uint8Array[] {
  return driver.queues[RX]!.takeUsed().map(({ id, length }) =>
    driver.ram(buffers.get(id)!.gpa, length).slice(),
  );
}

function transmit(bytes: Uint8Array, flags = 0): void {
  const header = new Uint8Array(HEADER);
  header[0] = flags;
  // In pieces, the first of them in the middle of what the detour looks at.
  driver.request(TX, [
    driver.readable(header),
    driver.readable(bytes.subarray(0, 30)),
    driver.readable(bytes.subarray(30)),
  ]);
}

test("frames for the detour do not reach the link, all others do", () => {
  transmit(frame(MARK));
  transmit(frame(1));
  transmit(frame(MARK, 40_000), 1);
  transmit(frame(2, 41));
  expect(link.sent.map((sent) => [sent[0], sent.length])).toEqual([
    [1, 60],
    [2, 41],
  ]);
  expect(detour.taken.map(({ frame: { length }, checksummed }) => [length, checksummed])).toEqual([
    [60, true],
    [40_000, false],
  ]);
  expect(Buffer.from(detour.taken[0]!.frame).equals(Buffer.from(frame(MARK)))).toBe(true);
  expect(detour.starts).toEqual([42, 42, 42, 41]);
  expect(device.metrics).toMatchObject({ txPackets: 2, txBytes: 60 + 41 + 2 * HEADER });
});

test("its answers come at once, with a header that says nothing, and wait for buffers", () => {
  detour.echo = 3;
  give(2);
  transmit(frame(MARK, 80));
  const [first, ...rest] = received();
  expect([...first!.subarray(0, HEADER)]).toEqual([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
  expect(Buffer.from(first!.subarray(HEADER)).equals(Buffer.from(frame(MARK, 80)))).toBe(true);
  expect(rest.length).toBe(1);
  give(1);
  expect(received().length).toBe(1);
});

test("frames that it has by itself come when it says so", () => {
  give(1);
  detour.answers.push(frame(MARK));
  expect(received()).toEqual([]);
  detour.onFrame?.();
  expect(received().length).toBe(1);
});

test("link and detour take turns", () => {
  give(20);
  for (let i = 0; i < 5; i++) {
    link.incoming.push(frame(1));
    detour.answers.push(frame(MARK));
  }
  link.events?.onReadable();
  const order = received().map((bytes) => bytes[HEADER]);
  expect(order.length).toBe(10);
  for (let i = 0; i < 10; i += 2) expect(order.slice(i, i + 2).sort()).toEqual([1, MARK]);
});

test("it goes on when the link is broken", () => {
  detour.echo = 1;
  give(2);
  link.broken = true;
  link.events?.onReadable();
  transmit(frame(MARK));
  expect(received().length).toBe(1);
});

test("the limit of what is sent is not for it", () => {
  start({ txRateLimiter: { ops: { size: 1, refill_time: 1000 } } });
  for (let i = 0; i < 5; i++) transmit(frame(MARK));
  transmit(frame(1));
  expect([detour.taken.length, link.sent.length]).toEqual([5, 1]);
});

test("a reset stops it, and drops what it had at hand", () => {
  detour.echo = 2;
  transmit(frame(MARK));
  driver.reset();
  expect(detour.onFrame).toBeUndefined();
  detour.answers.length = 0;
  driver.start();
  buffers = new Map();
  give(4);
  detour.onFrame?.();
  expect(received()).toEqual([]);
});
