/**
 * JSON Schema (2020-12) as far as the API's bodies need it, with the TypeScript type of what it accepts.
 * A library for this costs 66 ms of start-up, three times what the monitor may take until it answers.
 */

/** The JSON of a schema, as it stands in the OpenAPI document. */
export interface SchemaNode extends Annotations {
  readonly type?: "string" | "integer" | "boolean" | "array" | "object";
  readonly properties?: Readonly<Record<string, SchemaNode>>;
  readonly required?: readonly string[];
  readonly additionalProperties?: false;
  readonly items?: SchemaNode;
  readonly enum?: readonly string[];
  readonly minimum?: number;
  readonly maximum?: number;
  readonly pattern?: string;
}

export interface Annotations {
  readonly description?: string;
  readonly default?: unknown;
  /** Firecracker accepts it and warns in a `Deprecation` header. */
  readonly deprecated?: true;
  /**
   * What this monitor can do with the value: nothing but its default (`false`), or only these values. Absent:
   * everything. What is not supported is refused, never ignored.
   */
  readonly "x-supported"?: false | readonly string[];
  /** What the one who asked for something that is not supported should know: a sentence. */
  readonly "x-reason"?: string;
}

/** A schema of values of type `T`. `_type` is never there: it only carries the type. */
export interface Schema<T = unknown> extends SchemaNode {
  readonly _type?: T;
}

export type Infer<S> = S extends Schema<infer T> ? T : never;

type Shape = Readonly<Record<string, Schema>>;
type Flat<T> = { [K in keyof T]: T[K] };
type Fields<R extends Shape, O extends Shape> = Flat<
  { [K in keyof R]: Infer<R[K]> } & { [K in keyof O]?: Infer<O[K]> | undefined }
>;

export function text(annotations: Annotations & { readonly pattern?: string } = {}): Schema<string> {
  return { type: "string", ...annotations };
}

export function flag(annotations: Annotations = {}): Schema<boolean> {
  return { type: "boolean", ...annotations };
}

/** A whole number from `minimum` to `maximum`, both included. */
export function integer(minimum: number, maximum: number, annotations: Annotations = {}): Schema<number> {
  return { type: "integer", minimum, maximum, ...annotations };
}

export function oneOf<const V extends readonly string[]>(
  values: V,
  annotations: Annotations = {},
): Schema<V[number]> {
  return { type: "string", enum: values, ...annotations };
}

export function list<T>(items: Schema<T>, annotations: Annotations = {}): Schema<T[]> {
  return { type: "array", items, ...annotations };
}

/** Any JSON. */
export function anything(annotations: Annotations = {}): Schema<unknown> {
  return annotations;
}

/** An object with these fields and no others. `null` for one of the `optional` ones counts as left out. */
export function object<R extends Shape, O extends Shape>(
  required: R,
  optional: O,
  annotations: Annotations = {},
): Schema<Fields<R, O>> {
  return {
    type: "object",
    ...annotations,
    properties: { ...required, ...optional },
    required: Object.keys(required),
    additionalProperties: false,
  };
}
