/**
 * Malformed HTTP and malformed bodies, made from a seed. The monitor must stay up, answer the well-formed request
 * that follows each, and not change. SPARKLER_FUZZ_COUNT and SPARKLER_FUZZ_SEED override how many and which.
 */

import { afterAll, expect, test } from "bun:test";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { ROUTES } from "../../src/api/routes.ts";
import { Monitor, temporaryDirectory } from "./support.ts";

const COUNT = Number(process.env.SPARKLER_FUZZ_COUNT ?? 10_000);
const SEED = Number(process.env.SPARKLER_FUZZ_SEED ?? 1);
/** Requests on their way at once. */
const PARALLEL = 16;

const dir = temporaryDirectory();
afterAll(dir.remove);

/** mulberry32: small, and the same everywhere. */
function generator(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t;
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}

type Random = ReturnType<typeof generator>;

const pick = <T>(random: Random, values: readonly T[]): T => values[random(values.length)]!;

const VALUES = [
  "null",
  "true",
  "0",
  "-1",
  "1e400",
  "18446744073709551616",
  '""',
  '"\\u0000"',
  '"\\ud800"',
  "[]",
  "{}",
  "[[[]]]",
  '{"a":{}}',
];

function jsonBody(random: Random): string {
  const { body } = pick(
    random,
    ROUTES.filter((route) => route.body?.properties !== undefined),
  );
  const names = [...Object.keys(body!.properties!), "__proto__", "constructor", "x", ""];
  const fields = Array.from(
    { length: random(6) },
    () => `${JSON.stringify(pick(random, names))}:${pick(random, VALUES)}`,
  );
  return `{${fields.join(",")}}`;
}

/** Changes some bytes: flips, inserts, removes, repeats. */
function mutate(random: Random, bytes: Buffer): Buffer {
  let result = bytes;
  for (let i = random(4); i >= 0; i--) {
    const at = random(result.length + 1);
    switch (random(4)) {
      case 0:
        result = Buffer.from(result);
        if (at < result.length) result[at] = random(256);
        break;
      case 1:
        result = Buffer.concat([result.subarray(0, at), Buffer.from([random(256)]), result.subarray(at)]);
        break;
      case 2:
        result = Buffer.concat([result.subarray(0, at), result.subarray(at + 1 + random(8))]);
        break;
      default:
        result = Buffer.concat([result, result.subarray(at, at + random(64))]);
    }
  }
  return result;
}

/** An attack and whether it is a request that must be answered before the connection may end. */
function attack(random: Random): Buffer {
  const route = pick(random, ROUTES);
  const path = route.path.replace(/\{\w+\}/, pick(random, ["a", "a-b", "", "%00", "../..", "ä"]));
  // What would really change or end the machine is left out.
  const safe = path === "/actions" || path === "/logger" || path === "/metrics" || path === "/serial";
  const body =
    safe || random(3) === 0
      ? Buffer.from([...Array(random(40))].map(() => random(256)))
      : Buffer.from(jsonBody(random));
  const method = pick(random, [route.method, "GET", "PUT", "PATCH", "DELETE", "POST", "get", ""]);
  const length = pick(random, [
    body.length,
    body.length,
    body.length,
    0,
    body.length + 1,
    51_201,
    -1,
    "x",
    "",
  ]);
  const more = pick(random, [
    "",
    "",
    "Connection: close\r\n",
    "Expect: 100-continue\r\n",
    "Transfer-Encoding: chunked\r\n",
    "X\r\n",
    "A:b\r\n".repeat(500),
  ]);
  const version = pick(random, ["HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/9", ""]);
  const request = Buffer.concat([
    Buffer.from(`${method} ${path} ${version}\r\n${more}Content-Length: ${length}\r\n\r\n`),
    body,
  ]);
  return random(2) === 0 ? mutate(random, request) : request;
}

/** Sends the bytes, in pieces at times, and resolves when the server has closed or said something, or is silent. */
async function send(socket: string, random: Random, bytes: Buffer): Promise<string> {
  const { promise, resolve } = Promise.withResolvers<void>();
  let received = "";
  const connection = await Bun.connect({
    unix: socket,
    socket: {
      data(_, data) {
        received += data.toString("latin1");
        resolve();
      },
      close: () => resolve(),
      error: () => resolve(),
    },
  });
  const cut = random(8) === 0 ? random(bytes.length) : bytes.length;
  connection.write(bytes.subarray(0, cut));
  if (cut < bytes.length) {
    await Bun.sleep(0);
    connection.write(bytes.subarray(cut));
  }
  if (random(3) === 0) connection.terminate();
  else {
    // Some of these wait for more, as they should.
    await Promise.race([promise, Bun.sleep(10)]);
    connection.end();
  }
  return received;
}

test(
  `${COUNT} malformed requests`,
  async () => {
    const monitor = await Monitor.scripted(join(dir.path, "api.sock"), { level: "Off" }).ready();
    const random = generator(SEED);
    const before = (await monitor.get("/vm/config")).body;
    const statuses = new Map<string, number>();
    const descriptors = () => readdirSync(`/proc/${monitor.process.pid}/fd`).length;
    const open = descriptors();
    for (let done = 0; done < COUNT; done += PARALLEL) {
      const answers = await Promise.all(
        Array.from({ length: PARALLEL }, () => send(monitor.socket, random, attack(random))),
      );
      for (const answer of answers) {
        const status =
          /^HTTP\/1\.1 (\d+) /.exec(answer)?.[1] ?? (answer === "" ? "none" : `garbage: ${answer}`);
        statuses.set(status, (statuses.get(status) ?? 0) + 1);
      }
      if (done % 1024 === 0) expect((await monitor.get("/")).status).toBe(200);
    }
    // A random body may be right, for the metadata and the machine, and drives that are not there are refused.
    const { drives, "boot-source": boot } = Object((await monitor.get("/vm/config")).body);
    expect({ drives, "boot-source": boot }).toEqual({
      drives: [],
      "boot-source": Object(before)["boot-source"],
    });
    // 503: on a busy host connections that this client has left are still there.
    const known = ["none", "100", "200", "204", "400", "413", "503"];
    expect([...statuses.keys()].filter((status) => !known.includes(status))).toEqual([]);
    expect(statuses.get("400")).toBeGreaterThan(COUNT / 4);
    // One that was in the middle of something is ended after a while.
    for (const end = performance.now() + 10_000; descriptors() > open && performance.now() < end; ) {
      await Bun.sleep(20);
    }
    expect(descriptors()).toBeLessThanOrEqual(open);
    expect(monitor.process.exitCode).toBeNull();
    expect(await monitor.kill()).toBe(143);
  },
  60_000 + COUNT * 5,
);
