/** Reads the line with which a host program asks for a port of the guest: `CONNECT <port>\n`. */

import type { HostStream } from "./host-sockets.ts";

/** As in Firecracker. */
const MAX_COMMAND_BYTES = 32;
/** `connect 0\n`: no command is shorter, so that many bytes can be read without taking any of the data behind it. */
const MIN_COMMAND_BYTES = 10;
const NEWLINE = 0x0a;
const MAX_PORT = 2 ** 32 - 1;

export class HostCommand {
  private readonly bytes = new Uint8Array(MAX_COMMAND_BYTES);
  private length = 0;

  /** Reads on. undefined: the line is not complete yet. Throws if it is none, or the stream ends or breaks. */
  read(stream: HostStream): number | undefined {
    for (;;) {
      const want = Math.max(1, MIN_COMMAND_BYTES - this.length);
      const count = stream.read([this.bytes.subarray(this.length, this.length + want)]);
      if (count === undefined) return undefined;
      if (count === 0) throw new Error("the stream ended inside the command");
      this.length += count;
      if (this.bytes[this.length - 1] === NEWLINE) return parseCommand(this.bytes.subarray(0, this.length));
      if (this.length === MAX_COMMAND_BYTES) throw new Error("the command is too long");
    }
  }
}

/** The port in a `CONNECT` command. Throws if it is none. */
function parseCommand(bytes: Uint8Array): number {
  const [word, port, ...rest] = new TextDecoder().decode(bytes).trim().split(/\s+/);
  const number = Number(port);
  if (
    word?.toLowerCase() !== "connect" ||
    !/^\d+$/.test(port ?? "") ||
    number > MAX_PORT ||
    rest.length > 0
  ) {
    throw new Error("not a CONNECT command");
  }
  return number;
}
