import { beforeEach, describe, expect, test } from "bun:test";
import { SERIAL_SHARED_BYTES, Serial, SerialBack } from "./serial.ts";

const [DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR] = [0, 1, 2, 3, 4, 5, 6, 7];
const FCR = IIR;
const LSR_IDLE = 0x60;

let port: Serial;
let back: SerialBack;
let irqs: number;
let bells: number;

beforeEach(() => {
  const shared = new SharedArrayBuffer(64 + SERIAL_SHARED_BYTES);
  const irq = { trigger: () => void irqs++ };
  port = new Serial(shared, 64, irq, () => void bells++);
  back = new SerialBack(shared, 64, irq);
  irqs = 0;
  bells = 0;
});

function read(offset: number): number {
  return port.read(offset, 1);
}
function write(offset: number, value: number): void {
  port.write(offset, 1, value);
}
function output(): string {
  let text = "";
  back.drain((bytes) => {
    text += String.fromCharCode(...bytes);
  });
  return text;
}

test("the shared region is whole cache lines", () => {
  expect(SERIAL_SHARED_BYTES % 64).toBe(0);
});

describe("what Linux's 8250 driver probes", () => {
  test("IER keeps only its four bits", () => {
    write(IER, 0);
    expect(read(IER)).toBe(0);
    write(IER, 0xff);
    expect(read(IER)).toBe(0x0f);
  });

  test("loopback ties the modem outputs to the inputs", () => {
    write(MCR, 0x10 | 0x08 | 0x02);
    expect(read(MSR) & 0xf0).toBe(0x90);
    write(MCR, 0x10 | 0x04 | 0x01);
    expect(read(MSR) & 0xf0).toBe(0x60);
    write(MCR, 0);
    expect(read(MSR) & 0xf0).toBe(0xb0);
  });

  test("FIFO ids say 16550A, and there is no 64-byte FIFO", () => {
    expect(read(IIR)).toBe(0x01);
    write(FCR, 0x01);
    expect(read(IIR)).toBe(0xc1);
    write(LCR, 0x80);
    write(FCR, 0x21);
    expect(read(IIR) & 0x20).toBe(0);
  });

  test("the divisor latch is apart from data and IER, and SCR remembers", () => {
    write(IER, 0x05);
    write(LCR, 0x83);
    write(DATA, 0x34);
    write(IER, 0x12);
    expect([read(DATA), read(IER), read(LCR)]).toEqual([0x34, 0x12, 0x83]);
    write(LCR, 0x03);
    expect(read(IER)).toBe(0x05);
    expect(output()).toBe("");
    write(SCR, 0xa5);
    expect(read(SCR)).toBe(0xa5);
  });

  test("enabling the transmitter cause raises it every time (UART_BUG_THRE)", () => {
    for (let i = 0; i < 2; i++) {
      write(IER, 0x02);
      expect(irqs).toBe(i + 1);
      expect(read(IIR)).toBe(0x02);
      expect(read(IIR)).toBe(0x01);
      write(IER, 0);
    }
  });
});

describe("output", () => {
  test("rings once until the back has caught up", () => {
    for (const c of "hello") write(DATA, c.charCodeAt(0));
    expect(bells).toBe(1);
    expect(output()).toBe("hello");
    write(DATA, 0x21);
    expect(bells).toBe(2);
    expect(output()).toBe("!");
  });

  test("one interrupt for a FIFO of bytes, and the next after IIR was read", () => {
    write(IER, 0x02);
    expect(read(IIR)).toBe(0x02);
    irqs = 0;
    for (let i = 0; i < 16; i++) write(DATA, i);
    expect(irqs).toBe(1);
    expect(read(IIR)).toBe(0x02);
    for (let i = 0; i < 16; i++) write(DATA, i);
    expect(irqs).toBe(2);
  });

  test("a driver that heeds LSR loses nothing when the back does not drain", () => {
    write(IER, 0x02);
    read(IIR);
    let sent = 0;
    while ((read(LSR) & 0x20) !== 0) {
      for (let i = 0; i < 16; i++) write(DATA, 0x41 + (sent++ % 26));
      if (sent > 100_000) throw new Error("the transmitter never fills");
    }
    expect(read(LSR)).toBe(0);
    read(IIR);
    expect(read(IIR)).toBe(0x01);
    irqs = 0;
    const text = output();
    expect(text.length).toBe(sent);
    expect(text.slice(-3)).toBe(
      [3, 2, 1].map((back) => String.fromCharCode(0x41 + ((sent - back) % 26))).join(""),
    );
    expect(irqs).toBe(1);
    expect(read(IIR)).toBe(0x02);
    expect(read(LSR)).toBe(LSR_IDLE);
    expect(back.lostOutput).toBe(0);
  });

  test("a driver that does not is counted", () => {
    for (let i = 0; i < 16 * 1024 + 5; i++) write(DATA, 0);
    expect(back.lostOutput).toBe(5);
  });

  test("output kept by a failing sink frees the transmitter only when it is taken", () => {
    write(IER, 0x02);
    while ((read(LSR) & 0x20) !== 0) write(DATA, 0);
    read(IIR);
    irqs = 0;
    expect(() =>
      back.drain(() => {
        throw new Error("closed");
      }),
    ).toThrow("closed");
    expect(irqs).toBe(0);
    output();
    expect(irqs).toBe(1);
  });
});

