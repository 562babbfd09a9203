/** A guest's own driver gives pages to a balloon, on each backend: what it reads and executes there afterwards. */

import { describe, expect, test } from "bun:test";
import { at, CC_E } from "../oracle/asm.ts";
import { type GuestCode, RAX, RBX } from "./guest-code.ts";
import { GuestQueue } from "./guest-queue.ts";
import { backendNames } from "./machine.ts";
import { startGuest } from "./whole-machine.ts";

const GAP_DIRECTORY = 0xc000;
const RINGS = 0x24_0000;
const PFNS = RINGS + 0x5000;
const PAGES = 0x80_0000;
const SCRATCH = 0x70_0000;

/** `mov eax, value; ret` */
const returning = (value: number) => [0xb8, value, 0, 0, 0, 0xc3];

/** Gives the pages at `addresses` to the balloon, and waits for the device. */
function inflate(guest: GuestCode, queue: GuestQueue, addresses: readonly number[]): void {
  for (const [i, address] of addresses.entries()) guest.poke(PFNS + 4 * i, address / 4096);
  queue.request([{ gpa: PFNS, length: 4 * addresses.length }]);
}

function pokeBytes(guest: GuestCode, address: number, bytes: readonly number[]): void {
  for (const [i, byte] of bytes.entries()) {
    guest.movImm(RBX, address + i);
    guest.movImm(RAX, byte);
    guest.storeA(1);
  }
}

describe.each(backendNames())("%s", (backend) => {
  test("pages in the balloon read as zeros, run as zeros, and can be used again", async () => {
    const balloon = {
      amountMib: 1,
      deflateOnOom: false,
      statsPollingIntervalS: 0,
      freePageHinting: false,
      freePageReporting: false,
    };
    const microvm = await startGuest({ backend, balloon }, (guest) => {
      let checks = 0;
      const check = (address: number, value: number) => {
        const fine = `fine ${checks++}`;
        guest.movImm(RBX, address);
        guest.load32(RAX, at(RBX));
        guest.cmpImm(RAX, value);
        guest.jcc(CC_E, fine);
        guest.print(`wrong at ${address.toString(16)}\n`);
        guest.label(fine);
      };
      /** Calls `address`, with RAX where zeros, as `add [rax], al`, do no harm. */
      const callCode = (address: number, result: number) => {
        const fine = `fine ${checks++}`;
        guest.movImm(RAX, SCRATCH);
        guest.movImm(RBX, address);
        guest.raw(0xff, 0xd3);
        guest.cmpImm(RAX, result);
        guest.jcc(CC_E, fine);
        guest.print(`code at ${address.toString(16)} did not return ${result}\n`);
        guest.label(fine);
      };
      guest.mapGib(3, GAP_DIRECTORY);
      const queue = new GuestQueue(guest, 0, {
        desc: RINGS,
        driver: RINGS + 0x1000,
        device: RINGS + 0x2000,
      });
      queue.start();
      for (let page = 0; page < 4; page++) guest.poke(PAGES + 4096 * page, 0x1234 + page);
      const code = PAGES + 4096 * 8;
      pokeBytes(guest, code, returning(7));
      pokeBytes(guest, code + 4096, returning(5));
      callCode(code, 7);
      callCode(code, 7);
      inflate(guest, queue, [PAGES + 2 * 4096, PAGES, code]);
      check(PAGES, 0);
      check(PAGES + 4096, 0x1235);
      check(PAGES + 2 * 4096, 0);
      check(PAGES + 3 * 4096, 0x1237);
      // What was there is gone, so the CPU comes through a page of zeros to the next one.
      callCode(code, 5);
      guest.poke(PAGES, 99);
      check(PAGES, 99);
      pokeBytes(guest, code, returning(9));
      callCode(code, 9);
      inflate(guest, queue, [0x1000_0000, code, 0xffff_f000, PAGES]);
      check(PAGES, 0);
      callCode(code, 5);
      guest.print("done\n");
      guest.reset();
    });
    const { end, consoleTail, metrics } = await microvm.ended;
    expect({ end, consoleTail }).toEqual({ end: { kind: "reset" }, consoleTail: "done\n" });
    expect(metrics?.balloon).toMatchObject({ inflateCount: 2, eventFails: 2 });
  });
});
