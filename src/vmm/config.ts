/** Firecracker's configuration file (`--config-file`). */

import { LOG_LEVELS, type LogLevel, parseLogLevel } from "../observe/logger.ts";
import { ConfigError } from "./config-error.ts";
import { type Logger, VmmConfig } from "./schema/resources.ts";
import { findUnsupported, parseJson, validate } from "./schema/validate.ts";

/**
 * Parses a configuration file's text. `null` counts as left out, as in what `GET /vm/config` prints.
 * Throws {@link ConfigError}; what this monitor cannot do is refused rather than ignored.
 */
export function parseConfig(json: string): VmmConfig {
  let value: unknown;
  try {
    value = parseJson(json);
  } catch (error) {
    throw new ConfigError(`Invalid JSON: ${error instanceof Error ? error.message : String(error)}`);
  }
  const config = validate(VmmConfig, value);
  const unsupported = findUnsupported(VmmConfig, config);
  if (unsupported !== undefined) throw new ConfigError(unsupported);
  return config;
}

/** Log settings of a file or a request, which go before the command line's. */
export interface ConfiguredLogger {
  path?: string;
  level?: LogLevel;
  showLevel?: boolean;
  showOrigin?: boolean;
}

/** Log settings in `logger`. Throws {@link ConfigError}. */
export function loggerSettings(logger: Logger | undefined): ConfiguredLogger {
  if (logger === undefined) return {};
  const level = logger.level === undefined ? undefined : parseLogLevel(logger.level);
  if (logger.level !== undefined && level === undefined) {
    throw new ConfigError(
      `unknown variant \`${logger.level}\`, expected one of ${LOG_LEVELS.map((l) => `\`${l}\``).join(", ")}`,
    );
  }
  return {
    ...(logger.log_path === undefined ? {} : { path: logger.log_path }),
    ...(level === undefined ? {} : { level }),
    ...(logger.show_level === undefined ? {} : { showLevel: logger.show_level }),
    ...(logger.show_log_origin === undefined ? {} : { showOrigin: logger.show_log_origin }),
  };
}
