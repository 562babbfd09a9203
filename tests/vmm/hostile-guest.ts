/**
 * A guest that breaks the rules of each of its virtio devices in turn, through the buses and threads of a whole machine,
 * and sees after each that the device asks for a reset, that its drive goes on, and that the device works again.
 */

import * as device from "../../src/devices/virtio/device.ts";
import * as reg from "../../src/devices/virtio/mmio/registers.ts";
import type { GuestMemory } from "../../src/memory/guest-memory.ts";
import type { Buffer, GuestDriver } from "./guest-driver.ts";
import {
  FIRST_WINDOW,
  type GuestParts,
  PAGE_BYTES,
  RINGS_BYTES,
  readDrive,
  WINDOW_BYTES,
} from "./guest-parts.ts";

const VRING_DESC_F_NEXT = 1;
const VRING_DESC_F_WRITE = 2;
/** More than the guest has, below 4 GiB. */
const OUTSIDE = 0xc000_0000;
/** Rounds of a reset while a request is on its way. */
const RESETS = 100;

/** What is done with a device: its queues, and a request that it completes by itself. */
interface Use {
  readonly name: string;
  readonly queues: number;
  readonly requestQueue: number;
  request(at: number, memory: GuestMemory): { readable: Buffer[]; writable: Buffer[]; used: number };
}

const USES: Readonly<Record<number, Use>> = {
  [device.VIRTIO_ID_NET]: {
    name: "net",
    queues: 2,
    requestQueue: 1,
    request: (gpa) => ({ readable: [{ gpa, length: 100 }], writable: [], used: 0 }),
  },
  [device.VIRTIO_ID_ENTROPY]: {
    name: "entropy",
    queues: 1,
    requestQueue: 0,
    request: (gpa) => ({ readable: [], writable: [{ gpa, length: 300 }], used: 300 }),
  },
  [device.VIRTIO_ID_BALLOON]: {
    name: "balloon",
    queues: 2,
    requestQueue: 0,
    request: (gpa, memory) => {
      memory.writeU32(gpa, gpa / PAGE_BYTES + 1);
      return { readable: [{ gpa, length: 4 }], writable: [], used: 0 };
    },
  },
  [device.VIRTIO_ID_VSOCK]: {
    name: "vsock",
    queues: 3,
    requestQueue: 1,
    // A packet that belongs to nothing.
    request: (gpa) => ({ readable: [{ gpa, length: 44 }], writable: [], used: 0 }),
  },
};

export function breakAllDevices(guest: GuestParts): void {
  const drive = guest.driver(FIRST_WINDOW, guest.rings);
  drive.start(device.VIRTIO_ID_BLOCK);
  drive.addQueue(0);
  drive.driverOk();
  const rings = guest.rings + RINGS_BYTES;
  for (
    let window = FIRST_WINDOW + WINDOW_BYTES;
    guest.driver(window, rings).read(reg.MAGIC_VALUE) === reg.MAGIC;
    window += WINDOW_BYTES
  ) {
    const type = guest.driver(window, rings).read(reg.DEVICE_ID);
    const use = USES[type];
    if (use === undefined) throw new Error(`unexpected device of type ${type}`);
    const one = new OneDevice(guest, window, rings, type, use);
    one.loop();
    readDrive(guest, drive);
    one.lengths();
    readDrive(guest, drive);
    one.rings();
    readDrive(guest, drive);
    one.sizes();
    readDrive(guest, drive);
    one.configuration();
    readDrive(guest, drive);
    one.resets(() => readDrive(guest, drive));
    one.work();
    guest.print(`${use.name} is well\n`);
  }
}

class OneDevice {
  constructor(
    private readonly guest: GuestParts,
    private readonly window: number,
    private readonly ringsAt: number,
    private readonly type: number,
    private readonly use: Use,
  ) {}

