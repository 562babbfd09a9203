/** Takes the place of `interpreter-cache.ts` in the single executable, which has the interpreter's module in it. */

import { readFileSync } from "node:fs";
import path from "sparkler:interpreter" with { type: "file" };

export async function loadInterpreter(): Promise<WebAssembly.Module> {
  return new WebAssembly.Module(readFileSync(path));
}
