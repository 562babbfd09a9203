/** Requests that are refused. The message is what the client reads. */

import { BootError } from "../boot/boot-error.ts";
import { LogTargetError } from "../observe/log-target.ts";
import { SystemError } from "../platform/errno.ts";
import { ConfigError } from "../vmm/config-error.ts";

export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: 400 | 413 = 400,
  ) {
    super(message);
    this.name = "ApiError";
  }
}

/** The body is no JSON, or not the JSON of this request. */
export function badBody(reason: string): ApiError {
  return new ApiError(`An error occurred when deserializing the json body of a request: ${reason}.`);
}

export function notSupported(what: string): ApiError {
  return new ApiError(`The requested operation is not supported: ${what}`);
}

export function wrongMoment(when: "pre" | "post"): ApiError {
  const order = when === "pre" ? "after" : "before";
  return new ApiError(`The requested operation is not supported ${order} starting the microVM.`);
}

/** True for errors that are the client's to mend; others are faults of the monitor. RangeError: a path with a NUL. */
export function isRefusal(error: unknown): error is Error {
  const kinds = [ConfigError, BootError, SystemError, LogTargetError, RangeError];
  return kinds.some((kind) => error instanceof kind);
}
