/** What one endpoint and method of the API is. */

import type { MmdsStore } from "../mmds/store.ts";
import type { Instance } from "../vmm/instance.ts";
import type { Schema } from "../vmm/schema/schema.ts";
import { findUnsupported, InvalidValue, validate } from "../vmm/schema/validate.ts";
import { badBody, notSupported } from "./errors.ts";

export type Method = "GET" | "PUT" | "PATCH" | "DELETE";

/** What requests act on. */
export interface Api {
  readonly instance: Instance;
  readonly mmds: MmdsStore;
  /** The API's version, which clients ask for. */
  readonly version: string;
}

interface RouteFacts {
  readonly method: Method;
  /** With the name of the id in braces, as in OpenAPI. */
  readonly path: string;
  readonly operationId: string;
  readonly summary: string;
  /** Before the guest has started, after that, or both. */
  readonly when: "pre" | "post" | "both";
  /** An empty body will do. */
  readonly bodyOptional?: boolean;
  /** Body of a 200; without it the answer is 204. */
  readonly response?: Schema;
  /** What this monitor lacks for it. The request is checked and then refused. */
  readonly lacks?: string;
  /** What users should know of how it differs from Firecracker's. */
  readonly remark?: string;
  /** Name of its metrics: `_count` and `_fails` are added. */
  readonly metric?: string;
  /** Before the reason of a failure. */
  readonly failure?: string;
}

interface RouteDefinition<T> extends RouteFacts {
  readonly body?: Schema<T>;
  /** A check that the schema cannot make. Returns what is wrong with the body. */
  refuse?(body: T): string | undefined;
  /** Warning about what will go away. */
  deprecated?(body: T): string | undefined;
  /** Does it. Returns the body of a 200. */
  run?(api: Api, body: T, id: string): unknown;
}

/** A request whose body has been found right. */
export interface Call {
  readonly deprecated: string | undefined;
  /** What of it cannot be done. */
  readonly unsupported: string | undefined;
  /** Field of the body that repeats the id of the path. */
  readonly id: unknown;
  run(api: Api): unknown;
}

export interface Route extends RouteFacts {
  readonly body?: Schema;
  /** Checks the body. `text` is it as it came. Throws ApiError. */
  prepare(body: unknown, id: string, text: string): Call;
}

/** Ties the type of `body` to the functions that take it. */
export function route<T = undefined>(definition: RouteDefinition<T>): Route {
  const { refuse, deprecated, run, ...facts } = definition;
  const schema: Schema<T> = definition.body ?? {};
  const idField = /\{(\w+)\}$/.exec(definition.path)?.[1];
  return {
    ...facts,
    prepare(value, id, text) {
      const body = checked(schema, value, text);
      const wrong = refuse?.(body);
      if (wrong !== undefined) throw badBody(wrong);
      return {
        deprecated: deprecated?.(body),
        unsupported: definition.lacks ?? findUnsupported(schema, body),
        id: idField === undefined || definition.body === undefined ? id : Reflect.get(Object(body), idField),
        run(api) {
          if (run === undefined) throw notSupported(definition.lacks ?? definition.summary);
          return run(api, body, id);
        },
      };
    },
  };
}

function checked<T>(schema: Schema<T>, value: unknown, text: string): T {
  try {
    return validate(schema, value);
  } catch (error) {
    if (!(error instanceof InvalidValue)) throw error;
    // serde notices what is missing when the object ends.
    throw badBody(
      error.missing && error.path === "" ? `${error.message}${endPosition(text)}` : error.message,
    );
  }
}

function endPosition(text: string): string {
  const lines = text.trimEnd().split("\n");
  return ` at line ${lines.length} column ${Buffer.byteLength(lines[lines.length - 1]!)}`;
}
