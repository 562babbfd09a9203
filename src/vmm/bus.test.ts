import { expect, test } from "bun:test";
import type { BusDevice } from "../devices/types.ts";
import { Bus } from "./bus.ts";

class Recorder implements BusDevice {
  readonly seen: string[] = [];
  read(offset: number, size: number): number {
    this.seen.push(`r${offset}/${size}`);
    return 0x1000 + offset;
  }
  write(offset: number, size: number, value: number): void {
    this.seen.push(`w${offset}/${size}=${value.toString(16)}`);
  }
}

test("addresses reach the device that covers them, relative to its base", () => {
  const bus = new Bus();
  const a = new Recorder();
  const b = new Recorder();
  bus.insert(0x60, 5, a);
  bus.insert(0x3f8, 8, b);
  expect(bus.read(0x64, 1)).toBe(0x1004);
  bus.write(0x3f9, 1, 7);
  bus.write(0x60, 1, 1);
  expect(a.seen).toEqual(["r4/1", "w0/1=1"]);
  expect(b.seen).toEqual(["w1/1=7"]);
});

test("nothing there reads as all ones and drops writes, as does an access across a device's end", () => {
  const bus = new Bus();
  const a = new Recorder();
  bus.insert(0x1000, 0x1000, a);
  expect(bus.read(0x80, 1)).toBe(0xff);
  expect(bus.read(0xcf8, 2)).toBe(0xffff);
  expect(bus.read(0x1ffe, 4)).toBe(0xffff_ffff);
  bus.write(0x1fff, 2, 1);
  expect(a.seen).toEqual([]);
});

test("8-byte accesses are split, low half first", () => {
  const bus = new Bus();
  const a = new Recorder();
  bus.insert(0xc000_1000, 0x1000, a);
  expect(bus.read64(0xc000_1008)).toBe(0x100c_0000_1008n);
  bus.write64(0xc000_1100, 0xffff_ffff_8000_0000n);
  expect(a.seen).toEqual(["r8/4", "r12/4", "w256/4=80000000", "w260/4=ffffffff"]);
});

test("overlapping devices are refused", () => {
  const bus = new Bus();
  bus.insert(0x1000, 0x1000, new Recorder());
  expect(() => bus.insert(0x1fff, 1, new Recorder())).toThrow("two devices at the same address");
  bus.insert(0x2000, 1, new Recorder());
});