  private driver(): GuestDriver {
    this.guest.memory.write(this.ringsAt, new Uint8Array(RINGS_BYTES));
    const driver = this.guest.driver(this.window, this.ringsAt);
    driver.start(this.type);
    return driver;
  }

  private started(): GuestDriver {
    const driver = this.driver();
    for (let queue = 0; queue < this.use.queues; queue++) driver.addQueue(queue);
    driver.driverOk();
    return driver;
  }

  private expectNeedsReset(driver: GuestDriver, what: string): void {
    const deadline = performance.now() + 20_000;
    while ((driver.read(reg.STATUS) & reg.STATUS_DEVICE_NEEDS_RESET) === 0) {
      if (performance.now() > deadline) throw new Error(`${this.use.name}: no reset is asked for: ${what}`);
      this.guest.idle();
    }
    driver.write(reg.INTERRUPT_ACK, driver.read(reg.INTERRUPT_STATUS));
  }

  /** A chain of one descriptor in the queue for requests. */
  private chain(gpa: number, length: number, flags: number): void {
    const driver = this.started();
    const { requestQueue } = this.use;
    driver.writeDescriptor(requestQueue, 0, gpa, length, flags, 0);
    driver.publish(requestQueue, 0);
    this.expectNeedsReset(driver, `descriptor ${gpa} ${length} ${flags}`);
  }

  loop(): void {
    this.chain(this.guest.data, 1, VRING_DESC_F_NEXT);
    this.chain(this.guest.data, 1, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE);
  }

  lengths(): void {
    for (const flags of [0, VRING_DESC_F_WRITE]) {
      this.chain(this.guest.data, 0xffff_ffff, flags);
      this.chain(OUTSIDE, 1, flags);
    }
  }

  rings(): void {
    for (const register of [reg.QUEUE_DESC_LOW, reg.QUEUE_DRIVER_LOW, reg.QUEUE_DEVICE_LOW]) {
      this.setUp((driver) => driver.write(register, OUTSIDE));
      this.setUp((driver) => driver.write(register + 4, 0x8000_0000));
    }
  }

  sizes(): void {
    for (const size of [0, 3, 65535]) this.setUp((driver) => driver.write(reg.QUEUE_NUM, size));
  }

  /** Each queue, set up with `change`. */
  private setUp(change: (driver: GuestDriver) => void): void {
    for (let queue = 0; queue < this.use.queues; queue++) {
      const driver = this.driver();
      driver.addQueue(queue);
      driver.write(reg.QUEUE_READY, 0);
      change(driver);
      driver.write(reg.QUEUE_READY, 1);
      driver.driverOk();
      this.expectNeedsReset(driver, `queue ${queue}`);
      driver.write(reg.QUEUE_NOTIFY, queue);
    }
  }

  configuration(): void {
    const driver = this.started();
    for (let offset = reg.CONFIG; offset < WINDOW_BYTES; offset += 4) driver.write(offset, 0xa5a5_a5a5);
    if ((driver.read(reg.STATUS) & reg.STATUS_DEVICE_NEEDS_RESET) !== 0)
      throw new Error(`${this.use.name}: out of order after configuration writes`);
  }

  resets(between: () => void): void {
    for (let round = 0; round < RESETS; round++) {
      const driver = this.started();
      this.submit(driver);
      driver.write(reg.STATUS, 0);
      if (driver.read(reg.STATUS) !== 0) throw new Error(`${this.use.name}: not reset`);
      if (round % 10 === 0) between();
    }
  }

  private submit(driver: GuestDriver): number {
    const { readable, writable, used } = this.use.request(this.guest.data, this.guest.memory);
    driver.submit(this.use.requestQueue, readable, writable);
    return used;
  }

  work(): void {
    const driver = this.started();
    for (let i = 0; i < 20; i++) {
      const expected = this.submit(driver);
      const used = driver.waitUsed(this.use.requestQueue);
      if (used !== expected) throw new Error(`${this.use.name}: ${used} bytes used instead of ${expected}`);
    }
  }
}
