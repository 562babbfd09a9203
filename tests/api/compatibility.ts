/** Makes docs/compatibility.md from the routes, the schemas and the flags, so that it cannot say anything else. */

import { NAMED_SCHEMAS } from "../../src/api/openapi.ts";
import type { Route } from "../../src/api/route.ts";
import { ROUTES } from "../../src/api/routes.ts";
import { API_VERSION } from "../../src/api/version.ts";
import { FIRECRACKER_FLAGS, type Flag } from "../../src/cli/flags.ts";
import type { SchemaNode } from "../../src/vmm/schema/schema.ts";

const MOMENTS = { pre: "before boot", post: "after boot", both: "any time" } as const;

const FLAG_SUPPORT: Readonly<Record<Flag["support"], string>> = {
  yes: "yes",
  ignored: "accepted, does nothing",
  refused: "not yet",
};

function table(header: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]) =>
    `| ${cells.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`;
  return [line(header), line(header.map(() => "---")), ...rows.map(line)].join("\n");
}

function endpointRow(route: Route): string[] {
  const support = route.lacks === undefined ? (route.remark === undefined ? "yes" : "in part") : "not yet";
  const remark = route.remark ?? (route.lacks === undefined ? "" : sentence(route.lacks));
  return [`\`${route.method} ${route.path}\``, support, MOMENTS[route.when], remark];
}

function sentence(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** Each field, with those of objects inside. */
function fieldRows(schema: SchemaNode, prefix = ""): string[][] {
  return Object.entries(schema.properties ?? {}).flatMap(([name, field]) => {
    const path = prefix === "" ? name : `${prefix}.${name}`;
    const node = field.items ?? field;
    const support = field["x-supported"];
    const parts = Object.values(node.properties ?? {});
    const onlyEmpty = parts.length > 0 && parts.every((part) => part["x-supported"] === false);
    const answer =
      support === undefined
        ? onlyEmpty
          ? "only without content"
          : "yes"
        : support === false
          ? `not yet${"default" in field ? `: only \`${field.default}\`` : ""}`
          : `only ${support.map((value) => `\`${value}\``).join(", ")}`;
    const remarks = [
      ...(schema.required?.includes(name) ? ["required"] : []),
      ...(field.deprecated ? ["deprecated"] : []),
    ].join(", ");
    const row = [`\`${path}\``, answer, remarks];
    return support === false ? [row] : [row, ...fieldRows(node, path)];
  });
}

/** Schemas of the bodies of requests that can be done, with the requests that take them. */
function bodies(): [string, string[], SchemaNode][] {
  return [...NAMED_SCHEMAS].flatMap(([name, schema]): [string, string[], SchemaNode][] => {
    const routes = ROUTES.filter((route) => route.body === schema && route.lacks === undefined);
    const used = routes.map(({ method, path }) => `\`${method} ${path}\``);
    return used.length === 0 || schema.properties === undefined ? [] : [[name, used, schema]];
  });
}

export function compatibilityPage(): string {
  const sections = [
    "# Compatibility with Firecracker",
    "",
    `The API is that of Firecracker ${API_VERSION}. Every endpoint is there. What Sparkler cannot do yet is checked like`,
    "the rest and then answered with status 400 and a `fault_message` that says so: nothing is accepted and ignored.",
    "`sparkler openapi` prints the OpenAPI document. This page is made from the same tables as the program.",
    "",
    "## Endpoints",
    "",
    table(["Endpoint", "Supported", "When", "Remarks"], ROUTES.map(endpointRow)),
    "",
    "## Fields of requests",
    "",
    "Of the requests that are supported. A field that is not supported may be left out, be `null`, or have the value",
    "named here.",
    "",
    ...bodies().flatMap(([name, used, schema]) => [
      `### ${name}`,
      "",
      `${used.join(", ")}`,
      "",
      table(["Field", "Supported", "Remarks"], fieldRows(schema)),
      "",
    ]),
    "## Configuration file",
    "",
    table(["Key", "Supported", "Remarks"], fieldRows(topLevel(NAMED_SCHEMAS.get("VmmConfig")!))),
    "",
    "Each key has the fields of its request.",
    "",
    "## Command line",
    "",
    table(
      ["Flag", "Supported", "Meaning"],
      FIRECRACKER_FLAGS.map(({ name, argument, text, support }) => [
        `\`--${name}${argument === "" ? "" : ` ${argument}`}\``,
        FLAG_SUPPORT[support],
        support === "refused" ? "" : text,
      ]),
    ),
    "",
    "Exit codes: 0 the guest restarted or shut down, 1 an error, 152 a bad configuration, 153 bad arguments, 128 and",
    "the signal's number after a signal.",
    "",
    "## Differences on purpose",
    "",
    "- If the boot arguments have `noapic`, `nolapic`, `disableapic`, `nosmp`, `maxcpus=0` or `acpi=noirq`, the ACPI",
    "  tables are not hardware-reduced (Firecracker: always): Linux then has its interrupts from the PIC, and takes it",
    "  that a hardware-reduced machine has none. firectl's default boot arguments have `noapic`.",
    "- Up to 256 clients may be connected at once (Firecracker: 10).",
    "- The log goes to stderr if it is not told where to go, since stdout is the guest's console.",
    "- Error messages have the path of the field (`at /rate_limiter/ops`) in place of a line and column, except where a",
    "  field of the body itself is missing.",
    "- Numbers in the metadata and in the balloon's statistics beyond 2^53 lose precision.",
    "- The metadata service checks the guest's checksums, and refuses connections to ports other than 80 (Firecracker:",
    "  it does not, and says nothing).",
    "- Drives that can be written offer discard and write-zeroes to the guest (Firecracker 1.17 does not).",
    "",
  ];
  return sections.join("\n");
}

/** Only the keys: their fields stand in the tables above. */
function topLevel(schema: SchemaNode): SchemaNode {
  const { required, properties = {} } = schema;
  const bare = Object.entries(properties).map(([name, { "x-supported": support }]): [string, SchemaNode] => [
    name,
    support === undefined ? {} : { "x-supported": support },
  ]);
  return { ...(required === undefined ? {} : { required }), properties: Object.fromEntries(bare) };
}
