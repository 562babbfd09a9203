import { beforeEach, describe, expect, test } from "bun:test";
import { STOP, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_VERSION_1 } from "./device.ts";
import { type DriverQueue, F_INDIRECT, F_NEXT, F_WRITE, TestDriver } from "./testing/driver.ts";
import { EchoDevice } from "./testing/echo.ts";
import { FUZZ_COUNT, fuzzDevice } from "./testing/fuzz.ts";

const NO_EVENT_IDX = ~VIRTIO_F_EVENT_IDX;

let device: EchoDevice;
let driver: TestDriver;
let queue: DriverQueue;
let logs: string[];

function start(features = ~0n): void {
  device = new EchoDevice();
  logs = [];
  driver = TestDriver.start(device, { features, events: { log: (line) => logs.push(line) } });
  queue = driver.queues[0]!;
}
beforeEach(() => start());

function text(gpa: number, length: number): string {
  return Buffer.from(driver.ram(gpa, length)).toString();
}
function bytes(value: string): Uint8Array {
  return new TextEncoder().encode(value);
}

describe("requests", () => {
  test("buffers are scattered and gathered in order", () => {
    const out = [
      driver.readable(bytes("hel")),
      driver.readable(bytes("lo wor")),
      driver.readable(bytes("ld")),
    ];
    const into = [driver.writable(2), driver.writable(20)];
    expect(driver.request(0, [...out, ...into])).toBe(11);
    expect(text(into[0]!.gpa, 2) + text(into[1]!.gpa, 9)).toBe("hello world");
    const chain = device.chains[0]!;
    expect([chain.readableLength, chain.writableLength]).toEqual([11, 22]);
    expect(chain.readable.map((buffer) => buffer.length)).toEqual([3, 6, 2]);
  });

  test("a chain can be read and written from an offset", () => {
    const into = [driver.writable(4), driver.writable(4)];
    device.handler = (chain) => {
      const part = new Uint8Array(4);
      expect(chain.read(part, 2)).toBe(4);
      expect(chain.read(new Uint8Array(4), 6)).toBe(2);
      expect(chain.write(part, 3)).toBe(4);
      expect(chain.write(part, 6)).toBe(2);
      return 8;
    };
    expect(driver.request(0, [driver.readable(bytes("abc")), driver.readable(bytes("defgh")), ...into])).toBe(
      8,
    );
    expect([...driver.ram(into[0]!.gpa, 4)].slice(3)).toEqual([0x63]);
    expect(text(into[1]!.gpa, 4)).toBe("decd");
  });

  test("every byte written is reported", () => {
    const into = [driver.writable(4), driver.writable(100)];
    driver.reported.length = 0;
    driver.request(0, [driver.readable(bytes("123456")), ...into]);
    const inBuffers = driver.reported.filter(({ gpa }) => gpa >= into[0]!.gpa);
    expect(inBuffers).toEqual([
      { gpa: into[0]!.gpa, length: 4 },
      { gpa: into[1]!.gpa, length: 2 },
    ]);
    expect(driver.reported).toContainEqual({ gpa: queue.used + 2, length: 2 });
    expect(driver.reported).toContainEqual({ gpa: queue.used + 4, length: 4 });
  });

  test("empty buffers are passed over", () => {
    const empty = { gpa: driver.alloc(16), length: 0, write: false };
    const into = driver.writable(3);
    expect(driver.request(0, [empty, driver.readable(bytes("abc")), into])).toBe(3);
    expect(text(into.gpa, 3)).toBe("abc");
  });

  test("indirect tables, also behind direct descriptors and misaligned", () => {
    const into = driver.writable(8);
    const head = queue.add([driver.readable(bytes("indirect")), into], { indirect: true });
    queue.kick();
    expect(queue.takeUsed()).toEqual([{ id: head, length: 8 }]);
    expect(text(into.gpa, 8)).toBe("indirect");

    const table = driver.alloc(64) + 1;
    const second = driver.writable(4);
    queue.writeDescriptor(table, 1, second.gpa, 4, F_WRITE, 0);
    queue.writeDescriptor(table, 0, driver.readable(bytes("cd")).gpa, 2, F_NEXT, 1);
    queue.writeDescriptor(queue.desc, 3, driver.readable(bytes("ab")).gpa, 2, F_NEXT, 4);
    queue.writeDescriptor(queue.desc, 4, table, 32, F_INDIRECT, 0);
    queue.publish(3);
    queue.kick();
    expect(queue.takeUsed()).toEqual([{ id: 3, length: 4 }]);
    expect(text(second.gpa, 4)).toBe("abcd");
  });

  test("indices wrap at 2^16", () => {
    const buffer = driver.readable(bytes("x"));
    const into = driver.writable(1);
    const mark = driver.allocated;
    for (let i = 0; i < 70_000; i++) {
      queue.add([buffer, into]);
      queue.kick();
      if (queue.takeUsed().length !== 1) throw new Error(`request ${i} was not completed`);
      driver.release(mark);
      device.chains.length = 0;
    }
    expect(driver.interrupts).toBe(70_000);
  });
});

