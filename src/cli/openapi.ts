/** `sparkler openapi`: prints the API's OpenAPI document. */

import { openApiDocument } from "../api/openapi.ts";
import { EXIT_OK } from "./exit.ts";

export function openApiCommand(): number {
  process.stdout.write(`${JSON.stringify(openApiDocument(), undefined, 2)}\n`);
  return EXIT_OK;
}
