import { beforeEach, describe, expect, test } from "bun:test";
import * as reg from "../mmio/registers.ts";
import { TestDriver } from "../testing/driver.ts";
import { FUZZ_COUNT, fuzzDevice } from "../testing/fuzz.ts";
import { ConsoleDevice, MAX_PORTS, VIRTIO_CONSOLE_F_MULTIPORT } from "./console.ts";
import { type ControlMessage, decodeControl, encodeControl } from "./control.ts";

const [READY, ADD, PORT_READY, OPEN, NAME] = [0, 1, 3, 6, 7];
const [CONTROL_IN, CONTROL_OUT] = [2, 3];
const BAD_ID = 0xffffffff;
/** Queues of port 1. */
const [STDOUT_IN, STDOUT_OUT] = [4, 5];

let device: ConsoleDevice;
let driver: TestDriver;
let logs: string[];
/** Receive buffers that wait for the device, by queue and head. */
let waiting: Map<string, { gpa: number; length: number }>;

function start(names = ["stdin", "stdout", ""]): void {
  logs = [];
  waiting = new Map();
  device = new ConsoleDevice(names);
  driver = TestDriver.start(device, { events: { log: (line) => logs.push(line) } });
}
beforeEach(() => start());

function provide(queue: number, count: number, length: number): void {
  for (let i = 0; i < count; i++) {
    const buffer = driver.writable(length);
    const head = driver.queues[queue]!.add([buffer]);
    waiting.set(`${queue}:${head}`, buffer);
  }
  driver.queues[queue]!.kick();
}

/** What arrived in a receive queue. */
function received(queue: number): Uint8Array[] {
  return driver.queues[queue]!.takeUsed().map(({ id, length }) => {
    const { gpa } = waiting.get(`${queue}:${id}`)!;
    return Uint8Array.from(driver.ram(gpa, length));
  });
}

function control(id: number, event: number, value: number): void {
  const message = encodeControl({ id, event, value });
  expect(driver.request(CONTROL_OUT, [driver.readable(message)])).toBe(0);
}

function messages(): (ControlMessage & { name?: string })[] {
  return received(CONTROL_IN).map((bytes) => {
    const message = decodeControl(bytes);
    return bytes.length > 8 ? { ...message, name: Buffer.from(bytes.subarray(8)).toString() } : message;
  });
}

function text(parts: Uint8Array[]): string {
  return Buffer.concat(parts).toString();
}

/** As Linux does at probe: buffers for control, DEVICE_READY, PORT_READY for each port. */
function bringUp(): void {
  provide(CONTROL_IN, 16, 128);
  control(BAD_ID, READY, 1);
  for (const { id } of messages()) control(id, PORT_READY, 1);
  messages();
}

test("configuration: number of ports, two queues each and two for control", () => {
  expect(driver.read(reg.DEVICE_ID)).toBe(3);
  expect(driver.front.read(reg.CONFIG + 4, 4)).toBe(3);
  expect(device.queueSizes).toHaveLength(8);
  expect(device.port("stdout").id).toBe(1);
  expect(() => device.port("nothing")).toThrow('no console port is called "nothing"');
  expect(() => new ConsoleDevice([])).toThrow("0 console ports");
  expect(() => new ConsoleDevice(new Array<string>(MAX_PORTS + 1).fill("x"))).toThrow("16 console ports");
  expect(() => new ConsoleDevice(["ü".repeat(33)])).toThrow("longer than 64 bytes");
});

describe("control", () => {
  test("ports are added, then opened before they are named", () => {
    provide(CONTROL_IN, 16, 128);
    control(BAD_ID, READY, 1);
    expect(messages()).toEqual([0, 1, 2].map((id) => ({ id, event: ADD, value: 1 })));
    control(1, PORT_READY, 1);
    expect(messages()).toEqual([
      { id: 1, event: OPEN, value: 1 },
      { id: 1, event: NAME, value: 1, name: "stdout" },
    ]);
    control(2, PORT_READY, 1);
    expect(messages()).toEqual([{ id: 2, event: OPEN, value: 1 }]);
  });

  test("messages wait for buffers, in whatever number they come", () => {
    control(BAD_ID, READY, 1);
    control(0, PORT_READY, 1);
    const got: ControlMessage[] = [];
    for (let i = 0; i < 5; i++) {
      provide(CONTROL_IN, 1, 128);
      got.push(...messages());
    }
    expect(got.map(({ id, event }) => [id, event])).toEqual([
      [0, ADD],
      [0, OPEN],
      [0, NAME],
      [1, ADD],
      [2, ADD],
    ]);
  });

  test("a guest that asks again and again is owed each message once", () => {
    for (let i = 0; i < 1000; i++) control(BAD_ID, READY, 1);
    provide(CONTROL_IN, 16, 128);
    expect(messages()).toHaveLength(3);
  });

  test("nonsense is logged and ignored", () => {
    provide(CONTROL_IN, 16, 128);
    control(77, OPEN, 1);
    control(0, PORT_READY, 0);
    control(0, 999, 1);
    control(BAD_ID, READY, 0);
    expect(driver.request(CONTROL_OUT, [driver.readable(new Uint8Array(7))])).toBe(0);
    expect(messages()).toEqual([]);
    expect(logs).toEqual([
      "console: control message 6 for port 77 of 3",
      "console: the driver could not set up port 0",
      "console: the driver could not set the device up",
      "console: control message of 7 bytes, at least 8",
    ]);
    expect(driver.needsReset).toBe(false);
  });

  test("a buffer too small for a message stops the queue", () => {
    provide(CONTROL_IN, 1, 4);
    control(BAD_ID, READY, 1);
    expect(driver.needsReset).toBe(true);
    expect(logs[0]).toContain("control buffer of 4 bytes for a message of 8");
  });
});

