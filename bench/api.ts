/**
 * What the API costs: `npm run build && npm run bench:api [-- --runs N]`. Time from the start of the process to the
 * first answer, requests a second, memory after many of them, and how long GET / takes while a guest runs flat out.
 */

import { existsSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { duration, markdownTable, median, readProc } from "./measure.ts";
import { EXECUTABLE, requireExecutable } from "./monitor.ts";
import { saysAndSpins, writeGuest } from "./raw-guest.ts";
import { describeHost, option, temporaryDirectory, writeResult } from "./session.ts";

const REQUESTS = 100_000;
/** After these the server's code is compiled and its heap has its size. */
const WARM_UP = 10_000;
const LATENCIES = 500;
const GET = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
const POLL_MS = 0.2;

requireExecutable();
const runs = option("runs", 30);
const dir = temporaryDirectory();
const host = describeHost();
const socket = join(dir, "api.sock");

/** One keep-alive connection. Answers come in the order of the requests. */
class Client {
  private readonly waiting: ((answer: string) => void)[] = [];
  private buffered = "";

  private constructor(private readonly stream: Socket) {
    stream.setEncoding("latin1");
    stream.on("data", (text) => this.take(String(text)));
  }

  /** Undefined if nobody listens yet. */
  static open(): Promise<Client | undefined> {
    return new Promise((resolve) => {
      const stream = connect(socket);
      stream.once("connect", () => resolve(new Client(stream)));
      stream.once("error", () => resolve(undefined));
    });
  }

  /** Sends a request. The whole answer. */
  send(request: string): Promise<string> {
    return new Promise((resolve) => {
      this.waiting.push(resolve);
      this.stream.write(request);
    });
  }

  close(): void {
    this.stream.destroy();
  }

  private take(text: string): void {
    this.buffered += text;
    for (;;) {
      const head = this.buffered.indexOf("\r\n\r\n");
      if (head < 0) return;
      const length = Number(/content-length: (\d+)/i.exec(this.buffered.slice(0, head))?.[1] ?? 0);
      const end = head + 4 + length;
      if (this.buffered.length < end) return;
      const answer = this.buffered.slice(0, end);
      this.buffered = this.buffered.slice(end);
      this.waiting.shift()?.(answer);
    }
  }
}

function expectStatus(answer: string, status: number): void {
  if (!answer.startsWith(`HTTP/1.1 ${status} `)) throw new Error(`unexpected answer:\n${answer}`);
}

async function firstClient(): Promise<Client> {
  for (;;) {
    const client = existsSync(socket) ? await Client.open() : undefined;
    if (client !== undefined) return client;
    await Bun.sleep(POLL_MS);
  }
}

async function withMonitor<T>(body: (client: Client, pid: number) => Promise<T>): Promise<T> {
  const child = Bun.spawn([EXECUTABLE, "--api-sock", socket], {
    stdin: "ignore",
    stdout: "ignore",
    stderr: "ignore",
  });
  const client = await firstClient();
  try {
    return await body(client, child.pid);
  } finally {
    client.close();
    child.kill();
    await child.exited;
  }
}

async function measureStart(): Promise<number> {
  const started = performance.now();
  return withMonitor(async (client) => {
    expectStatus(await client.send(GET), 200);
    return performance.now() - started;
  });
}

const residentKib = (pid: number) => Number(/^VmRSS:\s*(\d+)/m.exec(readProc(pid, "status"))?.[1]);

async function measureRequests(): Promise<{ perSecond: number; before: number; after: number }> {
  return withMonitor(async (client, pid) => {
    for (let i = 0; i < WARM_UP; i++) expectStatus(await client.send(GET), 200);
    const before = residentKib(pid);
    const started = performance.now();
    for (let i = 0; i < REQUESTS; i++) expectStatus(await client.send(GET), 200);
    return { perSecond: (REQUESTS * 1000) / (performance.now() - started), before, after: residentKib(pid) };
  });
}

function put(path: string, body: object): string {
  const text = JSON.stringify(body);
  return `PUT ${path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: ${text.length}\r\n\r\n${text}`;
}

async function measureBusy(): Promise<number[]> {
  const guest = join(dir, "guest");
  writeGuest(guest, saysAndSpins("s"));
  return withMonitor(async (client) => {
    expectStatus(await client.send(put("/boot-source", { kernel_image_path: guest, boot_args: "" })), 204);
    expectStatus(await client.send(put("/actions", { action_type: "InstanceStart" })), 204);
    await Bun.sleep(300);
    const times: number[] = [];
    for (let i = 0; i < LATENCIES; i++) {
      const asked = performance.now();
      expectStatus(await client.send(GET), 200);
      times.push(performance.now() - asked);
      await Bun.sleep(2);
    }
    return times;
  });
}

const starts: number[] = [];
for (let run = 0; run < runs; run++) starts.push(await measureStart());
const requests = await measureRequests();
const busy = await measureBusy();

const mebibytes = (kib: number) => `${(kib / 1024).toFixed(1)} MiB`;
console.log(`\nFirecracker's API. ${host}\n`);
console.log(
  markdownTable([
    ["", "measured", "target"],
    [`process start to the first 200, median of ${runs}`, duration(median(starts)), "<= 25 ms"],
    ["GET / one after the other, a second", requests.perSecond.toFixed(0), ""],
    [`memory after ${WARM_UP} requests`, mebibytes(requests.before), ""],
    [`memory after ${REQUESTS} more`, mebibytes(requests.after), "no growth"],
    ["GET / while a guest runs flat out, median", `${median(busy).toFixed(2)} ms`, "<= 10 ms"],
    ["the slowest", `${Math.max(...busy).toFixed(1)} ms`, ""],
  ]),
);
writeResult("api", host, { starts, requests, busy });
