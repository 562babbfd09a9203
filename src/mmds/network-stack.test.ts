import { beforeEach, describe, expect, test } from "bun:test";
import { FUZZ_COUNT, Random } from "../devices/virtio/testing/fuzz.ts";
import { ManualTimers } from "../ratelimit/testing/manual-timers.ts";
import { checksum, sumWords } from "./checksum.ts";
import { ipv4Number } from "./ipv4.ts";
import { MmdsStack } from "./network-stack.ts";
import { MmdsService } from "./service.ts";
import { ACK, FIN, PSH, RST, SYN } from "./tcp-segment.ts";
import {
  arpFrame,
  GUEST_IP,
  GUEST_MAC,
  MMDS_IP,
  MMDS_MAC,
  pull,
  segmentIn,
  TestClient,
  tcpFrame,
} from "./testing/guest.ts";
import { Tokens } from "./tokens.ts";

const LARGE = "0123456789".repeat(5000);

let timers: ManualTimers;
let stack: MmdsStack;
let woken: number;

beforeEach(() => {
  timers = new ManualTimers();
  const tokens = new Tokens("vm", () => timers.now());
  const service = new MmdsService({ version: "V1", imdsCompat: false, tokens });
  service.data = { name: "John", large: LARGE };
  stack = new MmdsStack({ service, address: MMDS_IP, timers });
  woken = 0;
  stack.start(() => woken++);
});

/** Makes the IPv4 checksum of a frame right again. */
function repaired(frame: Uint8Array): Uint8Array {
  const header = frame.subarray(14, 34);
  header.fill(0, 10, 12);
  new DataView(header.buffer, header.byteOffset).setUint16(10, checksum(sumWords(header)));
  return frame;
}

const hasBody = (answer: string, body: string) => answer.endsWith(`\r\n\r\n${body}`);

describe("which frames are taken", () => {
  test("ARP and IPv4 to the address, and nothing else, whatever the destination MAC", () => {
    expect(stack.wants(arpFrame().subarray(0, 42))).toBe(true);
    expect(stack.wants(arpFrame(GUEST_IP))).toBe(false);
    const frame = tcpFrame({ flags: SYN }).fill(0xee, 0, 6);
    expect(stack.wants(frame.subarray(0, 42))).toBe(true);
    frame[33]!++;
    expect(stack.wants(frame)).toBe(false);
    const ipv6 = tcpFrame({ flags: SYN });
    ipv6[12] = 0x86;
    ipv6[13] = 0xdd;
    expect(stack.wants(ipv6)).toBe(false);
  });

  test("not what is too short to tell", () => {
    for (const [frame, needed] of [
      [arpFrame(), 42],
      [tcpFrame({ flags: SYN }), 34],
    ] as const) {
      for (let length = 0; length < frame.length; length++) {
        expect(stack.wants(frame.subarray(0, length))).toBe(length >= needed);
      }
    }
  });
});

test("ARP requests are answered to who asked, replies are not", () => {
  stack.take(arpFrame(), true);
  const [reply, ...rest] = pull(stack);
  expect(rest).toEqual([]);
  const hex = Buffer.from(reply!).toString("hex");
  expect(hex.slice(0, 28)).toBe("0600ac1e00020601234567010806");
  expect(hex.slice(40)).toBe("0002060123456701a9fea9fe0600ac1e0002ac1e0002");
  const answer = arpFrame();
  answer[21] = 2;
  stack.take(answer, true);
  expect(pull(stack)).toEqual([]);
  expect(stack.counts).toMatchObject({ rxAccepted: 2, rxAcceptedUnusual: 1, txFrames: 1, txBytes: 42 });
});

test("frames that are cut off, have wrong checksums, are fragments or no TCP are counted and forgotten", () => {
  const frame = tcpFrame({ flags: SYN, mss: 1460 });
  for (let length = 0; length < frame.length; length++) stack.take(frame.subarray(0, length), true);
  expect(stack.counts.rxAcceptedErr).toBe(frame.length);
  for (let bit = 14 * 8; bit < frame.length * 8; bit++) {
    const wrong = frame.slice();
    wrong[bit >> 3]! ^= 1 << (bit & 7);
    stack.take(wrong, true);
  }
  const fragment = frame.slice();
  fragment[20] = 0x20;
  stack.take(repaired(fragment), true);
  const elsewhere = frame.slice();
  elsewhere[33]!++;
  stack.take(repaired(elsewhere), true);
  expect(stack.counts.rxAcceptedErr).toBe(frame.length + (frame.length - 14) * 8 + 2);
  const udp = frame.slice();
  udp[23] = 17;
  stack.take(repaired(udp), true);
  expect(stack.counts).toMatchObject({ rxAcceptedUnusual: 1, rxCount: 0, connectionsCreated: 0 });
  expect(pull(stack)).toEqual([]);
});

