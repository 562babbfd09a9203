/** Parts of the metadata by their path, in the two formats in which a guest can have them. */

/** `json`, or the lines of EC2's instance metadata service. */
export type Format = "json" | "imds";

export type Resource =
  | { readonly kind: "found"; readonly text: string }
  | { readonly kind: "not-found" }
  /** Only objects and strings can be shown as lines. */
  | { readonly kind: "unsupported" };

/** The part of `data` that the JSON pointer `path` (RFC 6901) names. A slash at the end does not count. */
export function resource(data: unknown, path: string, format: Format): Resource {
  let value = data;
  const pointer = path.replace(/\/+/g, "/").replace(/\/$/, "");
  for (const part of pointer.split("/").slice(1)) {
    const key = part.replaceAll("~1", "/").replaceAll("~0", "~");
    const own =
      typeof value === "object" && value !== null && (!Array.isArray(value) || /^(0|[1-9]\d*)$/.test(key));
    if (!own || !Object.hasOwn(Object(value), key)) return { kind: "not-found" };
    value = Reflect.get(Object(value), key);
  }
  if (format === "json") return { kind: "found", text: JSON.stringify(sorted(value)) };
  if (typeof value === "string") return { kind: "found", text: value };
  if (!isObject(value)) return { kind: "unsupported" };
  const lines = Object.entries(value).map(([key, child]) => (isObject(child) ? `${key}/` : key));
  return { kind: "found", text: lines.sort(byCodeUnits).join("\n") };
}

function isObject(value: unknown): value is object {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** With the keys of objects in order, as Firecracker keeps them. */
function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted);
  if (!isObject(value)) return value;
  const entries = Object.entries(value).sort(([a], [b]) => byCodeUnits(a, b));
  return Object.fromEntries(entries.map(([key, child]) => [key, sorted(child)]));
}

function byCodeUnits(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
