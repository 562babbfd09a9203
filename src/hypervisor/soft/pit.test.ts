import { beforeEach, describe, expect, test } from "bun:test";
import { PIT_HZ, Pit } from "./pit.ts";

const CONTROL_WORD = 0x43;
const SYSTEM_CONTROL = 0x61;
const GATE_2 = 1;
const OUT_2 = 0x20;

let now = 0n;
let pit: Pit;

/** Time after which `pulses` of the input clock have come. */
const after = (pulses: number) => BigInt(Math.ceil((pulses * 1e9) / PIT_HZ));
const advance = (pulses: number) => {
  now += after(pulses);
};

/** Control word with both bytes, then a count. */
function program(counter: number, mode: number, count: number, bcd = 0): void {
  pit.write(CONTROL_WORD, (counter << 6) | 0x30 | (mode << 1) | bcd);
  pit.write(0x40 + counter, count & 0xff);
  pit.write(0x40 + counter, count >> 8);
}
const read16 = (counter: number) => pit.read(0x40 + counter) | (pit.read(0x40 + counter) << 8);
/** Read-back of a counter's status byte. */
function status(counter: number): number {
  pit.write(CONTROL_WORD, 0xe0 | (2 << counter));
  return pit.read(0x40 + counter);
}
const out = (counter: number) => (status(counter) & 0x80) !== 0;
const out2 = () => (pit.read(SYSTEM_CONTROL) & OUT_2) !== 0;

beforeEach(() => {
  now = 1_000_000_000n;
  pit = new Pit(() => now);
});

test("ports", () => {
  for (const port of [0x40, 0x41, 0x42, 0x43, 0x61]) expect(Pit.owns(port)).toBe(true);
  for (const port of [0x3f, 0x44, 0x60, 0x62, 0x140]) expect(Pit.owns(port)).toBe(false);
});

test("nothing runs before it is programmed", () => {
  advance(100_000);
  expect([pit.nextEdge, pit.takeEdges(), read16(0)]).toEqual([undefined, false, 0]);
});

describe("counter 0 as the system timer", () => {
  test("mode 0 gives one edge, at the end of the count", () => {
    program(0, 0, 1000);
    expect(out(0)).toBe(false);
    expect(pit.nextEdge).toBe(now + after(1000));
    advance(999);
    expect([out(0), pit.takeEdges()]).toEqual([false, false]);
    now = pit.nextEdge!;
    expect([out(0), pit.takeEdges(), pit.takeEdges()]).toEqual([true, true, false]);
    expect(pit.nextEdge).toBeUndefined();
    advance(1_000_000);
    expect([out(0), pit.takeEdges()]).toEqual([true, false]);
  });

  test.each([2, 3])("mode %d gives an edge a period; missed ones are not made up for", (mode) => {
    program(0, mode, 11_932);
    const start = now;
    for (let i = 1; i <= 5; i++) {
      expect(pit.nextEdge).toBe(start + after(i * 11_932));
      expect(pit.takeEdges()).toBe(false);
      now = pit.nextEdge!;
      expect([pit.takeEdges(), pit.takeEdges()]).toEqual([true, false]);
    }
    advance(10 * 11_932);
    expect([pit.takeEdges(), pit.takeEdges()]).toEqual([true, false]);
    expect(pit.nextEdge! > now).toBe(true);
    expect(pit.nextEdge! - now <= after(11_932)).toBe(true);
  });

  test("mode 4 gives one edge, when the strobe ends", () => {
    program(0, 4, 500);
    expect(out(0)).toBe(true);
    advance(500);
    expect([out(0), pit.takeEdges()]).toEqual([false, false]);
    expect(pit.nextEdge).toBe(1_000_000_000n + after(501));
    now = pit.nextEdge!;
    expect([out(0), pit.takeEdges(), pit.nextEdge]).toEqual([true, true, undefined]);
    // A new count strobes anew.
    pit.write(0x40, 0x10);
    pit.write(0x40, 0x00);
    now = pit.nextEdge!;
    expect(pit.takeEdges()).toBe(true);
  });

  test("a control word stops it", () => {
    program(0, 2, 1000);
    pit.write(CONTROL_WORD, 0x30);
    advance(5000);
    expect([pit.nextEdge, pit.takeEdges()]).toEqual([undefined, false]);
    // Its mode is 0 now: half a count is none.
    pit.write(0x40, 0x10);
    expect(pit.nextEdge).toBeUndefined();
    pit.write(0x40, 0x00);
    expect(pit.nextEdge).toBe(now + after(16));
    // The first byte of another count stops it, the second starts it.
    pit.write(0x40, 0x20);
    expect(pit.nextEdge).toBeUndefined();
    advance(100);
    expect([pit.takeEdges(), out(0)]).toEqual([false, false]);
    pit.write(0x40, 0x00);
    expect(pit.nextEdge).toBe(now + after(32));
  });

  test("a count of 0 is 65,536", () => {
    program(0, 2, 0);
    expect(pit.nextEdge).toBe(now + after(65_536));
    program(0, 2, 0, 1);
    expect(pit.nextEdge).toBe(now + after(10_000));
  });

  test("a new count of a periodic counter takes effect at the end of the period", () => {
    program(0, 2, 1000);
    const start = now;
    now = start + after(1400);
    expect(pit.takeEdges()).toBe(true);
    pit.write(0x40, 100);
    pit.write(0x40, 0);
    expect(pit.nextEdge).toBe(start + after(2000));
    now = start + after(2000);
    expect([pit.takeEdges(), pit.takeEdges()]).toEqual([true, false]);
    expect(pit.nextEdge).toBe(start + after(2000) + after(100));
    now = pit.nextEdge!;
    expect(pit.takeEdges()).toBe(true);
  });

  test("the edge at the end of the old period is not lost if nobody looks before the new one", () => {
    program(0, 2, 1000);
    pit.write(0x40, 0);
    pit.write(0x40, 0x10);
    advance(1000);
    advance(1);
    expect(read16(0)).toBe(0x0fff);
    expect(pit.nextEdge! <= now).toBe(true);
    expect([pit.takeEdges(), pit.takeEdges()]).toEqual([true, false]);
    expect(pit.nextEdge! > now).toBe(true);
  });
});