describe("input", () => {
  test("raises the data cause with priority over the transmitter", () => {
    write(IER, 0x03);
    irqs = 0;
    expect(back.pushInput(Uint8Array.of(7, 8))).toBe(2);
    expect(irqs).toBe(1);
    expect(read(IIR)).toBe(0x04);
    expect(read(LSR)).toBe(LSR_IDLE | 0x01);
    expect([read(DATA), read(DATA), read(DATA)]).toEqual([7, 8, 0]);
    expect(read(LSR)).toBe(LSR_IDLE);
    expect(read(IIR)).toBe(0x02);
    expect(read(IIR)).toBe(0x01);
  });

  test("without the enable there is no interrupt until it is set", () => {
    back.pushInput(Uint8Array.of(1));
    expect(irqs).toBe(0);
    write(IER, 0x01);
    expect(irqs).toBe(1);
  });

  test("what does not fit is refused and asked for again", () => {
    const input = Uint8Array.from({ length: 1500 }, (_, i) => i & 0xff);
    const first = back.pushInput(input);
    expect(first).toBe(1024);
    const got: number[] = [];
    while (bells === 0) got.push(read(DATA));
    expect(got.length).toBe(512);
    expect(back.pushInput(input.subarray(first))).toBe(476);
    while ((read(LSR) & 0x01) !== 0) got.push(read(DATA));
    expect(got).toEqual([...input]);
    expect(bells).toBe(1);
  });

  test("FCR clears the receiver", () => {
    write(FCR, 0x01);
    back.pushInput(Uint8Array.of(1, 2));
    write(FCR, 0x03);
    expect(read(LSR)).toBe(LSR_IDLE);
  });
});

describe("loopback", () => {
  test("returns what was sent, hides the outside, and overruns at 16 bytes", () => {
    write(MCR, 0x10);
    write(IER, 0x04);
    back.pushInput(Uint8Array.of(0xee));
    for (let i = 0; i < 17; i++) write(DATA, i);
    expect(output()).toBe("");
    expect(read(IIR)).toBe(0x06);
    expect(read(LSR)).toBe(LSR_IDLE | 0x03);
    expect(read(IIR)).toBe(0x01);
    expect(Array.from({ length: 17 }, () => read(DATA))).toEqual([
      ...Array.from({ length: 16 }, (_, i) => i),
      0,
    ]);
    write(MCR, 0);
    expect(read(DATA)).toBe(0xee);
  });

  test("modem changes are latched until MSR is read", () => {
    write(IER, 0x08);
    write(MCR, 0x10);
    expect(irqs).toBe(1);
    expect(read(IIR)).toBe(0x00);
    expect(read(MSR)).toBe(0x0b);
    expect(read(IIR)).toBe(0x01);
    write(MCR, 0x14);
    expect(read(MSR)).toBe(0x40);
    write(MCR, 0x10);
    expect(read(MSR)).toBe(0x04);
  });
});

test("wide accesses and offsets past the end are nothing", () => {
  port.write(DATA, 2, 0x4141);
  port.write(9, 1, 0x41);
  expect(output()).toBe("");
  expect(port.read(LSR, 4)).toBe(0);
  expect(port.read(9, 1)).toBe(0);
});

test("random register traffic never throws", () => {
  let seed = 12345;
  const next = (): number => {
    seed = (Math.imul(seed, 1103515245) + 12345) & 0x7fffffff;
    return seed >> 8;
  };
  for (let i = 0; i < 20_000; i++) {
    const offset = next() % 10;
    if (next() % 2 === 0) write(offset, next());
    else {
      const value = read(offset);
      expect(value >= 0 && value <= 0xff).toBe(true);
    }
    if (next() % 8 === 0) back.pushInput(Uint8Array.of(next(), next()));
    if (next() % 16 === 0) output();
  }
});
