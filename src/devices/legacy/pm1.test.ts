import { expect, test } from "bun:test";
import { PM1_SHARED_BYTES, Pm1Registers } from "./pm1.ts";

const STS = 0;
const EN = 2;
const CNT = 4;

test("enable and control keep what they may hold, for every vCPU", () => {
  const shared = new SharedArrayBuffer(PM1_SHARED_BYTES);
  const first = new Pm1Registers(shared, 0);
  const second = new Pm1Registers(shared, 0);
  expect([first.read(STS, 2), first.read(EN, 2), first.read(CNT, 2)]).toEqual([0, 0, 1]);
  first.write(EN, 2, 0x0020);
  expect(second.read(EN, 2)).toBe(0x0020);
  first.write(EN, 2, 0xffff);
  expect(second.read(STS, 4)).toBe(0x4721_0000);
  second.write(EN + 1, 1, 0);
  expect(first.read(EN, 2)).toBe(0x0021);
});

test("no write sets a status, leaves ACPI mode or goes to sleep", () => {
  const registers = new Pm1Registers(new SharedArrayBuffer(PM1_SHARED_BYTES), 0);
  registers.write(STS, 4, 0x0000_ffff);
  expect(registers.read(STS, 4)).toBe(0);
  registers.write(CNT, 2, 0xfffe);
  expect(registers.read(CNT, 2)).toBe(0x1c03);
  registers.write(CNT, 2, 0);
  expect(registers.read(CNT, 2)).toBe(1);
});
