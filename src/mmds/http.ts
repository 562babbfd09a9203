/**
 * HTTP/1.x as far as the metadata service needs it (RFC 9112): heads of requests, and answers. What is wrong with a
 * request is said in the words of Firecracker's HTTP library.
 */

export type Method = "GET" | "PUT" | "PATCH" | "DELETE";
export type Version = "HTTP/1.0" | "HTTP/1.1";
export type Status = 200 | 400 | 401 | 404 | 405 | 413 | 501;

export interface HttpRequest {
  readonly method: Method;
  /** The path of the target; empty if it has none. */
  readonly path: string;
  readonly version: Version;
  /** By name in lower case; the name as it was sent is in {@link names}. */
  readonly headers: ReadonlyMap<string, string>;
  readonly names: ReadonlyMap<string, string>;
  /** Bytes of body behind the head. */
  readonly bodyBytes: number;
}

export interface HttpAnswer {
  readonly status: Status;
  readonly body: string;
  readonly json?: boolean;
  /** Further headers. */
  readonly headers?: Readonly<Record<string, string>>;
}

/** A request that cannot be understood. */
export class HttpError extends Error {
  constructor(
    readonly status: Status,
    message: string,
  ) {
    super(message);
    this.name = "HttpError";
  }
}

const LF = 0x0a;
const CR = 0x0d;
const METHODS: readonly Method[] = ["GET", "PUT", "PATCH", "DELETE"];
const VERSIONS: readonly Version[] = ["HTTP/1.0", "HTTP/1.1"];
const SCHEME = "http://";

/** Length of the head at the start of `bytes`, up to the empty line that ends it; 0 if that has not come yet. */
export function headLength(bytes: Uint8Array): number {
  for (let at = bytes.indexOf(LF); at >= 0; at = bytes.indexOf(LF, at + 1)) {
    if (bytes[at + 1] === LF) return at + 2;
    if (bytes[at + 1] === CR && bytes[at + 2] === LF) return at + 3;
  }
  return 0;
}

/** Throws {@link HttpError}. */
export function parseHead(head: Uint8Array): HttpRequest {
  const [requestLine = "", ...lines] = decode(head).split(/\r?\n/);
  const [method, target, version, ...more] = requestLine.split(" ");
  if (method === undefined || target === undefined || version === undefined || more.length > 0) {
    throw new HttpError(400, "Invalid request.");
  }
  const knownMethod = METHODS.find((name) => name === method);
  if (knownMethod === undefined) throw new HttpError(501, "Unsupported HTTP method.");
  if (target === "") throw new HttpError(400, "Empty URI not allowed.");
  const knownVersion = VERSIONS.find((name) => name === version);
  if (knownVersion === undefined) throw new HttpError(501, "Unsupported HTTP version.");
  const headers = new Map<string, string>();
  const names = new Map<string, string>();
  for (const line of lines) {
    if (line === "") continue;
    const colon = line.indexOf(":");
    if (colon < 0) throw new HttpError(400, `Header is incorrectly formatted. Key: ${line}`);
    const name = line.slice(0, colon).trim();
    headers.set(name.toLowerCase(), line.slice(colon + 1).trim());
    names.set(name.toLowerCase(), name);
  }
  const length = headers.get("content-length") ?? "0";
  if (!/^\d{1,10}$/.test(length)) {
    throw new HttpError(400, `Invalid value. Key:Content-Length; Value:${length}`);
  }
  return {
    method: knownMethod,
    path: targetPath(target),
    version: knownVersion,
    headers,
    names,
    bodyBytes: Number(length),
  };
}

/** The bytes of an answer. Like Firecracker's without a reason phrase. */
export function encodeAnswer({ status, body, json, headers }: HttpAnswer, version: Version): Uint8Array {
  const content = Buffer.from(body);
  const lines = [
    `${version} ${status} `,
    "Server: Firecracker API",
    "Connection: keep-alive",
    ...Object.entries(headers ?? {}).map(([name, value]) => `${name}: ${value}`),
    `Content-Type: ${json === true ? "application/json" : "text/plain"}`,
    `Content-Length: ${content.length}`,
  ];
  return Buffer.concat([Buffer.from(`${lines.join("\r\n")}\r\n\r\n`), content]);
}

function decode(head: Uint8Array): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(head);
  } catch {
    throw new HttpError(400, "Cannot parse URI as UTF-8.");
  }
}

/** A target may have scheme and host before the path (RFC 9112, 3.2). */
function targetPath(target: string): string {
  if (!target.startsWith(SCHEME)) return target.startsWith("/") ? target : "";
  const slash = target.indexOf("/", SCHEME.length);
  return slash < 0 ? "" : target.slice(slash);
}
