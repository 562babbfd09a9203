import { beforeEach, describe, expect, test } from "bun:test";
import { ManualTimers } from "../../../ratelimit/testing/manual-timers.ts";
import { VIRTIO_F_EVENT_IDX } from "../device.ts";
import * as reg from "../mmio/registers.ts";
import { type BufferSpec, TestDriver, type VcpuSide } from "../testing/driver.ts";
import { FUZZ_COUNT, fuzzDevice } from "../testing/fuzz.ts";
import { BlockDevice } from "./block.ts";
import type { DiskFile } from "./disk.ts";
import { DISK_SHARE_BYTES, DiskShare } from "./disk-share.ts";
import { VcpuReads } from "./vcpu-reads.ts";

const [IN, OUT] = [0, 1];
const OK = 0;
const SECTORS = 256;

/** A file of which some is in the page cache. */
class CachedFile implements DiskFile {
  readonly content = Uint8Array.from({ length: SECTORS * 512 }, (_, i) => (i * 7 + (i >> 9)) & 0xff);
  readonly size = this.content.length;
  reads = 0;
  readsNow = 0;
  /** False: a file system that does not know what is in the page cache. */
  tells = true;
  /** Bytes from the start that can be read without waiting. */
  cached = this.size;

  constructor(readonly fd: number) {}

  readAt(offset: number, into: readonly Uint8Array[]): number {
    this.reads++;
    return this.copy(offset, into, this.size);
  }

  readNow(offset: number, into: readonly Uint8Array[]): number | undefined {
    this.readsNow++;
    if (!this.tells) throw new Error("Operation not supported");
    return offset < this.cached ? this.copy(offset, into, this.cached) : undefined;
  }

  private copy(offset: number, into: readonly Uint8Array[], end: number): number {
    let at = offset;
    for (const buffer of into) {
      const part = this.content.subarray(at, Math.min(at + buffer.length, end));
      buffer.set(part);
      at += part.length;
    }
    return at - offset;
  }

  writeAt(offset: number, from: readonly Uint8Array[]): number {
    const bytes = Buffer.concat(from);
    this.content.set(bytes, offset);
    return bytes.length;
  }
  discard(): void {}
  writeZeros(): void {}
  sync(): void {}
}

let disks: CachedFile[];
let share: DiskShare;
let timers: ManualTimers;
let block: BlockDevice;
let driver: TestDriver;

/** Knows the disks by their descriptors, as the kernel does. */
const vcpu: VcpuSide = (memory, registers, interrupt) => {
  const reads = new VcpuReads({
    memory,
    registers,
    share,
    interrupt,
    readNow: (fd, into, offset) => disks.find((disk) => disk.fd === fd)?.readNow(offset, into),
  });
  return (queue) => queue === 0 && reads.serve();
};

function makeDevice(): BlockDevice {
  disks = [new CachedFile(3), new CachedFile(4)];
  disks[1]!.content.fill(0x77);
  share = new DiskShare(new SharedArrayBuffer(DISK_SHARE_BYTES), 0);
  timers = new ManualTimers();
  return new BlockDevice({
    driveId: "rootfs",
    disk: disks[0]!,
    id: new Uint8Array(20),
    readOnly: false,
    cacheType: "Writeback",
    segMax: 16,
    timers,
    share,
  });
}

function start(features = ~0n): void {
  block = makeDevice();
  driver = TestDriver.start(block, { features, vcpu, events: { slowGuest: true } });
}
beforeEach(() => start());

function header(type: number, sector: number): Uint8Array {
  const bytes = new Uint8Array(16);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, type, true);
  view.setBigUint64(8, BigInt(sector), true);
  return bytes;
}

/** Does a request and returns its status byte and used length. */
function request(type: number, sector: number, data: BufferSpec[]): { status: number; used: number } {
  const status = driver.writable(1);
  driver.ram(status.gpa, 1)[0] = 0xff;
  const used = driver.request(0, [driver.readable(header(type, sector)), ...data, status]);
  return { status: driver.ram(status.gpa, 1)[0]!, used: used! };
}

