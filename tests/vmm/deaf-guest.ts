/**
 * A guest that gives its network device two receive buffers and then none for a while: it can still send, its drive goes
 * on, and all that was sent to it meanwhile comes, in order, when it gives buffers again.
 */

import { VIRTIO_ID_BLOCK, VIRTIO_ID_NET } from "../../src/devices/virtio/device.ts";
import type { GuestDriver } from "./guest-driver.ts";
import {
  FIRST_WINDOW,
  type GuestParts,
  PAGE_BYTES,
  RINGS_BYTES,
  readDrive,
  WINDOW_BYTES,
} from "./guest-parts.ts";

/** UDP port of the datagrams that are counted; each begins with its number, le32. */
export const DEAF_PORT = 7777;
export const DATAGRAMS = 400;

const RX = 0;
const TX = 1;
const NET_HEADER_BYTES = 12;
const BUFFER_BYTES = 2048;
const ETHERTYPE_IPV4 = 0x0800;
const PROTOCOL_UDP = 17;

export function listenLate(guest: GuestParts): void {
  const { memory, data } = guest;
  const drive = guest.driver(FIRST_WINDOW, guest.rings);
  drive.start(VIRTIO_ID_BLOCK);
  drive.addQueue(0);
  drive.driverOk();
  const net = guest.driver(FIRST_WINDOW + WINDOW_BYTES, guest.rings + RINGS_BYTES);
  net.start(VIRTIO_ID_NET);
  for (const queue of [RX, TX]) net.addQueue(queue);
  net.driverOk();

  const buffers = [0, 1].map((i) => data + (4 + i) * PAGE_BYTES);
  const give = (gpa: number) => net.submit(RX, [], [{ gpa, length: BUFFER_BYTES }]);
  for (const gpa of buffers) give(gpa);
  guest.print("deaf\n");
  const numbers: number[] = [];
  let next = 0;
  /** Waits for a frame in the buffer whose turn it is, notes its number if it is one of ours, and returns the buffer. */
  const take = () => {
    const length = net.waitUsed(RX);
    const gpa = buffers[next++ % buffers.length]!;
    const number = numberIn(memory.slice(gpa + NET_HEADER_BYTES, length - NET_HEADER_BYTES).slice());
    if (number !== undefined) numbers.push(number);
    return gpa;
  };
  const first = [take(), take()];

  for (let i = 0; i < 500; i++) {
    readDrive(guest, drive);
    send(net, data);
  }
  if (net.used(RX) !== undefined) throw new Error("a frame came without a buffer");
  guest.print("the drive and what is sent go on\n");
  for (const gpa of first) give(gpa);
  while (numbers.length < DATAGRAMS) give(take());
  const wrong = numbers.findIndex((number, i) => number !== i);
  guest.print(wrong < 0 ? "all came\n" : `${numbers[wrong]} came instead of ${wrong}\n`);
}

function send(net: GuestDriver, gpa: number): void {
  net.submit(TX, [{ gpa, length: NET_HEADER_BYTES + 60 }], []);
  net.waitUsed(TX);
}

/** Number of the datagram in an Ethernet frame, if it is one to {@link DEAF_PORT}. */
function numberIn(frame: Uint8Array): number | undefined {
  const view = new DataView(frame.buffer);
  const [ip, udp, payload] = [14, 34, 42];
  const counts =
    frame.length >= payload + 4 &&
    view.getUint16(12) === ETHERTYPE_IPV4 &&
    frame[ip + 9] === PROTOCOL_UDP &&
    view.getUint16(udp + 2) === DEAF_PORT;
  return counts ? view.getUint32(payload, true) : undefined;
}
