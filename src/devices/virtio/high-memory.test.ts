/** Rings and buffers in RAM above 4 GiB, which devices see through several ArrayBuffers. */

import { afterAll, beforeEach, describe, expect, test } from "bun:test";
import { GuestMemory, MMIO_GAP_END, WINDOW_STRIDE } from "../../memory/guest-memory.ts";
import { sparseMemory } from "../../memory/testing/sparse-memory.ts";
import { VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC } from "./device.ts";
import * as reg from "./mmio/registers.ts";
import { type DriverQueue, F_NEXT, F_WRITE, TestDriver } from "./testing/driver.ts";
import { EchoDevice } from "./testing/echo.ts";
import { FUZZ_COUNT, FUZZ_RAM_BYTES, fuzzDevice } from "./testing/fuzz.ts";
import { SUBJECTS } from "./testing/subjects.ts";

const PAGE = 4096;
const HIGH_BYTES = 6 * WINDOW_STRIDE + PAGE;
const END = MMIO_GAP_END + HIGH_BYTES;

const sparse = sparseMemory(HIGH_BYTES);
const memory = new GuestMemory(sparse.layout);
afterAll(() => sparse.close());

const boundaries = Array.from({ length: 6 }, (_, i) => MMIO_GAP_END + (i + 1) * WINDOW_STRIDE);

describe.each(Object.keys(SUBJECTS))("%s", (name) => {
  test("works with rings and buffers in RAM above 4 GiB, wherever windows begin and end", () => {
    const starts = [MMIO_GAP_END, END - 64 * 1024];
    // Rings are up to 4 KiB long, so each ring and each buffer comes to lie over each boundary.
    for (const boundary of boundaries.slice(0, 3)) {
      for (let before = 16; before < 32 * 1024; before += 1008) starts.push(boundary - before);
    }
    for (const start of starts) {
      const { device, work, worked } = SUBJECTS[name]!();
      const logs: string[] = [];
      const events = { log: (line: string) => logs.push(line) };
      const driver = TestDriver.start(device, { place: { memory, start }, events });
      expect({ start, worked: work(driver), logs }).toEqual({ start, worked, logs: [] });
    }
  });
});

