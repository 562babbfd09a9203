import { beforeEach, expect, test } from "bun:test";
import { ManualTimers } from "../../../ratelimit/testing/manual-timers.ts";
import { TestDriver } from "../testing/driver.ts";
import type { LinkEvents, NetLink } from "./link.ts";
import { NetDevice } from "./net.ts";

const HEADER = 12;
const RX = 0;
const TX = 1;

class Link implements NetLink {
  readonly offloads = 0n;
  events: LinkEvents | undefined;
  incoming: number[] = [];

  start(_accepted: bigint, events: LinkEvents): void {
    this.events = events;
  }
  stop(): void {}
  receive(): number | undefined {
    const length = this.incoming.shift();
    return length === undefined ? undefined : HEADER + length;
  }
  send(): boolean {
    return true;
  }
}

let link: Link;
let timers: ManualTimers;
let driver: TestDriver;

function start(slowGuest: boolean): void {
  link = new Link();
  timers = new ManualTimers();
  const device = new NetDevice({ ifaceId: "eth0", link, timers });
  driver = TestDriver.start(device, { ramBytes: 4 << 20, events: { slowGuest, log: () => {} } });
}

beforeEach(() => start(true));

/** Sends a frame, and does not look whether it has left. */
function send(length: number): void {
  const mark = driver.allocated;
  driver.queues[TX]!.add([driver.readable(new Uint8Array(HEADER + length))]);
  driver.queues[TX]!.kick();
  driver.release(mark);
}

test("a guest that sends little hears of each frame at once", () => {
  for (let i = 1; i <= 3; i++) {
    send(100);
    expect(driver.interrupts).toBe(i);
    driver.queues[TX]!.takeUsed();
  }
});

test("one that sends much hears of frames after a while, and only if it has not looked by itself", () => {
  for (let i = 0; i < 3; i++) send(20_000);
  expect(driver.interrupts).toBe(0);
  timers.advance(1);
  expect(driver.interrupts).toBe(1);
  expect(driver.queues[TX]!.takeUsed()).toHaveLength(3);
  send(20_000);
  expect(driver.queues[TX]!.takeUsed()).toHaveLength(1);
  timers.advance(1);
  expect(driver.interrupts).toBe(1);
});

test("so does one that receives much and answers shortly", () => {
  for (let i = 0; i < 8; i++) driver.queues[RX]!.add([driver.writable(20_000)]);
  driver.queues[RX]!.kick();
  link.incoming = [15_000];
  link.events?.onReadable();
  const { interrupts } = driver;
  send(60);
  expect(driver.interrupts).toBe(interrupts);
  send(60);
  expect(driver.interrupts).toBe(interrupts + 1);
});

test("with a quarter of the queue waiting it hears of them", () => {
  for (let i = 0; i < 63; i++) send(20_000);
  expect(driver.interrupts).toBe(0);
  send(20_000);
  expect(driver.interrupts).toBe(1);
});

test("a reset takes back what was to be told", () => {
  send(20_000);
  driver.reset();
  timers.advance(1);
  expect(driver.interrupts).toBe(0);
  driver.start();
  send(60);
  expect(driver.interrupts).toBe(1);
});

test("a guest that is not slow hears of each pass", () => {
  start(false);
  send(20_000);
  expect(driver.interrupts).toBe(1);
});
