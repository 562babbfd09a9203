import { beforeEach, describe, expect, test } from "bun:test";
import { ManualTimers } from "../../../ratelimit/testing/manual-timers.ts";
import * as reg from "../mmio/registers.ts";
import { type BufferSpec, TestDriver } from "../testing/driver.ts";
import { FUZZ_COUNT, fuzzDevice, type Random } from "../testing/fuzz.ts";
import {
  BalloonDevice,
  type BalloonOptions,
  VIRTIO_BALLOON_F_DEFLATE_ON_OOM,
  VIRTIO_BALLOON_F_FREE_PAGE_HINT,
  VIRTIO_BALLOON_F_PAGE_REPORTING,
  VIRTIO_BALLOON_F_STATS_VQ,
} from "./balloon.ts";
import { PAGE_BYTES } from "./pages.ts";

const VERSION_1 = 1n << 32n;
const [INFLATE, DEFLATE] = [0, 1];
/** Guest pages for the tests, above what the driver's allocator hands out. */
const FIRST = 128;
const RAM_PAGES = 256;

let timers: ManualTimers;
let device: BalloonDevice;
let driver: TestDriver;
let logs: string[];
let discards: number;
let fail: boolean;

function make(options: Partial<BalloonOptions> = {}): BalloonDevice {
  timers = new ManualTimers();
  return new BalloonDevice({
    amountMib: 0,
    deflateOnOom: false,
    statsPollingIntervalS: 0,
    freePageHinting: false,
    freePageReporting: false,
    timers,
    discard(pages) {
      if (fail) throw new Error("ENOMEM");
      discards++;
      pages.fill(0);
    },
    ...options,
  });
}

function start(options: Partial<BalloonOptions> = {}, features?: bigint): void {
  logs = [];
  discards = 0;
  fail = false;
  device = make(options);
  driver = TestDriver.start(device, {
    ...(features === undefined ? {} : { features }),
    events: { log: (line) => logs.push(line) },
  });
  driver.ram(FIRST * PAGE_BYTES, (RAM_PAGES - FIRST) * PAGE_BYTES).fill(0xee);
}
beforeEach(() => start());

function words(values: readonly number[]): BufferSpec {
  return driver.readable(new Uint8Array(Uint32Array.from(values).buffer));
}

/** Pages from {@link FIRST} on that read as zeros. */
function zeroPages(): number[] {
  const pages = Array.from({ length: RAM_PAGES - FIRST }, (_, i) => FIRST + i);
  return pages.filter((page) => driver.ram(page * PAGE_BYTES, PAGE_BYTES).every((byte) => byte === 0));
}

function pages(first: number, count: number): BufferSpec {
  return { gpa: first * PAGE_BYTES, length: count * PAGE_BYTES, write: true };
}

describe("what the driver sees", () => {
  test("features and queues follow the configuration", () => {
    expect([device.features, device.queueSizes.length, driver.read(reg.DEVICE_ID)]).toEqual([
      VERSION_1,
      2,
      5,
    ]);
    start({
      amountMib: 3,
      deflateOnOom: true,
      statsPollingIntervalS: 1,
      freePageHinting: true,
      freePageReporting: true,
    });
    const all =
      VIRTIO_BALLOON_F_DEFLATE_ON_OOM |
      VIRTIO_BALLOON_F_STATS_VQ |
      VIRTIO_BALLOON_F_FREE_PAGE_HINT |
      VIRTIO_BALLOON_F_PAGE_REPORTING;
    expect([device.features, device.queueSizes.length]).toEqual([VERSION_1 | all, 5]);
    expect([driver.read(reg.CONFIG), driver.read(reg.CONFIG + 4), driver.read(reg.CONFIG + 8)]).toEqual([
      768, 0, 0,
    ]);
  });

  test("a new size is a configuration change, and only with a driver", () => {
    const generation = driver.read(reg.CONFIG_GENERATION);
    expect(device.setAmount(5)).toBe(true);
    expect(driver.read(reg.INTERRUPT_STATUS)).toBe(reg.INT_CONFIG);
    expect(driver.read(reg.CONFIG_GENERATION)).not.toBe(generation);
    expect(driver.read(reg.CONFIG)).toBe(5 * 256);
    driver.reset();
    expect([device.setAmount(6), device.startHinting(true), device.stopHinting()]).toEqual([
      false,
      false,
      false,
    ]);
    expect(driver.read(reg.CONFIG)).toBe(5 * 256);
  });

  test("it may write `actual` and nothing else, and is not interrupted for it", () => {
    for (const [offset, size, value] of [
      [0, 4, 0xffff_ffff],
      [8, 4, 0xffff_ffff],
      [4, 4, 0x0102_0304],
      [3, 1, 0xff],
      [12, 4, 7],
    ] as const) {
      driver.front.write(reg.CONFIG + offset, size, value);
    }
    expect([0, 4, 8].map((at) => driver.read(reg.CONFIG + at))).toEqual([0, 0x0102_0304, 0]);
    expect(device.state).toMatchObject({ targetPages: 0, actualPages: 0x0102_0304 });
    expect(driver.read(reg.INTERRUPT_STATUS)).toBe(0);
    driver.reset();
    expect(device.state.actualPages).toBe(0);
    expect(driver.read(reg.CONFIG + 4)).toBe(0);
  });
});

