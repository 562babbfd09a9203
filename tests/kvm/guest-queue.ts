/** A virtqueue as a raw guest drives it, with one request at a time. */

import { VIRTIO_MMIO_START } from "../../src/boot/layout.ts";
import * as mmio from "../../src/devices/virtio/mmio/registers.ts";
import { at, CC_NE } from "../oracle/asm.ts";
import { type GuestCode, RAX, RBX, RCX, RSI } from "./guest-code.ts";

const DESC_BYTES = 16;
const VIRTQ_DESC_F_NEXT = 1;
const VIRTQ_DESC_F_WRITE = 2;

/** Guest-physical addresses of the rings, in memory that is zero. */
export interface RingPlace {
  readonly desc: number;
  readonly driver: number;
  readonly device: number;
}

export interface Buffer {
  readonly gpa: number;
  readonly length: number;
  /** The device writes it. */
  readonly write?: boolean;
}

export class GuestQueue {
  private requests = 0;
  private readonly label: string;

  constructor(
    private readonly guest: GuestCode,
    private readonly index: number,
    private readonly place: RingPlace,
    private readonly size = 8,
  ) {
    this.label = `queue at ${place.desc}, request`;
  }

  /** Takes up the first device with no more than VIRTIO_F_VERSION_1 and `features`, and with this as its only queue. */
  start(features = 0): void {
    const write = (register: number, value: number) =>
      this.guest.poke(VIRTIO_MMIO_START + register, value % 2 ** 32);
    const { place } = this;
    write(mmio.STATUS, 0);
    write(mmio.STATUS, mmio.STATUS_ACKNOWLEDGE | mmio.STATUS_DRIVER);
    write(mmio.DRIVER_FEATURES_SEL, 0);
    write(mmio.DRIVER_FEATURES, features);
    write(mmio.DRIVER_FEATURES_SEL, 1);
    write(mmio.DRIVER_FEATURES, 1); // VIRTIO_F_VERSION_1
    const ok = mmio.STATUS_ACKNOWLEDGE | mmio.STATUS_DRIVER | mmio.STATUS_FEATURES_OK;
    write(mmio.STATUS, ok);
    write(mmio.QUEUE_SEL, this.index);
    write(mmio.QUEUE_NUM, this.size);
    for (const [low, gpa] of [
      [mmio.QUEUE_DESC_LOW, place.desc],
      [mmio.QUEUE_DRIVER_LOW, place.driver],
      [mmio.QUEUE_DEVICE_LOW, place.device],
    ] as const) {
      write(low, gpa);
      write(low + 4, Math.floor(gpa / 2 ** 32));
    }
    write(mmio.QUEUE_READY, 1);
    write(mmio.STATUS, ok | mmio.STATUS_DRIVER_OK);
  }

  /** Hands a chain of `buffers` over and waits until the device has used it. */
  request(buffers: readonly Buffer[]): void {
    const { guest, place } = this;
    for (const [i, { gpa, length, write }] of buffers.entries()) {
      const descriptor = place.desc + DESC_BYTES * i;
      const next = i + 1 < buffers.length ? VIRTQ_DESC_F_NEXT | ((i + 1) << 16) : 0;
      guest.poke(descriptor, gpa % 2 ** 32);
      guest.poke(descriptor + 4, Math.floor(gpa / 2 ** 32));
      guest.poke(descriptor + 8, length);
      guest.poke(descriptor + 12, next | (write === true ? VIRTQ_DESC_F_WRITE : 0));
    }
    // Each chain begins with descriptor 0, as the zeros in the ring say.
    const count = ++this.requests;
    guest.poke(place.driver, count << 16);
    guest.poke(VIRTIO_MMIO_START + mmio.QUEUE_NOTIFY, this.index);
    guest.label(`${this.label} ${count}`);
    guest.pause();
    guest.movImm(RBX, place.device);
    guest.load32(RAX, at(RBX));
    guest.shr(RAX, 16);
    guest.cmpImm(RAX, count);
    guest.jcc(CC_NE, `${this.label} ${count}`);
  }

  /**
   * Makes all of the queue available, each descriptor a request for the device to write `length` bytes at `gpa`, waits
   * until the device has used them, and does so `rounds` times.
   */
  flood(gpa: number, length: number, rounds: number): void {
    const { guest, place, size, label } = this;
    for (let i = 0; i < size; i++) {
      const descriptor = place.desc + DESC_BYTES * i;
      guest.poke(descriptor, gpa % 2 ** 32);
      guest.poke(descriptor + 4, Math.floor(gpa / 2 ** 32));
      guest.poke(descriptor + 8, length);
      guest.poke(descriptor + 12, VIRTQ_DESC_F_WRITE);
      guest.movImm(RBX, place.driver + 4 + 2 * i);
      guest.movImm(RAX, i);
      guest.storeA(2);
    }
    guest.movImm(RCX, rounds);
    guest.label(`${label} flood`);
    guest.movImm(RBX, place.driver + 2);
    guest.loadA(2);
    guest.addImm(RAX, size);
    guest.storeA(2);
    guest.movImm(RAX, 0);
    guest.loadA(2);
    guest.mov(RSI, RAX);
    guest.poke(VIRTIO_MMIO_START + mmio.QUEUE_NOTIFY, this.index);
    guest.label(`${label} flood used`);
    guest.pause();
    guest.movImm(RBX, place.device + 2);
    guest.movImm(RAX, 0);
    guest.loadA(2);
    guest.cmp(RAX, RSI);
    guest.jcc(CC_NE, `${label} flood used`);
    guest.addImm(RCX, -1);
    guest.jcc(CC_NE, `${label} flood`);
  }
}
