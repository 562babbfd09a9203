/**
 * The 8259A pair of a PC/AT (Intel 8259A data sheet, 231468; edge/level control registers: Intel 82371AB data sheet,
 * 290562, 4.1.5), as the operating system sees them through their ports.
 *
 * As in KVM's chip, an edge is latched until it is acknowledged: the lines of this machine are pulses, which the data
 * sheet would answer with the default IR7. LTIM of ICW1 has no effect, ELCR stands in its place.
 */

const LINES_PER_CHIP = 8;
/** Input of the master that the slave's INT drives. */
const CASCADE = 2;
/** Input that stands for a request that has gone away before INTA. */
const DEFAULT_IR = 7;

/** ICW1: address bit 0 clear, this bit set. */
const ICW1_SELECT = 0x10;
const ICW1_IC4 = 0x01;
const ICW1_SNGL = 0x02;
const ICW2_VECTOR = 0xf8;
const ICW4_AEOI = 0x02;
const ICW4_SFNM = 0x10;

/** Of the commands with address bit 0 clear, OCW3 has this bit set and OCW2 not. */
const OCW3_SELECT = 0x08;
const OCW2_ROTATE = 0x80;
const OCW2_SPECIFIC = 0x40;
const OCW2_EOI = 0x20;
const OCW2_LEVEL = 0x07;
const OCW3_ESMM = 0x40;
const OCW3_SMM = 0x20;
const OCW3_POLL = 0x04;
const OCW3_RR = 0x02;
const OCW3_RIS = 0x01;

/** The poll word's bit that says there was a request. */
const POLL_REQUEST = 0x80;

/** Which register of the initialization sequence the next write to address 1 is; `done`: OCW1. */
type Expected = "ICW2" | "ICW3" | "ICW4" | "done";

/** One 8259A. */
class I8259A {
  private irr = 0;
  private isr = 0;
  /** All masked until the operating system initializes the chip, as firmware leaves it. */
  private imr = 0xff;
  /** Levels of the inputs, for edge detection. */
  private lines = 0;
  private levelTriggered = 0;
  /** Input with the lowest priority. */
  private lowest = 7;
  private vectorBase = 0;
  private expected: Expected = "done";
  private icw1 = 0;
  private autoEoi = false;
  private rotateOnAutoEoi = false;
  private specialFullyNested = false;
  private specialMask = false;
  private readIsr = false;
  private poll = false;

  /** `levelCapable`: the inputs that ELCR may make level-triggered. */
  constructor(
    private readonly master: boolean,
    private readonly levelCapable: number,
  ) {}

  setLine(ir: number, high: boolean): void {
    const bit = 1 << ir;
    if (this.levelTriggered & bit) this.irr = high ? this.irr | bit : this.irr & ~bit;
    else if (high && !(this.lines & bit)) this.irr |= bit;
    this.lines = high ? this.lines | bit : this.lines & ~bit;
  }

  /** The input that INT stands for, or -1 if INT is low. */
  request(): number {
    const asked = this.highest(this.irr & ~this.imr);
    if (asked < 0) return -1;
    let blocking = this.specialMask ? this.isr & ~this.imr : this.isr;
    // The slave's requests of higher priority come in through an input that is in service already.
    if (this.master && this.specialFullyNested) blocking &= ~(1 << CASCADE);
    const served = this.highest(blocking);
    return served < 0 || this.priority(asked) < this.priority(served) ? asked : -1;
  }

  /** INTA: the input acknowledged, which is the default one if there is no request any more. */
  acknowledge(): number {
    const ir = this.request();
    if (ir < 0) return DEFAULT_IR;
    const bit = 1 << ir;
    if (!(this.levelTriggered & bit)) this.irr &= ~bit;
    if (!this.autoEoi) this.isr |= bit;
    else if (this.rotateOnAutoEoi) this.lowest = ir;
    return ir;
  }

  vector(ir: number): number {
    return this.vectorBase | ir;
  }

  /** The next read is a poll. */
  get polled(): boolean {
    return this.poll;
  }

  read(address: number): number {
    if (this.poll) {
      this.poll = false;
      const found = this.request() >= 0;
      return found ? POLL_REQUEST | this.acknowledge() : 0;
    }
    if (address === 1) return this.imr;
    return this.readIsr ? this.isr : this.irr;
  }

  write(address: number, value: number): void {
    if (address === 1) this.writeData(value);
    else if (value & ICW1_SELECT) this.initialize(value);
    else if (value & OCW3_SELECT) this.writeOcw3(value);
    else this.writeOcw2(value);
  }

  readElcr(): number {
    return this.levelTriggered;
  }

  writeElcr(value: number): void {
    this.levelTriggered = value & this.levelCapable;
  }

  private initialize(value: number): void {
    this.icw1 = value;
    this.expected = "ICW2";
    // Edge sense is reset. A line that is high must fall before it counts as an edge again.
    this.irr &= this.levelTriggered;
    this.isr = 0;
    this.imr = 0;
    this.lowest = 7;
    this.rotateOnAutoEoi = false;
    this.specialMask = false;
    this.readIsr = false;
    this.poll = false;
    if (!(value & ICW1_IC4)) this.writeIcw4(0);
  }

  private writeData(value: number): void {
    const icw4: Expected = this.icw1 & ICW1_IC4 ? "ICW4" : "done";
    switch (this.expected) {
      case "ICW2":
        this.vectorBase = value & ICW2_VECTOR;
        this.expected = this.icw1 & ICW1_SNGL ? icw4 : "ICW3";
        return;
      case "ICW3":
        // How the pair is wired; there is only one way here.
        this.expected = icw4;
        return;
      case "ICW4":
        this.writeIcw4(value);
        this.expected = "done";
        return;
      case "done":
        this.imr = value;
    }
  }

