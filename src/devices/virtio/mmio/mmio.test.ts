import { beforeEach, describe, expect, test } from "bun:test";
import { GuestMemory } from "../../../memory/guest-memory.ts";
import type { DescriptorChain } from "../chain.ts";
import { HOLD, STOP, VIRTIO_F_VERSION_1 } from "../device.ts";
import { TestDriver } from "../testing/driver.ts";
import { EchoDevice } from "../testing/echo.ts";
import { createMmio } from "./back.ts";
import { MmioFront } from "./front.ts";
import * as reg from "./registers.ts";

let device: EchoDevice;
let driver: TestDriver;
let logs: string[];

beforeEach(() => {
  device = new EchoDevice();
  logs = [];
  driver = new TestDriver(device, { events: { log: (line) => logs.push(line) } });
});

test("the shared region is whole cache lines", () => {
  expect(reg.MMIO_SHARED_BYTES % 64).toBe(0);
});

test("identity", () => {
  expect(driver.read(reg.MAGIC_VALUE)).toBe(0x74726976);
  expect(Buffer.from(Uint32Array.of(driver.read(reg.MAGIC_VALUE)).buffer).toString()).toBe("virt");
  expect(driver.read(reg.VERSION)).toBe(2);
  expect(driver.read(reg.DEVICE_ID)).toBe(63);
  expect(driver.read(reg.VENDOR_ID)).toBe(0);
  expect(driver.read(reg.SHM_LEN_LOW)).toBe(0xffffffff);
  expect(driver.read(reg.SHM_BASE_HIGH)).toBe(0xffffffff);
});

test("registers answer only to 32-bit accesses", () => {
  expect(driver.front.read(reg.MAGIC_VALUE, 1)).toBe(0);
  expect(driver.front.read(2, 2)).toBe(0);
  driver.front.write(reg.STATUS, 1, 1);
  expect(driver.status).toBe(0);
});

describe("features", () => {
  test("two pages of 32 bits, and nothing beyond", () => {
    driver.write(reg.DEVICE_FEATURES_SEL, 0);
    expect(driver.read(reg.DEVICE_FEATURES)).toBe(Number(device.features & 0xffffffffn));
    driver.write(reg.DEVICE_FEATURES_SEL, 1);
    expect(driver.read(reg.DEVICE_FEATURES)).toBe(1);
    for (const page of [2, 0xffffffff]) {
      driver.write(reg.DEVICE_FEATURES_SEL, page);
      expect(driver.read(reg.DEVICE_FEATURES)).toBe(0);
    }
  });

  test("what was not offered is refused", () => {
    driver.addStatus(reg.STATUS_ACKNOWLEDGE);
    driver.addStatus(reg.STATUS_DRIVER);
    driver.write(reg.DRIVER_FEATURES_SEL, 1);
    driver.write(reg.DRIVER_FEATURES, 1);
    driver.write(reg.DRIVER_FEATURES_SEL, 0);
    driver.write(reg.DRIVER_FEATURES, 2);
    driver.addStatus(reg.STATUS_FEATURES_OK);
    expect(driver.status).toBe(3);
    driver.write(reg.DRIVER_FEATURES, 1);
    driver.addStatus(reg.STATUS_FEATURES_OK);
    expect(driver.status).toBe(11);
  });

  test("a driver without VERSION_1 is refused", () => {
    const old = new TestDriver(device, { features: ~VIRTIO_F_VERSION_1 });
    old.negotiate();
    expect(old.status).toBe(3);
  });

  test("they cannot change after FEATURES_OK", () => {
    driver.negotiate();
    driver.write(reg.DRIVER_FEATURES_SEL, 0);
    driver.write(reg.DRIVER_FEATURES, 0);
    driver.setUpQueue(0);
    driver.addStatus(reg.STATUS_DRIVER_OK);
    expect(device.context!.features).toBe(device.features);
  });
});

