/** A guest's own driver breaks the rules of a virtio queue, on each backend: it is told, and may begin anew. */

import { describe, expect, test } from "bun:test";
import { VIRTIO_MMIO_START } from "../../src/boot/layout.ts";
import * as mmio from "../../src/devices/virtio/mmio/registers.ts";
import { at, CC_E, CC_NE } from "../oracle/asm.ts";
import { type GuestCode, RAX, RBX } from "./guest-code.ts";
import { backendNames } from "./machine.ts";
import { startGuest } from "./whole-machine.ts";

const GAP_DIRECTORY = 0xc000;
const RINGS = 0x24_0000;
/** Bytes of guest memory for the three rings of one start. */
const RINGS_BYTES = 0x3000;
const BUFFER = 0x70_0000;
/** The guest has 16 MiB. */
const OUTSIDE = 0x200_0000;
const QUEUE_SIZE = 8;
const VRING_DESC_F_NEXT = 1;
const VRING_DESC_F_WRITE = 2;
const FEATURES_OK = mmio.STATUS_ACKNOWLEDGE | mmio.STATUS_DRIVER | mmio.STATUS_FEATURES_OK;
const RUNNING = FEATURES_OK | mmio.STATUS_DRIVER_OK;

interface Start {
  readonly size?: number;
  readonly length?: number;
  readonly flags?: number;
  /** Register of a ring address that is set to a place outside of memory. */
  readonly misplaced?: number;
}

/** Starts device 0 with one request in its queue 0, and notifies it. */
function start(guest: GuestCode, rings: number, { size = QUEUE_SIZE, length = 64, ...more }: Start): void {
  const write = (register: number, value: number) => guest.poke(VIRTIO_MMIO_START + register, value);
  write(mmio.STATUS, 0);
  write(mmio.STATUS, mmio.STATUS_ACKNOWLEDGE | mmio.STATUS_DRIVER);
  write(mmio.DRIVER_FEATURES_SEL, 1);
  write(mmio.DRIVER_FEATURES, 1); // VIRTIO_F_VERSION_1
  write(mmio.STATUS, FEATURES_OK);
  write(mmio.QUEUE_SEL, 0);
  write(mmio.QUEUE_NUM, size);
  write(mmio.QUEUE_DESC_LOW, rings);
  write(mmio.QUEUE_DRIVER_LOW, rings + 0x1000);
  write(mmio.QUEUE_DEVICE_LOW, rings + 0x2000);
  if (more.misplaced !== undefined) write(more.misplaced, OUTSIDE);
  guest.poke(rings, BUFFER);
  guest.poke(rings + 8, length);
  guest.poke(rings + 12, more.flags ?? VRING_DESC_F_WRITE);
  guest.poke(rings + 0x1000, 1 << 16);
  write(mmio.QUEUE_READY, 1);
  write(mmio.STATUS, RUNNING);
  write(mmio.QUEUE_NOTIFY, 0);
}

/** Waits until the 32 bits at `address`, shifted right, are `value`. */
function waitFor(guest: GuestCode, name: string, address: number, shift: number, value: number): void {
  guest.label(name);
  guest.pause();
  guest.movImm(RBX, address);
  guest.load32(RAX, at(RBX));
  guest.shr(RAX, shift);
  guest.cmpImm(RAX, value);
  guest.jcc(CC_NE, name);
}

const BROKEN: readonly [string, Start][] = [
  ["a loop", { flags: VRING_DESC_F_NEXT }],
  ["4 GiB to write", { length: 0xffff_ffff }],
  ["4 GiB to read", { length: 0xffff_ffff, flags: 0 }],
  ["a descriptor table outside memory", { misplaced: mmio.QUEUE_DESC_LOW }],
  ["an available ring outside memory", { misplaced: mmio.QUEUE_DRIVER_LOW }],
  ["a used ring outside memory", { misplaced: mmio.QUEUE_DEVICE_LOW }],
  ["3 descriptors", { size: 3 }],
  ["65535 descriptors", { size: 65535 }],
  ["no descriptors", { size: 0 }],
];

describe.each(backendNames())("%s", (backend) => {
  test("a device that was broken in every way asks for a reset each time, and then works", async () => {
    const microvm = await startGuest({ backend, entropy: true }, (guest) => {
      guest.mapGib(3, GAP_DIRECTORY);
      for (const [i, [, broken]] of BROKEN.entries()) {
        const rings = RINGS + 2 * i * RINGS_BYTES;
        start(guest, rings, broken);
        waitFor(guest, `broken ${i}`, VIRTIO_MMIO_START + mmio.STATUS, 6, 1); // DEVICE_NEEDS_RESET
        guest.print(`${i}`);
        start(guest, rings + RINGS_BYTES, {});
        waitFor(guest, `good ${i}`, rings + RINGS_BYTES + 0x2000, 16, 1);
        guest.movImm(RBX, rings + RINGS_BYTES + 0x2008);
        guest.load32(RAX, at(RBX));
        guest.cmpImm(RAX, 64);
        guest.jcc(CC_E, `used ${i}`);
        guest.print("!");
        guest.label(`used ${i}`);
      }
      guest.reset();
    });
    const said = BROKEN.map((_, i) => i).join("");
    expect(await microvm.ended).toMatchObject({ end: { kind: "reset" }, consoleTail: said });
  });
});
