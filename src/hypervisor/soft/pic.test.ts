import { beforeEach, describe, expect, test } from "bun:test";
import { Pic } from "./pic.ts";

const MASTER = 0x20;
const SLAVE = 0xa0;
const ELCR1 = 0x4d0;
const ELCR2 = 0x4d1;
const ICW4_8086 = 0x01;
const ICW4_AEOI = 0x02;
const ICW4_SFNM = 0x10;
const EOI = 0x20;
const SPECIFIC_EOI = 0x60;
const READ_IRR = 0x0a;
const READ_ISR = 0x0b;
const POLL = 0x0c;
const SPECIAL_MASK = 0x68;
const NO_SPECIAL_MASK = 0x48;

let pic: Pic;

/** ICW1 to ICW4 of both chips, as Linux gives them: vectors 0x30 to 0x3f, all unmasked. */
function initialize(masterIcw4 = ICW4_8086, slaveIcw4 = ICW4_8086): void {
  for (const [port, base, wiring, icw4] of [
    [MASTER, 0x30, 4, masterIcw4],
    [SLAVE, 0x38, 2, slaveIcw4],
  ] as const) {
    pic.write(port, 0x11);
    pic.write(port + 1, base);
    pic.write(port + 1, wiring);
    pic.write(port + 1, icw4);
    pic.write(port + 1, 0);
  }
}

const irr = (port: number) => {
  pic.write(port, READ_IRR);
  return pic.read(port);
};
const isr = (port: number) => {
  pic.write(port, READ_ISR);
  return pic.read(port);
};
/** All vectors that can be had one after the other without an EOI. */
function acknowledgeAll(): number[] {
  const vectors: number[] = [];
  while (pic.output) vectors.push(pic.acknowledge());
  return vectors;
}

beforeEach(() => {
  pic = new Pic();
  initialize();
});

test("ports", () => {
  for (const port of [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1]) expect(Pic.owns(port)).toBe(true);
  for (const port of [0x1f, 0x22, 0x9f, 0xa2, 0x40, 0x120, 0x4cf, 0x4d2]) expect(Pic.owns(port)).toBe(false);
});

describe("initialization", () => {
  test("nothing gets through before it", () => {
    pic = new Pic();
    for (let irq = 0; irq < 16; irq++) pic.pulse(irq);
    expect(pic.output).toBe(false);
    expect([pic.read(MASTER + 1), pic.read(SLAVE + 1)]).toEqual([0xff, 0xff]);
  });

  test("ICW1 clears the mask, the edges, what is in service, priorities and modes", () => {
    pic.write(MASTER + 1, 0xa5);
    expect(pic.read(MASTER + 1)).toBe(0xa5);
    pic.pulse(1);
    pic.acknowledge();
    pic.pulse(4);
    pic.write(MASTER, 0xc3); // IR3 lowest
    pic.write(MASTER, READ_ISR);
    pic.write(MASTER, SPECIAL_MASK);
    pic.write(MASTER, 0x11);
    for (const icw of [0x37, 4, ICW4_8086]) pic.write(MASTER + 1, icw);
    expect(pic.read(MASTER + 1)).toBe(0);
    // The status that is read is IRR again.
    pic.pulse(7);
    expect([pic.read(MASTER), isr(MASTER)]).toEqual([0x80, 0]);
    for (const irq of [4, 0]) pic.pulse(irq);
    // Bits 2-0 of ICW2 are the chip's own.
    expect(pic.acknowledge()).toBe(0x30);
    expect(acknowledgeAll()).toEqual([]);
  });

  test("without ICW4, and alone without ICW3", () => {
    initialize(ICW4_8086 | ICW4_AEOI);
    pic.write(MASTER, 0x10);
    pic.write(MASTER + 1, 0x50);
    pic.write(MASTER + 1, 0x04);
    // This is OCW1, and automatic EOI is off.
    pic.write(MASTER + 1, 0x02);
    expect(pic.read(MASTER + 1)).toBe(0x02);
    pic.pulse(0);
    expect([pic.acknowledge(), isr(MASTER)]).toEqual([0x50, 1]);
    pic.write(MASTER, 0x13);
    pic.write(MASTER + 1, 0x60);
    pic.write(MASTER + 1, ICW4_8086);
    pic.write(MASTER + 1, 0x08);
    expect(pic.read(MASTER + 1)).toBe(0x08);
    pic.pulse(0);
    expect(pic.acknowledge()).toBe(0x60);
  });

  test("a line that stays high is no new edge", () => {
    pic.setLine(5, true);
    initialize();
    expect([irr(MASTER), pic.output]).toEqual([0, false]);
    pic.setLine(5, false);
    expect(pic.output).toBe(false);
    pic.setLine(5, false);
    expect(pic.output).toBe(false);
    pic.setLine(5, true);
    expect(pic.acknowledge()).toBe(0x35);
    pic.write(MASTER, EOI);
    pic.setLine(5, true);
    expect(pic.output).toBe(false);
  });
});

