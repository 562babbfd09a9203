/**
 * PM1 event and control registers of ACPI's fixed hardware (ACPI 6.5, 4.8.3), for guests to which the machine is not
 * hardware-reduced. Nothing here ever raises an event, so the status is 0 always, and there is no sleep state to enter.
 */

import type { BusDevice } from "../types.ts";

/** Offsets of the 16-bit registers. The event block begins with PM1_STS at 0; the control block lies behind it. */
const PM1_EN = 2;
const PM1_CNT = 4;

/** TMR_EN, GBL_EN, PWRBTN_EN, SLPBTN_EN, RTC_EN and PCIEXP_WAKE_DIS. */
const PM1_EN_WRITABLE = 0x4721;
/** Interrupts of power management are SCIs, not SMIs: the machine is in ACPI mode from the start. */
const SCI_EN = 0x0001;
/** BM_RLD and SLP_TYP. GBL_RLS and SLP_EN read as 0. */
const PM1_CNT_WRITABLE = 0x1c02;

const W_EN = 0;
const W_CNT = 1;

/** Bytes of shared memory that the registers take; zeroed memory is the state after reset. */
export const PM1_SHARED_BYTES = 8;

export class Pm1Registers implements BusDevice {
  private readonly state: Int32Array;

  constructor(shared: SharedArrayBuffer, offset: number) {
    this.state = new Int32Array(shared, offset, PM1_SHARED_BYTES / 4);
  }

  read(offset: number, size: number): number {
    let value = 0;
    for (let i = 0; i < size; i++) value |= this.readByte(offset + i) << (8 * i);
    return value >>> 0;
  }

  write(offset: number, size: number, value: number): void {
    for (let i = 0; i < size; i++) this.writeByte(offset + i, (value >>> (8 * i)) & 0xff);
  }

  private readByte(offset: number): number {
    const shift = 8 * (offset & 1);
    switch (offset & ~1) {
      case PM1_EN:
        return (Atomics.load(this.state, W_EN) >> shift) & 0xff;
      case PM1_CNT:
        return ((Atomics.load(this.state, W_CNT) | SCI_EN) >> shift) & 0xff;
      default:
        return 0;
    }
  }

  private writeByte(offset: number, byte: number): void {
    const shift = 8 * (offset & 1);
    const put = (word: number, writable: number) => {
      const kept = Atomics.load(this.state, word) & ~(0xff << shift);
      Atomics.store(this.state, word, kept | ((byte << shift) & writable));
    };
    const register = offset & ~1;
    if (register === PM1_EN) put(W_EN, PM1_EN_WRITABLE);
    else if (register === PM1_CNT) put(W_CNT, PM1_CNT_WRITABLE);
  }
}
