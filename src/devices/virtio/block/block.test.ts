import { beforeEach, describe, expect, test } from "bun:test";
import { ManualTimers } from "../../../ratelimit/testing/manual-timers.ts";
import * as reg from "../mmio/registers.ts";
import { type BufferSpec, TestDriver } from "../testing/driver.ts";
import { FUZZ_COUNT, fuzzDevice, type Random } from "../testing/fuzz.ts";
import {
  BlockDevice,
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_F_RO,
  VIRTIO_BLK_F_SEG_MAX,
  VIRTIO_BLK_F_WRITE_ZEROES,
} from "./block.ts";
import type { DiskFile } from "./disk.ts";
import type { BlockOptions } from "./options.ts";

const [IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES] = [0, 1, 4, 8, 11, 13];
const [OK, IOERR, UNSUPP] = [0, 1, 2];
const SECTORS = 64;

function total(buffers: readonly Uint8Array[]): number {
  return buffers.reduce((sum, { length }) => sum + length, 0);
}

/** A disk in memory that counts, and fails or is short when told to. */
class MemoryDisk implements DiskFile {
  readonly content: Uint8Array;
  syncs = 0;
  readonly discards: [offset: number, length: number][] = [];
  readonly zeros: [offset: number, length: number, unmap: boolean][] = [];
  fail = false;
  /** Most bytes that one call moves. */
  limit = Number.POSITIVE_INFINITY;

  constructor(readonly size = SECTORS * 512) {
    this.content = Uint8Array.from({ length: size }, (_, i) => (i * 7 + (i >> 9)) & 0xff);
  }
  private check(offset: number, length: number): number {
    if (this.fail) throw new Error("EIO: i/o error");
    if (offset < 0 || offset + length > this.size) throw new Error(`beyond the disk: ${offset}, ${length}`);
    return Math.min(length, this.limit);
  }
  readAt(offset: number, into: readonly Uint8Array[]): number {
    let left = this.check(offset, total(into));
    let done = 0;
    for (const buffer of into) {
      const count = Math.min(left, buffer.length);
      buffer.set(this.content.subarray(offset + done, offset + done + count));
      done += count;
      left -= count;
    }
    return done;
  }
  writeAt(offset: number, from: readonly Uint8Array[]): number {
    const count = this.check(offset, total(from));
    this.content.set(Buffer.concat(from).subarray(0, count), offset);
    return count;
  }
  discard(offset: number, length: number): void {
    this.check(offset, length);
    this.discards.push([offset, length]);
  }
  writeZeros(offset: number, length: number, unmap: boolean): void {
    this.check(offset, length);
    this.content.fill(0, offset, offset + length);
    this.zeros.push([offset, length, unmap]);
  }
  sync(): void {
    if (this.fail) throw new Error("EIO: i/o error");
    this.syncs++;
  }
}

let disk: MemoryDisk;
let block: BlockDevice;
let driver: TestDriver;
let logs: string[];
let timers: ManualTimers;

function start(options: Partial<BlockOptions> = {}): void {
  logs = [];
  timers = new ManualTimers();
  block = new BlockDevice({
    driveId: "rootfs",
    disk,
    id: new TextEncoder().encode("2049012345"),
    readOnly: false,
    cacheType: "Writeback",
    timers,
    ...options,
  });
  driver = TestDriver.start(block, { events: { log: (line) => logs.push(line) } });
}
beforeEach(() => {
  disk = new MemoryDisk();
  start();
});

function header(type: number, sector: number | bigint): Uint8Array {
  const bytes = new Uint8Array(16);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, type, true);
  view.setBigUint64(8, BigInt(sector), true);
  return bytes;
}

/** Does a request and returns its status byte and used length. */
function request(
  type: number,
  sector: number | bigint,
  data: BufferSpec[],
): { status: number; used: number } {
  const status = driver.writable(1);
  driver.ram(status.gpa, 1)[0] = 0xff;
  const used = driver.request(0, [driver.readable(header(type, sector)), ...data, status]);
  expect(driver.needsReset).toBe(false);
  return { status: driver.ram(status.gpa, 1)[0]!, used: used! };
}

