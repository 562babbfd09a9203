/** I/O APIC with 24 pins (Intel 82093AA data sheet, 290566), whose every interrupt goes to the one local APIC. */

export const IOAPIC_BASE = 0xfec0_0000;
const SIZE = 0x1000;
const PINS = 24;

/** Registers in memory, and those that they select. IOEOI is that of later chips. */
const IOREGSEL = 0x00;
const IOWIN = 0x10;
const IOEOI = 0x40;
const IOAPICID = 0;
const IOAPICVER = 1;
const IOAPICARB = 2;
const IOREDTBL = 0x10;

/** Version 0x11, and the number of the last pin. */
const VERSION = 0x11 | ((PINS - 1) << 16);
/** Low word of a redirection entry. Delivery status and remote IRR are read-only. */
const MASKED = 0x1_0000;
const LEVEL = 0x8000;
const REMOTE_IRR = 0x4000;
const READ_ONLY = 0x5000;
const LOWEST_PRIORITY = 1;

export class IoApic {
  private readonly redirection = new Uint32Array(PINS * 2);
  private select = 0;
  private id = 0;

  /** `raise`: an interrupt for the local APIC. */
  constructor(private readonly raise: (vector: number, level: boolean) => void) {
    for (let pin = 0; pin < PINS; pin++) this.redirection[pin * 2] = MASKED;
  }

  /** True if `gpa` belongs to its registers. */
  static owns(gpa: number): boolean {
    return gpa >= IOAPIC_BASE && gpa < IOAPIC_BASE + SIZE;
  }

  read(gpa: number): number {
    const offset = gpa - IOAPIC_BASE;
    if (offset === IOREGSEL) return this.select;
    if (offset !== IOWIN) return 0;
    if (this.select === IOAPICID || this.select === IOAPICARB) return this.id << 24;
    if (this.select === IOAPICVER) return VERSION;
    const i = this.select - IOREDTBL;
    return i >= 0 && i < PINS * 2 ? this.redirection[i]! : 0;
  }

  write(gpa: number, value: number): void {
    const offset = gpa - IOAPIC_BASE;
    if (offset === IOREGSEL) this.select = value & 0xff;
    else if (offset === IOWIN) this.writeSelected(value);
    else if (offset === IOEOI) this.eoi(value & 0xff);
  }

  private writeSelected(value: number): void {
    if (this.select === IOAPICID) this.id = (value >> 24) & 15;
    const i = this.select - IOREDTBL;
    if (i < 0 || i >= PINS * 2) return;
    this.redirection[i] = i & 1 ? value : (value & ~READ_ONLY) | (this.redirection[i]! & REMOTE_IRR);
  }

  /** The local APIC has got an EOI for `vector`. */
  eoi(vector: number): void {
    for (let pin = 0; pin < PINS; pin++) {
      const low = this.redirection[pin * 2]!;
      if ((low & 0xff) === vector && low & LEVEL) this.redirection[pin * 2] = low & ~REMOTE_IRR;
    }
  }

  /** Edges on its pins: a bit each. Those of masked pins are lost. */
  edges(pins: number): void {
    for (let pin = 0; pin < PINS; pin++) {
      if (!(pins & (1 << pin))) continue;
      const low = this.redirection[pin * 2]!;
      if (low & MASKED) continue;
      const mode = (low >> 8) & 7;
      if (mode > LOWEST_PRIORITY) continue;
      const level = (low & LEVEL) !== 0;
      if (level) this.redirection[pin * 2] = low | REMOTE_IRR;
      this.raise(low & 0xff, level);
    }
  }
}
