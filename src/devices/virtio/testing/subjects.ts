/** Every virtio device there is, each with a host of its own in memory, for tests of what all of them must bear. */

import { ManualTimers } from "../../../ratelimit/testing/manual-timers.ts";
import { BalloonDevice } from "../balloon/balloon.ts";
import { BlockDevice } from "../block/block.ts";
import type { DiskFile } from "../block/disk.ts";
import { ConsoleDevice } from "../console/console.ts";
import { encodeControl, VIRTIO_CONSOLE_DEVICE_READY } from "../console/control.ts";
import type { VirtioDevice } from "../device.ts";
import type { LinkEvents, NetLink } from "../net/link.ts";
import { NetDevice } from "../net/net.ts";
import { RngDevice } from "../rng/rng.ts";
import { FakeSockets } from "../vsock/testing/fake-sockets.ts";
import { GuestVsock } from "../vsock/testing/guest.ts";
import { VsockDevice } from "../vsock/vsock.ts";
import type { BufferSpec, TestDriver } from "./driver.ts";

export interface Subject {
  readonly device: VirtioDevice;
  /** A request of the kind that queue `index` is for. */
  request(driver: TestDriver, index: number): BufferSpec[];
  /** Does on the host what makes the device look at its receive queues. */
  stir(): void;
  /** Queues that the device does not look at whatever happens here. */
  readonly unread: readonly number[];
  /** Bytes of the configuration space, as [from, to], that the driver may write. */
  readonly configWritable?: readonly [number, number];
  /** Does one piece of ordinary work on a fresh driver and returns what came of it. */
  work(driver: TestDriver): unknown;
  /** What {@link work} returns if all is well. */
  readonly worked: unknown;
}

const GUEST_CID = 7;
const PORT = 52;
const GET_ID = 8;
const PAGE_BYTES = 4096;

class EmptyDisk implements DiskFile {
  readonly size = 64 * 512;
  readAt(_offset: number, into: readonly Uint8Array[]): number {
    return into.reduce((sum, buffer) => sum + buffer.fill(0).length, 0);
  }
  writeAt(_offset: number, from: readonly Uint8Array[]): number {
    return from.reduce((sum, { length }) => sum + length, 0);
  }
  discard(): void {}
  writeZeros(): void {}
  sync(): void {}
}

/** A link that gives each frame back which it is sent. */
class EchoLink implements NetLink {
  readonly offloads = 0n;
  private readonly frames: Uint8Array[] = [];
  private events: LinkEvents | undefined;

  start(_accepted: bigint, events: LinkEvents): void {
    this.events = events;
    this.frames.length = 0;
  }

  stop(): void {
    this.events = undefined;
  }

  receive(into: Uint8Array): number | undefined {
    const frame = this.frames.shift();
    if (frame !== undefined) into.set(frame);
    return frame?.length;
  }

  send(header: Uint8Array, frame: readonly Uint8Array[]): boolean {
    this.frames.push(Buffer.concat([header, ...frame]));
    return true;
  }

  stir(): void {
    this.frames.push(new Uint8Array(100));
    this.events?.onReadable();
  }
}

function block(): Subject {
  const device = new BlockDevice({
    driveId: "x",
    disk: new EmptyDisk(),
    id: new Uint8Array(20),
    readOnly: false,
    cacheType: "Writeback",
    segMax: 16,
    timers: new ManualTimers(),
  });
  const request = (driver: TestDriver) => {
    const header = new Uint8Array(16);
    header[0] = GET_ID;
    return [driver.readable(header), driver.writable(20), driver.writable(1)];
  };
  return {
    device,
    request,
    stir: () => {},
    unread: [],
    work: (driver) => driver.request(0, request(driver)),
    worked: 21,
  };
}

