/** HTTP answers as Firecracker sends them. */

export interface HttpResponse {
  readonly status: 200 | 204 | 400 | 413 | 500 | 503;
  /** JSON. */
  readonly body?: string;
  /** The request used something that will go away. */
  readonly deprecated?: boolean;
}

/** `status` with the reason as clients expect it. */
export function fault(status: HttpResponse["status"], message: string, deprecated = false): HttpResponse {
  return { status, body: JSON.stringify({ fault_message: message }), deprecated };
}

/**
 * The answer to what is no request, or one with too large a body, word for word as Firecracker gives it: the name is
 * not `fault_message`, and the line break makes it no JSON.
 */
export function notARequest(message: string): HttpResponse {
  const text = JSON.stringify(message).slice(1, -1);
  const body = `{ "error": "${text}\nAll previous unanswered requests will be dropped." }`;
  return { status: 400, body };
}

/** The answer to a client too many. */
export const TOO_MANY_CONNECTIONS: HttpResponse = {
  status: 503,
  body: '{ "error": "Too many open connections" }',
};

export const CONTINUE = Buffer.from("HTTP/1.1 100 \r\n\r\n");

/** The bytes of an answer. `close`: the connection ends after it. */
export function encodeResponse({ status, body, deprecated }: HttpResponse, close: boolean): Buffer {
  // Like Firecracker without a reason phrase, but with the space before it that RFC 9112 demands.
  let head = `HTTP/1.1 ${status} \r\nServer: Firecracker API\r\nConnection: ${close ? "close" : "keep-alive"}\r\n`;
  if (deprecated) head += "Deprecation: true\r\n";
  if (body !== undefined) {
    head += `Content-Type: application/json\r\nContent-Length: ${Buffer.byteLength(body)}\r\n`;
  }
  return Buffer.from(`${head}\r\n${body ?? ""}`);
}
