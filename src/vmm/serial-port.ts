/** The guest's serial port, connected to the host: output to a descriptor, input from one. */

import type { SerialBack } from "../devices/legacy/serial.ts";
import type { Epoll } from "../platform/epoll.ts";
import type { TimerSource } from "../ratelimit/rate-limiter.ts";
import { TokenBucket } from "../ratelimit/token-bucket.ts";
import type { UartMetrics } from "./commands.ts";
import { InputStream, OutputStream } from "./host-stream.ts";
import type { SerialSpec } from "./spec.ts";

/** How much of the output is kept for a message about a guest that died, in bytes. */
const TAIL_BYTES = 16 * 1024;

/** Thrown to stop a drain. */
const OUTPUT_FULL = Symbol("output full");

/** The last {@link TAIL_BYTES} to twice as many bytes of a stream. */
class Tail {
  private chunks: Uint8Array[] = [];
  private size = 0;

  add(bytes: Uint8Array): void {
    this.chunks.push(bytes.slice());
    this.size += bytes.length;
    if (this.size > 2 * TAIL_BYTES) {
      this.chunks = [Buffer.concat(this.chunks).subarray(-TAIL_BYTES)];
      this.size = TAIL_BYTES;
    }
  }

  text(): string {
    return new TextDecoder().decode(Buffer.concat(this.chunks));
  }
}

export class SerialPort {
  readonly input: InputStream | undefined;
  private sent = 0;
  private received = 0;
  private dropped = 0;
  private readonly limit: TokenBucket | undefined;
  private readonly output: OutputStream | undefined;
  private readonly tail: Tail | undefined;
  /** Taken from the port, not yet taken by the descriptor. While there is some, the port is left to fill up. */
  private pending: Uint8Array = new Uint8Array(0);

  constructor(
    epoll: Epoll,
    spec: SerialSpec,
    private readonly back: SerialBack,
    private readonly clock: Pick<TimerSource, "now">,
    onBroken: (what: string) => void,
  ) {
    this.limit = TokenBucket.create(spec.rateLimiter, clock.now());
    if (spec.outputFd !== undefined) {
      this.output = new OutputStream(
        epoll,
        spec.outputFd,
        () => this.serve(),
        (error) => onBroken(`serial output is lost from here on: ${error.message}`),
      );
    }
    if (spec.keepTail) this.tail = new Tail();
    if (spec.inputFd !== undefined) {
      this.input = new InputStream(
        epoll,
        spec.inputFd,
        (bytes) => {
          const taken = back.pushInput(bytes);
          this.received += taken;
          return taken;
        },
        () => {},
      );
    }
  }

  /** Moves output and offers held-back input. To be called when the port's doorbell rang. */
  serve(): void {
    this.flushPending();
    if (this.pending.length === 0) this.drain();
    if (this.input?.blocked) this.input.resume();
  }

  /** True while output waits for its reader. */
  get hasOutput(): boolean {
    return this.pending.length > 0;
  }

  close(): void {
    this.output?.close();
  }

  get metrics(): UartMetrics {
    return {
      sent: this.sent,
      received: this.received,
      lost: this.back.lostOutput,
      dropped: this.dropped,
    };
  }

  get tailText(): string {
    return this.tail?.text() ?? "";
  }

  /** As Firecracker, which does not make the guest wait either. */
  private limited(bytes: Uint8Array): Uint8Array {
    if (this.limit === undefined) return bytes;
    const count = this.limit.takeUpTo(bytes.length, this.clock.now());
    this.dropped += bytes.length - count;
    return bytes.subarray(0, count);
  }

  private flushPending(): void {
    if (this.pending.length === 0 || this.output === undefined) return;
    this.pending = this.pending.subarray(this.output.write(this.pending));
  }

  private drain(): void {
    try {
      this.back.drain((bytes) => {
        // Left in the port's ring, so that a guest which goes on sending is the one that waits.
        if (this.pending.length > 0) throw OUTPUT_FULL;
        this.tail?.add(bytes);
        this.sent += bytes.length;
        const allowed = this.limited(bytes);
        const taken = this.output?.write(allowed) ?? allowed.length;
        if (taken < allowed.length) this.pending = allowed.slice(taken);
      });
    } catch (reason) {
      if (reason !== OUTPUT_FULL) throw reason;
    }
  }
}