function ramOf(buffers: BufferSpec[]): Uint8Array {
  return Buffer.concat(buffers.map(({ gpa, length }) => driver.ram(gpa, length)));
}

describe("what the driver sees", () => {
  test("features follow the drive's configuration", () => {
    const writable = VIRTIO_BLK_F_DISCARD | VIRTIO_BLK_F_WRITE_ZEROES;
    expect(block.features).toBe((1n << 32n) | (1n << 29n) | VIRTIO_BLK_F_FLUSH | writable);
    start({ cacheType: "Unsafe", readOnly: true });
    expect(block.features).toBe((1n << 32n) | (1n << 29n) | VIRTIO_BLK_F_RO);
    expect(driver.read(reg.DEVICE_ID)).toBe(2);
  });

  test("capacity in sectors; a partial one at the end is left out, with a line in the log", () => {
    expect(driver.read(reg.CONFIG)).toBe(SECTORS);
    expect(logs).toEqual([]);
    disk = new MemoryDisk(512 * 3 + 100);
    start();
    expect(driver.read(reg.CONFIG)).toBe(3);
    expect(logs).toEqual([
      "block rootfs: Disk size 1636 is not a multiple of sector size 512; the remainder will not be visible to the guest.",
    ]);
    expect(request(IN, 3, [driver.writable(512)]).status).toBe(IOERR);
  });

  test("more than one buffer per request only if asked for", () => {
    expect(driver.front.read(reg.CONFIG + 12, 4)).toBe(0);
    start({ segMax: 128 });
    expect(block.features & VIRTIO_BLK_F_SEG_MAX).toBe(VIRTIO_BLK_F_SEG_MAX);
    expect(driver.front.read(reg.CONFIG + 12, 4)).toBe(128);
    expect(() => start({ segMax: 255 })).toThrow("segMax 255");
  });
});

describe("reads and writes", () => {
  test("a read fills the guest's buffers", () => {
    const data = [driver.writable(512), driver.writable(1024)];
    expect(request(IN, 5, data)).toEqual({ status: OK, used: 1537 });
    expect([...ramOf(data)]).toEqual([...disk.content.subarray(5 * 512, 8 * 512)]);
    expect(block.metrics).toMatchObject({ readBytes: 1536, readCount: 1, invalidRequests: 0 });
  });

  test("a write takes them", () => {
    const bytes = Uint8Array.from({ length: 1024 }, (_, i) => i & 0xff);
    const data = [driver.readable(bytes.subarray(0, 300)), driver.readable(bytes.subarray(300))];
    expect(request(OUT, SECTORS - 2, data)).toEqual({ status: OK, used: 1 });
    expect([...disk.content.subarray(-1024)]).toEqual([...bytes]);
    expect(block.metrics).toMatchObject({ writeBytes: 1024, writeCount: 1 });
  });

  test("header and data may share a buffer, and so may data and status", () => {
    const out = new Uint8Array(16 + 512).fill(0x5a);
    out.set(header(OUT, 1));
    const split = driver.readable(out);
    const status = driver.writable(1);
    driver.request(0, [{ ...split, length: 10 }, { ...split, gpa: split.gpa + 10, length: 518 }, status]);
    expect(driver.ram(status.gpa, 1)[0]).toBe(OK);
    expect(disk.content.subarray(512, 1024).every((byte) => byte === 0x5a)).toBe(true);

    const into = driver.writable(513);
    driver.ram(into.gpa, 513).fill(0xff);
    expect(driver.request(0, [driver.readable(header(IN, 1)), into])).toBe(513);
    expect([...driver.ram(into.gpa, 513)]).toEqual([...new Uint8Array(512).fill(0x5a), OK]);
  });

  test("the disk's bounds hold", () => {
    const big = 2n ** 64n - 1n;
    for (const [sector, length] of [
      [SECTORS, 512],
      [SECTORS - 1, 1024],
      [big, 512],
      [2n ** 55n, 512],
      [0, 511],
      [0, 513],
    ] as const) {
      expect(request(IN, sector, [driver.writable(length)])).toEqual({ status: IOERR, used: 0 });
      expect(request(OUT, sector, [driver.readable(new Uint8Array(length))])).toEqual({
        status: IOERR,
        used: 1,
      });
    }
    expect(block.metrics).toMatchObject({ invalidRequests: 12, readBytes: 0, writeBytes: 0 });
  });

  test("a read-only drive refuses writes even from a driver that does not care", () => {
    start({ readOnly: true });
    expect(request(OUT, 0, [driver.readable(new Uint8Array(512).fill(1))]).status).toBe(IOERR);
    expect(disk.content[0]).toBe(0);
    expect(request(IN, 0, [driver.writable(512)]).status).toBe(OK);
  });

  test("I/O errors and short transfers fail the request and no more", () => {
    disk.fail = true;
    expect(request(IN, 0, [driver.writable(512)]).status).toBe(IOERR);
    expect(request(OUT, 0, [driver.readable(new Uint8Array(512))]).status).toBe(IOERR);
    disk.fail = false;
    disk.limit = 100;
    expect(request(IN, 0, [driver.writable(512)])).toEqual({ status: IOERR, used: 100 });
    expect(request(OUT, 0, [driver.readable(new Uint8Array(512))]).status).toBe(IOERR);
    disk.limit = 512;
    expect(request(IN, 0, [driver.writable(512)]).status).toBe(OK);
    expect(block.metrics).toMatchObject({ executeFails: 4, readCount: 1, writeCount: 0 });
    expect(logs[0]).toBe("block rootfs: read failed: EIO: i/o error");
  });
});

