/** The software CPU's interpreter module, kept in the user's cache: building it costs 100 ms and 60 MiB. */
import { mkdirSync, readdirSync, readFileSync, renameSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { defaultCacheDir } from "../image/cache-dir.ts";

const SOURCES = ["", "table", "wasm", "jit"].map((folder) =>
  join(import.meta.dir, "../hypervisor/soft", folder),
);

/** Changes whenever a source file of the software CPU does. */
function sourceKey(): string {
  const hash = new Bun.CryptoHasher("sha256");
  for (const folder of SOURCES) {
    for (const name of readdirSync(folder).sort()) {
      if (!name.endsWith(".ts") || name.endsWith(".test.ts")) continue;
      const { size, mtimeMs } = statSync(join(folder, name));
      hash.update(`${name} ${size} ${mtimeMs}\n`);
    }
  }
  return hash.digest("hex").slice(0, 16);
}

/** The compiled interpreter, from the cache or built and cached now. A cache that cannot be written is no error. */
export async function loadInterpreter(cacheDir = defaultCacheDir()): Promise<WebAssembly.Module> {
  const folder = join(cacheDir, "interpreter");
  const path = join(folder, `${sourceKey()}.wasm`);
  try {
    return new WebAssembly.Module(readFileSync(path));
  } catch {
    // Not there yet, or damaged: built below.
  }
  const { buildInterpreter } = await import("../hypervisor/soft/interpreter.ts");
  const bytes = buildInterpreter();
  try {
    mkdirSync(folder, { recursive: true });
    const partial = `${path}.${process.pid}`;
    writeFileSync(partial, bytes);
    renameSync(partial, path);
  } catch {
    // The next start builds it again.
  }
  return new WebAssembly.Module(bytes);
}