describe("fully nested mode", () => {
  test("the highest request first; only higher ones interrupt what is in service", () => {
    pic.pulse(5);
    pic.pulse(3);
    expect(irr(MASTER)).toBe(0b10_1000);
    expect(acknowledgeAll()).toEqual([0x33]);
    expect([irr(MASTER), isr(MASTER)]).toEqual([0b10_0000, 0b1000]);
    pic.pulse(4);
    expect(pic.output).toBe(false);
    pic.pulse(1);
    expect(acknowledgeAll()).toEqual([0x31]);
    pic.pulse(0);
    expect(acknowledgeAll()).toEqual([0x30]);
    expect(isr(MASTER)).toBe(0b1011);
    pic.write(MASTER, EOI);
    expect([isr(MASTER), pic.output]).toEqual([0b1010, false]);
    pic.write(MASTER, EOI);
    expect([isr(MASTER), pic.output]).toEqual([0b1000, false]);
    pic.write(MASTER, EOI);
    expect(acknowledgeAll()).toEqual([0x34]);
    pic.write(MASTER, EOI);
    expect(acknowledgeAll()).toEqual([0x35]);
  });

  test("an edge while its own input is in service waits for the EOI; more of them are one", () => {
    pic.pulse(4);
    expect(pic.acknowledge()).toBe(0x34);
    pic.pulse(4);
    pic.pulse(4);
    expect(pic.output).toBe(false);
    pic.write(MASTER, EOI);
    expect(acknowledgeAll()).toEqual([0x34]);
    pic.write(MASTER, EOI);
    expect(pic.output).toBe(false);
  });

  test("a masked request is kept", () => {
    pic.write(MASTER + 1, 0x10);
    pic.pulse(4);
    expect([pic.output, irr(MASTER)]).toEqual([false, 0x10]);
    pic.write(MASTER + 1, 0);
    expect(acknowledgeAll()).toEqual([0x34]);
  });

  test("a specific EOI ends the input it names, an idle EOI nothing", () => {
    pic.pulse(5);
    pic.acknowledge();
    pic.pulse(2 + 1);
    pic.acknowledge();
    pic.write(MASTER, SPECIFIC_EOI | 5);
    expect(isr(MASTER)).toBe(0b1000);
    pic.write(MASTER, EOI);
    pic.write(MASTER, EOI);
    pic.write(MASTER, SPECIFIC_EOI | 7);
    expect(isr(MASTER)).toBe(0);
  });
});

