/**
 * One TCP connection (RFC 9293), opened by the other end, which also closes first. It takes segments in order only
 * and knows no option but the segment size: its segments go no further than the guest's receive queue.
 */

import {
  ACK,
  FIN,
  PSH,
  RST,
  type SegmentFields,
  SYN,
  sequenceLength,
  type TcpSegment,
} from "./tcp-segment.ts";

/** Bytes that a request may have, and what is offered as window. As in Firecracker. */
export const RECEIVE_BUFFER_BYTES = 2500;

/** What fits an Ethernet frame of 1514 bytes. */
const MSS = 1460;
/** Assumed of an end that does not say (3.7.1). */
const DEFAULT_MSS = 536;
/** Less is not believed: a response of a byte in each segment would be a burden. Linux has the same bound. */
const MIN_MSS = 48;

/** Retransmission timeout at first and at most, ms, and retransmissions without an answer before the end. */
const RTO_MS = 300;
const MAX_RTO_MS = 10_000;
const MAX_RETRANSMISSIONS = 15;

/** Those states of 3.3.2 that such a connection can be in. */
export type TcpState = "SYN-RECEIVED" | "ESTABLISHED" | "CLOSE-WAIT" | "LAST-ACK" | "CLOSED";

const NOTHING = new Uint8Array(0);

/** How far `a` is behind `b` in sequence space, -2^31 to 2^31 - 1. */
function distance(a: number, b: number): number {
  return (a - b) | 0;
}

function advance(sequence: number, count: number): number {
  return (sequence + count) >>> 0;
}

export class TcpConnection {
  /** When the last segment came, ms. */
  lastHeard: number;
  /** When something has to be sent again, ms; Infinity if nothing waits for an answer. */
  deadline = Number.POSITIVE_INFINITY;
  /** Segments that did not fit the state or the window. */
  unusual = 0;

  private current: TcpState = "SYN-RECEIVED";
  private readonly mss: number;
  /** Next sequence number to come (RCV.NXT), and bytes that came and are not consumed. */
  private rcvNext: number;
  private readonly buffer = new Uint8Array(RECEIVE_BUFFER_BYTES);
  private buffered = 0;
  /** SND.UNA, SND.NXT, SND.WND, SND.WL1 and SND.WL2. */
  private sndUna: number;
  private sndNext: number;
  private sndWindow: number;
  private windowSequence: number;
  private windowAck: number;
  /** The highest SND.NXT there was: a retransmission sets that back. */
  private sndMax: number;
  /** What is to be sent from SND.UNA on, behind the SYN. */
  private output: Uint8Array = NOTHING;
  private closing = false;
  private rto = RTO_MS;
  private retransmissions = 0;
  private ackDue = false;
  private synAckDue = true;
  /** May send a byte into a closed window to learn whether it is still closed (3.8.6.1). */
  private probeDue = false;
  private reset: SegmentFields | undefined;

  /** `syn`: a segment with SYN and nothing else. `iss`: the initial sequence number of this end. */
  constructor(
    private readonly syn: SegmentFields,
    private readonly iss: number,
    now: number,
  ) {
    this.lastHeard = now;
    this.mss = Math.min(MSS, Math.max(MIN_MSS, syn.mss ?? DEFAULT_MSS));
    this.rcvNext = advance(syn.sequence, 1);
    this.sndUna = iss;
    this.sndNext = iss;
    this.sndMax = iss;
    this.sndWindow = syn.window;
    this.windowSequence = syn.sequence;
    this.windowAck = iss;
  }

  get state(): TcpState {
    return this.current;
  }

  /** Bytes that came, in order. Valid until the next call. */
  get input(): Uint8Array {
    return this.buffer.subarray(0, this.buffered);
  }

  /** True if no more will come. */
  get inputEnded(): boolean {
    return this.current !== "SYN-RECEIVED" && this.current !== "ESTABLISHED";
  }

  /** True until all that was sent is acknowledged. */
  get sending(): boolean {
    return this.output.length > 0;
  }

  /** True for a SYN that opens another connection from the same port. */
  isReplacedBy({ flags, sequence }: SegmentFields): boolean {
    return this.current === "SYN-RECEIVED" && flags === SYN && sequence !== this.syn.sequence;
  }

