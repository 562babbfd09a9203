/** Each device against drivers that break the rules: it asks for a reset, touches nothing, and works after the reset. */

import { describe, expect, test } from "bun:test";
import * as reg from "./mmio/registers.ts";
import { type DriverQueue, F_INDIRECT, F_NEXT, F_WRITE, TestDriver } from "./testing/driver.ts";
import { SUBJECTS, type Subject } from "./testing/subjects.ts";

const RAM_BYTES = 1 << 20;
const MAX_LENGTH = 2 ** 32 - 1;
/** Bytes behind the registers: the configuration space, and what is left of the device's window. */
const CONFIG_WINDOW = 0x1000 - reg.CONFIG;

interface Machine extends Subject {
  readonly driver: TestDriver;
  readonly logs: string[];
}

function start(make: () => Subject): Machine {
  const subject = make();
  const logs: string[] = [];
  const events = { log: (line: string) => void logs.push(line) };
  return { ...subject, logs, driver: TestDriver.start(subject.device, { ramBytes: RAM_BYTES, events }) };
}

/** Nothing outside guest memory has changed, and with a new start the device does its work. */
function expectUsable({ driver, work, worked }: Machine): void {
  expect(driver.guardsIntact()).toBe(true);
  driver.start();
  expect(driver.needsReset).toBe(false);
  expect(work(driver)).toEqual(worked);
  expect(driver.needsReset).toBe(false);
  expect(driver.guardsIntact()).toBe(true);
}

/** Descriptor chains that no queue may take, made of descriptor 0, or of 0 and 1. */
const BAD_CHAINS: readonly [string, (queue: DriverQueue, driver: TestDriver) => void][] = [
  ["a descriptor that is its own next one", (queue) => queue.writeDescriptor(queue.desc, 0, 0, 1, F_NEXT, 0)],
  [
    "a loop of two descriptors",
    (queue) => {
      queue.writeDescriptor(queue.desc, 0, 0, 1, F_NEXT | F_WRITE, 1);
      queue.writeDescriptor(queue.desc, 1, 0, 1, F_NEXT | F_WRITE, 0);
    },
  ],
  [
    "a next descriptor outside the table",
    (queue) => queue.writeDescriptor(queue.desc, 0, 0, 1, F_NEXT, 0xffff),
  ],
  ["a buffer of 4 GiB - 1 to read", (queue) => queue.writeDescriptor(queue.desc, 0, 0, MAX_LENGTH, 0, 0)],
  [
    "a buffer of 4 GiB - 1 to write",
    (queue) => queue.writeDescriptor(queue.desc, 0, 0, MAX_LENGTH, F_WRITE, 0),
  ],
  [
    "a buffer over the end of memory",
    (queue) => queue.writeDescriptor(queue.desc, 0, RAM_BYTES - 4, 8, F_WRITE, 0),
  ],
  [
    "a buffer over the end of all addresses",
    (queue) => queue.writeDescriptor(queue.desc, 0, 2n ** 64n - 4n, 8, F_WRITE, 0),
  ],
  [
    "an indirect table outside memory",
    (queue) => queue.writeDescriptor(queue.desc, 0, RAM_BYTES, 32, F_INDIRECT, 0),
  ],
  [
    "an indirect table of 4 GiB - 16",
    (queue) => queue.writeDescriptor(queue.desc, 0, 0, 2 ** 32 - 16, F_INDIRECT, 0),
  ],
  [
    "an indirect table inside itself",
    (queue) => {
      queue.writeDescriptor(queue.desc, 0, queue.desc, 16, F_INDIRECT, 0);
    },
  ],
  [
    "an indirect table with a loop",
    (queue, driver) => {
      const table = driver.alloc(32);
      for (let i = 0; i < 2; i++) queue.writeDescriptor(table, i, 0, 1, F_NEXT, 1 - i);
      queue.writeDescriptor(queue.desc, 0, table, 32, F_INDIRECT, 0);
    },
  ],
];