describe("priorities", () => {
  test("setting them, or an EOI with nothing in service, ends and changes nothing else", () => {
    pic.pulse(4);
    pic.acknowledge();
    pic.write(MASTER, 0xc0 | 4);
    expect(isr(MASTER)).toBe(0x10);
    pic.write(MASTER, EOI);
    pic.write(MASTER, 0xc7);
    pic.write(MASTER, 0xa0); // rotate on non-specific EOI
    for (const irq of [6, 1]) pic.pulse(irq);
    expect(acknowledgeAll()).toEqual([0x31]);
    // OCW2 without a command.
    pic.write(MASTER, 0x40 | 1);
    expect(isr(MASTER)).toBe(0x02);
  });

  test("set priority: what is named becomes the lowest", () => {
    pic.write(MASTER, 0xc0 | 4);
    pic.pulse(0);
    pic.pulse(4);
    pic.pulse(5);
    const order: number[] = [];
    while (pic.output) {
      order.push(pic.acknowledge());
      pic.write(MASTER, EOI);
    }
    expect(order).toEqual([0x35, 0x30, 0x34]);
  });

  test("rotate on EOI: what was served becomes the lowest", () => {
    for (const irq of [3, 4]) pic.pulse(irq);
    expect(pic.acknowledge()).toBe(0x33);
    pic.write(MASTER, 0xa0); // rotate on non-specific EOI
    pic.pulse(3);
    expect(pic.acknowledge()).toBe(0x34);
    pic.write(MASTER, 0xe0 | 4); // rotate on specific EOI
    pic.pulse(4);
    pic.pulse(5);
    expect(pic.acknowledge()).toBe(0x35);
  });

  test("automatic EOI, with and without rotation", () => {
    initialize(ICW4_8086 | ICW4_AEOI);
    pic.pulse(3);
    pic.pulse(5);
    expect([pic.acknowledge(), isr(MASTER)]).toEqual([0x33, 0]);
    pic.pulse(3);
    expect(acknowledgeAll()).toEqual([0x33, 0x35]);
    pic.write(MASTER, 0x80); // rotate in automatic EOI mode
    pic.pulse(3);
    expect(pic.acknowledge()).toBe(0x33);
    pic.pulse(3);
    pic.pulse(4);
    expect(acknowledgeAll()).toEqual([0x34, 0x33]);
    pic.write(MASTER, 0x00);
    pic.write(MASTER, 0xc7);
    pic.pulse(3);
    pic.acknowledge();
    pic.pulse(3);
    pic.pulse(4);
    expect(acknowledgeAll()).toEqual([0x33, 0x34]);
    // Initialization ends the rotation.
    pic.write(MASTER, 0x80);
    initialize(ICW4_8086 | ICW4_AEOI);
    pic.pulse(3);
    pic.acknowledge();
    for (const irq of [4, 3]) pic.pulse(irq);
    expect(acknowledgeAll()).toEqual([0x33, 0x34]);
  });

  test("special mask mode: what is in service and masked lets lower ones through, and keeps its EOI", () => {
    pic.pulse(3);
    pic.acknowledge();
    pic.pulse(6);
    pic.write(MASTER + 1, 0x08);
    expect(pic.output).toBe(false);
    pic.write(MASTER, SPECIAL_MASK);
    expect(acknowledgeAll()).toEqual([0x36]);
    // What is in service and not masked holds lower ones back.
    pic.pulse(7);
    expect(pic.output).toBe(false);
    // A non-specific EOI is for what is not masked.
    pic.write(MASTER, EOI);
    expect(isr(MASTER)).toBe(0x08);
    pic.write(MASTER, EOI);
    expect(isr(MASTER)).toBe(0x08);
    expect(acknowledgeAll()).toEqual([0x37]);
    pic.write(MASTER, EOI);
    pic.write(MASTER, NO_SPECIAL_MASK);
    pic.pulse(6);
    expect(pic.output).toBe(false);
    pic.write(MASTER, SPECIFIC_EOI | 3);
    expect(acknowledgeAll()).toEqual([0x36]);
  });
});

