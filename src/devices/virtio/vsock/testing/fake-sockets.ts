/** Host programs for tests: streams in memory, whose buffers have a size. */

import type { HostSockets, HostStream, HostStreamEvents } from "../host-sockets.ts";

/** A host program's end and the device's end of one stream. */
export class FakeStream implements HostStream {
  /** What the program reads, in order. */
  received: number[] = [];
  closed = false;
  /** Bytes that the program's receive buffer holds before it reads. */
  room = Number.POSITIVE_INFINITY;
  /** The device has ended its direction. */
  sawEnd = false;
  readShut = false;
  broken = false;
  hungUp = false;
  private incoming: number[] = [];
  private ended = false;
  private events: HostStreamEvents | undefined;

  watch(events: HostStreamEvents): void {
    this.events = events;
    events.onReadable();
  }

  read(into: readonly Uint8Array[]): number | undefined {
    if (this.closed) throw new Error("read of a closed stream");
    if (this.broken) throw new Error("broken");
    if (this.incoming.length === 0) return this.ended ? 0 : undefined;
    let done = 0;
    for (const view of into) {
      const part = this.incoming.splice(0, view.length);
      view.set(part);
      done += part.length;
    }
    return done;
  }

  write(from: readonly Uint8Array[]): number {
    if (this.closed) throw new Error("write to a closed stream");
    if (this.broken || this.hungUp) throw new Error("EPIPE");
    let done = 0;
    for (const view of from) {
      const part = view.subarray(0, this.room);
      this.received.push(...part);
      this.room -= part.length;
      done += part.length;
    }
    return done;
  }

  shutdownWrite(): void {
    this.sawEnd = true;
  }

  shutdownRead(): void {
    this.readShut = true;
  }

  close(): void {
    this.closed = true;
    this.events = undefined;
  }

  /** The program sends. */
  send(data: string | readonly number[]): void {
    // Not spread into arguments: there may be more than the stack holds.
    for (const byte of typeof data === "string" ? new TextEncoder().encode(data) : data)
      this.incoming.push(byte);
    this.events?.onReadable();
  }

  /** Bytes that the device has not yet read. */
  get unread(): number {
    return this.incoming.length;
  }

  /** The program reads what it has and has room for `count` bytes more. */
  makeRoom(count: number): void {
    this.room = count;
    this.events?.onWritable();
  }

  /** The program ends its sending half. */
  endSending(): void {
    this.ended = true;
    this.events?.onReadable();
  }

  /** The program closes its end. */
  hangUp(): void {
    this.ended = true;
    this.hungUp = true;
    this.events?.onHangUp();
  }

  get text(): string {
    return new TextDecoder().decode(Uint8Array.from(this.received));
  }
}

export class FakeSockets implements HostSockets {
  /** Ports that host programs listen on. */
  readonly ports = new Set<number>();
  /** Ports whose queue of connections is full. */
  readonly busy = new Set<number>();
  /** Streams that the device has opened, by port. */
  readonly opened: { port: number; stream: FakeStream }[] = [];
  private accept: ((stream: HostStream) => void) | undefined;

  get listening(): boolean {
    return this.accept !== undefined;
  }

  listen(accept: (stream: HostStream) => void): void {
    this.accept = accept;
  }

  stopListening(): void {
    this.accept = undefined;
  }

  connect(port: number): HostStream | "busy" | undefined {
    if (this.busy.has(port)) return "busy";
    if (!this.ports.has(port)) return undefined;
    const stream = new FakeStream();
    this.opened.push({ port, stream });
    return stream;
  }

  /** A host program connects. */
  program(): FakeStream {
    const stream = new FakeStream();
    this.accept?.(stream);
    return stream;
  }
}
