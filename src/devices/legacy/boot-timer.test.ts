import { expect, test } from "bun:test";
import { BOOT_TIMER_SHARED_BYTES, BootTimer } from "./boot-timer.ts";

test("fires once, for byte 123 at offset 0, whichever vCPU writes it", () => {
  const shared = new SharedArrayBuffer(BOOT_TIMER_SHARED_BYTES);
  const fired: string[] = [];
  const first = new BootTimer(shared, 0, () => fired.push("first"));
  const second = new BootTimer(shared, 0, () => fired.push("second"));
  first.write(0, 1, 122);
  first.write(1, 1, 123);
  first.write(0, 4, 123);
  expect(fired).toEqual([]);
  second.write(0, 1, 123);
  first.write(0, 1, 123);
  expect(fired).toEqual(["second"]);
  expect(first.read()).toBe(0);
});
