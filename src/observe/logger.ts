/**
 * The log of a microVM, in Firecracker's format:
 * `2026-01-31T12:00:00.123456000 [id:thread:LEVEL:file:line] message`, local time.
 *
 * Every thread has its own {@link Logger} on the same descriptor; a line is one write, so lines of
 * different threads do not mix. A line that cannot be written (a full FIFO) is lost: the guest never waits
 * for a log reader.
 */

import { localTime } from "../platform/clock.ts";
import { fileStatus, openFile, waitWritable, writeSome } from "../platform/files.ts";

/** Firecracker's level names, most severe first. */
export const LOG_LEVELS = ["Off", "Error", "Warn", "Info", "Debug", "Trace"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

export interface LoggerOptions {
  /** Instance id, first part of the bracket. */
  id: string;
  /** Descriptor to write to. */
  fd: number;
  level: LogLevel;
  showLevel: boolean;
  /** File and line of the log call. */
  showOrigin: boolean;
  /** i32: counts lines that could not be written, for all threads. */
  lost?: SharedArrayBuffer | undefined;
}

/** Level named `text` in any case (`warning` is `Warn`), or undefined. */
export function parseLogLevel(text: string): LogLevel | undefined {
  const name = text.toLowerCase() === "warning" ? "warn" : text.toLowerCase();
  return LOG_LEVELS.find((level) => level.toLowerCase() === name);
}

/**
 * Opens a log file or FIFO for appending and creates a file that is not there. A FIFO need not have a reader.
 * Throws {@link SystemError}.
 */
export function openLog(path: string): number {
  return openFile(path, { write: true, create: true, append: true, nonblock: true });
}

/** `unixMs` as Firecracker prints it: local time, nine digits after the second, no zone. */
export function formatTimestamp(unixMs: number): string {
  const { year, month, day, hour, minute, second } = localTime(Math.floor(unixMs / 1000));
  const two = (value: number) => String(value).padStart(2, "0");
  const micros = Math.floor((((unixMs % 1000) + 1000) % 1000) * 1000);
  const date = `${year}-${two(month)}-${two(day)}`;
  return `${date}T${two(hour)}:${two(minute)}:${two(second)}.${String(micros).padStart(6, "0")}000`;
}

/** Where the logger was called from: the first frame of `stack` outside this file. */
export function callerOrigin(stack: string): string {
  for (const line of stack.split("\n")) {
    const match = /((?:src|tests)\/[^\s():]+):(\d+)(?::\d+)?\)?$/.exec(line);
    if (match !== null && !match[1]!.endsWith("observe/logger.ts")) return `${match[1]}:${match[2]}`;
  }
  return "unknown";
}

export class Logger {
  private readonly threshold: number;
  private readonly lost: Int32Array | undefined;

  constructor(
    private readonly options: LoggerOptions,
    /** Name of this thread, as the line shows it. */
    private readonly thread: string,
  ) {
    this.threshold = LOG_LEVELS.indexOf(options.level);
    if (options.lost !== undefined) this.lost = new Int32Array(options.lost);
  }

  error(message: string): void {
    this.log(1, "ERROR", message);
  }
  warn(message: string): void {
    this.log(2, "WARN", message);
  }
  info(message: string): void {
    this.log(3, "INFO", message);
  }
  debug(message: string): void {
    this.log(4, "DEBUG", message);
  }
  trace(message: string): void {
    this.log(5, "TRACE", message);
  }

  private log(severity: number, name: string, message: string): void {
    if (severity > this.threshold) return;
    const { fd, id, showLevel, showOrigin } = this.options;
    let tag = `${id}:${this.thread}`;
    if (showLevel) tag += `:${name}`;
    if (showOrigin) tag += `:${callerOrigin(new Error().stack ?? "")}`;
    const now = performance.timeOrigin + performance.now();
    const line = new TextEncoder().encode(`${formatTimestamp(now)} [${tag}] ${message}\n`);
    try {
      // A pipe may be blocking (stderr of a parent that does not read): asked first, so as not to hang in it.
      const room = fileStatus(fd).kind === "file" || waitWritable(fd, 0);
      if (room && writeSome(fd, line) === line.length) return;
    } catch {
      // The reader is gone. There is no better place left to say so.
    }
    if (this.lost !== undefined) Atomics.add(this.lost, 0, 1);
  }
}
