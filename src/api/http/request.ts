/**
 * Reads HTTP/1.1 requests (RFC 9112) from the pieces in which they arrive. Only what an API of small JSON bodies
 * needs: bodies have a Content-Length.
 */

/** Longest request line with its headers, in bytes. */
const MAX_HEAD_BYTES = 16 * 1024;

const METHOD = /^[A-Z]{1,16}$/;
const VERSION = /^HTTP\/1\.[01]$/;
const FIELD_NAME = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;
const CONTENT_LENGTH = /^\d{1,15}$/;
const HEAD_END = "\r\n\r\n";

export interface HttpRequest {
  readonly method: string;
  /** Path and query, as sent. */
  readonly path: string;
  /** Empty if there is none. */
  readonly body: Uint8Array;
  /** The client wants the connection closed after the answer. */
  readonly close: boolean;
}

/** What arrived is not a request that can be answered. */
export class HttpError extends Error {
  constructor(
    message: string,
    /** Where the next request begins is known: the connection can go on. */
    readonly goesOn = false,
  ) {
    super(message);
    this.name = "HttpError";
  }
}

interface Head {
  readonly method: string;
  readonly path: string;
  readonly close: boolean;
  readonly length: number;
}

/** One connection's input. */
export class RequestReader {
  private buffer: Buffer = Buffer.alloc(0);
  /** Where the search for the end of the head goes on. */
  private searched = 0;
  private head: Head | undefined;
  /** Bytes still to come of a body that was refused. */
  private refused = 0;

  constructor(
    /** Largest body in bytes. */
    private readonly maxBody: number,
    /** The client waits for permission to send its body. */
    private readonly onExpectContinue: () => void,
  ) {}

  /** Bytes that have arrived and are not part of a request yet. */
  get pending(): number {
    return this.buffer.length;
  }

  push(bytes: Uint8Array): void {
    this.buffer = this.buffer.length === 0 ? Buffer.from(bytes) : Buffer.concat([this.buffer, bytes]);
  }

  /** The next request, or undefined until more has arrived. Throws {@link HttpError}. */
  next(): HttpRequest | undefined {
    if (this.refused > 0) {
      const dropped = Math.min(this.refused, this.buffer.length);
      this.buffer = this.buffer.subarray(dropped);
      this.refused -= dropped;
      if (this.refused > 0) return undefined;
    }
    this.head ??= this.readHead();
    if (this.head === undefined) return undefined;
    const { method, path, close, length } = this.head;
    if (this.buffer.length < length) return undefined;
    const body = this.buffer.subarray(0, length);
    this.buffer = this.buffer.subarray(length);
    this.head = undefined;
    return { method, path, body, close };
  }

  private readHead(): Head | undefined {
    // A client may end a body with a line break that does not count (RFC 9112, 2.2).
    while (this.searched === 0 && this.buffer[0] === 0x0d && this.buffer[1] === 0x0a) {
      this.buffer = this.buffer.subarray(2);
    }
    const end = this.buffer.indexOf(HEAD_END, this.searched, "latin1");
    if ((end < 0 ? this.buffer.length : end) > MAX_HEAD_BYTES) {
      throw new HttpError(`Invalid request. Its head is longer than ${MAX_HEAD_BYTES} bytes.`);
    }
    if (end < 0) {
      this.searched = Math.max(0, this.buffer.length - HEAD_END.length + 1);
      return undefined;
    }
    const text = this.buffer.toString("latin1", 0, end);
    this.buffer = this.buffer.subarray(end + HEAD_END.length);
    this.searched = 0;
    return this.parseHead(text);
  }

  private parseHead(text: string): Head {
    const [requestLine = "", ...lines] = text.split("\r\n");
    const [method = "", target = "", version = "", ...more] = requestLine.split(" ");
    if (!METHOD.test(method)) throw new HttpError("Invalid HTTP Method: Unsupported HTTP method.");
    const path = originForm(target);
    if (path === undefined) throw new HttpError("Invalid URI: Give a path that begins with `/`.");
    if (more.length > 0 || !VERSION.test(version)) {
      throw new HttpError("Invalid HTTP Version: Unsupported HTTP version.");
    }
    let length: number | undefined;
    let close = version === "HTTP/1.0";
    let expect = false;
    for (const line of lines) {
      const colon = line.indexOf(":");
      const name = line.slice(0, Math.max(0, colon)).toLowerCase();
      const value = line.slice(colon + 1).trim();
      if (!FIELD_NAME.test(name)) throw new HttpError("Invalid header.");
      switch (name) {
        case "content-length":
          if (!CONTENT_LENGTH.test(value) || (length !== undefined && length !== Number(value))) {
            throw new HttpError(`Invalid header. Content-Length: ${JSON.stringify(value)}`);
          }
          length = Number(value);
          break;
        case "transfer-encoding":
          throw new HttpError("Unsupported header Transfer-Encoding. Send the body with a Content-Length.");
        case "connection":
          if (/\bclose\b/i.test(value)) close = true;
          else if (/\bkeep-alive\b/i.test(value)) close = false;
          break;
        case "expect":
          expect = value.toLowerCase() === "100-continue";
          break;
      }
    }
    length ??= 0;
    if (length > this.maxBody) {
      this.refused = length;
      throw new HttpError(
        `Request payload with size ${length} is larger than the limit of ${this.maxBody} allowed by server.`,
        // A client that has asked for permission may leave the body out now (RFC 9110, 10.1.1).
        !close && !expect,
      );
    }
    if (expect && length > 0) this.onExpectContinue();
    return { method, path, close, length };
  }
}

/** The path of a request target, which may have scheme and host before it (RFC 9112, 3.2). */
function originForm(target: string): string | undefined {
  const path = /^http:\/\//i.test(target) ? (/^[^/]*\/\/[^/]*(.*)$/.exec(target)?.[1] ?? "") : target;
  if (path === "" && path !== target) return "/";
  return path.startsWith("/") ? path : undefined;
}