describe("the slave", () => {
  test("comes through input 2 with its own vectors, and needs an EOI on both", () => {
    pic.pulse(12);
    expect([irr(SLAVE), irr(MASTER)]).toEqual([0x10, 0x04]);
    expect(pic.acknowledge()).toBe(0x3c);
    expect([isr(SLAVE), isr(MASTER), pic.output]).toEqual([0x10, 0x04, false]);
    pic.pulse(3);
    expect(pic.output).toBe(false);
    pic.write(SLAVE, EOI);
    expect(pic.output).toBe(false);
    pic.write(MASTER, EOI);
    expect(acknowledgeAll()).toEqual([0x33]);
  });

  test("its requests stand between IRQ 1 and IRQ 3", () => {
    for (const irq of [15, 3, 8, 1]) pic.pulse(irq);
    const order: number[] = [];
    while (pic.output) {
      const vector = pic.acknowledge();
      order.push(vector);
      if (vector >= 0x38) pic.write(SLAVE, EOI);
      pic.write(MASTER, EOI);
    }
    expect(order).toEqual([0x31, 0x38, 0x3f, 0x33]);
  });

  test("a higher one of the slave waits for the master's EOI, but not in special fully nested mode", () => {
    pic.pulse(14);
    pic.acknowledge();
    pic.pulse(9);
    expect(pic.output).toBe(false);
    initialize(ICW4_8086 | ICW4_SFNM);
    pic.pulse(14);
    expect(pic.acknowledge()).toBe(0x3e);
    pic.pulse(9);
    expect(acknowledgeAll()).toEqual([0x39]);
    pic.pulse(15);
    expect(pic.output).toBe(false);
    // The EOI for the master is due when the slave has nothing in service any more.
    pic.write(SLAVE, EOI);
    expect(isr(SLAVE)).toBe(0x40);
    pic.write(SLAVE, EOI);
    expect(isr(SLAVE)).toBe(0);
    expect(acknowledgeAll()).toEqual([0x3f]);
  });

  test("its first input alone", () => {
    pic.pulse(8);
    expect(acknowledgeAll()).toEqual([0x38]);
  });

  test("asks anew after each acknowledgement", () => {
    initialize(ICW4_8086 | ICW4_AEOI, ICW4_8086 | ICW4_AEOI);
    for (const irq of [9, 12, 8]) pic.pulse(irq);
    expect(acknowledgeAll()).toEqual([0x38, 0x39, 0x3c]);
  });

  test("reading and writing its registers asks for nothing", () => {
    pic.pulse(9);
    pic.pulse(12);
    expect(pic.acknowledge()).toBe(0x39);
    for (const port of [SLAVE, SLAVE + 1, ELCR2]) pic.read(port);
    pic.write(SLAVE + 1, 0);
    expect(irr(MASTER)).toBe(0);
    pic.write(SLAVE, EOI);
    expect(irr(MASTER)).toBe(0x04);
  });

  test("masking input 2 masks the slave", () => {
    pic.write(MASTER + 1, 0x04);
    pic.pulse(10);
    expect(pic.output).toBe(false);
    pic.write(MASTER + 1, 0);
    expect(acknowledgeAll()).toEqual([0x3a]);
  });

  test("no line reaches input 2", () => {
    pic.pulse(2);
    pic.setLine(2, true);
    expect([pic.output, irr(MASTER)]).toEqual([false, 0]);
  });
});

describe("spurious interrupts", () => {
  test("IRQ 7 when the request has gone, with nothing in service", () => {
    pic.write(ELCR1, 0x20);
    pic.setLine(5, true);
    expect(pic.output).toBe(true);
    pic.setLine(5, false);
    expect([pic.output, pic.acknowledge(), isr(MASTER)]).toEqual([false, 0x37, 0]);
  });

  test("IRQ 15 when the slave's has, with the cascade in service", () => {
    pic.write(ELCR2, 0x04);
    pic.setLine(10, true);
    pic.setLine(10, false);
    expect(pic.output).toBe(true);
    expect([pic.acknowledge(), isr(SLAVE), isr(MASTER)]).toEqual([0x3f, 0, 0x04]);
    pic.write(MASTER, EOI);
    expect(pic.output).toBe(false);
  });
});

