import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { SystemError } from "./errno.ts";
import { closeFile, readSome } from "./files.ts";
import { openTap, setTapOffload, TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 } from "./tap.ts";

function code(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    if (error instanceof SystemError) return error.code;
    throw error;
  }
  return "nothing thrown";
}

/** Whether this process may make TAP devices. */
function allowed(): boolean {
  try {
    closeFile(openTap("sparkunit", 12));
    return true;
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
    console.log(`skip: TAP devices: ${error.message}`);
    return false;
  }
}

test("names that no interface can have are refused", () => {
  for (const name of ["", "sixteen-letters-", "a\0b"]) expect(code(() => openTap(name, 12))).toBe("EINVAL");
});

test.skipIf(!allowed())("a TAP device is there while it is open, for one who opens it", () => {
  const name = `sparku${process.pid % 1000}`;
  const fd = openTap(name, 12);
  expect(readFileSync("/proc/net/dev", "utf8")).toContain(`${name}:`);
  expect(code(() => openTap(name, 12))).toBe("EBUSY");
  setTapOffload(fd, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6);
  expect(code(() => setTapOffload(fd, 0x8000))).toBe("EINVAL");
  expect(code(() => readSome(fd, new Uint8Array(2000)))).toBe("nothing thrown");
  closeFile(fd);
  expect(readFileSync("/proc/net/dev", "utf8")).not.toContain(`${name}:`);
});
