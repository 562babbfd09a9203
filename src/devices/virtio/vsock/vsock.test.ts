import { beforeEach, describe, expect, test } from "bun:test";
import { ManualTimers } from "../../../ratelimit/testing/manual-timers.ts";
import { TestDriver } from "../testing/driver.ts";
import { FUZZ_COUNT, fuzzDevice } from "../testing/fuzz.ts";
import { encodeHeader, HEADER_BYTES } from "./packet.ts";
import { FakeSockets, type FakeStream } from "./testing/fake-sockets.ts";
import { GuestVsock } from "./testing/guest.ts";
import { MAX_CONNECTIONS, VsockDevice } from "./vsock.ts";

const CID = 7;
const REQUEST = 1;
const RESPONSE = 2;
const RST = 3;
const SHUTDOWN = 4;
const RW = 5;
const CREDIT_UPDATE = 6;
const CREDIT_REQUEST = 7;
const RECEIVE = 1;
const SEND = 2;

let sockets: FakeSockets;
let timers: ManualTimers;
let device: VsockDevice;
let driver: TestDriver;
let guest: GuestVsock;
let logs: string[];

beforeEach(() => {
  sockets = new FakeSockets();
  timers = new ManualTimers();
  logs = [];
  device = new VsockDevice({ guestCid: CID, sockets, timers });
  driver = TestDriver.start(device, {
    ramBytes: 16 << 20,
    events: { log: (line) => logs.push(line) },
  });
  guest = new GuestVsock(driver, CID);
});

const bytes = (count: number, seed = 0) =>
  Uint8Array.from({ length: count }, (_, i) => (i * 7 + seed) & 0xff);
const ops = () => guest.take().map((packet) => packet.op);

/** A connection that the guest has opened to a host program. */
function openFromGuest(srcPort = 1000): FakeStream {
  sockets.ports.add(52);
  guest.send({ op: REQUEST, srcPort });
  expect(guest.take()).toMatchObject([{ op: RESPONSE, srcPort: 52, dstPort: srcPort, dstCid: BigInt(CID) }]);
  return sockets.opened.at(-1)!.stream;
}

/** A connection that a host program has opened to the guest. */
function openFromHost(port = 80): { stream: FakeStream; hostPort: number } {
  const stream = sockets.program();
  stream.send(`CONNECT ${port}\n`);
  const [request] = guest.take();
  expect(request).toMatchObject({ op: REQUEST, dstPort: port, srcCid: 2n, len: 0 });
  const hostPort = request!.srcPort;
  guest.send({ op: RESPONSE, srcPort: port, dstPort: hostPort });
  expect(stream.text).toBe(`OK ${hostPort}\n`);
  stream.received = [];
  return { stream, hostPort };
}

describe("a host program connects", () => {
  beforeEach(() => guest.give(64));

  test("gets the guest's port with CONNECT, and host ports from 2^30 on", () => {
    expect(openFromHost().hostPort).toBe(2 ** 30);
    expect(openFromHost().hostPort).toBe(2 ** 30 + 1);
  });

  test("the command may come in pieces, in any case, and data behind it is kept", () => {
    const stream = sockets.program();
    for (const piece of ["conn", "EcT 10", "24"]) {
      stream.send(piece);
      expect(guest.take()).toEqual([]);
    }
    stream.send("\nfirst data");
    const [request] = guest.take();
    expect(request).toMatchObject({ op: REQUEST, dstPort: 1024 });
    expect(stream.unread).toBe("first data".length);
    guest.send({ op: RESPONSE, srcPort: 1024, dstPort: request!.srcPort });
    const [data] = guest.take();
    expect(new TextDecoder().decode(data!.data)).toBe("first data");
  });

  test("anything else closes the stream", () => {
    for (const line of [
      "GET / HTTP/1.1\r\n",
      "CONNECT -1\n___",
      "CONNECT 4294967296\n",
      "CONNECT 1 2\n",
      "CONNECT x\n",
      `CONNECT ${" ".repeat(24)}1`,
    ]) {
      const stream = sockets.program();
      stream.send(line);
      expect(stream.closed).toBe(true);
    }
    const gone = sockets.program();
    gone.hangUp();
    expect(gone.closed).toBe(true);
    expect(guest.take()).toEqual([]);
    expect(device.connectionCount).toBe(0);
  });

  test("is closed when the guest refuses, or does not answer within 2 s", () => {
    const stream = sockets.program();
    stream.send("CONNECT 80\n");
    guest.send({ op: RST, srcPort: 80, dstPort: guest.take()[0]!.srcPort });
    expect(stream.closed).toBe(true);
    const silent = sockets.program();
    silent.send("CONNECT 81\n");
    timers.advance(1999);
    expect(silent.closed).toBe(false);
    timers.advance(1);
    expect(silent.closed).toBe(true);
    expect(ops()).toEqual([REQUEST, RST]);
    expect(device.connectionCount).toBe(0);
    expect(device.metrics.connectionsKilled).toBe(1);
  });
});

