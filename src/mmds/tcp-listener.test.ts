import { beforeEach, expect, test } from "bun:test";
import type { TcpConnection } from "./tcp-connection.ts";
import { type Addressed, TcpListener } from "./tcp-listener.ts";
import { ACK, FIN, PSH, RST, SYN, type TcpSegment } from "./tcp-segment.ts";

const HOST = 0xac1e0002;

let now: number;
let listener: TcpListener;
let accepted: TcpConnection[];
let sequence: number;

beforeEach(() => {
  now = 0;
  accepted = [];
  sequence = 7000;
  listener = new TcpListener({
    port: 80,
    now: () => now,
    initialSequence: () => sequence++,
    accept: (connection) => {
      accepted.push(connection);
      return {
        onProgress: () => {
          if (connection.input.length > 0) connection.send(Buffer.alloc(3000));
          connection.consume(connection.input.length);
        },
      };
    },
  });
});

function segment(sourcePort: number, fields: Partial<TcpSegment>): TcpSegment {
  return {
    sourcePort,
    destinationPort: 80,
    sequence: 100,
    acknowledgment: 0,
    flags: SYN,
    window: 60_000,
    mss: 1000,
    payload: new Uint8Array(0),
    ...fields,
  };
}

function all(): Addressed[] {
  const sent: Addressed[] = [];
  for (let next = listener.next(); next !== undefined; next = listener.next()) sent.push(next);
  return sent;
}

/** Opens a connection and returns its sequence number. */
function connect(port: number, address = HOST): number {
  listener.receive(address, segment(port, {}));
  const [first] = all();
  const acknowledgment = first!.segment.sequence + 1;
  listener.receive(address, segment(port, { flags: ACK, sequence: 101, acknowledgment }));
  return acknowledgment;
}

test("connections of one port at several addresses and of several ports are apart", () => {
  connect(5);
  connect(5, HOST + 1);
  connect(6);
  expect(accepted.map(({ state }) => state)).toEqual(["ESTABLISHED", "ESTABLISHED", "ESTABLISHED"]);
  expect(listener.counts).toEqual({ created: 3, destroyed: 0, unusual: 0, wrongPort: 0 });
});

test("those who have something to send do so in turn", () => {
  const request = { flags: ACK | PSH, sequence: 101, payload: Buffer.alloc(9) };
  for (const [port, acknowledgment] of [1, 2].map((port) => [port, connect(port)] as const)) {
    listener.receive(HOST, segment(port, { ...request, acknowledgment }));
  }
  expect(all().map(({ segment: { destinationPort } }) => destinationPort)).toEqual([1, 2, 1, 2, 1, 2]);
});

test("segments of no connection and to other ports get a RST, a RST gets nothing", () => {
  const refused = (fields: Partial<TcpSegment>) => {
    listener.receive(HOST, segment(9, fields));
    return all().map(({ address, segment: { flags, sequence, acknowledgment, sourcePort } }) => ({
      address,
      flags,
      sequence,
      acknowledgment,
      sourcePort,
    }));
  };
  const answer = { address: HOST, sourcePort: 80 };
  expect(refused({ flags: ACK, acknowledgment: 55 })).toEqual([
    { ...answer, flags: RST, sequence: 55, acknowledgment: 0 },
  ]);
  expect(refused({ flags: FIN, sequence: 0xffffffff, payload: Buffer.alloc(4) })).toEqual([
    { ...answer, flags: RST | ACK, sequence: 0, acknowledgment: 4 },
  ]);
  expect(refused({ flags: SYN | FIN })).toMatchObject([{ flags: RST | ACK, acknowledgment: 102 }]);
  expect(refused({ destinationPort: 443 })).toMatchObject([{ sourcePort: 443, acknowledgment: 101 }]);
  expect(refused({ flags: RST })).toEqual([]);
  expect(listener.counts).toMatchObject({ created: 0, unusual: 4, wrongPort: 1 });
});

test("thirty connections; then one that is silent for long makes room, or the new one is refused", () => {
  for (let port = 1; port <= 30; port++) connect(port);
  listener.receive(HOST, segment(99, {}));
  expect(all()).toMatchObject([{ segment: { destinationPort: 99, flags: RST | ACK } }]);
  now = 10_000;
  listener.receive(HOST, segment(1, { flags: ACK, sequence: 101, acknowledgment: 7001 }));
  now = 10_001;
  listener.receive(HOST, segment(99, {}));
  const [reset, synAck] = all();
  expect(reset!.segment).toMatchObject({ destinationPort: 2, flags: RST | ACK, acknowledgment: 101 });
  expect(synAck!.segment).toMatchObject({ destinationPort: 99, flags: SYN | ACK });
  expect(listener.connections).toBe(30);
  expect(listener.counts).toMatchObject({ created: 31, destroyed: 1 });
});

test("a flood of segments leaves a bounded number of answers", () => {
  for (let port = 1; port < 5000; port++) listener.receive(HOST, segment(port, {}));
  expect([listener.connections, all().length]).toEqual([30, 130]);
});

test("a connection that is over is forgotten, and its port can be used again", () => {
  const acknowledgment = connect(5);
  listener.receive(HOST, segment(5, { flags: RST, sequence: 101, acknowledgment }));
  expect(listener.connections).toBe(0);
  connect(5);
  listener.receive(HOST, segment(5, { flags: SYN, sequence: 4000 }));
  expect(all()).toMatchObject([{ segment: { flags: ACK } }]);
  listener.receive(HOST, segment(6, { sequence: 1 }));
  listener.receive(HOST, segment(6, { sequence: 9 }));
  expect(all()).toMatchObject([{ segment: { flags: SYN | ACK, acknowledgment: 10 } }]);
  expect(listener.counts).toMatchObject({ created: 4, destroyed: 2 });
});

test("the deadline is that of the connection that is due first", () => {
  expect(listener.deadline).toBe(Number.POSITIVE_INFINITY);
  listener.receive(HOST, segment(1, {}));
  all();
  now = 100;
  listener.receive(HOST, segment(2, {}));
  all();
  expect(listener.deadline).toBe(300);
  now = 300;
  expect(all()).toMatchObject([{ segment: { destinationPort: 1 } }]);
  expect(listener.deadline).toBe(400);
  listener.clear();
  expect([listener.connections, listener.deadline]).toEqual([0, Number.POSITIVE_INFINITY]);
});