describe("a broken driver", () => {
  function broken(what: RegExp): void {
    queue.notify();
    expect(driver.needsReset).toBe(true);
    expect(logs).toHaveLength(1);
    expect(logs[0]).toMatch(what);
    expect(logs[0]).toStartWith("echo: queue 0: ");
    expect(driver.read(0x60) & 2).toBe(2);
    expect(queue.takeUsed()).toEqual([]);
    // The queue stays out of order and the device quiet, until a reset.
    const interrupts = driver.interrupts;
    queue.notify();
    expect(driver.interrupts).toBe(interrupts);
    driver.start();
    expect(driver.needsReset).toBe(false);
    expect(driver.request(0, [driver.readable(bytes("ok")), driver.writable(2)])).toBe(2);
  }

  test("available index jumps by more than the queue", () => {
    queue.setAvailIdx(17);
    broken(/available index jumped from 0 to 17 in a queue of 16/);
  });
  test("head outside the table", () => {
    queue.publish(16);
    broken(/descriptor 16 of a table of 16/);
  });
  test("next outside the table", () => {
    queue.writeDescriptor(queue.desc, 0, 0, 1, F_NEXT, 16);
    queue.publish(0);
    broken(/descriptor 16 of a table of 16/);
  });
  test("a loop", () => {
    queue.writeDescriptor(queue.desc, 0, 0, 1, F_NEXT, 1);
    queue.writeDescriptor(queue.desc, 1, 0, 1, F_NEXT, 0);
    queue.publish(0);
    broken(/longer than the queue, or a loop/);
  });
  test("a readable buffer after a writable one", () => {
    queue.add([driver.writable(1), driver.readable(bytes("a"))]);
    broken(/readable buffer after a writable one/);
  });
  for (const [what, gpa, length] of [
    ["past the end", 2 ** 20 - 8, 9],
    ["far away", 2n ** 64n - 1n, 2],
    ["in the MMIO gap", 0xc000_0000, 4],
    ["4 GiB - 1 long", 0, 0xffffffff],
    ["empty but outside", 2 ** 20 + 1, 0],
  ] as const) {
    test(`a buffer ${what}`, () => {
      queue.writeDescriptor(queue.desc, 0, gpa, length, F_WRITE, 0);
      queue.publish(0);
      broken(/buffer at 0x[0-9a-f]+, \d+ bytes, is not inside RAM/);
    });
  }
  test("an indirect table of a size that is not whole descriptors", () => {
    for (const length of [0, 24]) {
      start();
      queue.writeDescriptor(queue.desc, 0, driver.alloc(64), length, F_INDIRECT, 0);
      queue.publish(0);
      broken(/is not whole descriptors/);
    }
  });
  test("an indirect table outside RAM", () => {
    queue.writeDescriptor(queue.desc, 0, 2 ** 20 - 16, 32, F_INDIRECT, 0);
    queue.publish(0);
    broken(/indirect table at .* is not inside RAM/);
  });
  test("an indirect table inside another", () => {
    const table = driver.alloc(32);
    queue.writeDescriptor(table, 0, table, 16, F_INDIRECT, 0);
    queue.writeDescriptor(queue.desc, 0, table, 32, F_INDIRECT, 0);
    queue.publish(0);
    broken(/inside an indirect table/);
  });
  test("an indirect descriptor with a next one", () => {
    queue.writeDescriptor(queue.desc, 0, driver.alloc(16), 16, F_INDIRECT | F_NEXT, 1);
    queue.publish(0);
    broken(/is indirect and has a next one/);
  });
  test("a loop in an indirect table", () => {
    const table = driver.alloc(32);
    queue.writeDescriptor(table, 0, 0, 1, F_NEXT, 1);
    queue.writeDescriptor(table, 1, 0, 1, F_NEXT, 0);
    queue.writeDescriptor(queue.desc, 0, table, 32, F_INDIRECT, 0);
    queue.publish(0);
    broken(/longer than the queue, or a loop/);
  });
  test("an indirect table with more buffers than the queue holds", () => {
    const buffers = Array.from({ length: 17 }, () => driver.writable(1));
    queue.add(buffers.slice(1), { indirect: true });
    queue.kick();
    expect(queue.takeUsed()).toHaveLength(1);
    queue.add(buffers, { indirect: true });
    broken(/longer than the queue, or a loop/);
  });
  test("indirect descriptors that were not negotiated", () => {
    start(~VIRTIO_F_INDIRECT_DESC);
    queue.writeDescriptor(queue.desc, 0, driver.alloc(16), 16, F_INDIRECT, 0);
    queue.publish(0);
    broken(/was not negotiated/);
  });

  test("does not stop the other queue", () => {
    queue.publish(16);
    queue.notify();
    expect(driver.needsReset).toBe(true);
    expect(driver.request(1, [driver.readable(bytes("ok")), driver.writable(2)])).toBe(2);
  });
});