describe("the guest connects", () => {
  beforeEach(() => guest.give(64));

  test("to a program that listens, and gets RST where there is none", () => {
    openFromGuest();
    guest.send({ op: REQUEST, dstPort: 53 });
    expect(guest.take()).toMatchObject([{ op: RST, srcPort: 53, dstPort: 1000, type: 1, len: 0 }]);
  });

  test("waits up to 2 s for a program whose queue of connections is full", () => {
    sockets.busy.add(52);
    sockets.ports.add(52);
    guest.send({ op: REQUEST });
    timers.advance(1000);
    expect(guest.take()).toEqual([]);
    sockets.busy.clear();
    timers.advance(10);
    expect(ops()).toEqual([RESPONSE]);
    sockets.busy.add(52);
    guest.send({ op: REQUEST, srcPort: 1001 });
    timers.advance(1990);
    expect(guest.take()).toEqual([]);
    timers.advance(10);
    expect(ops()).toEqual([RST]);
    expect(device.connectionCount).toBe(1);
  });

  test("packets for no connection, of another type or of another sender", () => {
    guest.send({ op: RW }, bytes(4));
    guest.send({ op: REQUEST, type: 2 });
    expect(ops()).toEqual([RST, RST]);
    guest.send({ op: RST });
    guest.send({ op: REQUEST, dstCid: 3n });
    guest.send({ op: REQUEST, srcCid: 99n });
    guest.send({ op: REQUEST, srcCid: BigInt(CID) + 2n ** 32n });
    expect(guest.take()).toEqual([]);
  });
});