describe("inflate and deflate", () => {
  test("pages go in runs, and are reported to the write hook", () => {
    driver.reported.length = 0;
    expect(driver.request(INFLATE, [words([140, 130, 131, 129, 131])])).toBe(0);
    expect(zeroPages()).toEqual([129, 130, 131, 140]);
    expect(discards).toBe(2);
    expect(driver.reported).toContainEqual({ gpa: 129 * PAGE_BYTES, length: 3 * PAGE_BYTES });
    expect(device.metrics).toMatchObject({ inflateCount: 1, eventFails: 0 });
  });

  test("a list may be split over buffers, inside a number too", () => {
    const { gpa } = words([150, 151, 153]);
    const parts: [at: number, length: number][] = [
      [0, 1],
      [1, 6],
      [7, 5],
    ];
    const buffers = parts.map(([at, length]) => ({ gpa: gpa + at, length, write: false }));
    expect(driver.request(INFLATE, buffers)).toBe(0);
    expect(zeroPages()).toEqual([150, 151, 153]);
  });

  test("numbers outside RAM cost nothing but themselves", () => {
    const hostile = [
      0xffff_ffff,
      0xffff_fffe,
      RAM_PAGES,
      RAM_PAGES + 1,
      0xc_0000,
      0x10_0000,
      RAM_PAGES - 1,
      200,
    ];
    expect(driver.request(INFLATE, [words(hostile)])).toBe(0);
    expect(zeroPages()).toEqual([200, RAM_PAGES - 1]);
    expect(device.metrics.eventFails).toBe(4);
    expect(logs[0]).toBe("balloon: 8192 of 12288 bytes at 0xff000 are no pages of RAM");
    expect(driver.guardsIntact()).toBe(true);
    expect(driver.needsReset).toBe(false);
  });

  test("no numbers, half a number, too many, or nothing to read", () => {
    const many = driver.alloc(257 * 4);
    expect(driver.request(INFLATE, [words([])])).toBe(0);
    expect(driver.request(INFLATE, [driver.readable(new Uint8Array(6))])).toBe(0);
    expect(driver.request(INFLATE, [{ gpa: many, length: 257 * 4, write: false }])).toBe(0);
    expect(driver.request(INFLATE, [driver.writable(8)])).toBe(0);
    expect([discards, device.metrics.eventFails]).toEqual([0, 2]);
    expect(driver.request(INFLATE, [{ gpa: many, length: 256 * 4, write: false }])).toBe(0);
    expect(discards).toBe(1);
  });

  test("a host that cannot take the pages costs the request, not the device", () => {
    fail = true;
    expect(driver.request(INFLATE, [words([140])])).toBe(0);
    expect(device.metrics.eventFails).toBe(1);
    expect(logs).toEqual(["balloon: memory not released: ENOMEM"]);
    fail = false;
    expect(driver.request(INFLATE, [words([140])])).toBe(0);
    expect(zeroPages()).toEqual([140]);
  });

  test("deflate only acknowledges", () => {
    expect(driver.request(DEFLATE, [words([140, 0xffff_ffff])])).toBe(0);
    expect([discards, zeroPages(), device.metrics.deflateCount]).toEqual([0, [], 1]);
  });
});