describe("flush", () => {
  test("reaches the disk before it is reported, if the cache is Writeback", () => {
    expect(request(FLUSH, 0, [])).toEqual({ status: OK, used: 1 });
    expect(disk.syncs).toBe(1);
    disk.fail = true;
    expect(request(FLUSH, 0, []).status).toBe(IOERR);
    expect(block.metrics.flushCount).toBe(1);
  });

  test("does nothing if it is Unsafe", () => {
    start({ cacheType: "Unsafe" });
    expect(request(FLUSH, 0, []).status).toBe(OK);
    expect(disk.syncs).toBe(0);
  });
});

describe("discard and write-zeroes", () => {
  type Segment = readonly [sector: number | bigint, count: number, flags?: number];

  function segments(list: readonly Segment[], extra = 0): BufferSpec {
    const bytes = new Uint8Array(16 * list.length + extra);
    const view = new DataView(bytes.buffer);
    for (const [i, [sector, count, flags = 0]] of list.entries()) {
      view.setBigUint64(16 * i, BigInt(sector), true);
      view.setUint32(16 * i + 8, count, true);
      view.setUint32(16 * i + 12, flags, true);
    }
    return driver.readable(bytes);
  }
  const ask = (type: number, ...list: Segment[]) => request(type, 0, [segments(list)]).status;

  test("what the driver is told of their limits, on drives that can be written", () => {
    const fields = [36, 40, 44, 48, 52, 56].map((at) => driver.read(reg.CONFIG + at));
    expect(fields).toEqual([2 ** 22, 32, 8, 2 ** 16, 1, 1]);
    start({ readOnly: true });
    expect(driver.read(reg.CONFIG + 36)).toBe(0);
  });

  test("ranges are given back and made zero", () => {
    expect(ask(DISCARD, [1, 2], [8, 56], [0, 0])).toBe(OK);
    expect(disk.discards).toEqual([
      [512, 1024],
      [8 * 512, 56 * 512],
    ]);
    expect(ask(WRITE_ZEROES, [3, 1])).toBe(OK);
    expect(ask(WRITE_ZEROES, [SECTORS - 1, 1, 1])).toBe(OK);
    expect(disk.zeros).toEqual([
      [3 * 512, 512, false],
      [(SECTORS - 1) * 512, 512, true],
    ]);
    expect(disk.content.subarray(3 * 512, 4 * 512).every((byte) => byte === 0)).toBe(true);
  });

  test("nothing of a request is done if any of it is wrong", () => {
    const past = [
      [SECTORS, 1],
      [SECTORS - 1, 2],
      [0, SECTORS + 1],
      [2n ** 64n - 1n, 1],
      [2n ** 64n - 1n, 2 ** 32 - 1],
      [2n ** 55n, 8],
      [0, 2 ** 32 - 1],
    ] as const;
    for (const segment of past) {
      expect(ask(DISCARD, [0, 1], segment)).toBe(IOERR);
      expect(ask(WRITE_ZEROES, segment)).toBe(IOERR);
    }
    for (const flags of [1, 2, 0x8000_0000]) expect(ask(DISCARD, [0, 1], [0, 1, flags])).toBe(UNSUPP);
    for (const flags of [2, 3, 0xffff_fffe]) expect(ask(WRITE_ZEROES, [0, 1, flags])).toBe(UNSUPP);
    expect(ask(DISCARD)).toBe(IOERR);
    expect(request(DISCARD, 0, [])).toEqual({ status: IOERR, used: 1 });
    for (const extra of [1, 15]) {
      expect(request(DISCARD, 0, [segments([[0, 1]], extra)]).status).toBe(IOERR);
    }
    expect(ask(DISCARD, ...Array.from({ length: 33 }, (): Segment => [0, 1]))).toBe(IOERR);
    expect(ask(WRITE_ZEROES, [0, 1], [1, 1])).toBe(IOERR);
    expect([disk.discards, disk.zeros]).toEqual([[], []]);
    expect(ask(DISCARD, ...Array.from({ length: 32 }, (): Segment => [0, 1]))).toBe(OK);
    expect(logs[0]).toBe(`block rootfs: discard of 1 sectors at ${SECTORS} of ${SECTORS}`);
  });

  test("a read-only drive refuses both, and a host's error is the guest's", () => {
    disk.fail = true;
    expect([ask(DISCARD, [0, 1]), ask(WRITE_ZEROES, [0, 1])]).toEqual([IOERR, IOERR]);
    expect(block.metrics.executeFails).toBe(2);
    disk.fail = false;
    start({ readOnly: true });
    expect([ask(DISCARD, [0, 1]), ask(WRITE_ZEROES, [0, 1])]).toEqual([IOERR, IOERR]);
    expect([disk.discards, disk.zeros]).toEqual([[], []]);
    expect(logs).toEqual([
      "block rootfs: discard on a read-only drive",
      "block rootfs: write of zeroes on a read-only drive",
    ]);
  });
});

