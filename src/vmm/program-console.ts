/**
 * The streams of a program that runs in the guest, on the ports of a virtio console: stdin, stdout and stderr
 * to descriptors of the host, and the lines of the control port to the main thread.
 */

import { ConsoleDevice } from "../devices/virtio/console/console.ts";
import type { ConsolePort } from "../devices/virtio/console/port.ts";
import type { Epoll } from "../platform/epoll.ts";
import { InputStream, OutputStream } from "./host-stream.ts";
import type { VmmEvent } from "./messages.ts";
import type { ProgramSpec } from "./spec.ts";

const PORTS = ["sparkler.stdin", "sparkler.stdout", "sparkler.stderr", "sparkler.control"] as const;

/** A control line longer than this (bytes) is cut: the guest does not decide how much memory it gets here. */
const MAX_CONTROL_LINE = 4096;

export class ProgramConsole {
  readonly device = new ConsoleDevice(PORTS);
  readonly input: InputStream;
  private readonly outputs: PortOutput[];

  constructor(epoll: Epoll, spec: ProgramSpec, post: (event: VmmEvent) => void) {
    const [stdin, stdout, stderr, control] = PORTS.map((name) => this.device.port(name));
    this.input = new InputStream(
      epoll,
      spec.stdinFd,
      (bytes) => stdin.write(bytes),
      () => stdin.close(),
    );
    stdin.connect({
      onWritable: () => this.input.resume(),
      // Read only once a program is there to read it: what is typed before stays with the terminal.
      onGuestOpen: (open) => (open ? this.input.resume() : this.input.stop()),
    });
    this.outputs = [
      new PortOutput(epoll, stdout, spec.stdoutFd, post),
      new PortOutput(epoll, stderr, spec.stderrFd, post),
    ];
    control.connect({ onData: lineReader((line) => post({ kind: "control", line })) });
  }

  /** True while the guest's output waits for its reader. */
  get hasOutput(): boolean {
    return this.outputs.some((output) => output.waiting);
  }

  close(): void {
    for (const output of this.outputs) output.close();
  }
}

/** Output of the program to one descriptor. While the descriptor takes no more, the program waits. */
class PortOutput {
  waiting = false;
  private readonly stream: OutputStream;
  /** The end of a buffer of the guest that the descriptor took only in part. */
  private rest: Uint8Array = new Uint8Array(0);

  constructor(epoll: Epoll, port: ConsolePort, fd: number, post: (event: VmmEvent) => void) {
    this.stream = new OutputStream(
      epoll,
      fd,
      () => {
        if (this.flush()) port.resume();
      },
      ({ code, message }) => {
        this.rest = this.rest.subarray(this.rest.length);
        this.waiting = false;
        post({ kind: "output-broken", code, message });
      },
    );
    port.connect({ onData: (bytes) => this.take(bytes) });
  }

  close(): void {
    this.stream.close();
  }

  private take(bytes: Uint8Array): boolean {
    if (!this.flush()) return false;
    const taken = this.stream.write(bytes);
    // The port offers a buffer whole or not at all, so the part that did not go out is kept here.
    if (taken < bytes.length) {
      this.rest = bytes.slice(taken);
      this.waiting = true;
    }
    return true;
  }

  /** True if nothing waits any more. */
  private flush(): boolean {
    if (this.rest.length > 0) this.rest = this.rest.subarray(this.stream.write(this.rest));
    this.waiting = this.rest.length > 0;
    return !this.waiting;
  }
}

/** Puts lines together from pieces. */
export function lineReader(onLine: (line: string) => void): (bytes: Uint8Array) => boolean {
  let line: number[] = [];
  return (bytes) => {
    for (const byte of bytes) {
      if (byte === 0x0a) {
        onLine(new TextDecoder().decode(Uint8Array.from(line)));
        line = [];
      } else if (line.length < MAX_CONTROL_LINE) {
        line.push(byte);
      }
    }
    return true;
  };
}