describe("output of the guest", () => {
  function send(...parts: string[]): void {
    driver.queues[STDOUT_OUT]!.add(parts.map((part) => driver.readable(new TextEncoder().encode(part))));
    driver.queues[STDOUT_OUT]!.kick();
  }
  let got: string[];
  let opens: boolean[];
  let ready: boolean;

  beforeEach(() => {
    bringUp();
    got = [];
    opens = [];
    ready = true;
    device.port("stdout").connect({
      onData: (bytes) => {
        if (ready) got.push(Buffer.from(bytes).toString());
        return ready;
      },
      onGuestOpen: (open) => opens.push(open),
    });
  });

  test("goes to the port's handler and to no other", () => {
    device.port("stdin").connect({
      onData: () => {
        throw new Error("wrong port");
      },
    });
    control(1, OPEN, 1);
    send("hello ", "world");
    expect(got).toEqual(["hello ", "world"]);
    expect(driver.queues[STDOUT_OUT]!.takeUsed()).toHaveLength(1);
    expect(driver.needsReset).toBe(false);
  });

  test("waits while the handler is busy, and loses and doubles nothing", () => {
    send("one");
    ready = false;
    send("two");
    send("three");
    expect(driver.queues[STDOUT_OUT]!.takeUsed()).toHaveLength(1);
    device.port("stdout").resume();
    expect(driver.queues[STDOUT_OUT]!.takeUsed()).toHaveLength(0);
    ready = true;
    device.port("stdout").resume();
    expect(got).toEqual(["one", "two", "three"]);
    expect(driver.queues[STDOUT_OUT]!.takeUsed()).toHaveLength(2);
  });

  test("goes on in the middle of a chain", () => {
    let calls = 0;
    device.port("stdout").connect({
      onData: (bytes) => {
        calls++;
        if (calls === 2) return false;
        got.push(Buffer.from(bytes).toString());
        return true;
      },
    });
    send("ab", "cd", "ef");
    expect(got).toEqual(["ab"]);
    device.port("stdout").resume();
    expect(got).toEqual(["ab", "cd", "ef"]);
  });

  test("waits for a handler to be connected", () => {
    start();
    bringUp();
    send("early");
    expect(driver.queues[STDOUT_OUT]!.takeUsed()).toEqual([]);
    device.port("stdout").connect({ onData: (bytes) => got.push(Buffer.from(bytes).toString()) > 0 });
    expect(got).toEqual(["early"]);
  });

  test("is complete before the host hears that the guest closed the port", () => {
    control(1, OPEN, 1);
    ready = false;
    send("last words");
    control(1, OPEN, 0);
    expect(opens).toEqual([true]);
    expect(device.port("stdout").guestOpen).toBe(true);
    ready = true;
    device.port("stdout").resume();
    expect(got).toEqual(["last words"]);
    expect(opens).toEqual([true, false]);

    // Without the kick that the device has not asked for.
    control(1, OPEN, 1);
    driver.queues[STDOUT_OUT]!.add([driver.readable(new TextEncoder().encode("unkicked"))]);
    control(1, OPEN, 0);
    expect(got).toEqual(["last words", "unkicked"]);
    expect(opens).toEqual([true, false, true, false]);
  });

  test("a reset closes the port for the host", () => {
    control(1, OPEN, 1);
    driver.write(reg.STATUS, 0);
    expect(opens).toEqual([true, false]);
    expect(device.port("stdout").write(Uint8Array.of(1))).toBe(0);
  });
});