test("the id is 20 bytes, padded with zeros", () => {
  const id = driver.writable(20);
  expect(request(GET_ID, 0, [id])).toEqual({ status: OK, used: 21 });
  expect(Buffer.from(driver.ram(id.gpa, 20)).toString()).toBe("2049012345".padEnd(20, "\0"));
  expect(request(GET_ID, 0, [driver.writable(19)]).status).toBe(IOERR);
  expect(request(GET_ID, 0, [driver.writable(32)])).toEqual({ status: OK, used: 20 });
});

test("what is not supported says so", () => {
  expect(request(14, 0, [driver.readable(new Uint8Array(16))])).toEqual({ status: UNSUPP, used: 1 });
  expect(logs).toEqual(["block rootfs: unsupported request type 14"]);
});

test("a chain without header or status is given back", () => {
  expect(driver.request(0, [driver.readable(header(IN, 0))])).toBe(0);
  const status = driver.writable(1);
  driver.ram(status.gpa, 1)[0] = 0xff;
  expect(driver.request(0, [driver.readable(new Uint8Array(15)), status])).toBe(1);
  expect(driver.ram(status.gpa, 1)[0]).toBe(IOERR);
  expect(block.metrics.invalidRequests).toBe(2);
});

test("a status byte apart from what was counted is reported to the write hook", () => {
  const data = driver.writable(512);
  const status = driver.writable(1);
  driver.reported.length = 0;
  driver.request(0, [driver.readable(header(IN, SECTORS)), data, status]);
  expect(driver.reported).toContainEqual({ gpa: status.gpa, length: 1 });
});

