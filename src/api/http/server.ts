/**
 * The HTTP server on the API's unix socket. Requests of all clients are handled one after the other, in the order
 * in which they arrived whole.
 *
 * On Bun's plain sockets: Bun.serve drops pipelined requests and adds headers of its own, node:http takes 13 ms
 * to load, half of what the monitor may take until it answers.
 */

import { existsSync, linkSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import type { Socket, UnixSocketListener } from "bun";
import { HttpError, type HttpRequest, RequestReader } from "./request.ts";
import {
  CONTINUE,
  encodeResponse,
  type HttpResponse,
  notARequest,
  TOO_MANY_CONNECTIONS,
} from "./response.ts";

/** Clients connected at once. */
const MAX_CONNECTIONS = 256;
/** Answers not yet taken by a client, in bytes, before it gets no more of its requests handled. */
const MAX_UNSENT_BYTES = 64 * 1024;
/** Input read ahead of the request that is being handled, in bytes, before reading stops. */
const MAX_READ_AHEAD_BYTES = 64 * 1024;
/** How long a client whose input makes no sense may go on sending, in ms, while it gets to read why. */
const LINGER_MS = 1000;

/** Longest name of a unix socket in bytes (unix(7)). */
const MAX_SOCKET_PATH = 107;

/** Handles one request. Must not throw. */
export type HttpHandler = (request: HttpRequest) => HttpResponse | Promise<HttpResponse>;

export interface HttpServerOptions {
  readonly path: string;
  /** Largest body in bytes. */
  readonly maxBody: number;
  readonly handle: HttpHandler;
}

/** The socket cannot be made. The message is Firecracker's. */
export class ApiSocketError extends Error {
  constructor(path: string, options?: ErrorOptions) {
    super(`Failed to open the API socket at: ${path}. Check that it is not already used.`, options);
    this.name = "ApiSocketError";
  }
}

export class HttpServer {
  private readonly listener: UnixSocketListener<Connection>;
  private readonly connections = new Set<Connection>();
  private readonly queue: Connection[] = [];
  private busy = false;

  /** Listens at once. Throws {@link ApiSocketError}. */
  constructor(private readonly options: HttpServerOptions) {
    const { path } = options;
    // Between bind and listen the socket would be there and refuse: it gets its name when it answers.
    const hidden = join(dirname(path), `.${crypto.randomUUID().slice(0, 8)}`);
    try {
      if (existsSync(path)) throw new Error(`${path} exists`);
      if (Buffer.byteLength(path) > MAX_SOCKET_PATH) throw new Error(`${path} is too long for a socket`);
      if (Buffer.byteLength(hidden) > MAX_SOCKET_PATH) {
        this.listener = this.listen(path);
        return;
      }
      this.listener = this.listen(hidden);
    } catch (error) {
      throw new ApiSocketError(path, { cause: error });
    }
    try {
      linkSync(hidden, path);
    } catch (error) {
      this.listener.stop(true);
      throw new ApiSocketError(path, { cause: error });
    } finally {
      rmSync(hidden, { force: true });
    }
  }

  private listen(path: string): UnixSocketListener<Connection> {
    const forget = ({ data }: Socket<Connection>) => {
      this.connections.delete(data);
    };
    // A client may shut its side down when it has sent its last request. The type of unix sockets lacks the option.
    const halfOpen = { allowHalfOpen: true };
    return Bun.listen<Connection>({
      ...halfOpen,
      unix: path,
      socket: {
        open: (socket) => this.accept(socket),
        data: ({ data }, bytes) => data.received(bytes),
        drain: ({ data }) => data.flush(),
        end: ({ data }) => data.ended(),
        close: forget,
        error: forget,
      },
    });
  }

  /** Ends all connections and removes the socket. */
  close(): void {
    this.listener.stop(true);
    rmSync(this.options.path, { force: true });
  }

  private accept(socket: Socket<Connection>): void {
    const connection = new Connection(socket, this.options.maxBody, (ready) => this.enqueue(ready));
    socket.data = connection;
    if (this.connections.size >= MAX_CONNECTIONS) {
      connection.refuse(TOO_MANY_CONNECTIONS);
      return;
    }
    this.connections.add(connection);
  }

  private enqueue(connection: Connection): void {
    this.queue.push(connection);
    if (!this.busy) void this.serve();
  }

  private async serve(): Promise<void> {
    this.busy = true;
    for (let next = this.queue.shift(); next !== undefined; next = this.queue.shift()) {
      const request = next.take();
      if (request === undefined) continue;
      const response = this.options.handle(request);
      // Most answers are there at once, and waiting for them would cost a turn of the event loop.
      next.answer(response instanceof Promise ? await response : response, request.close);
    }
    this.busy = false;
  }
}

/** One client. Has at most one request in the queue, so that its answers come in the order of its requests. */
class Connection {
  private readonly reader: RequestReader;
  private request: HttpRequest | undefined;
  private unsent: Buffer = Buffer.alloc(0);
  private state: "open" | "closing" | "closed" = "open";
  private paused = false;
  private inputEnded = false;

  constructor(
    private readonly socket: Socket<Connection>,
    maxBody: number,
    private readonly enqueue: (connection: Connection) => void,
  ) {
    this.reader = new RequestReader(maxBody, () => this.send(CONTINUE));
  }

  received(bytes: Uint8Array): void {
    // Input after the end is read and dropped: closing with unread input would take the answer from the client.
    if (this.state !== "open") return;
    this.reader.push(bytes);
    this.advance();
  }

  take(): HttpRequest | undefined {
    return this.request;
  }

  answer(response: HttpResponse, close: boolean): void {
    this.request = undefined;
    this.send(encodeResponse(response, close));
    if (close) this.end();
    else this.advance();
  }

  /** The client sends nothing more. It still gets the answers to what it sent. */
  ended(): void {
    this.inputEnded = true;
    this.endIfDone();
  }

  private endIfDone(): void {
    if (this.inputEnded && this.request === undefined) this.end();
  }

  /** Answers without a request and closes. */
  refuse(response: HttpResponse): void {
    this.send(encodeResponse(response, true));
    this.end();
  }

  flush(): void {
    if (this.unsent.length > 0) {
      const sent = Math.max(0, this.socket.write(this.unsent));
      this.unsent = this.unsent.subarray(sent);
    }
    if (this.unsent.length > 0) return;
    if (this.state === "closing") this.shutdown();
    else this.advance();
  }

  /** Finds the next request, and stops or starts reading as there is room. */
  private advance(): void {
    if (this.state === "open" && this.request === undefined && this.unsent.length <= MAX_UNSENT_BYTES) {
      try {
        this.request = this.reader.next();
      } catch (error) {
        if (!(error instanceof HttpError)) throw error;
        const response = notARequest(error.message);
        if (error.goesOn) this.answer(response, false);
        else this.refuse(response);
        return;
      }
      if (this.request !== undefined) this.enqueue(this);
    }
    this.endIfDone();
    const full = this.request !== undefined && this.reader.pending > MAX_READ_AHEAD_BYTES;
    if (full !== this.paused) {
      this.paused = full;
      if (full) this.socket.pause();
      else this.socket.resume();
    }
  }

  private send(bytes: Buffer): void {
    if (this.state !== "open") return;
    const sent = this.unsent.length > 0 ? 0 : Math.max(0, this.socket.write(bytes));
    if (sent < bytes.length) this.unsent = Buffer.concat([this.unsent, bytes.subarray(sent)]);
  }

  private end(): void {
    if (this.state !== "open") return;
    this.state = "closing";
    if (this.paused) this.socket.resume();
    if (this.unsent.length === 0) this.shutdown();
  }

  /** Closes our side; the client closes when it has read the answer. */
  private shutdown(): void {
    if (this.state === "closed") return;
    this.state = "closed";
    this.socket.shutdown();
    setTimeout(() => this.socket.terminate(), LINGER_MS).unref();
  }
}