describe("data", () => {
  beforeEach(() => guest.give(64));

  test("flows both ways and is counted", () => {
    const { stream, hostPort } = openFromHost();
    guest.send({ op: RW, srcPort: 80, dstPort: hostPort }, bytes(5000));
    expect(Uint8Array.from(stream.received)).toEqual(bytes(5000));
    stream.send([...bytes(9000, 3)]);
    const packets = guest.take();
    expect(packets.map((packet) => packet.data.length)).toEqual([4096, 4096, 808]);
    expect(Buffer.concat(packets.map((packet) => packet.data)).equals(Buffer.from(bytes(9000, 3)))).toBe(
      true,
    );
    expect(packets[0]).toMatchObject({
      op: RW,
      bufAlloc: 65536,
      fwdCnt: 5000,
      srcPort: hostPort,
      dstPort: 80,
    });
    expect(device.metrics).toMatchObject({ rxBytes: 9000, txBytes: 5000, connectionsAdded: 1 });
  });

  test("a guest with little room gets no more, and is asked for credit once", () => {
    sockets.ports.add(52);
    guest.send({ op: REQUEST, bufAlloc: 100 });
    guest.take();
    const { stream } = sockets.opened[0]!;
    stream.send([...bytes(250)]);
    stream.send([1]);
    const packets = guest.take();
    expect(packets.map(({ op, len }) => [op, len])).toEqual([
      [RW, 100],
      [CREDIT_REQUEST, 0],
    ]);
    guest.send({ op: CREDIT_UPDATE, bufAlloc: 100, fwdCnt: 100 });
    expect(guest.take().map(({ op, len }) => [op, len])).toEqual([
      [RW, 100],
      [CREDIT_REQUEST, 0],
    ]);
    // A guest that claims to have taken more than it got is given nothing for it.
    guest.send({ op: CREDIT_UPDATE, bufAlloc: 100, fwdCnt: 5000 });
    guest.send({ op: CREDIT_UPDATE, bufAlloc: 200, fwdCnt: 150 });
    expect(guest.take().at(-1)).toMatchObject({ op: RW, len: 51 });
  });

  test("a slow host program slows its guest program and nobody else", () => {
    const slow = openFromGuest(1);
    slow.room = 1000;
    const quick = openFromGuest(2);
    guest.send({ op: RW, srcPort: 1 }, bytes(40_000));
    guest.send({ op: RW, srcPort: 2 }, bytes(40_000));
    expect([slow.received.length, quick.received.length]).toEqual([1000, 40_000]);
    // Told of the room of the quick one only.
    expect(guest.take()).toMatchObject([{ op: CREDIT_UPDATE, dstPort: 2, fwdCnt: 40_000 }]);
    guest.send({ op: CREDIT_REQUEST, srcPort: 1 });
    expect(guest.take()).toMatchObject([{ op: CREDIT_UPDATE, dstPort: 1, fwdCnt: 1000 }]);
    guest.send({ op: RW, srcPort: 1 }, bytes(26_000, 1));
    slow.makeRoom(60_000);
    slow.makeRoom(60_000);
    expect(slow.received).toEqual([...bytes(40_000), ...bytes(26_000, 1)]);
    expect(guest.take()).toMatchObject([{ op: CREDIT_UPDATE, dstPort: 1, fwdCnt: 61_000 }]);
  });

  test("a guest that sends more than there is room for, or less than it says, is reset", () => {
    const stream = openFromGuest(1);
    stream.room = 0;
    guest.send({ op: RW, srcPort: 1 }, bytes(65_536));
    expect(guest.take()).toEqual([]);
    guest.send({ op: RW, srcPort: 1 }, bytes(1));
    expect(ops()).toEqual([RST]);
    expect(stream.closed).toBe(true);
    openFromGuest(2);
    guest.send({ op: RW, srcPort: 2, len: 5 }, bytes(4));
    expect(ops()).toEqual([RST]);
    openFromGuest(3);
    guest.send({ op: RW, srcPort: 3, len: 0xffff_ffff }, bytes(4));
    expect(ops()).toEqual([RST]);
  });

  test("a host program that breaks resets its connection", () => {
    const stream = openFromGuest(1);
    stream.broken = true;
    guest.send({ op: RW, srcPort: 1 }, bytes(10));
    expect(ops()).toEqual([RST]);
    const other = openFromGuest(2);
    other.broken = true;
    other.send([1]);
    expect(ops()).toEqual([RST]);
    expect(device.metrics).toMatchObject({ txWriteFails: 1, rxReadFails: 1, connectionsRemoved: 2 });
  });
});

test("without receive buffers nothing is read, and many connections take turns when there are some", () => {
  guest.give(3);
  const streams = [1, 2, 3].map((port) => openFromGuest(port));
  for (const stream of streams) stream.send([...bytes(10_000)]);
  expect(streams.map((stream) => stream.unread)).toEqual([10_000, 10_000, 10_000]);
  guest.give(4);
  expect(guest.take().map(({ dstPort }) => dstPort)).toEqual([3, 1, 2, 3]);
  guest.give(1, 0);
  expect(guest.take()[0]!.data.length).toBe(0);
  guest.give(20);
  expect(streams.map((stream) => stream.unread)).toEqual([0, 0, 0]);
});

