/** A monitor under test and a client of its socket. */

import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { closeFile } from "../../src/platform/files.ts";
import { openTap } from "../../src/platform/tap.ts";

const scripted = new URL("../vmm/entry.ts", import.meta.url).pathname;
/** SPARKLER_TEST_PROGRAM: the program to test in place of the launcher, such as the single executable. */
const launcher = process.env.SPARKLER_TEST_PROGRAM ?? new URL("../../bin/sparkler", import.meta.url).pathname;

/** How long a monitor may take until it answers, ms: the Go SDK waits 3 s. */
const START_TIMEOUT_MS = 3000;

export function temporaryDirectory(): { path: string; remove(): void } {
  const path = mkdtempSync(join(tmpdir(), "sparkler-api-"));
  return { path, remove: () => rmSync(path, { recursive: true, force: true }) };
}

export interface Answer {
  readonly status: number;
  readonly headers: Headers;
  /** Parsed; undefined if there is none. */
  readonly body: unknown;
}

export function send(socket: string, method: string, path: string, body?: unknown): Promise<Response> {
  return fetch(`http://localhost${path}`, {
    unix: socket,
    method,
    ...(body === undefined ? {} : { body: typeof body === "string" ? body : JSON.stringify(body) }),
  });
}

export async function request(socket: string, method: string, path: string, body?: unknown): Promise<Answer> {
  const response = await send(socket, method, path, body);
  const text = await response.text();
  return {
    status: response.status,
    headers: response.headers,
    body: text === "" ? undefined : JSON.parse(text),
  };
}

/** The reason in an answer that refuses. */
export function fault({ body }: Answer): string {
  const message = typeof body === "object" && body !== null ? Reflect.get(body, "fault_message") : undefined;
  if (typeof message !== "string") throw new Error(`no fault_message in ${JSON.stringify(body)}`);
  return message;
}

/** True if TAP devices can be opened here, which needs root. */
export function canOpenTap(): boolean {
  try {
    closeFile(openTap("sparktest", 12));
    return true;
  } catch {
    return false;
  }
}

export class Monitor {
  private output = "";
  private errors = "";
  private readonly read: Promise<unknown>;

  private constructor(
    readonly process: Bun.Subprocess<"pipe" | "ignore", "pipe", "pipe">,
    readonly socket: string,
  ) {
    this.read = Promise.all([
      collect(process.stdout, (text) => {
        this.output += text;
      }),
      collect(process.stderr, (text) => {
        this.errors += text;
      }),
    ]);
  }

  /** Starts a monitor with the scripted CPU of tests/vmm. `flags` and `overrides` as firecrackerCommand takes them. */
  static scripted(socket: string, flags: object = {}, overrides: object = {}): Monitor {
    const all = { api: true, apiSock: socket, id: "test", accel: "auto", level: "Warn", ...flags };
    const json = [all, overrides].map((value) => JSON.stringify(value));
    return Monitor.spawn([process.execPath, scripted, "firecracker", ...json], socket);
  }

  /** Starts the program as a user does. */
  static program(socket: string, flags: readonly string[]): Monitor {
    return Monitor.spawn([launcher, ...flags], socket);
  }

  private static spawn(command: string[], socket: string): Monitor {
    return new Monitor(
      Bun.spawn<"ignore", "pipe", "pipe">(command, { stdin: "ignore", stdout: "pipe", stderr: "pipe" }),
      socket,
    );
  }

  get stdout(): string {
    return this.output;
  }

  get stderr(): string {
    return this.errors;
  }

  /** As the Go SDK: the socket is there and a request succeeds. */
  async ready(): Promise<this> {
    const end = performance.now() + START_TIMEOUT_MS;
    while (!existsSync(this.socket)) {
      if (this.process.exitCode !== null || performance.now() > end) {
        throw new Error(`no API socket: ${this.stderr}`);
      }
      await Bun.sleep(1);
    }
    const { status } = await this.get("/machine-config");
    if (status !== 200) throw new Error(`the first request was answered ${status}`);
    return this;
  }

  get(path: string): Promise<Answer> {
    return request(this.socket, "GET", path);
  }

  put(path: string, body?: unknown): Promise<Answer> {
    return request(this.socket, "PUT", path, body);
  }

  patch(path: string, body?: unknown): Promise<Answer> {
    return request(this.socket, "PATCH", path, body);
  }

  action(action_type: string): Promise<Answer> {
    return this.put("/actions", { action_type });
  }

  /** Waits until the guest has printed `text`. */
  async printed(text: string | RegExp, timeoutMs = 5000): Promise<void> {
    const end = performance.now() + timeoutMs;
    while (this.output.match(text) === null) {
      if (this.process.exitCode !== null || performance.now() > end) {
        throw new Error(`the guest did not print ${text}, but:\n${this.output.slice(-2000)}\n${this.errors}`);
      }
      await Bun.sleep(5);
    }
  }

  /** Waits until a GET is answered with at least these fields. */
  async answers(path: string, fields: object, timeoutMs = 10_000): Promise<void> {
    const end = performance.now() + timeoutMs;
    for (;;) {
      const { body } = await this.get(path);
      const found = Object.entries(fields).every(
        ([name, value]) => Reflect.get(Object(body), name) === value,
      );
      if (found) return;
      if (performance.now() > end) throw new Error(`${path} was answered ${JSON.stringify(body)}`);
      await Bun.sleep(20);
    }
  }

  /** Host memory that the monitor uses, guest RAM included. */
  residentBytes(): number {
    const rollup = readFileSync(`/proc/${this.process.pid}/smaps_rollup`, "utf8");
    return Number(/^Rss:\s+(\d+) kB$/m.exec(rollup)?.[1]) * 1024;
  }

  /** The exit code, once all output is read. */
  async exited(): Promise<number> {
    const code = await this.process.exited;
    await this.read;
    return code;
  }

  async kill(): Promise<number> {
    this.process.kill("SIGTERM");
    return this.exited();
  }
}

async function collect(stream: ReadableStream<Uint8Array>, onText: (text: string) => void): Promise<void> {
  const decoder = new TextDecoder();
  for await (const chunk of stream) onText(decoder.decode(chunk, { stream: true }));
}