for (const [name, make] of Object.entries(SUBJECTS)) {
  const queues = Array.from({ length: make().device.queueSizes.length }, (_, index) => index);

  describe(name, () => {
    describe.each(queues)("queue %d", (index) => {
      test.each(BAD_CHAINS)("%s", (_, write) => {
        const machine = start(make);
        const { driver, logs, unread, stir } = machine;
        const queue = driver.queues[index]!;
        write(queue, driver);
        queue.publish(0);
        queue.notify();
        stir();
        expect(driver.needsReset).toBe(!unread.includes(index));
        expect(queue.takeUsed()).toEqual([]);
        for (const line of logs) expect(line).toContain(`queue ${index}: `);
        expectUsable(machine);
      });

      test("buffers of no length", () => {
        const machine = start(make);
        const { driver, stir } = machine;
        for (const flags of [0, F_WRITE]) {
          const queue = driver.queues[index]!;
          queue.writeDescriptor(queue.desc, 0, 0, 0, flags, 0);
          queue.publish(0);
          queue.notify();
          stir();
          for (const { id, length } of queue.takeUsed()) expect([id, length]).toEqual([0, 0]);
          expect(driver.guardsIntact()).toBe(true);
          driver.start();
        }
        expectUsable(machine);
      });

      test.each([1000, 0x7fff, 0x8000, 0xffff])("an available index that jumps to %d", (to) => {
        const machine = start(make);
        const { driver, unread, stir } = machine;
        driver.queues[index]!.setAvailIdx(to);
        driver.queues[index]!.notify();
        stir();
        expect(driver.needsReset).toBe(!unread.includes(index));
        expectUsable(machine);
      });

      /** Sets this queue up anew with `change`, the others as they should be, and starts the device. */
      const expectRefused = (change: (driver: TestDriver) => void) => {
        const machine = start(make);
        const { driver, stir } = machine;
        driver.reset();
        driver.negotiate();
        for (const other of queues) driver.setUpQueue(other);
        driver.write(reg.QUEUE_SEL, index);
        driver.write(reg.QUEUE_READY, 0);
        change(driver);
        driver.write(reg.QUEUE_READY, 1);
        driver.addStatus(reg.STATUS_DRIVER_OK);
        expect(driver.needsReset).toBe(true);
        for (const other of queues) driver.write(reg.QUEUE_NOTIFY, other);
        stir();
        for (const queue of driver.queues) expect(queue.takeUsed()).toEqual([]);
        expectUsable(machine);
      };

      test.each([0, 3, 65535, MAX_LENGTH])("of %d descriptors", (size) => {
        expectRefused((driver) => driver.write(reg.QUEUE_NUM, size));
      });

      test.each([
        ["descriptor table", reg.QUEUE_DESC_LOW],
        ["available ring", reg.QUEUE_DRIVER_LOW],
        ["used ring", reg.QUEUE_DEVICE_LOW],
      ])("%s outside memory", (_, register) => {
        for (const gpa of [RAM_BYTES - 16, RAM_BYTES, 0xc000_0000, 2 ** 32 - 16, 2 ** 63]) {
          expectRefused((driver) => driver.writeAddress(register, gpa));
        }
      });
    });

    test("a reset in the middle of traffic, again and again", () => {
      const machine = start(make);
      const { driver, request, stir } = machine;
      for (let round = 0; round < 50; round++) {
        for (const index of queues) {
          for (let i = 0; i <= round % 5; i++) driver.queues[index]!.add(request(driver, index));
          driver.queues[index]!.notify();
        }
        stir();
        // What the device still holds must not be written to any more.
        driver.reset();
        const before = Buffer.from(driver.ram(0, RAM_BYTES));
        stir();
        for (const index of queues) driver.write(reg.QUEUE_NOTIFY, index);
        expect(before.equals(driver.ram(0, RAM_BYTES))).toBe(true);
        driver.start();
        expect(driver.needsReset).toBe(false);
      }
      expectUsable(machine);
    });

    test("DRIVER_OK without any queue, and with one at a time", () => {
      const machine = start(make);
      const { driver, stir } = machine;
      for (const only of [undefined, ...queues]) {
        driver.reset();
        driver.negotiate();
        if (only !== undefined) driver.setUpQueue(only);
        driver.addStatus(reg.STATUS_DRIVER_OK);
        for (const index of queues) driver.write(reg.QUEUE_NOTIFY, index);
        stir();
        expect(driver.needsReset).toBe(false);
      }
      expectUsable(machine);
    });

    test("configuration writes at every offset, of every width", () => {
      const machine = start(make);
      const { driver, device, configWritable: [from, to] = [0, 0] } = machine;
      const before = device.config.slice();
      for (let offset = 0; offset < CONFIG_WINDOW; offset++) {
        for (const width of [1, 2, 4]) driver.front.write(reg.CONFIG + offset, width, 0x5a5a5a5a);
        // Eight bytes come as two writes of four; other widths are not the bus's.
        driver.back.handle(reg.COMMAND_WRITE_CONFIG, offset | (8 << 16), MAX_LENGTH);
      }
      const after = device.config.slice();
      before.fill(0, from, to);
      after.fill(0, from, to);
      expect(after).toEqual(before);
      expect(driver.needsReset).toBe(false);
      expectUsable(machine);
    });
  });
}
