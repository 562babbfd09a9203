/** A guest's own driver gives pages to a balloon, on each backend: what it reads and executes there afterwards. */

import { describe, expect, test } from "bun:test";
import { VIRTIO_MMIO_START } from "../../src/boot/layout.ts";
import * as mmio from "../../src/devices/virtio/mmio/registers.ts";
import { at, CC_E, CC_NE } from "../oracle/asm.ts";
import { type GuestCode, RAX, RBX } from "./guest-code.ts";
import { backendNames } from "./machine.ts";
import { startGuest } from "./whole-machine.ts";

const GAP_DIRECTORY = 0xc000;
const RINGS = 0x24_0000;
const PFNS = RINGS + 0x5000;
const PAGES = 0x80_0000;
const SCRATCH = 0x70_0000;

/** `mov eax, value; ret` */
const returning = (value: number) => [0xb8, value, 0, 0, 0, 0xc3];

/** Makes device 0 ready with the inflate queue, of 8. */
function startBalloonDriver(guest: GuestCode): void {
  const write = (register: number, value: number) => guest.poke(VIRTIO_MMIO_START + register, value);
  write(mmio.STATUS, 0);
  write(mmio.STATUS, mmio.STATUS_ACKNOWLEDGE | mmio.STATUS_DRIVER);
  write(mmio.DRIVER_FEATURES_SEL, 1);
  write(mmio.DRIVER_FEATURES, 1); // VIRTIO_F_VERSION_1
  const ok = mmio.STATUS_ACKNOWLEDGE | mmio.STATUS_DRIVER | mmio.STATUS_FEATURES_OK;
  write(mmio.STATUS, ok);
  write(mmio.QUEUE_SEL, 0);
  write(mmio.QUEUE_NUM, 8);
  write(mmio.QUEUE_DESC_LOW, RINGS);
  write(mmio.QUEUE_DRIVER_LOW, RINGS + 0x1000);
  write(mmio.QUEUE_DEVICE_LOW, RINGS + 0x2000);
  write(mmio.QUEUE_READY, 1);
  write(mmio.STATUS, ok | mmio.STATUS_DRIVER_OK);
}

/** Gives the pages at `addresses` to the balloon with the `count`-th request, and waits for the device. */
function inflate(guest: GuestCode, count: number, addresses: readonly number[]): void {
  for (const [i, address] of addresses.entries()) guest.poke(PFNS + 4 * i, address / 4096);
  guest.poke(RINGS, PFNS);
  guest.poke(RINGS + 8, 4 * addresses.length);
  guest.poke(RINGS + 0x1000, count << 16);
  guest.poke(VIRTIO_MMIO_START + mmio.QUEUE_NOTIFY, 0);
  guest.label(`inflate ${count}`);
  guest.pause();
  guest.movImm(RBX, RINGS + 0x2000);
  guest.load32(RAX, at(RBX));
  guest.shr(RAX, 16);
  guest.cmpImm(RAX, count);
  guest.jcc(CC_NE, `inflate ${count}`);
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
      startBalloonDriver(guest);
      for (let page = 0; page < 4; page++) guest.poke(PAGES + 4096 * page, 0x1234 + page);
      const code = PAGES + 4096 * 8;
      pokeBytes(guest, code, returning(7));
      pokeBytes(guest, code + 4096, returning(5));
      callCode(code, 7);
      callCode(code, 7);
      inflate(guest, 1, [PAGES + 2 * 4096, PAGES, code]);
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
      inflate(guest, 2, [0x1000_0000, code, 0xffff_f000, PAGES]);
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