describe("a failing device", () => {
  test("loses its queue, and what it claims is checked", () => {
    device.handler = () => 5;
    queue.add([driver.writable(4)]);
    queue.kick();
    expect(driver.needsReset).toBe(true);
    expect(logs[0]).toContain("5 bytes written to a chain with room for 4");
  });
});

for (const [name, features] of [
  ["EVENT_IDX", ~0n],
  ["flags", NO_EVENT_IDX],
] as const) {
  describe(`notification suppression by ${name}`, () => {
    beforeEach(() => start(features));

    function add(count: number): void {
      for (let i = 0; i < count; i++) queue.add([driver.readable(bytes("x")), driver.writable(1)]);
    }

    test("one interrupt for a batch, and none if the driver wants none", () => {
      add(4);
      queue.kick();
      expect(queue.takeUsed()).toHaveLength(4);
      expect(driver.interrupts).toBe(1);
      queue.wantInterrupt(false);
      add(4);
      queue.kick();
      expect(driver.interrupts).toBe(1);
      expect(queue.takeUsed()).toHaveLength(4);
    });

    test("the device asks for a kick when it has served all, and for none while it waits for something else", () => {
      add(1);
      queue.kick();
      add(1);
      expect(queue.kickNeeded).toBe(true);
      device.handler = () => STOP;
      queue.kick();
      expect(device.lastServed).toBe("stopped");
      add(1);
      expect(queue.kickNeeded).toBe(false);
      device.handler = undefined;
      device.processQueue(0);
      expect(device.lastServed).toBe("empty");
      expect(queue.takeUsed()).toHaveLength(3);
      add(1);
      expect(queue.kickNeeded).toBe(true);
    });

    test("buffers that come between the last look and the request for a kick are served without one", () => {
      let late = 3;
      // The device has found the queue empty when it moves the used index, and has not yet asked for a kick.
      driver.memory.setWriteHook((gpa) => {
        if (gpa === queue.used + 2 && late-- > 0) add(1);
      });
      add(1);
      queue.kick();
      expect(late).toBe(-1);
      expect(queue.takeUsed()).toHaveLength(4);
    });
  });
}

describe("the loop", () => {
  test("offers a chain again after STOP", () => {
    const seen: number[] = [];
    device.handler = (chain) => {
      seen.push(chain.head);
      return seen.length < 3 ? STOP : 0;
    };
    const head = queue.add([driver.writable(1)]);
    queue.kick();
    device.processQueue(0);
    expect(queue.takeUsed()).toEqual([]);
    device.processQueue(0);
    expect(seen).toEqual([head, head, head]);
    expect(queue.takeUsed()).toEqual([{ id: head, length: 0 }]);
  });

  test("goes round again if asked from inside", () => {
    let inner: string | undefined;
    let calls = 0;
    device.handler = () => {
      calls++;
      if (calls > 1) return 0;
      inner = device.context!.queues[0]!.serve(() => 0);
      return STOP;
    };
    queue.add([driver.writable(1)]);
    queue.kick();
    expect(inner).toBe("more");
    expect(calls).toBe(2);
    expect(queue.takeUsed()).toHaveLength(1);
  });

  test("writes nothing after a reset from inside", () => {
    device.handler = () => {
      driver.write(0x70, 0);
      return 1;
    };
    queue.add([driver.writable(1)]);
    const before = Buffer.from(driver.ram(0, driver.ramBytes));
    queue.notify();
    expect(device.lastServed).toBe("failed");
    expect(before.equals(Buffer.from(driver.ram(0, driver.ramBytes)))).toBe(true);
    expect(driver.needsReset).toBe(false);
  });

  test("ends a pass after a queue's worth of chains if the monitor can go on later", () => {
    const requeued: number[] = [];
    const echo = new EchoDevice();
    const busy = TestDriver.start(echo, { events: { requeue: (index) => requeued.push(index) } });
    const q = busy.queues[0]!;
    let served = 0;
    echo.handler = () => {
      served++;
      q.publish(0);
      return 0;
    };
    q.writeDescriptor(q.desc, 0, busy.alloc(1), 1, F_WRITE, 0);
    q.publish(0);
    q.notify();
    expect(served).toBe(16);
    expect(requeued).toEqual([0]);
    busy.back.notify(0);
    expect(served).toBe(32);
  });
});