describe("a connection", () => {
  let client: TestClient;
  beforeEach(() => {
    client = new TestClient(stack, 40_001, 0xfffffffa);
  });

  test("several requests, a large answer, and its end", () => {
    client.connect();
    expect(hasBody(client.request("GET /name HTTP/1.1\r\n\r\n"), "John")).toBe(true);
    expect(hasBody(client.request("GET /large HTTP/1.1\r\n\r\n"), LARGE)).toBe(true);
    expect(client.request("POST / HTTP/1.1\r\n\r\n")).toStartWith("HTTP/1.1 501 \r\n");
    expect(client.request("GET /none HTTP/1.0\r\n\r\n")).toStartWith("HTTP/1.0 404 \r\n");
    client.send(ACK | FIN);
    client.pump();
    expect([client.ended, stack.counts.connectionsDestroyed]).toEqual([true, 1]);
  });

  test("requests in pieces, several in one segment, and with bodies", () => {
    client.connect();
    expect(client.request("GET /name HT")).toBe("");
    expect(client.request("TP/1.1\r\n\r")).toBe("");
    expect(hasBody(client.request("\n"), "John")).toBe(true);
    const two = "PUT /x HTTP/1.1\r\nContent-Length: 5\r\n\r\nGET /GET /name HTTP/1.1\r\n\r\n";
    const answers = client.request(two);
    expect(answers.match(/HTTP\/1\.1 \d+/g)).toEqual(["HTTP/1.1 404", "HTTP/1.1 200"]);
    client.request("PUT /x HTTP/1.1\r\nContent-Length: 4000\r\n\r\n");
    expect(client.request("x".repeat(2000))).toBe("");
    expect(client.request("x".repeat(2000))).toBe("");
    expect(hasBody(client.request("GET /name HTTP/1.1\r\n\r\n"), "John")).toBe(true);
  });

  test("an end of sending right behind the request", () => {
    client.connect();
    client.send(ACK | PSH | FIN, "GET /large HTTP/1.1\r\n\r\n");
    client.pump();
    expect([hasBody(client.received, LARGE), client.ended]).toEqual([true, true]);
    expect(stack.counts).toMatchObject({ connectionsCreated: 1, connectionsDestroyed: 1 });
  });

  test("a request that is too long is answered with RST", () => {
    client.connect();
    client.request("GET /");
    client.request("x".repeat(2494));
    expect(client.flags & RST).toBe(0);
    client.request("x");
    expect(client.flags & RST).toBe(RST);
    expect(stack.counts.connectionsDestroyed).toBe(1);
  });

  test("checksums left to the device, in a frame longer than the MTU too", () => {
    client.send(SYN, "", false);
    client.pump();
    const header = `X: ${"y".repeat(2000)}`;
    client.send(ACK | PSH, `GET /name HTTP/1.1\r\n${header}\r\n\r\n`, false);
    client.pump();
    expect(hasBody(client.received, "John")).toBe(true);
    client.send(ACK | PSH, "GET /name HTTP/1.1\r\n\r\n", true);
    expect(stack.counts.rxAcceptedErr).toBe(0);
  });

  test("a guest that closes its window gets all once it opens it", () => {
    const slow = new TestClient(stack, 5, 1, 0);
    slow.connect();
    slow.request("GET /name HTTP/1.1\r\n\r\n");
    expect(slow.received).toBe("");
    for (let i = 0; i < 300 && !hasBody(slow.received, "John"); i++) {
      timers.advance(10_000);
      slow.pump();
    }
    // A byte for each probe, since this client takes what comes though its window is closed.
    expect(hasBody(slow.received, "John")).toBe(true);
  });

  test("what got lost is sent again after the timeout, for which the stack asks to be called", () => {
    client.connect();
    client.send(ACK | PSH, "GET /name HTTP/1.1\r\n\r\n");
    expect(pull(stack).length).toBe(1);
    timers.advance(299);
    expect([woken, pull(stack)]).toEqual([0, []]);
    timers.advance(1);
    expect(woken).toBe(1);
    client.pump();
    expect(hasBody(client.received, "John")).toBe(true);
    timers.advance(100_000);
    expect(woken).toBe(1);
  });

  test("stop forgets it, and a new start serves new ones", () => {
    client.connect();
    stack.stop();
    stack.start(() => woken++);
    client.send(ACK | PSH, "GET /name HTTP/1.1\r\n\r\n");
    expect(pull(stack).map((frame) => segmentIn(frame).flags)).toEqual([RST]);
    const next = new TestClient(stack, 40_002);
    next.connect();
    expect(hasBody(next.request("GET /name HTTP/1.1\r\n\r\n"), "John")).toBe(true);
    timers.advance(100_000);
  });
});