describe("reading", () => {
  test("the count goes down, and in mode 0 past 0", () => {
    program(0, 0, 0x1234);
    advance(0x34);
    expect(read16(0)).toBe(0x1200);
    now += after(0x1300 - 0x34);
    expect(read16(0)).toBe(0xff34);
  });

  test("mode 2 goes from N to 1, mode 3 by twos", () => {
    program(0, 2, 4);
    const seen = Array.from({ length: 6 }, (_, i) => {
      now = 1_000_000_000n + after(i);
      return read16(0);
    });
    expect(seen).toEqual([4, 3, 2, 1, 4, 3]);
    now = 1_000_000_000n;
    program(0, 3, 6);
    const square = Array.from({ length: 7 }, (_, i) => {
      now = 1_000_000_000n + after(i);
      return [read16(0), out(0)];
    });
    expect(square).toEqual([
      [6, true],
      [4, true],
      [2, true],
      [6, false],
      [4, false],
      [2, false],
      [6, true],
    ]);
  });

  test("a square wave of one pulse is read as 1", () => {
    program(0, 3, 1);
    expect(read16(0)).toBe(1);
  });

  test("an odd square wave is high for the longer half", () => {
    program(0, 3, 5);
    const high = Array.from({ length: 5 }, (_, i) => {
      now = 1_000_000_000n + after(i);
      return out(0);
    });
    expect(high).toEqual([true, true, true, false, false]);
  });

  test("counter latch holds the count until it is read, once", () => {
    program(0, 2, 10_000);
    advance(100);
    pit.write(CONTROL_WORD, 0x00);
    advance(100);
    pit.write(CONTROL_WORD, 0x00);
    expect(read16(0)).toBe(9900);
    expect(read16(0)).toBe(9800);
  });

  test("least or most significant byte alone", () => {
    pit.write(CONTROL_WORD, 0x14); // counter 0, LSB, mode 2
    pit.write(0x40, 200);
    expect(pit.nextEdge).toBe(now + after(200));
    advance(50);
    expect([pit.read(0x40), pit.read(0x40)]).toEqual([150, 150]);
    pit.write(CONTROL_WORD, 0x24); // MSB
    pit.write(0x40, 2);
    expect(pit.nextEdge).toBe(now + after(512));
    advance(100);
    expect(pit.read(0x40)).toBe(1);
  });

  test("BCD", () => {
    program(0, 0, 0x1234, 1);
    advance(234);
    expect(read16(0)).toBe(0x1000);
    now += after(1001);
    expect(read16(0)).toBe(0x9999);
    expect(status(0)).toBe(0x80 | 0x31);
  });

  test("read-back: status before count, of the counters named", () => {
    pit.write(CONTROL_WORD, 0x34); // counter 0, mode 2, without a count yet
    expect(status(0)).toBe(0x80 | 0x40 | 0x34);
    pit.write(0x40, 0xe8);
    pit.write(0x40, 0x03);
    program(1, 0, 50);
    advance(10);
    pit.write(CONTROL_WORD, 0xc0 | 0x02 | 0x04); // count and status of counters 0 and 1
    advance(10);
    expect(pit.read(0x40)).toBe(0x80 | 0x34);
    expect(read16(0)).toBe(990);
    expect(pit.read(0x41)).toBe(0x30);
    expect(read16(1)).toBe(40);
    // A new count that waits for the end of the period is not loaded.
    pit.write(0x40, 0x10);
    pit.write(0x40, 0x00);
    expect(status(0) & 0x40).toBe(0x40);
  });
});

