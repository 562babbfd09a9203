import { expect, test } from "bun:test";
import { monitorPss } from "./pss.ts";

const area = (range: string, name: string, pss: number) =>
  `${range} rw-p 00000000 00:00 0 ${name === "" ? "" : `      ${name}`}\nSize: 4 kB\nPss: ${pss} kB\nPss_Dirty: 1 kB\n`;

/** A guest of 1 MiB whose kernel is mapped in the middle of its RAM. */
const guest =
  area("7f0000000000-7f0000080000", "", 100) +
  area("7f0000080000-7f00000c0000", "/root/.cache/sparkler/images/0123", 40) +
  area("7f00000c0000-7f0000110000", "", 60);

test("the guest's pages are not the monitor's, whether anonymous or of its kernel", () => {
  const monitor =
    area("00400000-00500000", "/usr/bin/sparkler", 30) + area("7e0000000000-7e0000200000", "", 7);
  expect(monitorPss(monitor + guest + area("7f0000200000-7f0000201000", "[stack]", 5), 1)).toBe(42);
});

test("without a place for that much RAM all is the monitor's", () => {
  expect(monitorPss(guest, 64)).toBe(200);
});