describe("buffers", () => {
  let device: EchoDevice;
  let driver: TestDriver;
  let queue: DriverQueue;
  let logs: string[];

  function start(features: bigint, at: number): void {
    device = new EchoDevice();
    logs = [];
    const events = { log: (line: string) => logs.push(line) };
    driver = TestDriver.start(device, { features, place: { memory, start: at }, events });
    queue = driver.queues[0]!;
  }
  beforeEach(() => start(~0n, 2 * PAGE));

  test("one over the boundary of two windows is one buffer with the bytes of both sides", () => {
    for (const boundary of boundaries) {
      const gpa = boundary - 1000;
      const data = Uint8Array.from({ length: 2000 }, (_, i) => (i * 7 + boundary / WINDOW_STRIDE) & 0xff);
      memory.write(gpa, data);
      const into = driver.writable(2000);
      expect(driver.request(0, [{ gpa, length: 2000, write: false }, into])).toBe(2000);
      expect(driver.ram(into.gpa, 2000)).toEqual(data);
      const from = driver.readable(data.toReversed());
      expect(driver.request(0, [from, { gpa, length: 2000, write: true }])).toBe(2000);
      expect(memory.slice(gpa, 2000)).toEqual(data.toReversed());
      expect(device.chains.at(-1)!.writable).toHaveLength(1);
    }
  });

  test("one longer than a window comes in pieces, without a gap and in order", () => {
    const gpa = MMIO_GAP_END + WINDOW_STRIDE - PAGE;
    const length = 3 * WINDOW_STRIDE + 5;
    const marks = [0, WINDOW_STRIDE + PAGE - 1, 2 * WINDOW_STRIDE, length - 1];
    for (const [i, at] of marks.entries()) memory.writeU8(gpa + at, 0x50 + i);
    device.handler = (chain) => {
      expect(chain.readableLength).toBe(length);
      expect(chain.readable.length).toBeGreaterThan(1);
      let next = gpa;
      for (const piece of chain.readable) {
        expect(piece.gpa).toBe(next);
        expect(piece.bytes).toHaveLength(piece.length);
        next += piece.length;
      }
      expect(next).toBe(gpa + length);
      const one = new Uint8Array(1);
      for (const [i, at] of marks.entries()) {
        expect(chain.read(one, at)).toBe(1);
        expect(one[0]).toBe(0x50 + i);
      }
      expect(chain.write(Uint8Array.of(9))).toBe(1);
      return 1;
    };
    const into = driver.writable(1);
    expect(driver.request(0, [{ gpa, length, write: false }, into])).toBe(1);
    expect(memory.readU8(into.gpa)).toBe(9);
    expect(logs).toEqual([]);
  });

  test("an indirect table may lie over a boundary too", () => {
    expect(driver.features & VIRTIO_F_INDIRECT_DESC).not.toBe(0n);
    const low = driver.allocated;
    driver.release(boundaries[1]! - 24);
    const buffers = [
      { gpa: low, length: 5, write: false },
      { gpa: low + 16, length: 5, write: true },
    ];
    memory.write(low, new TextEncoder().encode("hello"));
    queue.add(buffers, { indirect: true });
    queue.kick();
    expect(queue.takeUsed()).toEqual([{ id: expect.any(Number), length: 5 }]);
    expect(Buffer.from(memory.slice(low + 16, 5)).toString()).toBe("hello");
  });

  test.each([
    ["over the end of RAM", END - 8, 9],
    ["behind it", END, 1],
    ["of 4 GiB - 1 that leaves it", MMIO_GAP_END + 4 * WINDOW_STRIDE, 0xffff_ffff],
    ["in the 64-bit MMIO gap", 0x40_0000_0000, 1],
    ["at the end of all addresses", (1n << 64n) - 8n, 4],
    ["empty and outside", END + 1, 0],
  ])("one %s costs the device a reset", (_what, gpa, length) => {
    queue.writeDescriptor(queue.desc, 0, gpa, length, F_WRITE, 0);
    queue.publish(0);
    queue.notify();
    expect(driver.needsReset).toBe(true);
    expect(logs.join()).toMatch(/buffer at 0x[0-9a-f]+, \d+ bytes, is not inside RAM/);
    expect(device.chains).toEqual([]);
  });

  test("many of 4 GiB - 1, which are RAM, are still too much for one chain", () => {
    for (const index of [0, 1, 2]) {
      queue.writeDescriptor(queue.desc, index, MMIO_GAP_END, 0xffff_ffff, F_NEXT, index + 1);
    }
    queue.publish(0);
    queue.notify();
    expect(driver.needsReset).toBe(true);
    expect(logs.join()).toMatch(/more than 2\^32 bytes in total/);
  });

  test.each(["desc", "driver", "device"] as const)("%s ring that leaves RAM is refused", (ring) => {
    driver.reset();
    driver.negotiate();
    const { desc, avail, used } = driver.setUpQueue(0);
    const place = { desc, driver: avail, device: used, [ring]: END - 16 };
    driver.write(reg.QUEUE_READY, 0);
    driver.writeAddress(reg.QUEUE_DESC_LOW, place.desc);
    driver.writeAddress(reg.QUEUE_DRIVER_LOW, place.driver);
    driver.writeAddress(reg.QUEUE_DEVICE_LOW, place.device);
    driver.write(reg.QUEUE_READY, 1);
    driver.addStatus(reg.STATUS_DRIVER_OK);
    expect(driver.needsReset).toBe(true);
    expect(logs.join()).toMatch(/(descriptor table|ring) at 0x[0-9a-f]+, \d+ bytes, is not inside RAM/);
  });

  test("without event indices too, with the rings on both sides of a boundary", () => {
    for (const before of [256, 300, 350, 420]) {
      start(~VIRTIO_F_EVENT_IDX, boundaries[0]! - before);
      for (let i = 0; i < 40; i++) {
        const text = new TextEncoder().encode(`request ${i}`);
        const into = driver.writable(text.length);
        expect(driver.request(0, [driver.readable(text), into])).toBe(text.length);
        expect(driver.ram(into.gpa, text.length)).toEqual(text);
      }
      expect(driver.interrupts).toBe(40);
    }
  });
});

test(`survives ${FUZZ_COUNT} mutations`, () => {
  // The last of its RAM lies over the boundary of two windows.
  const { layout, close } = sparseMemory(WINDOW_STRIDE + FUZZ_RAM_BYTES / 2);
  const result = fuzzDevice({
    seed: 5,
    memory: new GuestMemory(layout),
    device: () => new EchoDevice(),
    request: (random, d) => [
      ...Array.from({ length: random.below(3) }, () =>
        d.readable(new Uint8Array(1 + random.below(20_000)).fill(7)),
      ),
      ...Array.from({ length: 1 + random.below(3) }, () => d.writable(1 + random.below(20_000))),
    ],
  });
  close();
  expect(result.mutations).toBe(FUZZ_COUNT);
  expect(result.completed).toBeGreaterThan(FUZZ_COUNT / 10);
  expect(result.needsReset).toBeGreaterThan(FUZZ_COUNT / 100);
}, 600_000);
