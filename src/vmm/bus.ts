/** Maps addresses to devices on a vCPU thread. One bus for ports, one for memory. */

import type { BusDevice } from "../devices/types.ts";

interface Range {
  readonly base: number;
  readonly end: number;
  readonly device: BusDevice;
}

export class Bus {
  private readonly ranges: Range[] = [];
  private last: Range | undefined;

  /** Puts `device` at `[base, base+size)`. Throws if something is there already. */
  insert(base: number, size: number, device: BusDevice): void {
    const end = base + size;
    for (const range of this.ranges) {
      if (base < range.end && range.base < end) {
        throw new Error(
          `two devices at the same address: 0x${base.toString(16)}+0x${size.toString(16)} meets ` +
            `0x${range.base.toString(16)}-0x${range.end.toString(16)}`,
        );
      }
    }
    this.ranges.push({ base, end, device });
  }

  /** Reads 1, 2 or 4 bytes. All ones where there is no device, as on a real bus. Never throws for an address. */
  read(address: number, size: number): number {
    const range = this.find(address, size);
    if (range === undefined) return size === 4 ? 0xffff_ffff : size === 2 ? 0xffff : 0xff;
    return range.device.read(address - range.base, size);
  }

  /** Reads 8 bytes as two reads of 4, low half first. */
  read64(address: number): bigint {
    const low = this.read(address, 4);
    return (BigInt(this.read(address + 4, 4)) << 32n) | BigInt(low);
  }

  /** Writes 1, 2 or 4 bytes. Dropped where there is no device. */
  write(address: number, size: number, value: number): void {
    const range = this.find(address, size);
    range?.device.write(address - range.base, size, value);
  }

  /** Writes 8 bytes as two writes of 4, low half first. */
  write64(address: number, value: bigint): void {
    this.write(address, 4, Number(value & 0xffff_ffffn));
    this.write(address + 4, 4, Number((value >> 32n) & 0xffff_ffffn));
  }

  /** A guest mostly touches one device many times in a row, so the last hit is tried first. */
  private find(address: number, size: number): Range | undefined {
    const { last } = this;
    if (last !== undefined && address >= last.base && address + size <= last.end) return last;
    for (const range of this.ranges) {
      if (address >= range.base && address + size <= range.end) {
        this.last = range;
        return range;
      }
    }
    return undefined;
  }
}