describe("the end of a connection", () => {
  beforeEach(() => guest.give(64));

  test("a host program that closes: what it sent, SHUTDOWN both, and RST if the guest is silent for 2 s", () => {
    const stream = openFromGuest(1);
    stream.send("bye");
    stream.hangUp();
    expect(guest.take().map(({ op, flags, len }) => [op, flags, len])).toEqual([
      [RW, 0, 3],
      [SHUTDOWN, RECEIVE | SEND, 0],
    ]);
    timers.advance(1999);
    expect(stream.closed).toBe(false);
    timers.advance(1);
    expect(ops()).toEqual([RST]);
    expect(stream.closed).toBe(true);
    const other = openFromGuest(2);
    other.hangUp();
    guest.send({ op: RST, srcPort: 2 });
    expect(other.closed).toBe(true);
    timers.advance(5000);
    expect(device.metrics.connectionsKilled).toBe(1);
  });

  test("a host program that ends its sending half still receives", () => {
    const stream = openFromGuest(1);
    stream.endSending();
    expect(guest.take()).toMatchObject([{ op: SHUTDOWN, flags: SEND }]);
    timers.advance(10_000);
    guest.send({ op: RW, srcPort: 1 }, bytes(10));
    expect(stream.received).toEqual([...bytes(10)]);
    stream.hangUp();
    expect(guest.take()).toMatchObject([{ op: SHUTDOWN, flags: RECEIVE | SEND }]);
    guest.send({ op: RW, srcPort: 1 }, bytes(10));
    guest.send({ op: SHUTDOWN, srcPort: 1, flags: RECEIVE | SEND });
    expect(ops()).toEqual([RST]);
    expect(stream.closed).toBe(true);
  });

  test("a guest that closes: RST when all it sent is delivered, or after 2 s", () => {
    const quick = openFromGuest(1);
    guest.send({ op: SHUTDOWN, srcPort: 1, flags: RECEIVE | SEND });
    expect(ops()).toEqual([RST]);
    expect(quick.closed).toBe(true);
    const slow = openFromGuest(2);
    slow.room = 0;
    guest.send({ op: RW, srcPort: 2 }, bytes(100));
    guest.send({ op: SHUTDOWN, srcPort: 2, flags: RECEIVE | SEND });
    expect(guest.take()).toEqual([]);
    slow.makeRoom(100);
    expect(ops()).toEqual([RST]);
    expect(slow.received.length).toBe(100);
    const stuck = openFromGuest(3);
    stuck.room = 0;
    guest.send({ op: RW, srcPort: 3 }, bytes(100));
    guest.send({ op: SHUTDOWN, srcPort: 3, flags: RECEIVE | SEND });
    timers.advance(2000);
    expect(ops()).toEqual([RST]);
    expect(stuck.closed).toBe(true);
  });

  test("a guest that ends its sending half: the program sees the end after the data, and may answer", () => {
    const stream = openFromGuest(1);
    stream.room = 0;
    guest.send({ op: RW, srcPort: 1 }, bytes(100));
    guest.send({ op: SHUTDOWN, srcPort: 1, flags: SEND });
    expect(stream.sawEnd).toBe(false);
    stream.makeRoom(200);
    expect([stream.sawEnd, stream.received.length]).toEqual([true, 100]);
    stream.send("answer");
    expect(guest.take()).toMatchObject([{ op: RW, len: 6 }]);
    guest.send({ op: RW, srcPort: 1 }, bytes(1));
    expect(ops()).toEqual([RST]);
  });

  test("a guest that receives no more: the program cannot send, and its end is told", () => {
    const stream = openFromGuest(1);
    guest.send({ op: SHUTDOWN, srcPort: 1, flags: RECEIVE });
    expect(stream.readShut).toBe(true);
    stream.send([1, 2, 3]);
    expect(guest.take()).toEqual([]);
    stream.hangUp();
    expect(guest.take()).toMatchObject([{ op: SHUTDOWN, flags: RECEIVE | SEND }]);
  });

  test("a reset of the device closes everything, and it can be used again", () => {
    const stream = openFromGuest(1);
    const greeting = sockets.program();
    driver.reset();
    expect([stream.closed, greeting.closed, sockets.listening]).toEqual([true, true, false]);
    expect(device.connectionCount).toBe(0);
    driver.start();
    guest = new GuestVsock(driver, CID);
    guest.give(4);
    openFromHost();
  });
});

