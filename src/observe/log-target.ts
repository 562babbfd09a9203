/** Where the main thread logs to, and how: settings that the command line, a file and the API change. */

import { SystemError } from "../platform/errno.ts";
import { closeFile } from "../platform/files.ts";
import { Logger, type LoggerOptions, type LogLevel, openLog } from "./logger.ts";

/** Settings to change; what is left out stays. */
export interface LogSettings {
  readonly path?: string;
  readonly level?: LogLevel;
  readonly showLevel?: boolean;
  readonly showOrigin?: boolean;
}

const STDERR = 2;

export class LogTarget {
  private current: LoggerOptions;
  private main: Logger;
  private openedFd: number | undefined;
  private readonly lostLines: Int32Array;

  /** Logs to stderr until told otherwise. `id` is the microVM's. */
  constructor(id: string) {
    const lost = new SharedArrayBuffer(4);
    this.lostLines = new Int32Array(lost);
    this.current = { id, fd: STDERR, level: "Info", showLevel: false, showOrigin: false, lost };
    this.main = new Logger(this.current, "main");
  }

  /** For other threads, which keep what they were given. */
  get options(): LoggerOptions {
    return this.current;
  }

  /** Lines of all threads that could not be written. */
  get lost(): number {
    return Atomics.load(this.lostLines, 0);
  }

  get logger(): Logger {
    return this.main;
  }

  /** Throws an Error with Firecracker's words if the file cannot be opened; then nothing is changed. */
  update({ path, level, showLevel, showOrigin }: LogSettings): void {
    const opened = path === undefined ? undefined : openTarget(path);
    this.current = {
      ...this.current,
      ...(opened === undefined ? {} : { fd: opened }),
      ...(level === undefined ? {} : { level }),
      ...(showLevel === undefined ? {} : { showLevel }),
      ...(showOrigin === undefined ? {} : { showOrigin }),
    };
    this.main = new Logger(this.current, "main");
    if (opened === undefined) return;
    if (this.openedFd !== undefined) closeFile(this.openedFd);
    this.openedFd = opened;
  }
}

/** The log file cannot be opened. */
export class LogTargetError extends Error {
  constructor(path: string, reason: string) {
    super(`Failed to open target file: ${path}: ${reason}`);
    this.name = "LogTargetError";
  }
}

function openTarget(path: string): number {
  try {
    return openLog(path);
  } catch (error) {
    if (error instanceof SystemError || error instanceof RangeError) {
      throw new LogTargetError(path, error.message);
    }
    throw error;
  }
}
