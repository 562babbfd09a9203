/** A block device over a disk whose transfers end later and in another order. */

import { beforeEach, describe, expect, test } from "bun:test";
import { ManualTimers } from "../../../ratelimit/testing/manual-timers.ts";
import { type BufferSpec, TestDriver } from "../testing/driver.ts";
import { FUZZ_COUNT, fuzzDevice, Random } from "../testing/fuzz.ts";
import { BlockDevice } from "./block.ts";
import type { AsyncDisk, TransferEnd } from "./disk.ts";
import type { BlockOptions } from "./options.ts";

const [IN, OUT, FLUSH, GET_ID] = [0, 1, 4, 8];
const [OK, IOERR] = [0, 1];
const SECTORS = 64;

interface Pending {
  readonly kind: "read" | "write" | "sync";
  readonly run: () => void;
}

/** Moves the bytes of a transfer when it is told to end it. */
class LateDisk implements AsyncDisk {
  readonly size = SECTORS * 512;
  readonly content = Uint8Array.from({ length: this.size }, (_, i) => (i * 7 + (i >> 9)) & 0xff);
  /** Begun and not submitted; submitted and not ended. */
  begun: Pending[] = [];
  flying: Pending[] = [];
  capacity = 1000;
  fail = false;
  /** Ends everything when it is submitted, as a page cache does. */
  inline = false;
  drains = 0;
  private onEnds = () => {};

  get room(): number {
    return this.capacity - this.begun.length - this.flying.length;
  }
  private begin(kind: Pending["kind"], end: TransferEnd, move: () => number): void {
    if (this.room <= 0) throw new Error("no room");
    const run = () => (this.fail ? end(0, new Error("EIO: i/o error")) : end(move()));
    this.begun.push({ kind, run });
  }
  read(offset: number, into: readonly Uint8Array[], end: TransferEnd): void {
    this.begin("read", end, () => {
      let at = offset;
      for (const buffer of into) {
        buffer.set(this.content.subarray(at, at + buffer.length));
        at += buffer.length;
      }
      return at - offset;
    });
  }
  write(offset: number, from: readonly Uint8Array[], end: TransferEnd): void {
    this.begin("write", end, () => {
      const bytes = Buffer.concat(from);
      this.content.set(bytes, offset);
      return bytes.length;
    });
  }
  sync(end: TransferEnd): void {
    this.begin("sync", end, () => 0);
  }
  discard(): void {}
  writeZeros(offset: number, length: number): void {
    this.content.fill(0, offset, offset + length);
  }
  submit(): number {
    this.flying.push(...this.begun.splice(0));
    return this.inline ? this.endAll() : 0;
  }
  drain(): void {
    this.drains++;
    this.flying.push(...this.begun.splice(0));
    this.endAll();
  }
  watch(onEnds: () => void): void {
    this.onEnds = onEnds;
  }
  private endAll(): number {
    const ending = this.flying.splice(0);
    for (const { run } of ending) run();
    return ending.length;
  }
  /** Ends those of `indices`, in that order, as the event loop would tell it. */
  land(...indices: number[]): void {
    const landing = indices.map((i) => this.flying[i]!);
    this.flying = this.flying.filter((pending) => !landing.includes(pending));
    for (const { run } of landing) run();
    this.onEnds();
  }
}

let disk: LateDisk;
let block: BlockDevice;
let driver: TestDriver;
let timers: ManualTimers;
let logs: string[];

function start(options: Partial<BlockOptions> = {}): void {
  logs = [];
  timers = new ManualTimers();
  block = new BlockDevice({
    driveId: "late",
    disk,
    id: new Uint8Array(20),
    readOnly: false,
    cacheType: "Writeback",
    segMax: 16,
    timers,
    ...options,
  });
  driver = TestDriver.start(block, { events: { log: (line) => logs.push(line) } });
}
beforeEach(() => {
  disk = new LateDisk();
  start();
});

function header(type: number, sector: number): Uint8Array {
  const bytes = new Uint8Array(16);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, type, true);
  view.setBigUint64(8, BigInt(sector), true);
  return bytes;
}

interface Asked {
  readonly head: number;
  readonly status: () => number;
  readonly data: Uint8Array;
}

/** Asks for something without waiting for it. */
function ask(type: number, sector: number, data: BufferSpec[] = []): Asked {
  const status = driver.writable(1);
  driver.ram(status.gpa, 1)[0] = 0xff;
  const queue = driver.queues[0]!;
  const head = queue.add([driver.readable(header(type, sector)), ...data, status]);
  queue.kick();
  const [first] = data;
  return {
    head,
    status: () => driver.ram(status.gpa, 1)[0]!,
    data: first === undefined ? new Uint8Array(0) : driver.ram(first.gpa, first.length),
  };
}
const used = () => driver.queues[0]!.takeUsed();

