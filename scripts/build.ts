/**
 * Builds the single executable: `npm run build [-- --outfile FILE]`, by default `dist/sparkler`. In it are the
 * runtime, the program with its Workers as bytecode, and the software CPU's interpreter.
 */

import { mkdirSync, mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join, resolve } from "node:path";
import { buildInterpreter } from "../src/hypervisor/soft/interpreter.ts";
import { STARTUP_JIT_POLICY } from "../src/vmm/jit-policy.ts";

const root = join(import.meta.dir, "..");
/** Workers are looked up in the executable by the name that their file has in the source tree. */
const ENTRY_POINTS = ["src/main.ts", "src/vmm/vmm-worker.ts", "src/vmm/vcpu-worker.ts"];
/** Each module costs some 30 us to load, whatever its size. In bytes of source. */
const MIN_CHUNK_SIZE = 16_384;
/** Modules of src/vmm that find other files, and what finds them in the executable. */
const EMBEDDED: Readonly<Record<string, string>> = {
  "interpreter-cache.ts": "interpreter-embedded.ts",
  "worker-urls.ts": "worker-urls-embedded.ts",
};

/** Builds the executable `outfile`. Throws an Error, or what the bundler says is wrong. */
export async function buildExecutable(outfile: string): Promise<void> {
  mkdirSync(dirname(outfile), { recursive: true });
  const dir = mkdtempSync(join(tmpdir(), "sparkler-build-"));
  try {
    const interpreter = join(dir, "interpreter.wasm");
    writeFileSync(interpreter, buildInterpreter());
    const { success, logs } = await Bun.build({
      entrypoints: ENTRY_POINTS.map((path) => join(root, path)),
      root,
      target: "bun",
      format: "esm",
      bytecode: true,
      // A command loads what it needs; in one piece all of it would be read at each start, and by each Worker.
      splitting: true,
      minChunkSize: MIN_CHUNK_SIZE,
      minify: { syntax: true, whitespace: true, identifiers: false },
      compile: {
        outfile,
        jitPolicy: STARTUP_JIT_POLICY,
        // A configuration in the directory where a microVM happens to be started must not change what it does.
        autoloadDotenv: false,
        autoloadBunfig: false,
        autoloadTsconfig: false,
        autoloadPackageJson: false,
      },
      plugins: [
        {
          name: "embedded",
          setup(build) {
            build.onResolve({ filter: /\/(interpreter-cache|worker-urls)\.ts$/ }, ({ path }) => ({
              path: join(root, "src/vmm", EMBEDDED[basename(path)]!),
            }));
            build.onResolve({ filter: /^sparkler:interpreter$/ }, () => ({ path: interpreter }));
          },
        },
      ],
    });
    if (!success) throw new AggregateError(logs, `bundling ${outfile} failed`);
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

if (import.meta.main) {
  const at = process.argv.indexOf("--outfile");
  const outfile = resolve(at < 0 ? join(root, "dist/sparkler") : (process.argv[at + 1] ?? ""));
  const started = performance.now();
  await buildExecutable(outfile);
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  console.log(`${outfile}: ${(statSync(outfile).size / 2 ** 20).toFixed(0)} MiB, ${seconds} s`);
}