function net(): Subject {
  const link = new EchoLink();
  const device = new NetDevice({ ifaceId: "x", link, timers: new ManualTimers() });
  return {
    device,
    request: (driver, index) =>
      index === 0 ? [driver.writable(1526)] : [driver.readable(new Uint8Array(112))],
    stir: () => link.stir(),
    unread: [],
    work(driver) {
      driver.queues[0]!.add([driver.writable(1526)]);
      driver.request(1, [driver.readable(new Uint8Array(112).fill(5, 12))]);
      link.stir();
      return driver.queues[0]!.takeUsed().map(({ length }) => length);
    },
    worked: [112],
  };
}

function vsock(): Subject {
  const sockets = new FakeSockets();
  sockets.ports.add(PORT);
  const device = new VsockDevice({ guestCid: GUEST_CID, sockets, timers: new ManualTimers() });
  return {
    device,
    request: (driver, index) =>
      index === 1 ? [driver.readable(new Uint8Array(44))] : [driver.writable(44), driver.writable(4096)],
    stir: () => sockets.program().send("CONNECT 1\n"),
    unread: [2],
    work(driver) {
      const guest = new GuestVsock(driver, GUEST_CID);
      guest.give(4);
      guest.send({ op: 1 });
      sockets.opened.at(-1)!.stream.send("hello");
      return guest.take().map(({ op, len }) => [op, len]);
    },
    // RESPONSE, RW.
    worked: [
      [2, 0],
      [5, 5],
    ],
  };
}

function balloon(): Subject {
  const device = new BalloonDevice({
    amountMib: 1,
    deflateOnOom: true,
    statsPollingIntervalS: 1,
    freePageHinting: true,
    freePageReporting: true,
    timers: new ManualTimers(),
    discard: (pages) => void pages.fill(0),
  });
  const page = (driver: TestDriver) => {
    const gpa = driver.alloc(PAGE_BYTES, PAGE_BYTES);
    return { gpa, pfn: driver.readable(new Uint8Array(Uint32Array.of(gpa / PAGE_BYTES).buffer)) };
  };
  return {
    device,
    request: (driver, index) =>
      index === 4 ? [{ gpa: page(driver).gpa, length: PAGE_BYTES, write: true }] : [page(driver).pfn],
    stir: () => {},
    unread: [],
    // le32 actual.
    configWritable: [4, 8],
    work(driver) {
      const { gpa, pfn } = page(driver);
      driver.ram(gpa, PAGE_BYTES).fill(1);
      return [driver.request(0, [pfn]), driver.ram(gpa, PAGE_BYTES).every((byte) => byte === 0)];
    },
    worked: [0, true],
  };
}

function rng(): Subject {
  const device = new RngDevice({ fillRandom: (into) => void into.fill(1), timers: new ManualTimers() });
  return {
    device,
    request: (driver) => [driver.writable(64)],
    stir: () => {},
    unread: [],
    work: (driver) => driver.request(0, [driver.writable(64)]),
    worked: 64,
  };
}

function consoleDevice(): Subject {
  const device = new ConsoleDevice(["a", "b"]);
  const [CONTROL_IN, CONTROL_OUT] = [2, 3];
  for (const port of device.ports) port.connect({ onData: () => true, onWritable: () => {} });
  const control = (driver: TestDriver) =>
    driver.readable(encodeControl({ id: 0, event: VIRTIO_CONSOLE_DEVICE_READY, value: 1 }));
  return {
    device,
    request: (driver, index) => {
      if (index === CONTROL_OUT) return [control(driver)];
      return index % 2 === 0 ? [driver.writable(128)] : [driver.readable(new Uint8Array(10))];
    },
    stir: () => {},
    // Receive queues, while no program has their ports open and no message is owed.
    unread: [0, CONTROL_IN, 4],
    work(driver) {
      for (let i = 0; i < 2; i++) driver.queues[CONTROL_IN]!.add([driver.writable(128)]);
      driver.request(CONTROL_OUT, [control(driver)]);
      return driver.queues[CONTROL_IN]!.takeUsed().map(({ length }) => length);
    },
    // PORT_ADD of each.
    worked: [8, 8],
  };
}

export const SUBJECTS: Readonly<Record<string, () => Subject>> = {
  block,
  net,
  vsock,
  balloon,
  entropy: rng,
  console: consoleDevice,
};
