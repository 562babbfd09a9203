/** Checks a JSON value against a schema and words the first failure as serde does for Firecracker. */

import type { Static, TSchema } from "typebox";
import { Check, Errors } from "typebox/schema";
import { ConfigError } from "./config-error.ts";

/** The parts of a JSON schema that a message needs. */
interface SchemaNode {
  readonly type?: string;
  readonly properties?: Readonly<Record<string, SchemaNode>>;
  readonly items?: SchemaNode;
  readonly enum?: readonly unknown[];
  readonly minimum?: number;
  readonly maximum?: number;
}

/** Returns `value` typed by `schema`. Throws {@link ConfigError} that names the field and its JSON path. */
export function validate<T extends TSchema>(schema: T, value: unknown): Static<T> {
  if (accepts(schema, value)) return value;
  const [, errors] = Errors(schema, value);
  // The error of a field says more than that of the object around it, and an unknown field more than a missing one.
  const rank = (keyword: string) => (keyword === "additionalProperties" ? 0 : keyword === "required" ? 1 : 2);
  const found = errors
    .filter((e) => e.keyword !== "boolean")
    .sort((a, b) => rank(a.keyword) - rank(b.keyword))[0];
  if (found === undefined) throw new ConfigError("the value does not match its schema");
  const node = nodeAt(schema, found.instancePath);
  const at = found.instancePath === "" ? "" : ` at ${found.instancePath}`;
  throw new ConfigError(describe(found.keyword, found.params, node, valueAt(value, found.instancePath)) + at);
}

function accepts<T extends TSchema>(schema: T, value: unknown): value is Static<T> {
  return Check(schema, value);
}

function describe(keyword: string, params: unknown, node: SchemaNode, value: unknown): string {
  switch (keyword) {
    case "additionalProperties": {
      const extra = firstName(params, "additionalProperties");
      return `unknown field \`${extra}\`, expected ${oneOf(Object.keys(node.properties ?? {}))}`;
    }
    case "required":
      return `missing field \`${firstName(params, "requiredProperties")}\``;
    case "enum":
      return `unknown variant \`${String(value)}\`, expected ${oneOf((node.enum ?? []).map(String))}`;
    case "type":
      return `invalid type: ${unexpected(value)}, expected ${expected(node)}`;
    case "minimum":
    case "maximum":
      return `invalid value: integer \`${String(value)}\`, expected ${node.minimum} to ${node.maximum}`;
    default:
      return `invalid value: ${unexpected(value)}`;
  }
}

/** `a`, `b` or `c` as serde lists them. */
function oneOf(names: readonly string[]): string {
  const quoted = names.map((name) => `\`${name}\``);
  if (quoted.length === 1) return quoted[0]!;
  return quoted.length === 2 ? quoted.join(" or ") : `one of ${quoted.join(", ")}`;
}

function firstName(params: unknown, key: string): string {
  if (typeof params !== "object" || params === null) return "?";
  const list: unknown = Reflect.get(params, key);
  return Array.isArray(list) ? String(list[0]) : "?";
}

function expected(node: SchemaNode): string {
  switch (node.type) {
    case "integer":
      return "an integer";
    case "array":
      return "a sequence";
    case "object":
      return "an object";
    default:
      return `a ${node.type ?? "value"}`;
  }
}

function unexpected(value: unknown): string {
  if (typeof value === "string") return `string ${JSON.stringify(value)}`;
  if (typeof value === "number")
    return `${Number.isInteger(value) ? "integer" : "floating point"} \`${value}\``;
  if (typeof value === "boolean") return `boolean \`${value}\``;
  if (value === null || value === undefined) return "null";
  return Array.isArray(value) ? "sequence" : "map";
}

function pathParts(path: string): string[] {
  return path
    .split("/")
    .slice(1)
    .map((part) => part.replaceAll("~1", "/").replaceAll("~0", "~"));
}

function nodeAt(schema: SchemaNode, path: string): SchemaNode {
  let node = schema;
  for (const part of pathParts(path)) node = node.items ?? node.properties?.[part] ?? {};
  return node;
}

function valueAt(value: unknown, path: string): unknown {
  let at = value;
  for (const part of pathParts(path)) {
    if (typeof at !== "object" || at === null) return undefined;
    at = Reflect.get(at, part);
  }
  return at;
}
