import { beforeEach, describe, expect, test } from "bun:test";
import { RECEIVE_BUFFER_BYTES, TcpConnection } from "./tcp-connection.ts";
import { ACK, FIN, PSH, RST, type SegmentFields, SYN, type TcpSegment } from "./tcp-segment.ts";

/** Initial sequence numbers of both ends: both pass 2^32 soon. */
const PEER = 0xfffffff8;
const LOCAL = 0xfffffffd;

let connection: TcpConnection;
let now: number;

const at = (start: number, count: number) => (start + count) >>> 0;
const bytes = (count: number) => Uint8Array.from({ length: count }, (_, i) => i);

function segment(fields: Partial<TcpSegment>): TcpSegment {
  return {
    sourcePort: 1,
    destinationPort: 80,
    sequence: at(PEER, 1),
    acknowledgment: at(LOCAL, 1),
    flags: ACK,
    window: 10_000,
    payload: new Uint8Array(0),
    ...fields,
  };
}

const receive = (fields: Partial<TcpSegment>) => connection.receive(segment(fields), now);

/** What it sends now. */
function sent(): SegmentFields[] {
  const all: SegmentFields[] = [];
  connection.onTime(now);
  for (let next = connection.nextSegment(now); next !== undefined; next = connection.nextSegment(now)) {
    all.push(next);
  }
  return all;
}

function open(syn: Partial<TcpSegment> = { mss: 1000 }): void {
  connection = new TcpConnection(segment({ sequence: PEER, flags: SYN, ...syn }), LOCAL, now);
}

function establish(syn?: Partial<TcpSegment>): void {
  open(syn);
  sent();
  receive({ window: syn?.window ?? 10_000 });
}

beforeEach(() => {
  now = 5000;
  establish();
});

describe("handshake", () => {
  test("SYN, SYN-ACK, ACK", () => {
    open();
    expect(sent()).toEqual([
      {
        sequence: LOCAL,
        acknowledgment: at(PEER, 1),
        flags: SYN | ACK,
        window: RECEIVE_BUFFER_BYTES,
        mss: 1460,
        payload: new Uint8Array(0),
      },
    ]);
    expect(connection.state).toBe("SYN-RECEIVED");
    receive({});
    expect([connection.state, connection.deadline, sent()]).toEqual([
      "ESTABLISHED",
      Number.POSITIVE_INFINITY,
      [],
    ]);
  });

  test("the SYN-ACK is sent again for the same SYN and after the timeout, in the end comes a RST", () => {
    open();
    sent();
    receive({ sequence: PEER, flags: SYN });
    expect(sent().map(({ flags }) => flags)).toEqual([SYN | ACK]);
    let times = 0;
    for (; connection.state === "SYN-RECEIVED"; times++) {
      now = connection.deadline - 1;
      expect(sent()).toEqual([]);
      now = connection.deadline;
      expect(sent().length).toBe(1);
    }
    expect([times, connection.state]).toEqual([16, "CLOSED"]);
  });

  test("an ACK of something else is answered with RST", () => {
    open();
    sent();
    receive({ acknowledgment: at(LOCAL, 7) });
    expect(sent()).toMatchObject([{ flags: RST, sequence: at(LOCAL, 7) }]);
    expect(connection.state).toBe("CLOSED");
  });

  test("data with the last ACK counts, data before it does not", () => {
    open();
    receive({ payload: bytes(5), flags: ACK });
    expect(sent()).toMatchObject([{ flags: RST }]);
    open();
    sent();
    receive({ payload: bytes(5) });
    expect([...connection.input]).toEqual([0, 1, 2, 3, 4]);
  });

  test("a SYN with another sequence number opens another connection", () => {
    open();
    expect(connection.isReplacedBy(segment({ flags: SYN, sequence: 99 }))).toBe(true);
    expect(connection.isReplacedBy(segment({ flags: SYN, sequence: PEER }))).toBe(false);
  });
});