describe("statistics", () => {
  const STATISTICS = 2;

  function send(values: readonly (readonly [tag: number, value: bigint])[], extra = 0): void {
    const bytes = new Uint8Array(10 * values.length + extra);
    const view = new DataView(bytes.buffer);
    for (const [i, [tag, value]] of values.entries()) {
      view.setUint16(10 * i, tag, true);
      view.setBigUint64(10 * i + 2, value, true);
    }
    driver.queues[STATISTICS]!.add([driver.readable(bytes)]);
    driver.queues[STATISTICS]!.notify();
  }
  const used = () => driver.queues[STATISTICS]!.takeUsed().length;

  beforeEach(() => start({ statsPollingIntervalS: 2 }));

  test("the device keeps the buffer, and gives it back to ask for new ones", () => {
    send([
      [4, 1000n],
      [5, 1n << 40n],
    ]);
    expect(device.state.statistics).toEqual({ free_memory: 1000, total_memory: 2 ** 40 });
    timers.advance(1999);
    expect(used()).toBe(0);
    const interrupts = driver.interrupts;
    timers.advance(1);
    expect([used(), driver.interrupts - interrupts]).toEqual([1, 1]);
    // A driver that does not answer is not asked twice.
    timers.advance(10_000);
    expect(used()).toBe(0);
    send([[4, 900n]]);
    expect(device.state.statistics).toEqual({ free_memory: 900, total_memory: 2 ** 40 });
    timers.advance(2000);
    expect(used()).toBe(1);
    expect(device.metrics).toMatchObject({ statsUpdates: 2, statsFails: 0 });
  });

  test("a buffer that was there before DRIVER_OK counts, as Linux has it", () => {
    driver.reset();
    driver.negotiate();
    for (let queue = 0; queue < 3; queue++) driver.setUpQueue(queue);
    send([[5, 77n]]);
    expect(device.state.statistics).toEqual({});
    driver.addStatus(reg.STATUS_DRIVER_OK);
    expect(device.state.statistics).toEqual({ total_memory: 77 });
    timers.advance(2000);
    expect(used()).toBe(1);
  });

  test("another interval holds at once", () => {
    send([]);
    device.setStatsInterval(60);
    expect(used()).toBe(1);
    send([]);
    timers.advance(59_999);
    expect(used()).toBe(0);
    timers.advance(1);
    expect(used()).toBe(1);
  });

  test("unknown kinds, cut off ones, long lists and more than one buffer", () => {
    send(
      [
        [16, 5n],
        [0xffff, 5n],
        [0, (1n << 64n) - 1n],
      ],
      9,
    );
    expect(device.state.statistics).toEqual({ swap_in: 2 ** 64 });
    expect(device.metrics.statsFails).toBe(3);
    send(Array.from({ length: 200 }, (_, i) => [1, BigInt(i)] as const));
    expect(used()).toBe(1);
    expect(device.state.statistics).toEqual({ swap_in: 2 ** 64, swap_out: 63 });
  });

  test("nothing is asked for after a reset, nor of a driver without the feature", () => {
    send([]);
    driver.reset();
    expect(() => timers.advance(10_000)).not.toThrow();
    start({ statsPollingIntervalS: 2, freePageReporting: true }, ~VIRTIO_BALLOON_F_STATS_VQ);
    expect(() => timers.advance(10_000)).not.toThrow();
    device.setStatsInterval(1);
    // Without statistics the next queue is that of the reports.
    expect(driver.request(2, [pages(140, 2)])).toBe(0);
    expect(zeroPages()).toEqual([140, 141]);
  });
});

describe("free page reporting", () => {
  const REPORTING = 2;
  beforeEach(() => start({ freePageReporting: true }));

  test("ranges go, whole pages of them", () => {
    const ragged = { gpa: 150 * PAGE_BYTES + 1, length: 3 * PAGE_BYTES, write: true };
    expect(driver.request(REPORTING, [pages(140, 4), pages(160, 1), ragged])).toBe(0);
    expect(zeroPages()).toEqual([140, 141, 142, 143, 151, 152, 160]);
    expect(device.metrics).toMatchObject({ reportCount: 3, reportFreed: 7 * PAGE_BYTES, reportFails: 1 });
  });

  test("what the driver gives to read is left alone", () => {
    expect(driver.request(REPORTING, [{ ...pages(140, 1), write: false }])).toBe(0);
    expect(device.metrics.reportCount).toBe(0);
  });
});