describe("level-triggered inputs", () => {
  test("ask until the line falls", () => {
    pic.write(ELCR1, 0xff);
    pic.write(ELCR2, 0xff);
    // IRQ 0, 1, 2, 8 and 13 cannot be.
    expect([pic.read(ELCR1), pic.read(ELCR2)]).toEqual([0xf8, 0xde]);
    for (const [irq, vector] of [
      [5, 0x35],
      [11, 0x3b],
    ] as const) {
      pic.setLine(irq, true);
      expect(acknowledgeAll()).toEqual([vector]);
      const eoi = () => {
        if (irq > 7) pic.write(SLAVE, EOI);
        pic.write(MASTER, EOI);
      };
      eoi();
      expect(acknowledgeAll()).toEqual([vector]);
      pic.setLine(irq, false);
      eoi();
      expect(pic.output).toBe(false);
    }
  });

  test("stay through ICW1", () => {
    pic.write(ELCR1, 0x20);
    pic.setLine(5, true);
    initialize();
    expect(acknowledgeAll()).toEqual([0x35]);
  });

  test("a pulse has gone before it is seen", () => {
    pic.write(ELCR1, 0x20);
    pic.pulse(5);
    expect(pic.output).toBe(false);
  });
});

describe("poll", () => {
  test("the next read acknowledges and names the input", () => {
    pic.pulse(4);
    pic.write(MASTER, POLL);
    expect(pic.read(MASTER)).toBe(0x84);
    expect([pic.output, isr(MASTER), irr(MASTER)]).toEqual([false, 0x10, 0]);
    pic.write(MASTER, EOI);
    pic.write(MASTER, POLL);
    expect(pic.read(MASTER)).toBe(0);
  });

  test("the first input", () => {
    pic.pulse(0);
    pic.write(MASTER, POLL);
    expect([pic.read(MASTER), isr(MASTER)]).toEqual([0x80, 1]);
  });

  test("at either address, once", () => {
    pic.write(MASTER + 1, 0x40);
    pic.pulse(3);
    pic.write(MASTER, POLL);
    expect(pic.read(MASTER + 1)).toBe(0x83);
    expect(pic.read(MASTER + 1)).toBe(0x40);
  });

  test("of master and slave, one after the other", () => {
    initialize(ICW4_8086, ICW4_8086 | ICW4_AEOI);
    for (const irq of [9, 12]) pic.pulse(irq);
    pic.write(MASTER, POLL);
    expect([pic.read(MASTER), irr(MASTER)]).toEqual([0x82, 0]);
    pic.write(SLAVE, POLL);
    expect([pic.read(SLAVE), isr(SLAVE)]).toEqual([0x81, 0]);
    // The slave asks again.
    expect(irr(MASTER)).toBe(0x04);
    pic.write(MASTER, EOI);
    expect(acknowledgeAll()).toEqual([0x3c]);
  });
});

test("random commands and lines never break it", () => {
  let seed = 12345;
  const random = (below: number) => {
    seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
    return (seed >>> 8) % below;
  };
  const ports = [MASTER, MASTER + 1, SLAVE, SLAVE + 1, ELCR1, ELCR2];
  for (let i = 0; i < 100_000; i++) {
    const port = ports[random(ports.length)]!;
    switch (random(4)) {
      case 0:
        pic.write(port, random(256));
        break;
      case 1:
        pic.setLine(random(16), random(2) === 1);
        break;
      case 2: {
        const value = pic.read(port);
        expect(value).toBe(value & 0xff);
        break;
      }
      default:
        if (pic.output) {
          const vector = pic.acknowledge();
          expect(vector).toBe(vector & 0xff);
        }
    }
  }
  // Whatever it went through, initialization makes it work.
  for (const port of [ELCR1, ELCR2]) pic.write(port, 0);
  for (let irq = 0; irq < 16; irq++) pic.setLine(irq, false);
  initialize();
  pic.pulse(9);
  expect(acknowledgeAll()).toEqual([0x39]);
});
