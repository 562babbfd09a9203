import { expect, test } from "bun:test";
import { encodeAnswer, HttpError, headLength, parseHead } from "./http.ts";

const head = (text: string) => parseHead(Buffer.from(text));

/** Status and message of a refusal. */
function refused(text: string | Uint8Array): [number, string] {
  try {
    parseHead(Buffer.from(text));
  } catch (error) {
    if (error instanceof HttpError) return [error.status, error.message];
    throw error;
  }
  throw new Error("accepted");
}

test("a head ends with an empty line, however lines end", () => {
  expect(headLength(Buffer.from("GET / HTTP/1.1\r\nA: b\r\n\r\nGET"))).toBe(24);
  expect(headLength(Buffer.from("GET / HTTP/1.1\n\n"))).toBe(16);
  expect(headLength(Buffer.from("a\n\r\n"))).toBe(4);
  const whole = "GET / HTTP/1.1\r\nA: b\r\n\r\n";
  for (let length = 0; length < whole.length; length++) {
    expect(headLength(Buffer.from(whole.slice(0, length)))).toBe(0);
  }
});

test("method, path, version and headers by lower-case name", () => {
  const request = head("PUT /a//b HTTP/1.0\r\nX-Some:  value \r\naccept:\r\nContent-Length: 12\r\n\r\n");
  expect({ ...request, headers: [...request.headers], names: [...request.names.values()] }).toEqual({
    method: "PUT",
    path: "/a//b",
    version: "HTTP/1.0",
    headers: [
      ["x-some", "value"],
      ["accept", ""],
      ["content-length", "12"],
    ],
    names: ["X-Some", "accept", "Content-Length"],
    bodyBytes: 12,
  });
});

test.each([
  ["/", "/"],
  ["http://169.254.169.254/a", "/a"],
  ["http://169.254.169.254:80/", "/"],
  ["http://169.254.169.254", ""],
  ["http://", ""],
  ["home", ""],
  ["*", ""],
])("target %p has the path %p", (target, path) => {
  expect(head(`GET ${target} HTTP/1.1\r\n\r\n`).path).toBe(path);
});

test.each<[string | Uint8Array, number, string]>([
  ["\r\n\r\n", 400, "Invalid request."],
  ["GET /\r\n\r\n", 400, "Invalid request."],
  ["GET / HTTP/1.1 more\r\n\r\n", 400, "Invalid request."],
  ["POST / HTTP/1.1\r\n\r\n", 501, "Unsupported HTTP method."],
  ["get / HTTP/1.1\r\n\r\n", 501, "Unsupported HTTP method."],
  ["GET  HTTP/1.1\r\n\r\n", 400, "Empty URI not allowed."],
  ["GET / HTTP/2.0\r\n\r\n", 501, "Unsupported HTTP version."],
  ["GET / HTTP/1.1\r\nnonsense\r\n\r\n", 400, "Header is incorrectly formatted. Key: nonsense"],
  ["GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400, "Invalid value. Key:Content-Length; Value:-1"],
  [Uint8Array.of(0x47, 0xff, 0x0a, 0x0a), 400, "Cannot parse URI as UTF-8."],
])("%p is refused", (text, status, message) => {
  expect(refused(text)).toEqual([status, message]);
});

test("answers are Firecracker's", () => {
  const answer = { status: 405, body: "né", headers: { Allow: "GET, PUT" } } as const;
  expect(Buffer.from(encodeAnswer(answer, "HTTP/1.0")).toString()).toBe(
    "HTTP/1.0 405 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nAllow: GET, PUT\r\n" +
      "Content-Type: text/plain\r\nContent-Length: 3\r\n\r\nné",
  );
  expect(Buffer.from(encodeAnswer({ status: 200, body: "{}", json: true }, "HTTP/1.1")).toString()).toContain(
    "\r\nContent-Type: application/json\r\n",
  );
});
