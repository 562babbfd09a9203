import { beforeEach, describe, expect, test } from "bun:test";
import { type HttpAnswer, parseHead, type Status } from "./http.ts";
import { MmdsService } from "./service.ts";
import { Tokens } from "./tokens.ts";

let now: number;
let service: MmdsService;

function start(version: "V1" | "V2", imdsCompat = false): void {
  now = 0;
  service = new MmdsService({ version, imdsCompat, tokens: new Tokens("vm", () => now) });
  service.data = { name: { first: "John" }, age: 43 };
}

function ask(method: string, path: string, ...headers: string[]): HttpAnswer {
  return service.respond(
    parseHead(Buffer.from([`${method} ${path} HTTP/1.1`, ...headers, "", ""].join("\r\n"))),
  );
}

const JSON_TYPE = "Accept: application/json";
const text = (status: Status, body: string) => ({ status, body });

describe.each(["V1", "V2"] as const)("%s", (version) => {
  let token: string;
  beforeEach(() => {
    start(version);
    token = `X-metadata-token: ${ask("PUT", "/latest/api/token", "X-metadata-token-ttl-seconds: 60").body}`;
  });

  test("formats by Accept", () => {
    expect(ask("GET", "/", token)).toEqual({ status: 200, body: "age\nname/", json: false });
    expect(ask("GET", "/", token, "Accept: */*")).toMatchObject({ json: false });
    expect(ask("GET", "/", token, "Accept: text/html, Application/JSON;q=0.5")).toMatchObject({ json: true });
    expect(ask("GET", "/name", token, JSON_TYPE)).toEqual({
      status: 200,
      body: '{"first":"John"}',
      json: true,
    });
  });

  test("errors", () => {
    expect(ask("GET", "//nobody", token)).toEqual(text(404, "Resource not found: //nobody."));
    expect(ask("GET", "/age", token)).toEqual(
      text(501, "Cannot retrieve value. The value has an unsupported type."),
    );
    expect(ask("GET", "http://", token)).toEqual(text(400, "Invalid URI."));
    for (const method of ["PATCH", "DELETE"]) {
      expect(ask(method, "/", token)).toEqual({
        ...text(405, "Not allowed HTTP method."),
        headers: { Allow: "GET, PUT" },
      });
    }
  });

  test("tokens are made only as asked for", () => {
    const put = (path: string, ...headers: string[]) => ask("PUT", path, ...headers);
    const path = "/latest/api/token";
    expect(put("//latest///api/token", "x-AWS-ec2-metadata-token-ttl-seconds: 21600")).toMatchObject({
      status: 200,
      headers: { "x-AWS-ec2-metadata-token-ttl-seconds": "21600" },
    });
    expect(put("/name", "X-metadata-token-ttl-seconds: 1")).toEqual(text(404, "Resource not found: /name."));
    expect(put(path)).toEqual(
      text(
        400,
        "Token time to live value not found. Use `X-metadata-token-ttl-seconds` or `X-aws-ec2-metadata-token-ttl-seconds` header to specify the token's lifetime.",
      ),
    );
    for (const ttl of ["0", "21601", "4294967295"]) {
      expect(put(path, `X-metadata-token-ttl-seconds: ${ttl}`)).toEqual(
        text(
          400,
          `Invalid time to live value provided for token: ${ttl}. Please provide a value between 1 and 21600.`,
        ),
      );
    }
    for (const ttl of ["", "-1", "1.5", "4294967296", "application/json"]) {
      expect(put(path, `X-metadata-token-ttl-seconds: ${ttl}`)).toEqual(
        text(400, `Invalid header. Reason: Invalid value. Key:X-metadata-token-ttl-seconds; Value:${ttl}`),
      );
    }
    expect(put(path, "X-fOrwarded-For: 1.2.3.4", "X-metadata-token-ttl-seconds: 60")).toEqual(
      text(400, "Invalid header. Reason: Unsupported header name. Key: X-fOrwarded-For"),
    );
  });
});

test("V1 counts wrong and missing tokens, and answers all the same", () => {
  start("V1");
  expect(ask("GET", "/name/first")).toMatchObject({ status: 200, body: "John" });
  expect(ask("GET", "/name/first", "X-metadata-token: nonsense")).toMatchObject({ status: 200 });
  expect(service.counts).toEqual({ noToken: 1, invalidToken: 1 });
});

test("V2 answers 401 without a token, with a wrong one and with one whose time has passed", () => {
  start("V2");
  const missing = text(
    401,
    "No MMDS token provided. Use `X-metadata-token` or `X-aws-ec2-metadata-token` header to specify the session token.",
  );
  const wrong = text(401, "MMDS token not valid.");
  expect(ask("GET", "/nobody")).toEqual(missing);
  expect(ask("GET", "/", "X-aws-ec2-metadata-token: nonsense")).toEqual(wrong);
  const token = ask("PUT", "/latest/api/token", "X-metadata-token-ttl-seconds: 1").body;
  expect(ask("GET", "/", `X-aws-ec2-metadata-token: ${token}`)).toMatchObject({ status: 200 });
  now = 1000;
  expect(ask("GET", "/", `X-metadata-token: ${token}`)).toEqual(wrong);
  expect(service.counts).toEqual({ noToken: 1, invalidToken: 2 });
});

test("imds_compat answers in lines whatever is accepted", () => {
  start("V1", true);
  expect(ask("GET", "/", JSON_TYPE)).toEqual({ status: 200, body: "age\nname/", json: false });
  expect(ask("GET", "/age", JSON_TYPE)).toMatchObject({ status: 501 });
});