describe("requests in flight", () => {
  test("complete in the order in which the disk ends them, with one interrupt for a batch", () => {
    const reads = [0, 1, 2, 3].map((sector) => ask(IN, sector, [driver.writable(512)]));
    expect(disk.flying.length).toBe(4);
    expect(used()).toEqual([]);
    const before = driver.interrupts;
    driver.reported.length = 0;
    disk.land(2, 0);
    expect(driver.interrupts).toBe(before + 1);
    expect(used()).toEqual([2, 0].map((i) => ({ id: reads[i]!.head, length: 513 })));
    expect(reads.map(({ status }) => status())).toEqual([OK, 0xff, OK, 0xff]);
    for (const sector of [2, 0]) {
      expect(reads[sector]!.data).toEqual(disk.content.subarray(512 * sector, 512 * sector + 512));
    }
    // What has come into guest memory is told once it is there.
    expect(driver.reported.filter(({ length }) => length === 512).length).toBe(2);
    disk.land(1, 0);
    expect(used().map(({ id }) => id)).toEqual([reads[3]!.head, reads[1]!.head]);
    expect(block.metrics).toMatchObject({ readCount: 4, readBytes: 2048 });
  });

  test("what ends while it is submitted completes at once", () => {
    disk.inline = true;
    const write = ask(OUT, 5, [driver.readable(new Uint8Array(1024).fill(9))]);
    expect(used()).toEqual([{ id: write.head, length: 1 }]);
    expect(disk.content.subarray(5 * 512, 7 * 512).every((byte) => byte === 9)).toBe(true);
    const id = ask(GET_ID, 0, [driver.writable(20)]);
    expect(used()).toEqual([{ id: id.head, length: 21 }]);
  });

  test("errors, and what the disk never hears of", () => {
    const read = ask(IN, 0, [driver.writable(512)]);
    const flush = ask(FLUSH, 0);
    disk.fail = true;
    disk.land(1, 0);
    expect(used().map(({ id }) => id)).toEqual([flush.head, read.head]);
    expect([read.status(), flush.status()]).toEqual([IOERR, IOERR]);
    expect(block.metrics).toMatchObject({ executeFails: 2, flushCount: 0, readCount: 0 });
    expect(logs).toEqual([
      "block late: flush failed: EIO: i/o error",
      "block late: read failed: EIO: i/o error",
    ]);
    disk.fail = false;
    const outside = ask(IN, SECTORS, [driver.writable(512)]);
    expect(used()).toEqual([{ id: outside.head, length: 0 }]);
    expect(outside.status()).toBe(IOERR);
    expect(disk.begun.length + disk.flying.length).toBe(0);
  });

  test("a flush begins after the writes that the driver knows are done, and waits for its own end", () => {
    const first = ask(OUT, 0, [driver.readable(new Uint8Array(512))]);
    disk.land(0);
    expect(used().map(({ id }) => id)).toEqual([first.head]);
    ask(OUT, 1, [driver.readable(new Uint8Array(512))]);
    const flush = ask(FLUSH, 0);
    expect(disk.flying.map(({ kind }) => kind)).toEqual(["write", "sync"]);
    expect(used()).toEqual([]);
    disk.land(1);
    expect(used().map(({ id }) => id)).toEqual([flush.head]);
    expect(block.metrics.flushCount).toBe(1);
  });

  test("wait when the disk has no room, and go on when it has", () => {
    disk.capacity = 2;
    const reads = [0, 1, 2, 3, 4].map((sector) => ask(IN, sector, [driver.writable(512)]));
    expect(disk.flying.length).toBe(2);
    expect(block.metrics.engineThrottled).toBeGreaterThan(0);
    disk.land(0);
    expect(disk.flying.length).toBe(2);
    while (disk.flying.length > 0) disk.land(0);
    expect(used().map(({ id }) => id)).toEqual(reads.map(({ head }) => head));
  });

  test("a full disk that ends everything when it is submitted goes on with the next turn", () => {
    disk.capacity = 2;
    disk.inline = true;
    const queue = driver.queues[0]!;
    const heads = [0, 1, 2, 3, 4].map((sector) =>
      queue.add([driver.readable(header(IN, sector)), driver.writable(512), driver.writable(1)]),
    );
    queue.kick();
    expect(used().length).toBe(2);
    timers.advance(0);
    timers.advance(0);
    expect(used().map(({ id }) => id)).toEqual(heads.slice(2));
  });

  test("wait for the rate limiter too", () => {
    start({ rateLimiter: { ops: { size: 1, refill_time: 100 } } });
    ask(IN, 0, [driver.writable(512)]);
    ask(IN, 1, [driver.writable(512)]);
    expect(disk.flying.length).toBe(1);
    timers.advance(100);
    expect(disk.flying.length).toBe(2);
  });
});