test(`${MAX_CONNECTIONS} connections and no more, from either side`, () => {
  sockets.ports.add(52);
  const sources = Array.from({ length: MAX_CONNECTIONS - 1 }, (_, i) => 2000 + i);
  const answers: number[] = [];
  for (const srcPort of sources) {
    guest.give(1, 64);
    guest.send({ op: REQUEST, srcPort });
    answers.push(...ops());
  }
  expect(answers).toEqual(sources.map(() => RESPONSE));
  const last = sockets.program();
  expect(last.closed).toBe(false);
  expect(sockets.program().closed).toBe(true);
  guest.give(1, 64);
  guest.send({ op: REQUEST, srcPort: 1 });
  expect(ops()).toEqual([RST]);
  expect(logs.length).toBe(2);
  sockets.opened[5]!.stream.hangUp();
  guest.send({ op: RST, srcPort: 2005 });
  guest.give(8, 64);
  guest.send({ op: REQUEST, srcPort: 1 });
  expect(ops()).toContain(RESPONSE);
});

test("a guest that makes resets and does not take them is not served until it does", () => {
  for (let i = 0; i < 300; i++) guest.send({ op: RW, srcPort: i });
  const served = () => device.metrics.txPackets;
  expect(served()).toBe(256);
  guest.give(100, 0);
  expect(served()).toBe(300);
  const packets = guest.take();
  guest.give(200, 0);
  packets.push(...guest.take());
  expect(packets.map(({ op, dstPort }) => [op, dstPort])).toEqual(
    Array.from({ length: 300 }, (_, i) => [RST, i]),
  );
});

test(`survives ${FUZZ_COUNT} mutations`, () => {
  let fake = new FakeSockets();
  let clock = new ManualTimers();
  const result = fuzzDevice({
    seed: 19,
    device: () => {
      fake = new FakeSockets();
      clock = new ManualTimers();
      for (let port = 0; port < 4; port++) fake.ports.add(port);
      fake.busy.add(4);
      return new VsockDevice({ guestCid: CID, sockets: fake, timers: clock });
    },
    request: (random, d, queue) => {
      if (queue !== 1) return [d.writable(44), d.writable(1 + random.below(100))];
      const header = new Uint8Array(HEADER_BYTES);
      const len = random.below(50);
      encodeHeader(
        {
          srcCid: BigInt(CID),
          dstCid: 2n,
          srcPort: random.below(4),
          dstPort: random.below(6),
          len: random.chance(10) ? 0xffff_ffff : len,
          type: random.chance(20) ? 2 : 1,
          op: random.below(9),
          flags: random.below(4),
          bufAlloc: random.pick([0, 1, 100, 65536, 0xffff_ffff]),
          fwdCnt: random.pick([0, 1, 50, 0xffff_ffff]),
        },
        header,
      );
      return [d.readable(header), d.readable(new Uint8Array(len + 1))];
    },
    host: (random) => {
      const streams = fake.opened.filter(({ stream }) => !stream.closed);
      const { stream } =
        streams.length > 0 && !random.chance(4) ? random.pick(streams) : { stream: fake.program() };
      switch (random.below(6)) {
        case 0:
          stream.send(`CONNECT ${random.below(4)}\n`);
          break;
        case 1:
          stream.send([1, 2, 3]);
          break;
        case 2:
          stream.hangUp();
          break;
        case 3:
          stream.endSending();
          break;
        case 4:
          stream.makeRoom(random.below(100));
          break;
        default:
          clock.advance(random.below(3000));
      }
    },
  });
  expect(result.mutations).toBe(FUZZ_COUNT);
  expect(result.completed).toBeGreaterThan(FUZZ_COUNT / 10);
  expect(result.needsReset).toBeGreaterThan(FUZZ_COUNT / 100);
}, 600_000);