describe("receive", () => {
  test("in order, acknowledged, with the window that is left", () => {
    receive({ payload: bytes(10) });
    receive({ sequence: at(PEER, 11), payload: bytes(20) });
    expect(connection.input.length).toBe(30);
    expect(sent()).toMatchObject([
      { flags: ACK, acknowledgment: at(PEER, 31), window: RECEIVE_BUFFER_BYTES - 30 },
    ]);
    connection.consume(30);
    expect(sent()).toMatchObject([{ window: RECEIVE_BUFFER_BYTES }]);
  });

  test("what came before is cut off, what comes too early is asked for again", () => {
    receive({ payload: bytes(10) });
    receive({ sequence: at(PEER, 5), payload: bytes(10) });
    expect([...connection.input.subarray(10)]).toEqual([6, 7, 8, 9]);
    sent();
    receive({ sequence: at(PEER, 1), payload: bytes(10) });
    expect(sent()).toMatchObject([{ flags: ACK, acknowledgment: at(PEER, 15) }]);
    receive({ sequence: at(PEER, 20), payload: bytes(10) });
    expect(sent()).toMatchObject([{ flags: ACK, acknowledgment: at(PEER, 15) }]);
    expect(connection.input.length).toBe(14);
    expect(connection.unusual).toBe(2);
  });

  test("what does not fit the window is cut off, with the FIN behind it", () => {
    receive({ payload: bytes(RECEIVE_BUFFER_BYTES + 100), flags: ACK | FIN });
    expect([connection.input.length, connection.state]).toEqual([RECEIVE_BUFFER_BYTES, "ESTABLISHED"]);
    expect(sent()).toMatchObject([{ acknowledgment: at(PEER, 1 + RECEIVE_BUFFER_BYTES), window: 0 }]);
    receive({ sequence: at(PEER, 1 + RECEIVE_BUFFER_BYTES), payload: bytes(1) });
    expect(connection.input.length).toBe(RECEIVE_BUFFER_BYTES);
    expect(sent()).toMatchObject([{ acknowledgment: at(PEER, 1 + RECEIVE_BUFFER_BYTES) }]);
  });

  test("RST ends it if it is exact, and is questioned elsewhere in the window", () => {
    receive({ sequence: at(PEER, 2), flags: RST });
    expect([connection.state, sent().length]).toEqual(["ESTABLISHED", 1]);
    receive({ sequence: at(PEER, RECEIVE_BUFFER_BYTES + 1), flags: RST });
    receive({ sequence: PEER, flags: RST });
    expect([connection.state, sent()]).toEqual(["ESTABLISHED", []]);
    receive({ flags: RST });
    expect([connection.state, sent()]).toEqual(["CLOSED", []]);
    receive({ payload: bytes(3) });
    expect(connection.input.length).toBe(0);
  });

  test("SYN, no ACK and an ACK of the future change nothing", () => {
    receive({ flags: SYN });
    expect(sent()).toMatchObject([{ flags: ACK }]);
    receive({ flags: PSH, payload: bytes(4) });
    expect(sent()).toEqual([]);
    receive({ acknowledgment: at(LOCAL, 500), payload: bytes(4) });
    expect(sent()).toMatchObject([{ flags: ACK, acknowledgment: at(PEER, 1) }]);
    expect([connection.state, connection.input.length, connection.unusual]).toEqual(["ESTABLISHED", 0, 3]);
  });
});

