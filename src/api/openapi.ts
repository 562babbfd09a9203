/** The OpenAPI 3.1 document of the API, made from the routes and their schemas. */

import * as resources from "../vmm/schema/resources.ts";
import type { Schema, SchemaNode } from "../vmm/schema/schema.ts";
import type { Route } from "./route.ts";
import { ROUTES } from "./routes.ts";
import * as bodies from "./schemas.ts";
import { API_VERSION } from "./version.ts";

/** Every named schema, as components of the document. */
export const NAMED_SCHEMAS: ReadonlyMap<string, Schema> = new Map(
  Object.entries({ ...resources, ...bodies }).map(([name, schema]) => [
    name === "ErrorBody" ? "Error" : name,
    schema,
  ]),
);

const CONTENT_TYPE = "application/json";

const WHEN = {
  pre: "Before the guest has started.",
  post: "Once the guest has started.",
  both: "At any time.",
} as const;

export interface OpenApiOperation {
  readonly operationId: string;
  readonly summary: string;
  readonly description: string;
  readonly "x-when": Route["when"];
  /** False: the request is checked and then refused. */
  readonly "x-supported": boolean;
  readonly parameters?: readonly unknown[];
  readonly requestBody?: {
    readonly required: boolean;
    readonly content: Readonly<Record<string, { schema: unknown }>>;
  };
  readonly responses: Readonly<Record<string, unknown>>;
}

export interface OpenApiDocument {
  readonly openapi: string;
  readonly info: { readonly title: string; readonly version: string; readonly description: string };
  readonly paths: Readonly<Record<string, Readonly<Record<string, OpenApiOperation>>>>;
  readonly components: { readonly schemas: Readonly<Record<string, SchemaNode>> };
}

export function openApiDocument(): OpenApiDocument {
  const paths: Record<string, Record<string, OpenApiOperation>> = {};
  for (const route of ROUTES) {
    paths[route.path] ??= {};
    paths[route.path]![route.method.toLowerCase()] = operation(route);
  }
  return {
    openapi: "3.1.0",
    info: {
      title: "Sparkler",
      version: API_VERSION,
      description: "Firecracker's API, over HTTP/1.1 on a unix socket.",
    },
    paths,
    components: { schemas: Object.fromEntries(NAMED_SCHEMAS) },
  };
}

function operation(route: Route): OpenApiOperation {
  const supported = route.lacks === undefined;
  const id = /\{(\w+)\}/.exec(route.path)?.[1];
  return {
    operationId: route.operationId,
    summary: route.summary,
    description: supported
      ? [WHEN[route.when], route.remark ?? ""].join(" ").trimEnd()
      : `Not supported yet: ${route.lacks}`,
    "x-when": route.when,
    "x-supported": supported,
    ...(id === undefined
      ? {}
      : { parameters: [{ name: id, in: "path", required: true, schema: { type: "string" } }] }),
    ...(route.body === undefined
      ? {}
      : { requestBody: { required: route.bodyOptional !== true, content: json(route.body) } }),
    responses: {
      ...(route.response === undefined
        ? { 204: { description: "Done." } }
        : { 200: { description: route.summary, content: json(route.response) } }),
      400: { description: "Refused; nothing has changed.", content: json(bodies.ErrorBody) },
      // Too large a body is no matter of the endpoint: it never gets there.
      ...(route.path === "/mmds" && route.body !== undefined
        ? { 413: { description: "Larger than the metadata may be.", content: json(bodies.ErrorBody) } }
        : {}),
    },
  };
}

function json(schema: Schema): Record<string, { schema: unknown }> {
  const name = [...NAMED_SCHEMAS].find(([, named]) => named === schema)?.[0];
  return {
    [CONTENT_TYPE]: { schema: name === undefined ? schema : { $ref: `#/components/schemas/${name}` } },
  };
}
