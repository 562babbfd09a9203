/** How a command ends: Firecracker's exit codes, and errors that are the user's to read. */

import { ConfigError } from "../vmm/config-error.ts";

export const EXIT_OK = 0;
export const EXIT_ERROR = 1;
/** The configuration file or a part of the machine it describes cannot be used. */
export const EXIT_BAD_CONFIGURATION = 152;
/** The command line cannot be used. */
export const EXIT_BAD_ARGUMENTS = 153;

/** Exit status for an end by signal `number`, as a shell reports it. */
export function exitForSignal(number: number): number {
  return 128 + number;
}

/** The command line says something that cannot be done. Ends the process with {@link EXIT_BAD_ARGUMENTS}. */
export class UsageError extends Error {
  constructor(message: string) {
    super(message);
    this.name = "UsageError";
  }
}

/** Errors whose message is written for the user, by name: the rest are bugs and show their stack. */
const USER_ERRORS = new Set([
  "ConfigError",
  "BootError",
  "ImageError",
  "UsageError",
  "ApiSocketError",
  "LogTargetError",
]);

/** Message and exit code for an error that ended a command. */
export function explain(error: unknown): { message: string; code: number } {
  if (!(error instanceof Error)) return { message: String(error), code: EXIT_ERROR };
  const isSystemError = "errno" in error && "call" in error;
  const message =
    USER_ERRORS.has(error.name) || isSystemError ? error.message : (error.stack ?? error.message);
  if (error instanceof UsageError) return { message, code: EXIT_BAD_ARGUMENTS };
  if (error instanceof ConfigError || error.name === "BootError") {
    return { message, code: EXIT_BAD_CONFIGURATION };
  }
  return { message, code: EXIT_ERROR };
}
