/** The host's side of vsock, as the device sees it: stream sockets that never block. */

/** Calls that come from the event loop. */
export interface HostStreamEvents {
  /** There may be something to read, after {@link HostStream.read} gave undefined or since the stream is there. */
  onReadable(): void;
  /** There may be room, after {@link HostStream.write} took less than it was given. */
  onWritable(): void;
  /** {@link HostStream.hungUp} has become true. */
  onHangUp(): void;
}

export interface HostStream {
  /** Starts the calls. Only one receiver at a time; a later one takes the place of the one before. */
  watch(events: HostStreamEvents): void;
  /** Bytes read into `into` (not empty); 0: the other end sends no more; undefined: nothing now. Throws if broken. */
  read(into: readonly Uint8Array[]): number | undefined;
  /** Bytes taken, 0 if there is no room. Throws if the other end reads no more. */
  write(from: readonly Uint8Array[]): number;
  /** The other end sees an end of the stream. */
  shutdownWrite(): void;
  /** The other end cannot write any more. */
  shutdownRead(): void;
  /** True if the other end is closed in both directions. */
  readonly hungUp: boolean;
  /** No calls come after it. Harmless the second time. */
  close(): void;
}

export interface HostSockets {
  /** Calls `accept` for each host program that connects, until {@link stopListening}. */
  listen(accept: (stream: HostStream) => void): void;
  stopListening(): void;
  /**
   * Connects to the host program that listens for `port`. undefined: there is none; "busy": its queue of connections
   * is full, and it may be tried again.
   */
  connect(port: number): HostStream | "busy" | undefined;
}