describe("status", () => {
  test("goes step by step", () => {
    driver.write(reg.STATUS, reg.STATUS_DRIVER);
    expect(driver.status).toBe(0);
    driver.write(reg.STATUS, reg.STATUS_DRIVER_OK | reg.STATUS_ACKNOWLEDGE);
    expect(driver.status).toBe(1);
    driver.negotiate();
    driver.addStatus(reg.STATUS_DRIVER_OK);
    expect(driver.status).toBe(15);
    expect(device.context).toBeDefined();
    expect(device.context!.queues.map((queue) => queue.ready)).toEqual([false, false]);
  });

  test("FAILED stops the device until a reset", () => {
    driver.negotiate();
    driver.addStatus(reg.STATUS_FAILED);
    driver.addStatus(reg.STATUS_DRIVER_OK);
    expect(driver.status).toBe(11 | reg.STATUS_FAILED);
    expect(device.context).toBeUndefined();
    driver.write(reg.STATUS, 0);
    expect(driver.status).toBe(0);
  });

  test("a reset clears everything and the device can start again", () => {
    driver.start();
    device.host!.configChanged();
    expect(driver.read(reg.INTERRUPT_STATUS)).toBe(reg.INT_CONFIG);
    driver.write(reg.STATUS, 0);
    expect(device.context).toBeUndefined();
    expect(driver.read(reg.INTERRUPT_STATUS)).toBe(0);
    driver.write(reg.QUEUE_SEL, 0);
    expect(driver.read(reg.QUEUE_READY)).toBe(0);
    driver.start();
    expect(driver.request(0, [driver.readable(Uint8Array.of(1)), driver.writable(1)])).toBe(1);
  });
});

describe("queues", () => {
  test("sizes per queue, 0 for one that is not there", () => {
    const sizes = [0, 1, 2, 0xffffffff].map((index) => {
      driver.write(reg.QUEUE_SEL, index);
      return driver.read(reg.QUEUE_NUM_MAX);
    });
    expect(sizes).toEqual([16, 8, 0, 0]);
  });

  test("can be set up only between FEATURES_OK and DRIVER_OK", () => {
    driver.write(reg.QUEUE_READY, 1);
    expect(driver.read(reg.QUEUE_READY)).toBe(0);
    driver.negotiate();
    driver.write(reg.QUEUE_READY, 1);
    expect(driver.read(reg.QUEUE_READY)).toBe(1);
    driver.write(reg.QUEUE_READY, 0);
    driver.setUpQueue(0);
    driver.addStatus(reg.STATUS_DRIVER_OK);
    driver.write(reg.QUEUE_READY, 0);
    expect(driver.read(reg.QUEUE_READY)).toBe(1);
  });

  for (const size of [0, 3, 32, 65535, 0xffffffff]) {
    test(`size ${size} is refused when the driver starts`, () => {
      driver.negotiate();
      driver.setUpQueue(0);
      driver.write(reg.QUEUE_READY, 0);
      driver.write(reg.QUEUE_NUM, size);
      driver.write(reg.QUEUE_READY, 1);
      driver.addStatus(reg.STATUS_DRIVER_OK);
      expect(driver.needsReset).toBe(true);
      expect(device.context).toBeUndefined();
      expect(logs[0]).toContain(`queue size ${size} is not a power of two from 1 to 16`);
      driver.start();
      expect(driver.needsReset).toBe(false);
    });
  }

  for (const [what, low, gpa] of [
    ["descriptor table", reg.QUEUE_DESC_LOW, 0x1008],
    ["available ring", reg.QUEUE_DRIVER_LOW, 0x1001],
    ["used ring", reg.QUEUE_DEVICE_LOW, 0x1002],
    ["descriptor table", reg.QUEUE_DESC_LOW, 2 ** 20 - 16],
    ["available ring", reg.QUEUE_DRIVER_LOW, 2 ** 32],
    ["used ring", reg.QUEUE_DEVICE_LOW, 2 ** 63],
  ] as const) {
    test(`${what} at 0x${gpa.toString(16)} is refused`, () => {
      driver.negotiate();
      driver.setUpQueue(0);
      driver.write(reg.QUEUE_READY, 0);
      driver.writeAddress(low, gpa);
      driver.write(reg.QUEUE_READY, 1);
      driver.addStatus(reg.STATUS_DRIVER_OK);
      expect(driver.needsReset).toBe(true);
      expect(logs[0]).toMatch(new RegExp(`${what} at .* (aligned|inside RAM)`));
    });
  }

  test("notifications of an inactive device or a queue that is not there are dropped", () => {
    driver.write(reg.QUEUE_NOTIFY, 0);
    driver.start();
    driver.write(reg.QUEUE_NOTIFY, 7);
    driver.back.notify(-1);
    driver.back.notify(99);
    driver.back.handle(99, 0, 0);
    expect(driver.needsReset).toBe(false);
  });
});