/** Reads a sector and returns its first byte. */
function first(sector: number): number {
  const data = driver.writable(512);
  expect(request(IN, sector, [data])).toEqual({ status: OK, used: 513 });
  return driver.ram(data.gpa, 1)[0]!;
}

const byte = (disk: number, sector: number) => disks[disk]!.content[sector * 512]!;

describe("a short read of what is in the page cache", () => {
  test("is done without the device's thread, which goes on from there", () => {
    const data = [driver.writable(512), driver.writable(1024)];
    expect(request(IN, 5, data)).toEqual({ status: OK, used: 1537 });
    const got = Buffer.concat(data.map(({ gpa, length }) => driver.ram(gpa, length)));
    expect(got.equals(Buffer.from(disks[0]!.content.subarray(5 * 512, 8 * 512)))).toBe(true);
    expect([disks[0]!.reads, driver.interrupts]).toEqual([0, 1]);
    expect(request(OUT, 5, [driver.readable(new Uint8Array(512).fill(9))]).status).toBe(OK);
    for (const sector of [5, 6, 7]) expect(first(sector)).toBe(byte(0, sector));
    expect(block.metrics).toMatchObject({ readCount: 4, readBytes: 6 * 512, writeCount: 1 });
    expect([disks[0]!.reads, driver.interrupts]).toEqual([0, 5]);
  });

  test("several at once are one interrupt, and memory is reported as written", () => {
    const queue = driver.queues[0]!;
    const buffers = Array.from({ length: 4 }, () => driver.writable(513));
    for (const [i, buffer] of buffers.entries()) queue.add([driver.readable(header(IN, i)), buffer]);
    driver.reported.length = 0;
    queue.kick();
    expect(queue.takeUsed().map(({ length }) => length)).toEqual([513, 513, 513, 513]);
    expect(driver.interrupts).toBe(1);
    for (const { gpa, length } of buffers) expect(driver.reported).toContainEqual({ gpa, length });
  });

  test("requests of other kinds are left in their order", () => {
    const queue = driver.queues[0]!;
    const into = [driver.writable(513), driver.writable(513)];
    queue.add([driver.readable(header(IN, 0)), into[0]!]);
    queue.add([
      driver.readable(header(OUT, 1)),
      driver.readable(new Uint8Array(512).fill(0x99)),
      driver.writable(1),
    ]);
    queue.add([driver.readable(header(IN, 1)), into[1]!]);
    queue.kick();
    expect(queue.takeUsed()).toHaveLength(3);
    expect(into.map(({ gpa }) => driver.ram(gpa, 1)[0]!)).toEqual([byte(0, 0), 0x99]);
    expect(disks[0]!.reads).toBe(1);
  });
});