  private writeIcw4(value: number): void {
    this.autoEoi = (value & ICW4_AEOI) !== 0;
    this.specialFullyNested = (value & ICW4_SFNM) !== 0;
  }

  private writeOcw2(value: number): void {
    const rotate = (value & OCW2_ROTATE) !== 0;
    const specific = (value & OCW2_SPECIFIC) !== 0;
    if (!(value & OCW2_EOI)) {
      if (!specific) this.rotateOnAutoEoi = rotate;
      else if (rotate) this.lowest = value & OCW2_LEVEL;
      return;
    }
    const ir = specific ? value & OCW2_LEVEL : this.endable();
    if (ir < 0) return;
    this.isr &= ~(1 << ir);
    if (rotate) this.lowest = ir;
  }

  /** What a non-specific EOI ends. In special mask mode it does not end a masked input. */
  private endable(): number {
    return this.highest(this.specialMask ? this.isr & ~this.imr : this.isr);
  }

  private writeOcw3(value: number): void {
    if (value & OCW3_ESMM) this.specialMask = (value & OCW3_SMM) !== 0;
    if (value & OCW3_POLL) this.poll = true;
    else if (value & OCW3_RR) this.readIsr = (value & OCW3_RIS) !== 0;
  }

  /** 0 is the highest. */
  private priority(ir: number): number {
    return (ir - this.lowest - 1) & (LINES_PER_CHIP - 1);
  }

  /** The input of highest priority in a mask, or -1. */
  private highest(mask: number): number {
    if (mask === 0) return -1;
    for (let i = 1; i <= LINES_PER_CHIP; i++) {
      const ir = (this.lowest + i) & (LINES_PER_CHIP - 1);
      if (mask & (1 << ir)) return ir;
    }
    return -1;
  }
}

/** Ports of the pair: command and data of each chip, and the edge/level control registers. */
const MASTER_COMMAND = 0x20;
const MASTER_DATA = 0x21;
const SLAVE_COMMAND = 0xa0;
const SLAVE_DATA = 0xa1;
const ELCR1 = 0x4d0;
const ELCR2 = 0x4d1;
/** IRQ 0, 1, 2, 8 and 13 are edge-triggered always. */
const ELCR1_WRITABLE = 0xf8;
const ELCR2_WRITABLE = 0xde;

/** Both chips of a PC: IRQ 0 to 7 on the master, 8 to 15 on the slave, which hangs on the master's input 2. */
export class Pic {
  private readonly master = new I8259A(true, ELCR1_WRITABLE);
  private readonly slave = new I8259A(false, ELCR2_WRITABLE);

  /** True if `port` is one of the pair's. */
  static owns(port: number): boolean {
    return (port & ~0x81) === MASTER_COMMAND || (port & ~1) === ELCR1;
  }

  /** Level of INTR. */
  get output(): boolean {
    return this.master.request() >= 0;
  }

  /** Sets the level of an input: IRQ 0 to 15. IRQ 2 is the cascade, which no line reaches. */
  setLine(irq: number, high: boolean): void {
    if (irq === CASCADE) return;
    if (irq < LINES_PER_CHIP) this.master.setLine(irq, high);
    else {
      this.slave.setLine(irq - LINES_PER_CHIP, high);
      this.cascade();
    }
  }

  /** An edge. On an input that ELCR makes level-triggered it has come and gone before anybody could see it. */
  pulse(irq: number): void {
    this.setLine(irq, true);
    this.setLine(irq, false);
  }

  /** INTA: the vector to deliver. Without a request that is the one of IRQ 7, and of IRQ 15 for the slave. */
  acknowledge(): number {
    const ir = this.master.acknowledge();
    if (ir !== CASCADE) return this.master.vector(ir);
    const vector = this.slave.vector(this.slave.acknowledge());
    this.slaveAcknowledged();
    return vector;
  }

  /** Reads a byte of a port that {@link owns} names. */
  read(port: number): number {
    switch (port) {
      case MASTER_COMMAND:
      case MASTER_DATA:
        return this.master.read(port & 1);
      case SLAVE_COMMAND:
      case SLAVE_DATA: {
        const poll = this.slave.polled;
        const value = this.slave.read(port & 1);
        if (poll) this.slaveAcknowledged();
        return value;
      }
      case ELCR1:
        return this.master.readElcr();
      default:
        return this.slave.readElcr();
    }
  }

  /** Writes a byte to a port that {@link owns} names. */
  write(port: number, value: number): void {
    switch (port) {
      case MASTER_COMMAND:
      case MASTER_DATA:
        this.master.write(port & 1, value);
        break;
      case SLAVE_COMMAND:
      case SLAVE_DATA:
        this.slave.write(port & 1, value);
        break;
      case ELCR1:
        this.master.writeElcr(value);
        break;
      case ELCR2:
        this.slave.writeElcr(value);
        break;
    }
    this.cascade();
  }

  /** The slave's INT falls at an acknowledgement, so whatever it asks for next is a new edge for the master. */
  private slaveAcknowledged(): void {
    this.master.setLine(CASCADE, false);
    this.cascade();
  }

  private cascade(): void {
    this.master.setLine(CASCADE, this.slave.request() >= 0);
  }
}