describe("send", () => {
  test("in segments of the other end's size, until its window is full, and on when it moves", () => {
    establish({ mss: 1000, window: 2500 });
    connection.send(bytes(4000));
    expect(sent().map(({ sequence, payload }) => [sequence, payload.length])).toEqual([
      [at(LOCAL, 1), 1000],
      [at(LOCAL, 1001), 1000],
      [at(LOCAL, 2001), 500],
    ]);
    receive({ acknowledgment: at(LOCAL, 2001), window: 2500 });
    const rest = sent();
    expect(rest.map(({ payload, flags }) => [payload.length, flags])).toEqual([
      [1000, ACK],
      [500, ACK | PSH],
    ]);
    receive({ acknowledgment: at(LOCAL, 4001) });
    expect([connection.sending, connection.deadline]).toEqual([false, Number.POSITIVE_INFINITY]);
  });

  test.each([
    [undefined, 536],
    [1, 48],
    [0, 48],
    [9000, 1460],
  ])("a segment size of %p is taken as %i", (mss, size) => {
    establish({ mss });
    connection.send(bytes(2000));
    expect(sent()[0]!.payload.length).toBe(size);
  });

  test("all that is not acknowledged goes again after the timeout, which doubles", () => {
    connection.send(bytes(3000));
    expect(sent().length).toBe(3);
    receive({ acknowledgment: at(LOCAL, 1001) });
    expect(connection.deadline).toBe(now + 300);
    now += 299;
    expect(sent()).toEqual([]);
    now += 1;
    expect(sent().map(({ sequence }) => sequence)).toEqual([at(LOCAL, 1001), at(LOCAL, 2001)]);
    expect(connection.deadline).toBe(now + 600);
    // Late, the acknowledgment of what was sent first.
    receive({ acknowledgment: at(LOCAL, 3001) });
    expect([connection.sending, sent()]).toEqual([false, []]);
  });

  test("gives up with RST", () => {
    connection.send(bytes(10));
    let tries = 0;
    for (sent(); connection.state !== "CLOSED"; tries++) {
      now = connection.deadline;
      const [next] = sent();
      if (tries === 15) expect(next).toMatchObject({ flags: RST | ACK, sequence: at(LOCAL, 11) });
      else expect(next).toMatchObject({ sequence: at(LOCAL, 1), payload: bytes(10) });
    }
    expect(tries).toBe(16);
  });

  test("a closed window is probed with a byte for as long as the probes are answered", () => {
    establish({ window: 0 });
    connection.send(bytes(100));
    expect(sent()).toEqual([]);
    for (let i = 0; i < 40; i++) {
      expect(connection.deadline).toBeLessThanOrEqual(now + 10_000);
      now = connection.deadline;
      expect(sent()).toMatchObject([{ sequence: at(LOCAL, 1), payload: bytes(1) }]);
      receive({ window: 0 });
      sent();
    }
    receive({ window: 1000, acknowledgment: at(LOCAL, 2) });
    expect(sent()).toMatchObject([{ sequence: at(LOCAL, 2), payload: bytes(100).subarray(1) }]);
    expect(connection.deadline).toBe(now + 300);
  });

  test("an old segment does not move the window", () => {
    receive({ payload: bytes(10) });
    receive({ sequence: at(PEER, 11), payload: bytes(10), window: 5000 });
    connection.send(bytes(100));
    receive({ sequence: at(PEER, 6), payload: bytes(20), window: 0 });
    expect(connection.input.length).toBe(25);
    expect(sent().some(({ payload }) => payload.length === 100)).toBe(true);
  });
});

describe("end", () => {
  test("FIN of the other end, the rest of the output, FIN of this end, its ACK", () => {
    connection.send(bytes(1500));
    receive({ flags: ACK | FIN });
    expect([connection.state, connection.inputEnded]).toEqual(["CLOSE-WAIT", true]);
    connection.close();
    expect(sent().map(({ flags, acknowledgment }) => [flags, acknowledgment])).toEqual([
      [ACK, at(PEER, 2)],
      [ACK | PSH | FIN, at(PEER, 2)],
    ]);
    expect(connection.state).toBe("LAST-ACK");
    receive({ sequence: at(PEER, 2), acknowledgment: at(LOCAL, 1501) });
    expect([connection.state, connection.sending]).toEqual(["LAST-ACK", false]);
    receive({ sequence: at(PEER, 2), acknowledgment: at(LOCAL, 1502) });
    expect(connection.state).toBe("CLOSED");
  });

  test("the FIN is sent again with what was lost, and one that comes twice is acknowledged twice", () => {
    receive({ flags: ACK | FIN });
    connection.close();
    expect(sent()).toMatchObject([{ flags: ACK | FIN, sequence: at(LOCAL, 1) }]);
    receive({ flags: ACK | FIN });
    expect(sent()).toMatchObject([{ flags: ACK, sequence: at(LOCAL, 2), acknowledgment: at(PEER, 2) }]);
    now = connection.deadline;
    expect(sent()).toMatchObject([{ flags: ACK | FIN, sequence: at(LOCAL, 1) }]);
    receive({ sequence: at(PEER, 2), acknowledgment: at(LOCAL, 2) });
    expect(connection.state).toBe("CLOSED");
  });

  test("data behind the FIN is not taken", () => {
    receive({ flags: ACK | FIN, payload: bytes(3) });
    receive({ sequence: at(PEER, 5), payload: bytes(3) });
    expect(connection.input.length).toBe(3);
  });
});
