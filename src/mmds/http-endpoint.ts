/** Requests and answers over one TCP connection, one after the other. */

import { encodeAnswer, type HttpAnswer, HttpError, type HttpRequest, headLength, parseHead } from "./http.ts";
import { RECEIVE_BUFFER_BYTES, type TcpConnection } from "./tcp-connection.ts";
import type { Application } from "./tcp-listener.ts";

export class HttpEndpoint implements Application {
  /** Bytes of a body that are still to come. No request needs one. */
  private bodyLeft = 0;

  constructor(
    private readonly connection: TcpConnection,
    private readonly respond: (request: HttpRequest) => HttpAnswer,
  ) {}

  onProgress(): void {
    const { connection } = this;
    this.skipBody();
    // The next answer waits until the last one has arrived, so there is never more than one in memory.
    while (!connection.sending) {
      const length = headLength(connection.input);
      if (length === 0) break;
      connection.send(this.answer(connection.input.subarray(0, length)));
      connection.consume(length);
      this.skipBody();
    }
    if (connection.sending) return;
    if (connection.inputEnded) connection.close();
    else if (connection.input.length === RECEIVE_BUFFER_BYTES) connection.abort();
  }

  private answer(head: Uint8Array): Uint8Array {
    try {
      const request = parseHead(head);
      this.bodyLeft = request.bodyBytes;
      return encodeAnswer(this.respond(request), request.version);
    } catch (error) {
      if (!(error instanceof HttpError)) throw error;
      return encodeAnswer({ status: error.status, body: error.message }, "HTTP/1.1");
    }
  }

  private skipBody(): void {
    const count = Math.min(this.bodyLeft, this.connection.input.length);
    this.bodyLeft -= count;
    this.connection.consume(count);
  }
}