test("interrupts are acknowledged bit by bit", () => {
  driver.start();
  device.host!.configChanged();
  driver.request(0, [driver.readable(Uint8Array.of(1)), driver.writable(1)]);
  expect(driver.interrupts).toBe(2);
  expect(driver.read(reg.INTERRUPT_STATUS)).toBe(reg.INT_VRING | reg.INT_CONFIG);
  driver.write(reg.INTERRUPT_ACK, reg.INT_VRING);
  expect(driver.read(reg.INTERRUPT_STATUS)).toBe(reg.INT_CONFIG);
});

describe("configuration space", () => {
  test("is read at any width, and is 0 past its end", () => {
    const { front } = driver;
    expect([0, 1, 5, 6, 300, 0xeff].map((at) => front.read(reg.CONFIG + at, 1))).toEqual([1, 2, 6, 0, 0, 0]);
    expect(front.read(reg.CONFIG + 1, 2)).toBe(0x0302);
    expect(front.read(reg.CONFIG + 2, 4)).toBe(0x06050403);
    expect(front.read(reg.CONFIG + 4, 4)).toBe(0x0605);
  });

  test("is written through the device, and its generation changes", () => {
    const { front } = driver;
    front.write(reg.CONFIG, 2, 0xbeef);
    expect(device.config[0]).toBe(1);
    driver.start();
    const generation = driver.read(reg.CONFIG_GENERATION);
    front.write(reg.CONFIG + 1, 2, 0xbeef);
    front.write(reg.CONFIG + 4, 4, 0xffffffff);
    expect(front.read(reg.CONFIG, 4)).toBe(0x04beef01);
    expect(front.read(reg.CONFIG + 4, 2)).toBe(0x0605);
    expect(driver.read(reg.CONFIG_GENERATION)).not.toBe(generation);
    expect(driver.read(reg.INTERRUPT_STATUS)).toBe(reg.INT_CONFIG);
  });
});

test("all fronts see one register file", () => {
  const shared = new SharedArrayBuffer(64 + reg.MMIO_SHARED_BYTES);
  const memory = new GuestMemory({ buffer: new SharedArrayBuffer(1 << 16), base: 0, size: 1 << 16 });
  const calls: number[] = [];
  createMmio(shared, 64, device, memory, { trigger: () => {} });
  const link = { notify: () => {}, call: (command: number) => void calls.push(command) };
  const [first, second] = [new MmioFront(shared, 64, link), new MmioFront(shared, 64, link)];
  first.write(reg.STATUS, 4, reg.STATUS_ACKNOWLEDGE);
  first.write(reg.QUEUE_SEL, 4, 1);
  expect(second.read(reg.STATUS, 4)).toBe(reg.STATUS_ACKNOWLEDGE);
  expect(second.read(reg.QUEUE_NUM_MAX, 4)).toBe(8);
  second.write(reg.STATUS, 4, 0);
  expect(calls).toEqual([reg.COMMAND_RESET]);
});