describe("a slow guest", () => {
  let echo: EchoDevice;
  let slow: TestDriver;
  let ring: DriverQueue;

  function begin(features = ~0n): void {
    echo = new EchoDevice();
    slow = TestDriver.start(echo, { features, events: { slowGuest: true } });
    ring = slow.queues[0]!;
  }

  function add(count: number): void {
    for (let i = 0; i < count; i++) ring.add([slow.writable(1)]);
  }

  test("sees each chain as soon as it is done, with one interrupt until it asks for another", () => {
    begin();
    const seen: number[] = [];
    echo.handler = () => {
      seen.push(slow.ram(ring.used + 2, 1)[0]!);
      return 0;
    };
    add(4);
    ring.kick();
    expect(seen).toEqual([0, 1, 2, 3]);
    expect(slow.interrupts).toBe(1);
  });

  test("is not interrupted for each if it does not know EVENT_IDX", () => {
    begin(VIRTIO_F_VERSION_1);
    add(4);
    ring.kick();
    expect(ring.takeUsed()).toHaveLength(4);
    expect(slow.interrupts).toBe(1);
    expect(echo.context!.queues[0]!.holdInterrupts()).toBe(false);
  });

  test("a device may keep interrupts back", () => {
    begin();
    const queue = echo.context!.queues[0]!;
    expect(queue.holdInterrupts()).toBe(true);
    add(3);
    ring.kick();
    expect([queue.untold, slow.interrupts]).toEqual([3, 0]);
    queue.interrupt();
    queue.interrupt();
    expect([queue.untold, slow.interrupts]).toEqual([0, 1]);
    expect(ring.takeUsed()).toHaveLength(3);
    // What the driver has found by itself it need not be told.
    add(2);
    ring.kick();
    expect(ring.takeUsed()).toHaveLength(2);
    queue.interrupt();
    expect([queue.untold, slow.interrupts]).toEqual([0, 1]);
    slow.reset();
    add(1);
    queue.interrupt();
    expect(slow.interrupts).toBe(1);
  });

  test("no device keeps interrupts back from any other guest", () => {
    const queue = device.context!.queues[0]!;
    expect(queue.holdInterrupts()).toBe(false);
    for (let i = 0; i < 3; i++) queueAdd();
    expect(driver.interrupts).toBe(1);
    expect(queue.untold).toBe(0);

    function queueAdd(): void {
      driver.queues[0]!.add([driver.writable(1)]);
      driver.queues[0]!.kick();
    }
  });
});

test("a flood of failures is not a flood of log lines", () => {
  for (let i = 0; i < 50; i++) {
    queue.publish(16);
    queue.notify();
    driver.start();
    queue = driver.queues[0]!;
  }
  expect(logs.length).toBe(10);
});

test(`survives ${FUZZ_COUNT} mutations`, () => {
  const result = fuzzDevice({
    seed: 1,
    device: () => new EchoDevice(),
    request: (random, d) => [
      ...Array.from({ length: random.below(3) }, () =>
        d.readable(new Uint8Array(1 + random.below(64)).fill(7)),
      ),
      ...Array.from({ length: 1 + random.below(3) }, () => d.writable(1 + random.below(64))),
    ],
  });
  expect(result.mutations).toBe(FUZZ_COUNT);
  expect(result.completed).toBeGreaterThan(FUZZ_COUNT / 10);
  expect(result.needsReset).toBeGreaterThan(FUZZ_COUNT / 100);
}, 600_000);
