/** Checks JSON values against schemas and words the first failure as serde does for Firecracker. */

import { ConfigError } from "../config-error.ts";
import type { Schema, SchemaNode } from "./schema.ts";

/** A value that its schema does not accept. `path` is a JSON pointer; empty: the value itself. */
export class InvalidValue extends ConfigError {
  constructor(
    readonly reason: string,
    readonly path: string,
    /** True if a field is missing: serde places that error at the end of the object. */
    readonly missing: boolean,
  ) {
    super(path === "" ? reason : `${reason} at ${path}`);
  }
}

/** More levels of nesting than this are refused, as by serde_json. */
const MAX_DEPTH = 128;

/** Parses JSON that may come from anyone. Throws a SyntaxError with the parser's reason. */
export function parseJson(json: string): unknown {
  let depth = 0;
  let inString = false;
  for (let i = 0; i < json.length; i++) {
    const code = json.charCodeAt(i);
    if (inString) {
      if (code === 0x5c) i++;
      else if (code === 0x22) inString = false;
    } else if (code === 0x22) {
      inString = true;
    } else if (code === 0x7b || code === 0x5b) {
      if (++depth > MAX_DEPTH) throw new SyntaxError("recursion limit exceeded");
    } else if (code === 0x7d || code === 0x5d) {
      depth--;
    }
  }
  return JSON.parse(json);
}

/**
 * Returns `value` as the type of `schema`, without the nulls of optional fields. Throws {@link InvalidValue}
 * that names what is wrong, and where.
 */
export function validate<T>(schema: Schema<T>, value: unknown): T {
  const kept = withoutNulls(schema, value);
  if (accepts(schema, kept)) return kept;
  throw new InvalidValue("the value does not match its schema", "", false);
}

/** Throws {@link InvalidValue} instead of returning false, so that the reason is not lost. */
function accepts<T>(schema: Schema<T>, value: unknown): value is T {
  check(schema, value, "");
  return true;
}

/** The first thing in `value` that the schema accepts and this monitor cannot do, in words; or undefined. */
export function findUnsupported(schema: SchemaNode, value: unknown, name = ""): string | undefined {
  if (value === undefined) return undefined;
  const support = schema["x-supported"];
  if (support === false && !isDefault(schema, value)) {
    const instead = "default" in schema ? `Use \`${String(schema.default)}\`.` : "Leave it out.";
    const reason = schema["x-reason"] === undefined ? "" : ` ${schema["x-reason"]}`;
    return `\`${name}\` is not supported yet. ${instead}${reason}`;
  }
  if (Array.isArray(support) && !support.includes(value)) {
    return `\`${name}\` \`${String(value)}\` is not supported yet. Use ${alternatives(support)}.`;
  }
  for (const [key, child] of children(schema, value)) {
    const found = findUnsupported(
      child,
      Reflect.get(Object(value), key),
      name === "" ? key : `${name}.${key}`,
    );
    if (found !== undefined) return found;
  }
  return undefined;
}

function isDefault(schema: SchemaNode, value: unknown): boolean {
  if ("default" in schema) return schema.default === value;
  return Array.isArray(value) && value.length === 0;
}

/** Keys of `value` with the schema of each. */
function children(schema: SchemaNode, value: unknown): [string, SchemaNode][] {
  if (schema.items !== undefined && Array.isArray(value)) {
    return value.map((_, index) => [String(index), schema.items!]);
  }
  return schema.properties !== undefined && isObject(value) ? Object.entries(schema.properties) : [];
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function withoutNulls(schema: SchemaNode, value: unknown): unknown {
  if (schema.items !== undefined && Array.isArray(value)) {
    return value.map((item) => withoutNulls(schema.items!, item));
  }
  const { properties } = schema;
  if (properties === undefined || !isObject(value)) return value;
  const kept = Object.entries(value).filter(
    ([key, field]) => field !== null || !Object.hasOwn(properties, key) || schema.required?.includes(key),
  );
  return Object.fromEntries(kept.map(([key, field]) => [key, withoutNulls(property(schema, key), field)]));
}

function property(schema: SchemaNode, key: string): SchemaNode {
  const { properties = {} } = schema;
  return Object.hasOwn(properties, key) ? properties[key]! : {};
}

/** Fields are looked at in the order of the text, and missing ones last: serde reads a body once. */
function check(schema: SchemaNode, value: unknown, path: string): void {
  const error = (reason: string, missing = false) => new InvalidValue(reason, path, missing);
  const wrongType = () => error(`invalid type: ${unexpected(value)}, expected ${expected(schema)}`);
  switch (schema.type) {
    case "string":
      if (typeof value !== "string") throw wrongType();
      if (schema.enum !== undefined && !schema.enum.includes(value)) {
        throw error(`unknown variant \`${value}\`, expected ${alternatives(schema.enum)}`);
      }
      if (schema.pattern !== undefined && !new RegExp(schema.pattern).test(value)) {
        throw error(`invalid value: ${unexpected(value)}, expected ${schema.description ?? schema.pattern}`);
      }
      break;
    case "integer":
      if (typeof value !== "number" || !isWhole(value)) throw wrongType();
      if (value < schema.minimum! || value > schema.maximum!) {
        throw error(`invalid value: ${unexpected(value)}, expected ${schema.minimum} to ${schema.maximum}`);
      }
      break;
    case "boolean":
      if (typeof value !== "boolean") throw wrongType();
      break;
    case "array":
      if (!Array.isArray(value)) throw wrongType();
      for (const [index, item] of value.entries()) check(schema.items!, item, `${path}/${index}`);
      break;
    case "object":
      if (!isObject(value)) throw wrongType();
      for (const [key, field] of Object.entries(value)) {
        if (!Object.hasOwn(schema.properties!, key)) {
          const known = alternatives(Object.keys(schema.properties!));
          throw error(`unknown field \`${key}\`, expected ${known}`);
        }
        check(property(schema, key), field, `${path}/${key}`);
      }
      for (const key of schema.required!) {
        if (!Object.hasOwn(value, key)) throw error(`missing field \`${key}\``, true);
      }
      break;
  }
}

/** Beyond 2^64 serde reads a number as floating point. */
function isWhole(value: number): boolean {
  return Number.isInteger(value) && Math.abs(value) < 2 ** 64;
}

/** `a`, `b` or `c` as serde lists them. */
function alternatives(names: readonly string[]): string {
  const quoted = names.map((name) => `\`${name}\``);
  if (quoted.length === 0) return "no fields";
  if (quoted.length === 1) return quoted[0]!;
  return quoted.length === 2 ? quoted.join(" or ") : `one of ${quoted.join(", ")}`;
}

function expected(schema: SchemaNode): string {
  switch (schema.type) {
    case "integer":
      return "an integer";
    case "array":
      return "a sequence";
    case "object":
      return "an object";
    default:
      return `a ${schema.type ?? "value"}`;
  }
}

function unexpected(value: unknown): string {
  if (typeof value === "string") return `string ${JSON.stringify(value)}`;
  if (typeof value === "number") return `${isWhole(value) ? "integer" : "floating point"} \`${value}\``;
  if (typeof value === "boolean") return `boolean \`${value}\``;
  if (value === null || value === undefined) return "null";
  return Array.isArray(value) ? "sequence" : "map";
}
