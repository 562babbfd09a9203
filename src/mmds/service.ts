/** What the metadata service answers to a guest's requests. Statuses and texts are Firecracker's. */

import type { HttpAnswer, HttpRequest, Status } from "./http.ts";
import { resource } from "./resource.ts";
import { MAX_TTL_SECONDS, MIN_TTL_SECONDS, type Tokens } from "./tokens.ts";

const TOKEN_PATH = "/latest/api/token";
const TOKEN_HEADERS = ["x-metadata-token", "x-aws-ec2-metadata-token"];
const TTL_HEADERS = ["x-metadata-token-ttl-seconds", "x-aws-ec2-metadata-token-ttl-seconds"];
/** Added by proxies: whoever sends this may not be the guest itself. */
const FORWARDED_HEADER = "x-forwarded-for";
const U32 = 2 ** 32 - 1;

export interface ServiceOptions {
  /** V2 gives nothing without a token. */
  readonly version: "V1" | "V2";
  /** Answer in lines whatever format is asked for. */
  readonly imdsCompat: boolean;
  readonly tokens: Tokens;
}

export class MmdsService {
  /** Any JSON. */
  data: unknown = null;
  /** GET requests without a token, and with a wrong one. */
  readonly counts = { noToken: 0, invalidToken: 0 };

  constructor(private readonly options: ServiceOptions) {}

  respond(request: HttpRequest): HttpAnswer {
    if (request.path === "") return text(400, "Invalid URI.");
    if (request.method === "GET") return this.get(request);
    if (request.method === "PUT") return this.put(request);
    return { ...text(405, "Not allowed HTTP method."), headers: { Allow: "GET, PUT" } };
  }

  private get(request: HttpRequest): HttpAnswer {
    const token = header(request, TOKEN_HEADERS)?.value;
    const valid = token !== undefined && this.options.tokens.isValid(token);
    if (token === undefined) this.counts.noToken++;
    else if (!valid) this.counts.invalidToken++;
    if (this.options.version === "V2" && !valid) {
      const missing =
        "No MMDS token provided. Use `X-metadata-token` or `X-aws-ec2-metadata-token` header to specify the session token.";
      return text(401, token === undefined ? missing : "MMDS token not valid.");
    }
    const json = !this.options.imdsCompat && acceptsJson(request);
    const found = resource(this.data, request.path, json ? "json" : "imds");
    if (found.kind === "found") return { status: 200, body: found.text, json };
    if (found.kind === "not-found") return text(404, `Resource not found: ${request.path}.`);
    return text(501, "Cannot retrieve value. The value has an unsupported type.");
  }

  private put(request: HttpRequest): HttpAnswer {
    const forwarded = header(request, [FORWARDED_HEADER]);
    if (forwarded !== undefined) {
      return text(400, `Invalid header. Reason: Unsupported header name. Key: ${forwarded.name}`);
    }
    if (request.path.replace(/\/+/g, "/") !== TOKEN_PATH) {
      return text(404, `Resource not found: ${request.path}.`);
    }
    const ttl = header(request, TTL_HEADERS);
    if (ttl === undefined) {
      return text(
        400,
        "Token time to live value not found. Use `X-metadata-token-ttl-seconds` or `X-aws-ec2-metadata-token-ttl-seconds` header to specify the token's lifetime.",
      );
    }
    const seconds = Number(ttl.value);
    if (!/^\+?\d+$/.test(ttl.value) || seconds > U32) {
      return text(400, `Invalid header. Reason: Invalid value. Key:${ttl.name}; Value:${ttl.value}`);
    }
    if (seconds < MIN_TTL_SECONDS || seconds > MAX_TTL_SECONDS) {
      return text(
        400,
        `Invalid time to live value provided for token: ${seconds}. Please provide a value between ${MIN_TTL_SECONDS} and ${MAX_TTL_SECONDS}.`,
      );
    }
    return { ...text(200, this.options.tokens.create(seconds)), headers: { [ttl.name]: String(seconds) } };
  }
}

function text(status: Status, body: string): HttpAnswer {
  return { status, body };
}

/** The first of these headers that there is, with its name as it was sent. */
function header(request: HttpRequest, names: readonly string[]): { name: string; value: string } | undefined {
  for (const name of names) {
    const value = request.headers.get(name);
    if (value !== undefined) return { name: request.names.get(name) ?? name, value };
  }
  return undefined;
}

function acceptsJson({ headers }: HttpRequest): boolean {
  const types = (headers.get("accept") ?? "").split(",");
  return types.some((type) => type.split(";")[0]!.trim().toLowerCase() === "application/json");
}