describe("free page hinting", () => {
  const HINTING = 2;
  const command = () => driver.read(reg.CONFIG + 8);
  const say = (id: number) => driver.request(HINTING, [words([id])]);
  beforeEach(() => start({ freePageHinting: true }));

  test("pages of the run that was asked for go, until the driver is through", () => {
    expect(device.startHinting(true)).toBe(true);
    expect([command(), driver.read(reg.INTERRUPT_STATUS)]).toEqual([2, reg.INT_CONFIG]);
    expect(device.state).toMatchObject({ hostCmd: 2, guestCmd: undefined });
    // Before the driver has said which run it is.
    driver.request(HINTING, [pages(140, 1)]);
    expect(say(2)).toBe(0);
    driver.request(HINTING, [pages(141, 2)]);
    driver.request(HINTING, [pages(150, 1)]);
    expect(device.state).toMatchObject({ hostCmd: 2, guestCmd: 2 });
    expect(say(0)).toBe(0);
    expect(command()).toBe(1);
    expect(device.state).toMatchObject({ hostCmd: 1, guestCmd: 0 });
    driver.request(HINTING, [pages(160, 1)]);
    expect(zeroPages()).toEqual([141, 142, 150]);
    expect(device.metrics).toMatchObject({ hintCount: 2, hintFreed: 3 * PAGE_BYTES, hintFails: 0 });
  });

  test("without acknowledgement the run stays open until it is stopped", () => {
    device.startHinting(false);
    say(2);
    say(0);
    expect(command()).toBe(2);
    expect(device.stopHinting()).toBe(true);
    expect(command()).toBe(1);
  });

  test("pages of an older run, or after a stop, stay", () => {
    device.startHinting(true);
    say(2);
    device.startHinting(true);
    expect(command()).toBe(3);
    driver.request(HINTING, [pages(140, 1)]);
    device.stopHinting();
    say(3);
    driver.request(HINTING, [pages(141, 1)]);
    expect(zeroPages()).toEqual([]);
    expect(device.metrics.hintCount).toBe(0);
  });

  test("commands of another length are none, and a reset begins anew", () => {
    device.startHinting(true);
    driver.request(HINTING, [driver.readable(new Uint8Array(5))]);
    driver.request(HINTING, [words([2, 2])]);
    expect(device.state.guestCmd).toBeUndefined();
    driver.start();
    expect([command(), device.state.hostCmd]).toEqual([0, 0]);
    device.startHinting(true);
    expect(command()).toBe(3);
  });
});

test(`survives ${FUZZ_COUNT} mutations`, () => {
  fail = false;
  const result = fuzzDevice({
    seed: 5,
    device: () =>
      make({
        amountMib: 1,
        deflateOnOom: true,
        statsPollingIntervalS: 1,
        freePageHinting: true,
        freePageReporting: true,
      }),
    request(random: Random, d, queue) {
      const words = (count: number, limit: number) =>
        d.readable(new Uint8Array(Uint32Array.from({ length: count }, () => random.below(limit)).buffer));
      if (queue === INFLATE || queue === DEFLATE) {
        // Mostly free pages: those with the rings end the round quickly.
        const pfns = Array.from({ length: random.below(20) }, () =>
          random.chance(20) ? random.pick([0, 31, 32, 0xc0000, 0xffffffff]) : 20 + random.below(12),
        );
        return [d.readable(new Uint8Array(Uint32Array.from(pfns).buffer)), d.writable(1)];
      }
      if (queue === 2) return [words(random.below(30), 20)];
      const range = { gpa: PAGE_BYTES * (20 + random.below(12)), length: PAGE_BYTES, write: true };
      return random.chance(3) ? [words(1, 4)] : [range, d.writable(1 + random.below(100))];
    },
    host(random, fuzzed) {
      const balloon = fuzzed as BalloonDevice;
      timers.advance(random.below(2000));
      fail = random.chance(8);
      random.pick([
        () => balloon.setAmount(random.below(2 ** 24)),
        () => balloon.setStatsInterval(1 + random.below(3)),
        () => balloon.startHinting(random.chance(2)),
        () => balloon.stopHinting(),
      ])();
    },
  });
  expect(result.mutations).toBe(FUZZ_COUNT);
  expect(result.completed).toBeGreaterThan(FUZZ_COUNT / 10);
  expect(result.needsReset).toBeGreaterThan(FUZZ_COUNT / 100);
}, 600_000);