test("another disk shows its size to a driver that runs", () => {
  const bigger = new MemoryDisk(128 * 512);
  bigger.content.fill(0x77, 100 * 512);
  const generation = driver.read(reg.CONFIG_GENERATION);
  block.updateDisk(bigger, Uint8Array.of(0x42));
  expect(driver.read(reg.INTERRUPT_STATUS)).toBe(reg.INT_CONFIG);
  expect(driver.read(reg.CONFIG_GENERATION)).not.toBe(generation);
  expect(driver.read(reg.CONFIG)).toBe(128);
  const data = driver.writable(512);
  expect(request(IN, 100, [data]).status).toBe(OK);
  expect(driver.ram(data.gpa, 1)[0]).toBe(0x77);
  const id = driver.writable(20);
  request(GET_ID, 0, [id]);
  expect([...driver.ram(id.gpa, 2)]).toEqual([0x42, 0]);
});

test("the rate limiter counts the data of reads and writes, and requests without data as operations", () => {
  start({
    rateLimiter: { bandwidth: { size: 2048, refill_time: 1000 }, ops: { size: 100, refill_time: 1000 } },
  });
  const header = (type: number) => {
    const bytes = new Uint8Array(16);
    bytes[0] = type;
    return driver.readable(bytes);
  };
  const read = (length: number) =>
    driver.request(0, [header(IN), driver.writable(length), driver.writable(1)]);
  expect(read(1024)).toBe(1025);
  expect(driver.request(0, [header(OUT), driver.readable(new Uint8Array(1024)), driver.writable(1)])).toBe(1);
  expect(driver.request(0, [header(FLUSH), driver.writable(1)])).toBe(1);
  expect(read(512)).toBeUndefined();
  timers.advance(249);
  expect(block.metrics).toMatchObject({ readCount: 1, throttled: 1 });
  timers.advance(1);
  expect(block.metrics).toMatchObject({ readCount: 2, readBytes: 1536, writeBytes: 1024 });
  expect(read(512)).toBeUndefined();
  block.updateRateLimiter({ bandwidth: { size: 0, refill_time: 0 } });
  timers.advance(0);
  expect(block.metrics.readCount).toBe(3);
});

test(`survives ${FUZZ_COUNT} mutations`, () => {
  const hostileDisk = new MemoryDisk();
  const result = fuzzDevice({
    seed: 2,
    device: () =>
      new BlockDevice({
        driveId: "fuzz",
        disk: hostileDisk,
        id: new Uint8Array(20),
        readOnly: false,
        timers: new ManualTimers(),
        rateLimiter: { ops: { size: 1e9, refill_time: 1 } },
        cacheType: "Writeback",
        segMax: 16,
      }),
    request: (random: Random, d) => {
      const type = random.pick([IN, IN, OUT, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES, 14, 0xffffffff]);
      const sector = random.pick([0, 1, SECTORS - 1, SECTORS, 2n ** 64n - 1n, 2n ** 55n]);
      if (type === DISCARD || type === WRITE_ZEROES) {
        const segment = header(random.pick([0, 1]), 0);
        const view = new DataView(segment.buffer);
        view.setBigUint64(0, BigInt(sector), true);
        view.setUint32(8, random.pick([0, 1, 2, SECTORS, 2 ** 32 - 1]), true);
        view.setUint32(12, random.pick([0, 0, 1, 2]), true);
        return [d.readable(header(type, 0)), d.readable(segment), d.writable(1)];
      }
      const data = Array.from({ length: random.below(4) }, () => {
        const length = 512 * (1 + random.below(2)) - (random.chance(8) ? 1 : 0);
        return type === OUT ? d.readable(new Uint8Array(length)) : d.writable(length);
      });
      return [d.readable(header(type, sector)), ...data, d.writable(1)];
    },
    host: (random, device) => {
      hostileDisk.fail = random.chance(4);
      hostileDisk.limit = random.chance(4) ? 100 : Number.POSITIVE_INFINITY;
      if (random.chance(16))
        (device as BlockDevice).updateDisk(hostileDisk, new Uint8Array(random.below(40)));
    },
  });
  expect(result.mutations).toBe(FUZZ_COUNT);
  expect(result.completed).toBeGreaterThan(FUZZ_COUNT / 10);
  expect(result.needsReset).toBeGreaterThan(FUZZ_COUNT / 100);
}, 600_000);