test("a device that does not fit the register file is refused", () => {
  const memory = new GuestMemory({ buffer: new SharedArrayBuffer(1 << 16), base: 0, size: 1 << 16 });
  const make = (queues: number, config: number): void => {
    const big = Object.assign(new EchoDevice(), {
      queueSizes: new Array<number>(queues).fill(8),
      config: new Uint8Array(config),
    });
    createMmio(new SharedArrayBuffer(reg.MMIO_SHARED_BYTES), 0, big, memory, { trigger: () => {} });
  };
  make(32, 256);
  expect(() => make(33, 0)).toThrow("33 queues, at most 32");
  expect(() => make(1, 257)).toThrow("257 bytes of config space, at most 256");
});

describe("chains that the device keeps", () => {
  const held: DescriptorChain[] = [];

  beforeEach(() => {
    held.length = 0;
    device.handler = (chain) => {
      held.push(chain);
      return HOLD;
    };
    driver.start();
  });

  const queue = () => device.context!.queues[0]!;

  test("are completed later, in any order, and shown with one interrupt", () => {
    const heads = [10, 20, 30].map((size) => driver.queues[0]!.add([driver.writable(size)]));
    driver.queues[0]!.kick();
    expect(held.map(({ writableLength }) => writableLength)).toEqual([10, 20, 30]);
    expect(driver.queues[0]!.takeUsed()).toEqual([]);
    held[2]!.write(Uint8Array.of(1, 2, 3));
    queue().complete(held[2]!, 3);
    queue().complete(held[0]!, 0);
    expect(driver.queues[0]!.takeUsed()).toEqual([]);
    const before = driver.interrupts;
    queue().flush();
    expect(driver.interrupts).toBe(before + 1);
    expect(driver.queues[0]!.takeUsed()).toEqual([
      { id: heads[2]!, length: 3 },
      { id: heads[0]!, length: 0 },
    ]);
    queue().complete(held[1]!, 20);
    queue().flush();
    expect(driver.queues[0]!.takeUsed()).toEqual([{ id: heads[1]!, length: 20 }]);
  });

  test("do not keep the driver from getting others back, and STOP leaves the rest with it", () => {
    const kept = held;
    device.handler = (chain) => {
      if (kept.length === 2) return STOP;
      if (chain.writableLength === 1) return 1;
      kept.push(chain);
      return HOLD;
    };
    for (const size of [5, 1, 6, 1]) driver.queues[0]!.add([driver.writable(size)]);
    driver.queues[0]!.notify();
    expect(driver.queues[0]!.takeUsed().map(({ length }) => length)).toEqual([1]);
    kept.pop();
    driver.queues[0]!.notify();
    expect(driver.queues[0]!.takeUsed().map(({ length }) => length)).toEqual([1]);
  });

  test("are no more than the queue holds: a driver that offers one again and again is stopped", () => {
    const head = driver.queues[0]!.add([driver.writable(8)]);
    for (let i = 0; i < 15; i++) driver.queues[0]!.publish(head);
    driver.queues[0]!.notify();
    expect([held.length, driver.needsReset]).toEqual([16, false]);
    driver.queues[0]!.publish(head);
    driver.queues[0]!.notify();
    expect(driver.needsReset).toBe(true);
    expect(logs[0]).toContain("more chains made available than the 16 descriptors");
    expect(queue().failed).toBe(true);
    queue().complete(held[0]!, 0);
    queue().flush();
    expect(driver.queues[0]!.takeUsed()).toEqual([]);
  });

  test("a claim of more than there is room for, and a chain from before a reset", () => {
    driver.queues[0]!.add([driver.writable(8)]);
    driver.queues[0]!.kick();
    const old = queue();
    driver.start();
    old.complete(held[0]!, 8);
    old.flush();
    expect(driver.queues[0]!.takeUsed()).toEqual([]);
    driver.queues[0]!.add([driver.writable(8)]);
    driver.queues[0]!.kick();
    queue().complete(held[1]!, 9);
    expect(driver.needsReset).toBe(true);
  });
});
