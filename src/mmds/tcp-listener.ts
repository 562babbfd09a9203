/** The TCP port of the metadata service: which connection a segment belongs to, and whose turn it is to send. */

import { TcpConnection } from "./tcp-connection.ts";
import { ACK, RST, type SegmentFields, SYN, sequenceLength, type TcpSegment } from "./tcp-segment.ts";

/** As in Firecracker. */
const MAX_CONNECTIONS = 30;
const MAX_PENDING_RESETS = 100;
/** A connection that has been silent for longer makes room for a new one, ms. */
const EVICTION_MS = 10_000;

const NOTHING = new Uint8Array(0);

/** The program at the end of a connection. */
export interface Application {
  /** Something has come, or what was sent has arrived. */
  onProgress(): void;
}

export interface ListenerOptions {
  readonly port: number;
  /** Milliseconds of a clock that never goes back. */
  readonly now: () => number;
  readonly accept: (connection: TcpConnection) => Application;
  /** An initial sequence number that nobody can guess. */
  readonly initialSequence: () => number;
}

/** Since the listener was made. */
export interface ListenerCounts {
  created: number;
  destroyed: number;
  /** Segments that were out of place. */
  unusual: number;
  /** Segments to another port. */
  wrongPort: number;
}

export interface Addressed {
  /** IPv4 address of the other end. */
  readonly address: number;
  readonly segment: TcpSegment;
}

interface Entry {
  readonly address: number;
  readonly port: number;
  readonly connection: TcpConnection;
  readonly application: Application;
}

export class TcpListener {
  readonly counts: ListenerCounts = { created: 0, destroyed: 0, unusual: 0, wrongPort: 0 };
  /** By {@link key}; who has sent last comes last. */
  private readonly entries = new Map<number, Entry>();
  private resets: Addressed[] = [];

  constructor(private readonly options: ListenerOptions) {}

  get connections(): number {
    return this.entries.size;
  }

  /** Takes a segment that came from `address`. */
  receive(address: number, segment: TcpSegment): void {
    const { port, now } = this.options;
    if (segment.destinationPort !== port) {
      this.counts.wrongPort++;
      this.refuse(address, segment);
      return;
    }
    const id = key(address, segment.sourcePort);
    let entry = this.entries.get(id);
    if (entry?.connection.isReplacedBy(segment)) {
      this.remove(id);
      entry = undefined;
    }
    if (entry === undefined) {
      this.open(address, segment);
      return;
    }
    const { connection, application } = entry;
    const before = connection.unusual;
    connection.receive(segment, now());
    this.counts.unusual += connection.unusual - before;
    if (connection.state === "CLOSED") this.remove(id);
    else if (connection.state !== "SYN-RECEIVED") application.onProgress();
  }

  /** The next segment to send; undefined: none now. */
  next(): Addressed | undefined {
    const reset = this.resets.shift();
    if (reset !== undefined) return reset;
    const now = this.options.now();
    for (const [id, entry] of this.entries) {
      entry.connection.onTime(now);
      const fields = entry.connection.nextSegment(now);
      if (fields === undefined) continue;
      this.entries.delete(id);
      if (entry.connection.state === "CLOSED") this.counts.destroyed++;
      else this.entries.set(id, entry);
      return { address: entry.address, segment: this.from(entry.port, fields) };
    }
    return undefined;
  }

  /** When {@link next} is worth calling though nothing has come, ms; Infinity: never. */
  get deadline(): number {
    let first = Number.POSITIVE_INFINITY;
    for (const { connection } of this.entries.values()) first = Math.min(first, connection.deadline);
    return first;
  }

  /** Forgets all connections, without a word to their other ends. */
  clear(): void {
    this.counts.destroyed += this.entries.size;
    this.entries.clear();
    this.resets = [];
  }

  private open(address: number, segment: TcpSegment): void {
    if (segment.flags !== SYN || segment.payload.length > 0) {
      this.counts.unusual++;
      this.refuse(address, segment);
      return;
    }
    const { accept, initialSequence, now } = this.options;
    if (this.entries.size >= MAX_CONNECTIONS && !this.evict(now())) {
      this.refuse(address, segment);
      return;
    }
    const port = segment.sourcePort;
    const connection = new TcpConnection({ ...segment, payload: NOTHING }, initialSequence(), now());
    this.entries.set(key(address, port), { address, port, connection, application: accept(connection) });
    this.counts.created++;
  }

  /** Resets a connection that has been silent for long. False if there is none. */
  private evict(now: number): boolean {
    for (const [id, { address, port, connection }] of this.entries) {
      if (now - connection.lastHeard <= EVICTION_MS) continue;
      connection.abort();
      const fields = connection.nextSegment(now);
      if (fields !== undefined) this.reset(address, this.from(port, fields));
      this.remove(id);
      return true;
    }
    return false;
  }

  private remove(id: number): void {
    this.entries.delete(id);
    this.counts.destroyed++;
  }

  /** Answers a segment of no connection (RFC 9293, 3.10.7.1). */
  private refuse(address: number, segment: TcpSegment): void {
    const { flags, sequence, acknowledgment } = segment;
    if ((flags & RST) !== 0) return;
    const acknowledges = (flags & ACK) !== 0;
    this.reset(address, {
      sourcePort: segment.destinationPort,
      destinationPort: segment.sourcePort,
      sequence: acknowledges ? acknowledgment : 0,
      acknowledgment: acknowledges ? 0 : (sequence + sequenceLength(segment)) >>> 0,
      flags: acknowledges ? RST : RST | ACK,
      window: 0,
      payload: NOTHING,
    });
  }

  private reset(address: number, segment: TcpSegment): void {
    if (this.resets.length < MAX_PENDING_RESETS) this.resets.push({ address, segment });
  }

  private from(destinationPort: number, fields: SegmentFields): TcpSegment {
    return { sourcePort: this.options.port, destinationPort, ...fields };
  }
}

/** A number for each pair of address and port. */
function key(address: number, port: number): number {
  return address * 65536 + port;
}
