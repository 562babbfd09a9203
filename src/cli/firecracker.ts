/** `sparkler --no-api --config-file F`: Firecracker's command line without its API server. */

import { readFileSync } from "node:fs";
import { LOG_LEVELS, Logger, type LoggerOptions, openLog, parseLogLevel } from "../observe/logger.ts";
import { SystemError } from "../platform/errno.ts";
import { closeFile, openFile } from "../platform/files.ts";
import { isTerminal, setRawMode } from "../platform/tty.ts";
import { type Accelerator, chooseAccelerator } from "../vmm/accel.ts";
import { buildMicrovm } from "../vmm/builder.ts";
import { type ConfiguredLogger, configLogger, configToSpec, parseConfig } from "../vmm/config.ts";
import { ConfigError } from "../vmm/config-error.ts";
import type { MicrovmEnd } from "../vmm/microvm.ts";
import { EXIT_ERROR, EXIT_OK, exitForSignal, UsageError } from "./exit.ts";
import { VERSION } from "./program.ts";
import { stopOnSignal } from "./signals.ts";

export interface FirecrackerFlags {
  api: boolean;
  configFile?: string;
  apiSock?: string;
  id: string;
  level?: string;
  logPath?: string;
  showLevel?: boolean;
  showLogOrigin?: boolean;
  bootTimer?: boolean;
  accel: Accelerator;
}

const STDIN = 0;
const STDOUT = 1;
const STDERR = 2;

/**
 * Runs the machine of the configuration file until its guest ends. Returns the exit code. `overrides.backend`: a
 * CPU backend by its module, see `loadBackend`.
 */
export async function firecrackerCommand(
  flags: FirecrackerFlags,
  refused: readonly string[],
  overrides: { backend?: string } = {},
): Promise<number> {
  if (refused.length > 0) throw new UsageError(`${refused.join(", ")}: not supported yet. Leave it out.`);
  checkId(flags.id);
  if (flags.api) {
    process.stderr.write(
      "Error: The API server is not there yet. Give --no-api and --config-file, or use `sparkler run`.\n",
    );
    return EXIT_ERROR;
  }
  if (flags.apiSock !== undefined)
    throw new UsageError("--api-sock and --no-api exclude each other. Leave one out.");
  if (flags.configFile === undefined) throw new UsageError("--no-api needs --config-file.");
  const flagLogger = loggerFlags(flags);

  const config = parseConfig(readConfig(flags.configFile));
  // As in Firecracker the file has the last word.
  const logOptions = openLogger(flags.id, { ...flagLogger, ...configLogger(config) });
  const log = new Logger(logOptions, "main");
  log.info(`Running Sparkler v${VERSION}`);
  try {
    const accel = chooseAccelerator(flags.accel);
    log.info(`The guest runs on the software CPU: ${accel.reason}`);
    const { serialOutPath, ...machine } = configToSpec(config);
    const microvm = await buildMicrovm(
      {
        ...machine,
        serial: {
          outputFd: serialOutPath === undefined ? STDOUT : openSerialOutput(serialOutPath),
          inputFd: STDIN,
        },
        bootTimer: flags.bootTimer ?? false,
        log: logOptions,
      },
      { backend: overrides.backend ?? accel.backend },
    );
    for (const file of [machine.kernel, ...machine.initrd]) closeFile(file.fd);
    const signal = stopOnSignal(() => microvm.stop());
    if (isTerminal(STDIN)) process.on("exit", setRawMode(STDIN));
    const end = await microvm.ended;
    return report(end, signal(), log);
  } catch (error) {
    if (error instanceof Error) log.error(error.message);
    throw error;
  }
}

function report({ end }: MicrovmEnd, signal: number | undefined, log: Logger): number {
  if (signal !== undefined) return exitForSignal(signal);
  if (end.kind === "reset" || end.kind === "stopped") {
    log.info("Sparkler exiting successfully. exit_code=0");
    return EXIT_OK;
  }
  const message = end.kind === "shutdown" ? `The guest stopped by a triple fault: ${end.detail}` : end.detail;
  log.error(message);
  process.stderr.write(`Error: ${message}\n`);
  return EXIT_ERROR;
}

function checkId(id: string): void {
  if (!/^[A-Za-z0-9-]{1,64}$/.test(id)) {
    throw new UsageError(`Invalid --id \`${id}\`. Give 1 to 64 letters, digits and hyphens.`);
  }
}

function loggerFlags(flags: FirecrackerFlags): ConfiguredLogger {
  const result: ConfiguredLogger = {};
  if (flags.level !== undefined) {
    const level = parseLogLevel(flags.level);
    if (level === undefined) {
      throw new UsageError(`Invalid --level \`${flags.level}\`. Give one of ${LOG_LEVELS.join(", ")}.`);
    }
    result.level = level;
  }
  if (flags.logPath !== undefined) result.path = flags.logPath;
  if (flags.showLevel !== undefined) result.showLevel = flags.showLevel;
  if (flags.showLogOrigin !== undefined) result.showOrigin = flags.showLogOrigin;
  return result;
}

function openLogger(id: string, settings: ConfiguredLogger): LoggerOptions {
  return {
    id,
    fd: settings.path === undefined ? STDERR : openOr("Failed to open the log file", settings.path, openLog),
    level: settings.level ?? "Info",
    showLevel: settings.showLevel ?? false,
    showOrigin: settings.showOrigin ?? false,
  };
}

function openSerialOutput(path: string): number {
  return openOr("Failed to open the serial output file", path, (name) =>
    openFile(name, { write: true, create: true, append: true, nonblock: true }),
  );
}

function openOr(sentence: string, path: string, open: (path: string) => number): number {
  try {
    return open(path);
  } catch (error) {
    if (error instanceof SystemError || error instanceof RangeError) {
      throw new ConfigError(`${sentence} ${path}: ${error.message}`);
    }
    throw error;
  }
}

function readConfig(path: string): string {
  let fd: number | undefined;
  try {
    fd = openFile(path);
    return readFileSync(fd, "utf8");
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new ConfigError(`Unable to open or read from the configuration file: ${path}: ${reason}`);
  } finally {
    if (fd !== undefined) closeFile(fd);
  }
}
