/** The compatibility page says what the program does. SPARKLER_UPDATE_DOCS=1 writes it. */

import { expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { openApiDocument } from "../../src/api/openapi.ts";
import { ROUTES } from "../../src/api/routes.ts";
import { FIRECRACKER_FLAGS } from "../../src/cli/flags.ts";
import { compatibilityPage } from "./compatibility.ts";

const page = new URL("../../docs/compatibility.md", import.meta.url).pathname;
const main = new URL("../../src/main.ts", import.meta.url).pathname;

/** Firecracker's flags: src/firecracker/src/main.rs of 1.17. */
const FIRECRACKERS = [
  ...[
    "api-sock",
    "id",
    "seccomp-filter",
    "no-seccomp",
    "start-time-us",
    "start-time-cpu-us",
    "parent-cpu-time-us",
  ],
  ...["config-file", "metadata", "no-api", "log-path", "level", "module", "show-level", "show-log-origin"],
  ...["metrics-path", "boot-timer", "snapshot-version", "describe-snapshot", "http-api-max-payload-size"],
  ...["mmds-size-limit", "enable-pci"],
];

test("docs/compatibility.md is up to date", () => {
  const made = compatibilityPage();
  if (process.env.SPARKLER_UPDATE_DOCS === "1") writeFileSync(page, made);
  expect(readFileSync(page, "utf8")).toBe(made);
});

test("every flag of Firecracker is known, and the refused ones are refused", () => {
  expect(FIRECRACKER_FLAGS.map(({ name }) => name).sort()).toEqual(FIRECRACKERS.sort());
  for (const { name, argument, support } of FIRECRACKER_FLAGS) {
    if (support === "yes") continue;
    const flag = argument === "" ? [`--${name}`] : [`--${name}`, "value"];
    const { exitCode, stderr } = Bun.spawnSync([process.execPath, main, "--api-sock", "/none/s", ...flag]);
    // Without refusal it is the socket that cannot be made.
    expect({ name, exitCode }).toEqual({ name, exitCode: support === "refused" ? 153 : 1 });
    if (support === "refused")
      expect(stderr.toString()).toContain(`--${name}: not supported yet. Leave it out.`);
  }
});

test("the OpenAPI document refers only to schemas that it has, and names every operation once", () => {
  const document = openApiDocument();
  const names = Object.keys(document.components.schemas);
  const references = JSON.stringify(document).match(/#\/components\/schemas\/\w+/g) ?? [];
  expect(references.length).toBeGreaterThan(ROUTES.length);
  for (const reference of references) expect(names).toContain(reference.split("/").pop()!);
  const operations = ROUTES.map(({ operationId }) => operationId);
  expect(new Set(operations).size).toBe(operations.length);
  expect(new Set(ROUTES.map(({ method, path }) => `${method} ${path}`)).size).toBe(ROUTES.length);
});