test(`survives ${FUZZ_COUNT} hostile frames, with a well-behaved client after it`, () => {
  const random = new Random(20_261);
  const methods = ["GET", "PUT", "PATCH", "POST", ""];
  const paths = ["/", "/large", "/latest/api/token", "//", "x", "/\u00e9"];
  const headers = [
    "",
    "X-metadata-token-ttl-seconds: 9\r\n",
    "Content-Length: 7\r\n",
    "Accept",
    "\n",
    "\r\n",
  ];
  const seen = new Map<number, { sequence: number; acknowledgment: number }>();
  const edges = [0, 1, 0xff, 0x7fffffff, 0x80000000, 0xffffffff];
  const into = new Uint8Array(1514);
  let answered = 0;

  const frame = (): Uint8Array => {
    if (random.chance(20)) return arpFrame(random.chance(4) ? GUEST_IP : MMDS_IP);
    const sourcePort = 1 + random.below(60);
    const known = seen.get(sourcePort) ?? { sequence: 0, acknowledgment: 0 };
    const near = (value: number) =>
      random.chance(4) ? (value + random.pick(edges)) >>> 0 : random.chance(8) ? random.pick(edges) : value;
    const text = `${random.pick(methods)} ${random.pick(paths)} HTTP/1.1\r\n${random.pick(headers)}\r\n`;
    const payload = random.chance(2) ? "" : random.chance(10) ? "x".repeat(random.below(6000)) : text;
    const flags = random.chance(3) ? random.below(256) : random.pick([SYN, ACK, ACK | PSH, ACK | FIN]);
    return tcpFrame(
      {
        sourcePort,
        destinationPort: random.chance(30) ? random.below(65536) : 80,
        sequence: near(known.sequence),
        acknowledgment: near(known.acknowledgment),
        flags,
        window: random.pick([0, 1, 100, 65535]),
        payload: Buffer.from(flags === SYN ? "" : payload),
        ...(random.chance(2) ? { mss: random.below(2000) } : {}),
      },
      random.chance(30) ? ipv4Number("10.0.0.1") : GUEST_IP,
    );
  };

  for (let i = 0; i < FUZZ_COUNT; i++) {
    let bytes = frame();
    if (random.chance(5)) bytes[random.below(bytes.length)] = random.below(256);
    if (random.chance(10)) repaired(bytes);
    if (random.chance(20)) bytes = bytes.subarray(0, random.below(bytes.length));
    if (stack.wants(bytes.subarray(0, 42)) || random.chance(50)) stack.take(bytes, random.chance(2));
    for (let frames = random.below(6); frames > 0; frames--) {
      const length = stack.next(into);
      if (length === 0) break;
      answered++;
      expect(length).toBeLessThanOrEqual(1514);
      expect(Buffer.from(into.subarray(6, 12)).equals(Buffer.from(MMDS_MAC))).toBe(true);
      if (into[13] === 0x06) continue;
      const { destinationPort, sequence, acknowledgment, payload, flags } = segmentIn(
        into.subarray(0, length),
      );
      const next = sequence + payload.length + ((flags & (SYN | FIN)) === 0 ? 0 : 1);
      seen.set(destinationPort, { sequence: acknowledgment, acknowledgment: next >>> 0 });
    }
    if (random.chance(50)) timers.advance(random.below(2000));
    if (random.chance(5000)) {
      stack.stop();
      stack.start(() => woken++);
    }
    const { connectionsCreated, connectionsDestroyed } = stack.counts;
    expect(connectionsCreated - connectionsDestroyed).toBeLessThanOrEqual(30);
  }
  expect(answered).toBeGreaterThan(FUZZ_COUNT / 10);
  const { connectionsCreated, rxAcceptedErr, rxAcceptedUnusual } = stack.counts;
  expect(connectionsCreated).toBeGreaterThan(FUZZ_COUNT / 100);
  expect(rxAcceptedErr).toBeGreaterThan(0);
  expect(rxAcceptedUnusual).toBeGreaterThan(0);

  pull(stack);
  timers.advance(11_000);
  pull(stack);
  const client = new TestClient(stack, 50_000);
  client.connect();
  expect(hasBody(client.request("GET /large HTTP/1.1\r\n\r\n"), LARGE)).toBe(true);
}, 60_000);

test("answers go to the MAC address that asked, of which there may be several at the interface", () => {
  const other = Uint8Array.of(2, 0, 0, 0, 0, 9);
  const from = (address: number, mac: Uint8Array) => {
    const frame = tcpFrame({ flags: SYN }, address);
    frame.set(mac, 6);
    stack.take(frame, true);
  };
  from(GUEST_IP, GUEST_MAC);
  from(GUEST_IP + 1, other);
  const destinations = pull(stack).map((frame) => [...frame.subarray(0, 6)]);
  expect(destinations).toEqual([[...GUEST_MAC], [...other]]);
  // Forgotten in a flood of addresses, of which most get a RST: everybody at the interface sees what comes then.
  for (let i = 0; i < 1000; i++) from(GUEST_IP + 2 + i, GUEST_MAC);
  pull(stack);
  timers.advance(300);
  const again = pull(stack).map((frame) => [...frame.subarray(0, 6)]);
  expect(again.length).toBe(30);
  expect(again).toContainEqual([255, 255, 255, 255, 255, 255]);
});