  /** Takes the first `count` bytes of {@link input} out of it. */
  consume(count: number): void {
    if (count === 0) return;
    this.buffer.copyWithin(0, count, this.buffered);
    this.buffered -= count;
    this.ackDue = true;
  }

  send(bytes: Uint8Array): void {
    this.output = this.output.length === 0 ? bytes : Buffer.concat([this.output, bytes]);
  }

  /** Ends sending, once all is sent. The other end must have done so before. */
  close(): void {
    this.closing = true;
  }

  /** Ends the connection with a RST. */
  abort(): void {
    this.reset ??= {
      sequence: this.sndNext,
      acknowledgment: this.rcvNext,
      flags: RST | ACK,
      window: 0,
      payload: NOTHING,
    };
  }

  receive(segment: TcpSegment, now: number): void {
    if (this.current === "CLOSED" || this.reset !== undefined) return;
    this.lastHeard = now;
    const { flags, sequence, acknowledgment } = segment;
    if (this.current === "SYN-RECEIVED" && flags === SYN && sequence === this.syn.sequence) {
      this.synAckDue = true;
      return;
    }
    if (!this.isAcceptable(segment)) {
      this.unusual++;
      if ((flags & RST) === 0) this.ackDue = true;
      return;
    }
    if ((flags & RST) !== 0) {
      // Only an exact one ends the connection (RFC 5961).
      if (sequence === this.rcvNext) this.current = "CLOSED";
      else this.ackDue = true;
      this.unusual++;
      return;
    }
    if ((flags & SYN) !== 0 || (flags & ACK) === 0) {
      this.unusual++;
      if ((flags & SYN) !== 0) this.ackDue = true;
      return;
    }
    if (this.current === "SYN-RECEIVED" && !this.establish(acknowledgment)) {
      this.unusual++;
      this.reset = {
        sequence: acknowledgment,
        acknowledgment: 0,
        flags: RST,
        window: 0,
        payload: NOTHING,
      };
      return;
    }
    if (distance(acknowledgment, this.sndMax) > 0) {
      this.unusual++;
      this.ackDue = true;
      return;
    }
    this.acknowledged(segment, now);
    if (this.current === "ESTABLISHED") this.take(segment);
  }

  /** Sends again what has waited for an answer until {@link deadline}, or ends the connection. */
  onTime(now: number): void {
    if (now < this.deadline) return;
    this.deadline = Number.POSITIVE_INFINITY;
    if (++this.retransmissions > MAX_RETRANSMISSIONS) {
      this.abort();
      return;
    }
    this.rto = Math.min(2 * this.rto, MAX_RTO_MS);
    this.sndNext = this.sndUna;
    if (this.current === "SYN-RECEIVED") this.synAckDue = true;
    this.probeDue = this.sndWindow === 0;
    if (this.current === "LAST-ACK") this.current = "CLOSE-WAIT";
  }

  /** The next segment to send now; undefined if there is none. After a RST the state is CLOSED. */
  nextSegment(now: number): SegmentFields | undefined {
    const { reset } = this;
    if (reset !== undefined) {
      this.reset = undefined;
      this.current = "CLOSED";
      return reset;
    }
    if (this.current === "CLOSED") return undefined;
    if (this.current === "SYN-RECEIVED") {
      if (!this.synAckDue) return undefined;
      this.synAckDue = false;
      this.sent(advance(this.iss, 1), now);
      return this.segment(this.iss, SYN | ACK, NOTHING, MSS);
    }
    const sequence = this.sndNext;
    const payload = this.nextPayload();
    const last = this.output.length === this.inFlight + payload.length;
    const fin = this.closing && this.current === "CLOSE-WAIT" && last;
    if (payload.length === 0 && !fin) {
      if (!this.ackDue) {
        if (this.sending && this.inFlight === 0) this.arm(now);
        return undefined;
      }
      return this.segment(sequence, ACK, NOTHING);
    }
    this.sent(advance(sequence, payload.length + (fin ? 1 : 0)), now);
    if (fin) this.current = "LAST-ACK";
    return this.segment(sequence, ACK | (last && payload.length > 0 ? PSH : 0) | (fin ? FIN : 0), payload);
  }