describe("nothing is in flight", () => {
  test("when a reset is acknowledged, and nothing is written to the guest after it", () => {
    const read = ask(IN, 1, [driver.writable(512)]);
    expect(disk.flying.length).toBe(1);
    driver.reset();
    expect(disk.flying.length).toBe(0);
    expect(read.status()).toBe(0xff);
    driver.start();
    const again = ask(IN, 2, [driver.writable(512)]);
    disk.land(0);
    expect(used().map(({ id }) => id)).toEqual([again.head]);
  });

  test("when the disk has been replaced, and what the driver asked for is answered", () => {
    const write = ask(OUT, 3, [driver.readable(new Uint8Array(512).fill(1))]);
    const other = new LateDisk();
    block.updateDisk(other, new Uint8Array(20));
    expect(used()).toEqual([{ id: write.head, length: 1 }]);
    expect(disk.content[3 * 512]).toBe(1);
    ask(IN, 0, [driver.writable(512)]);
    expect([disk.flying.length, other.flying.length]).toEqual([0, 1]);
  });

  test("when it was drained, also of what was not begun before", () => {
    disk.capacity = 2;
    const reads = [0, 1, 2, 3, 4].map((sector) => ask(IN, sector, [driver.writable(512)]));
    block.drain();
    expect(disk.flying.length).toBe(0);
    expect(used().map(({ id }) => id)).toEqual(reads.map(({ head }) => head));
    expect(reads.map(({ status }) => status())).toEqual([OK, OK, OK, OK, OK]);
  });

  test("after the driver has broken the queue and reset; what had come is told", () => {
    ask(IN, 0, [driver.writable(512)]);
    driver.queues[0]!.setAvailIdx(9999);
    driver.queues[0]!.notify();
    expect(driver.needsReset).toBe(true);
    driver.reported.length = 0;
    disk.land(0);
    expect(driver.reported.some(({ length }) => length === 512)).toBe(true);
    driver.start();
    expect(driver.needsReset).toBe(false);
  });

  test("more chains than descriptors cost a reset", () => {
    const { head } = ask(IN, 0, [driver.writable(512)]);
    const queue = driver.queues[0]!;
    for (let i = 0; i < queue.size; i++) {
      queue.publish(head);
      queue.notify();
    }
    expect(driver.needsReset).toBe(true);
  });
});

test(`survives ${FUZZ_COUNT} mutations`, () => {
  const late = new LateDisk();
  late.capacity = 7;
  const order = new Random(5);
  const hostTimers = new ManualTimers();
  const result = fuzzDevice({
    seed: 11,
    device: () =>
      new BlockDevice({
        driveId: "fuzz",
        disk: late,
        id: new Uint8Array(20),
        readOnly: false,
        timers: hostTimers,
        cacheType: "Writeback",
        segMax: 16,
      }),
    request: (random, d) => {
      const type = random.pick([IN, IN, IN, OUT, OUT, FLUSH, GET_ID, 11, 14]);
      const sector = random.pick([0, 1, SECTORS - 1, SECTORS, 2 ** 52]);
      const data = Array.from({ length: random.below(4) }, () => {
        const length = 512 * (1 + random.below(2)) - (random.chance(8) ? 1 : 0);
        return type === OUT ? d.readable(new Uint8Array(length)) : d.writable(length);
      });
      return [d.readable(header(type, sector)), ...data, d.writable(1)];
    },
    host: (random, device) => {
      late.fail = random.chance(4);
      late.inline = random.chance(3);
      const what = random.below(16);
      if (what === 0) (device as BlockDevice).updateDisk(late, new Uint8Array(20));
      else if (what === 1) (device as BlockDevice).drain();
      const count = order.below(late.flying.length + 1);
      late.land(...Array.from({ length: count }, (_, i) => count - 1 - i));
      hostTimers.advance(0);
    },
  });
  expect(result.mutations).toBe(FUZZ_COUNT);
  expect(result.completed).toBeGreaterThan(FUZZ_COUNT / 10);
  expect(result.needsReset).toBeGreaterThan(FUZZ_COUNT / 100);
}, 600_000);