describe("counter 2 behind its gate", () => {
  test("mode 0 counts while the gate is open, as calibration loops use it", () => {
    program(2, 0, 1000);
    advance(5000);
    expect([out2(), read16(2)]).toEqual([false, 1000]);
    pit.write(SYSTEM_CONTROL, GATE_2);
    advance(400);
    expect([out2(), read16(2)]).toEqual([false, 600]);
    pit.write(SYSTEM_CONTROL, 0);
    advance(5000);
    expect([out2(), read16(2)]).toEqual([false, 600]);
    pit.write(SYSTEM_CONTROL, GATE_2);
    advance(599);
    expect(out2()).toBe(false);
    advance(2);
    expect(out2()).toBe(true);
  });

  test("mode 1 is triggered by the gate, and anew while it runs", () => {
    program(2, 1, 100);
    advance(1000);
    expect(out2()).toBe(true);
    pit.write(SYSTEM_CONTROL, GATE_2);
    expect(out2()).toBe(false);
    advance(60);
    pit.write(SYSTEM_CONTROL, 0);
    pit.write(SYSTEM_CONTROL, GATE_2);
    advance(60);
    expect(out2()).toBe(false);
    // A new count is for the next trigger.
    pit.write(0x42, 10);
    pit.write(0x42, 0);
    advance(50);
    expect(out2()).toBe(true);
    pit.write(SYSTEM_CONTROL, 0);
    pit.write(SYSTEM_CONTROL, GATE_2);
    advance(9);
    expect(out2()).toBe(false);
    advance(2);
    expect(out2()).toBe(true);
    // Neither a closing gate nor an open one triggers.
    pit.write(SYSTEM_CONTROL, 0);
    expect(out2()).toBe(true);
    pit.write(SYSTEM_CONTROL, GATE_2);
    program(2, 1, 100);
    expect(out2()).toBe(true);
    pit.write(SYSTEM_CONTROL, GATE_2);
    expect(out2()).toBe(true);
  });

  test("modes 2 and 3 start at the gate, and are high while it is closed", () => {
    for (const mode of [2, 3]) {
      pit.write(SYSTEM_CONTROL, 0);
      program(2, mode, 100);
      advance(99);
      expect(out2()).toBe(true);
      pit.write(SYSTEM_CONTROL, GATE_2);
      advance(99);
      expect(out2()).toBe(false);
      pit.write(SYSTEM_CONTROL, 0);
      advance(1000);
      expect([out2(), read16(2)]).toEqual([true, 100]);
      pit.write(SYSTEM_CONTROL, GATE_2);
      expect(read16(2)).toBe(100);
    }
  });

  test("mode 5 strobes a count after the gate", () => {
    program(2, 5, 100);
    advance(100);
    expect(out2()).toBe(true);
    pit.write(SYSTEM_CONTROL, GATE_2);
    advance(100);
    expect(out2()).toBe(false);
    advance(1);
    expect(out2()).toBe(true);
  });

  test("port 0x61 keeps gate and speaker, and the refresh clock runs", () => {
    pit.write(SYSTEM_CONTROL, 0xff);
    expect(pit.read(SYSTEM_CONTROL) & 0x0f).toBe(3);
    const before = pit.read(SYSTEM_CONTROL) & 0x10;
    now += 16_384n;
    expect(pit.read(SYSTEM_CONTROL) & 0x10).toBe(before ^ 0x10);
  });
});

test("random commands never break it, and the next edge is never missed", () => {
  let seed = 99;
  const random = (below: number) => {
    seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
    return (seed >>> 8) % below;
  };
  const ports = [0x40, 0x41, 0x42, 0x43, 0x61];
  for (let i = 0; i < 100_000; i++) {
    const port = ports[random(ports.length)]!;
    switch (random(4)) {
      case 0:
        pit.write(port, random(256));
        break;
      case 1: {
        const value = pit.read(port);
        expect(value).toBe(value & 0xff);
        break;
      }
      case 2:
        now += BigInt(random(1_000_000));
        break;
      default: {
        const due = pit.nextEdge;
        const risen = pit.takeEdges();
        expect({ i, risen }).toEqual({ i, risen: due !== undefined && due <= now });
      }
    }
  }
});