  /** Bytes sent and not acknowledged, as far as they need not be sent again. */
  private get inFlight(): number {
    return Math.min(distance(this.sndNext, this.sndUna), this.output.length);
  }

  private get window(): number {
    return RECEIVE_BUFFER_BYTES - this.buffered;
  }

  /** Whether any of it is in the window (3.10.7.4). With a closed one only what it acknowledges counts. */
  private isAcceptable(segment: SegmentFields): boolean {
    const offset = distance(segment.sequence, this.rcvNext);
    const length = sequenceLength(segment);
    if (length === 0 || this.window === 0) return offset === 0 || (offset > 0 && offset < this.window);
    return offset < this.window && offset + length > 0;
  }

  /** The last step of the handshake. False if it acknowledges something else. */
  private establish(acknowledgment: number): boolean {
    if (acknowledgment !== advance(this.iss, 1) || this.sndMax === this.iss) return false;
    this.current = "ESTABLISHED";
    this.sndUna = acknowledgment;
    this.sndNext = acknowledgment;
    this.answered();
    return true;
  }

  /** Something that was sent has arrived. */
  private answered(): void {
    this.rto = RTO_MS;
    this.retransmissions = 0;
    this.deadline = Number.POSITIVE_INFINITY;
  }

  private acknowledged({ sequence, acknowledgment, window }: SegmentFields, now: number): void {
    const count = distance(acknowledgment, this.sndUna);
    if (count < 0) return;
    if (count > 0) {
      this.answered();
      // The one beyond the bytes is the FIN.
      if (count > this.output.length) {
        this.current = "CLOSED";
        this.output = NOTHING;
        return;
      }
      this.output = this.output.subarray(count);
      this.sndUna = acknowledgment;
      if (distance(this.sndUna, this.sndNext) > 0) this.sndNext = this.sndUna;
      if (this.sndMax !== this.sndUna) this.arm(now);
    }
    const sinceUpdate = distance(sequence, this.windowSequence);
    if (sinceUpdate > 0 || (sinceUpdate === 0 && distance(acknowledgment, this.windowAck) >= 0)) {
      // What waited for the window goes out now, and its time begins then.
      if (this.sndWindow === 0 && this.sndMax === this.sndUna) this.deadline = Number.POSITIVE_INFINITY;
      this.sndWindow = window;
      this.windowSequence = sequence;
      this.windowAck = acknowledgment;
    }
    // An end that answers probes is there, however long its window stays closed.
    if (this.sndWindow === 0) this.retransmissions = 0;
  }

  /** Takes data and FIN. */
  private take(segment: TcpSegment): void {
    const offset = distance(segment.sequence, this.rcvNext);
    if (offset > 0) {
      this.unusual++;
      this.ackDue = true;
      return;
    }
    if (sequenceLength(segment) > 0) this.ackDue = true;
    const fresh = segment.payload.subarray(-offset);
    const taken = fresh.subarray(0, this.window);
    this.buffer.set(taken, this.buffered);
    this.buffered += taken.length;
    this.rcvNext = advance(this.rcvNext, taken.length);
    const end = advance(segment.sequence, segment.payload.length);
    if ((segment.flags & FIN) !== 0 && this.rcvNext === end) {
      this.rcvNext = advance(this.rcvNext, 1);
      this.current = "CLOSE-WAIT";
    }
  }

  /** What of the output the other end's window and segment size allow now. */
  private nextPayload(): Uint8Array {
    const from = this.inFlight;
    let room = this.sndWindow - from;
    if (this.probeDue && from === 0 && room <= 0) room = 1;
    this.probeDue = false;
    return this.output.subarray(from, from + Math.min(Math.max(room, 0), this.mss));
  }

  private sent(next: number, now: number): void {
    this.sndNext = next;
    if (distance(next, this.sndMax) > 0) this.sndMax = next;
    this.arm(now);
  }

  private arm(now: number): void {
    if (this.deadline === Number.POSITIVE_INFINITY) this.deadline = now + this.rto;
  }

  private segment(sequence: number, flags: number, payload: Uint8Array, mss?: number): SegmentFields {
    this.ackDue = false;
    return { sequence, acknowledgment: this.rcvNext, flags, window: this.window, mss, payload };
  }
}
