import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { closeFile, openFile, readSome } from "../platform/files.ts";
import { callerOrigin, Logger, openLog, parseLogLevel } from "./logger.ts";

const dir = mkdtempSync(join(tmpdir(), "sparkler-log-"));
afterAll(() => rmSync(dir, { recursive: true }));

test("lines have Firecracker's form and the level filters", () => {
  const path = join(dir, "log");
  const fd = openLog(path);
  const plain = new Logger({ id: "vm1", fd, level: "Warn", showLevel: false, showOrigin: false }, "main");
  plain.warn("one");
  plain.info("not shown");
  const full = new Logger({ id: "vm1", fd, level: "Trace", showLevel: true, showOrigin: true }, "vmm");
  full.trace("two");
  closeFile(fd);
  const lines = readFileSync(path, "utf8").split("\n");
  const stamp = String.raw`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}`;
  expect(lines[0]).toMatch(new RegExp(`^${stamp} \\[vm1:main\\] one$`));
  expect(lines[1]).toMatch(
    new RegExp(`^${stamp} \\[vm1:vmm:TRACE:src/observe/logger\\.test\\.ts:\\d+\\] two$`),
  );
  expect(lines.slice(2)).toEqual([""]);
});

test("Off writes nothing, and a bad descriptor does not throw", () => {
  const fd = openLog(join(dir, "off"));
  new Logger({ id: "a", fd, level: "Off", showLevel: true, showOrigin: true }, "main").error("x");
  closeFile(fd);
  expect(readFileSync(join(dir, "off"), "utf8")).toBe("");
  const none = 1_000_000;
  new Logger({ id: "a", fd: none, level: "Error", showLevel: true, showOrigin: true }, "main").error("x");
});

test.each(["UTC", "America/New_York", "Asia/Kolkata"])(
  "timestamps are local time of nine digits: %s",
  (zone) => {
    const script = `
    const { formatTimestamp } = await import(${JSON.stringify(new URL("./logger.ts", import.meta.url).pathname)});
    console.log(formatTimestamp(new Date(2026, 6, 2, 3, 4, 5, 6).getTime() + 0.5));`;
    const { stdout } = Bun.spawnSync([process.execPath, "-e", script], { env: { ...process.env, TZ: zone } });
    expect(stdout.toString()).toBe("2026-07-02T03:04:05.006500000\n");
  },
);

test("a FIFO that nobody reads takes what fits, in whole lines, and the rest is counted for all threads", () => {
  const path = join(dir, "fifo");
  Bun.spawnSync(["mkfifo", path]);
  const fd = openLog(path);
  const lost = new SharedArrayBuffer(4);
  const options = { id: "a", fd, level: "Info", showLevel: false, showOrigin: false, lost } as const;
  const loggers = [new Logger(options, "main"), new Logger(options, "vmm")];
  const lines = 4000;
  for (let i = 0; i < lines; i++) loggers[i % 2]!.info(`line ${i} ${"x".repeat(i % 100)}`);
  const missed = new Int32Array(lost)[0]!;
  expect(missed).toBeGreaterThan(1000);
  const reader = openFile(path, { nonblock: true });
  const buffer = new Uint8Array(1 << 20);
  let text = "";
  const decoder = new TextDecoder();
  for (let n = readSome(reader, buffer); n !== undefined && n > 0; n = readSome(reader, buffer)) {
    text += decoder.decode(buffer.subarray(0, n));
  }
  const found = text.split("\n").slice(0, -1);
  expect(found.length).toBe(lines - missed);
  for (const line of found) expect(line).toMatch(/^\S+ \[a:(main|vmm)\] line \d+ x*$/);
  // With room again it goes on.
  loggers[0]!.info("after");
  expect(new Int32Array(lost)[0]).toBe(missed);
  closeFile(fd);
  closeFile(reader);
});

test("level names in any case", () => {
  expect(parseLogLevel("WARNING")).toBe("Warn");
  expect(parseLogLevel("trace")).toBe("Trace");
  expect(parseLogLevel("loud")).toBeUndefined();
});

test("an unknown origin says so", () => {
  expect(callerOrigin("Error\n    at native")).toBe("unknown");
});