describe("the device's thread does", () => {
  test("what would have to wait, in whole or in part", () => {
    disks[0]!.cached = 10 * 512 + 100;
    expect(first(9)).toBe(byte(0, 9));
    expect(disks[0]!.reads).toBe(0);
    for (const sector of [10, 11]) expect(first(sector)).toBe(byte(0, sector));
    expect(disks[0]!.reads).toBe(2);
  });

  test("long reads", () => {
    expect(request(IN, 0, [driver.writable(65_536)]).status).toBe(OK);
    expect(disks[0]!.reads).toBe(0);
    expect(request(IN, 0, [driver.writable(65_536 + 512)]).status).toBe(OK);
    expect(disks[0]!.reads).toBe(1);
  });

  test("all of a limited drive", () => {
    block.updateRateLimiter({ ops: { size: 2, refill_time: 1000 } });
    expect([first(1), first(2)]).toEqual([byte(0, 1), byte(0, 2)]);
    expect(disks[0]!.reads).toBe(2);
    expect(driver.request(0, [driver.readable(header(IN, 1)), driver.writable(513)])).toBeUndefined();
    block.updateRateLimiter({ ops: { size: 0, refill_time: 0 } });
    timers.advance(1);
    expect(driver.queues[0]!.takeUsed()).toHaveLength(1);
    expect(first(1)).toBe(byte(0, 1));
    expect(disks[0]!.reads).toBe(3);
  });

  test("all of a file of which nobody can tell whether a read would wait, after one try", () => {
    disks[0]!.tells = false;
    for (let i = 0; i < 3; i++) expect(first(i)).toBe(byte(0, i));
    expect([disks[0]!.reads, disks[0]!.readsNow]).toEqual([3, 1]);
    block.updateDisk(disks[1]!, new Uint8Array(20));
    expect(first(1)).toBe(0x77);
    expect(disks[1]!.reads).toBe(0);
  });

  test("all for a driver without EVENT_IDX", () => {
    start(~VIRTIO_F_EVENT_IDX);
    expect(first(1)).toBe(byte(0, 1));
    expect(disks[0]!.reads).toBe(1);
  });

  test("what is wrong", () => {
    for (const [sector, length] of [
      [SECTORS, 512],
      [SECTORS - 1, 1024],
      [0, 511],
      [0, 0],
    ] as const) {
      request(IN, sector, length === 0 ? [] : [driver.writable(length)]);
    }
    expect(block.metrics).toMatchObject({ invalidRequests: 3, readBytes: 0 });
    driver.queues[0]!.publish(0xffff);
    driver.queues[0]!.kick();
    expect(driver.needsReset).toBe(true);
  });
});

test("another disk takes the place of the first, from that moment on", () => {
  expect(first(1)).toBe(byte(0, 1));
  block.updateDisk(disks[1]!, new Uint8Array(20));
  expect(first(1)).toBe(0x77);
  expect(disks.map((disk) => disk.reads)).toEqual([0, 0]);
});

test("a reset in between begins anew, with other queues", () => {
  for (let i = 0; i < 5; i++) expect(first(i)).toBe(byte(0, i));
  driver.write(reg.STATUS, 0);
  expect(share.epoch).toBe(0);
  driver.alloc(5000);
  driver.start();
  for (let i = 0; i < 300; i++) {
    const mark = driver.allocated;
    expect(first(i % 8)).toBe(byte(0, i % 8));
    driver.release(mark);
  }
  expect(disks[0]!.reads).toBe(0);
});

test(`survives ${FUZZ_COUNT} mutations`, () => {
  let reads = 0;
  const result = fuzzDevice({
    seed: 21,
    device: makeDevice,
    vcpu,
    request: (random, d) => {
      const sector = random.pick([0, 1, 20, SECTORS - 1, SECTORS, 2 ** 52]);
      const type = random.pick([IN, IN, IN, OUT]);
      const length = 512 * (1 + random.below(2)) - (random.chance(8) ? 1 : 0);
      const data = type === OUT ? d.readable(new Uint8Array(length)) : d.writable(length);
      return [d.readable(header(type, sector)), data, d.writable(1)];
    },
    host: (random, device) => {
      const [a, b] = [disks[0]!, disks[1]!];
      a.cached = 512 * random.below(SECTORS);
      a.tells = !random.chance(20);
      reads = share.counts.reads;
      if (random.chance(8)) (device as BlockDevice).updateDisk(random.pick([a, b]), new Uint8Array(20));
      timers.advance(0);
    },
  });
  expect(result.mutations).toBe(FUZZ_COUNT);
  expect(result.completed).toBeGreaterThan(FUZZ_COUNT / 10);
  expect(result.needsReset).toBeGreaterThan(FUZZ_COUNT / 100);
  expect(reads).toBeGreaterThan(FUZZ_COUNT / 100);
}, 600_000);