describe("input for the guest", () => {
  const bytes = new TextEncoder().encode("0123456789");
  let writable: number;

  beforeEach(() => {
    bringUp();
    writable = 0;
    device.port("stdout").connect({ onWritable: () => void writable++ });
  });

  test("is refused until a program has the port open, and then asked for", () => {
    const port = device.port("stdout");
    provide(STDOUT_IN, 2, 8);
    expect(port.write(bytes)).toBe(0);
    expect(writable).toBe(0);
    control(1, OPEN, 1);
    expect(writable).toBe(1);
    expect(port.write(bytes)).toBe(10);
    expect(text(received(STDOUT_IN))).toBe("0123456789");
  });

  test("fills what room there is, and the rest follows", () => {
    const port = device.port("stdout");
    control(1, OPEN, 1);
    expect(port.write(bytes)).toBe(0);
    provide(STDOUT_IN, 1, 4);
    expect(writable).toBe(1);
    expect(port.write(bytes)).toBe(4);
    provide(STDOUT_IN, 3, 4);
    expect(writable).toBe(2);
    expect(port.write(bytes.subarray(4))).toBe(6);
    expect(text(received(STDOUT_IN))).toBe("0123456789");
    // One buffer is left, nothing waits: more room is no news.
    provide(STDOUT_IN, 1, 4);
    expect(writable).toBe(2);
  });

  test("may be written from inside onWritable", () => {
    const port = device.port("stdout");
    let rest = bytes;
    port.connect({
      onWritable: () => {
        rest = rest.subarray(port.write(rest));
      },
    });
    control(1, OPEN, 1);
    rest = rest.subarray(port.write(rest));
    for (let i = 0; i < 5; i++) provide(STDOUT_IN, 1, 2);
    expect(rest).toHaveLength(0);
    expect(text(received(STDOUT_IN))).toBe("0123456789");
  });

  test("ends when the host closes the port", () => {
    const port = device.port("stdout");
    control(1, OPEN, 1);
    provide(STDOUT_IN, 1, 16);
    port.write(bytes);
    port.close();
    port.close();
    expect(messages()).toEqual([{ id: 1, event: OPEN, value: 0 }]);
    expect(port.write(bytes)).toBe(0);
    expect(text(received(STDOUT_IN))).toBe("0123456789");
    port.open();
    expect(messages()).toEqual([{ id: 1, event: OPEN, value: 1 }]);
  });

  test("a port closed early tells the guest when it asks", () => {
    start();
    device.port("stdout").close();
    provide(CONTROL_IN, 16, 128);
    control(BAD_ID, READY, 1);
    messages();
    control(1, PORT_READY, 1);
    expect(messages()[0]).toEqual({ id: 1, event: OPEN, value: 0 });
  });
});

test("a driver without MULTIPORT has port 0, open from the start", () => {
  device = new ConsoleDevice(["only"]);
  const got: string[] = [];
  device.port("only").connect({ onData: (bytes) => got.push(Buffer.from(bytes).toString()) > 0 });
  driver = TestDriver.start(device, { features: ~VIRTIO_CONSOLE_F_MULTIPORT });
  waiting = new Map();
  provide(0, 1, 8);
  expect(device.port("only").write(Uint8Array.of(0x68, 0x69))).toBe(2);
  expect(text(received(0))).toBe("hi");
  driver.request(1, [driver.readable(new TextEncoder().encode("out"))]);
  expect(got).toEqual(["out"]);
});

test(`survives ${FUZZ_COUNT} mutations`, () => {
  const result = fuzzDevice({
    seed: 4,
    device: () => {
      const fuzzed = new ConsoleDevice(["a", "b", "c"]);
      let calls = 0;
      for (const port of fuzzed.ports) {
        port.connect({
          onData: () => calls++ % 5 !== 0,
          onWritable: () => void port.write(new Uint8Array(200)),
        });
      }
      return fuzzed;
    },
    request: (random, d, queue) => {
      if (queue === CONTROL_OUT) {
        const id = random.pick([0, 1, 2, 3, BAD_ID]);
        const event = random.pick([READY, ADD, PORT_READY, OPEN, NAME, 2, 0xffff]);
        return [d.readable(encodeControl({ id, event, value: random.below(2) }))];
      }
      const count = 1 + random.below(3);
      if (queue % 2 === 0) return Array.from({ length: count }, () => d.writable(16 + random.below(100)));
      return Array.from({ length: count }, () => d.readable(new Uint8Array(1 + random.below(100))));
    },
    host: (random, fuzzed) => {
      const port = random.pick((fuzzed as ConsoleDevice).ports);
      const action = random.below(4);
      if (action === 0) port.write(new Uint8Array(1 + random.below(500)));
      else if (action === 1) port.resume();
      else if (action === 2) port.close();
      else port.open();
    },
  });
  expect(result.mutations).toBe(FUZZ_COUNT);
  expect(result.completed).toBeGreaterThan(FUZZ_COUNT / 10);
  expect(result.needsReset).toBeGreaterThan(FUZZ_COUNT / 100);
}, 600_000);
