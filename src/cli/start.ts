/** `npm start`: fetches what a microVM needs, boots one and lets it say what machine it believes to be on. */

import { defaultCacheDir } from "../image/cache-dir.ts";
import { DEMO_PROGRAM, ensureInitramfs } from "../image/initramfs.ts";
import { ensureKernel } from "../image/kernel.ts";
import { terminalProgress } from "../image/progress.ts";
import { runCommand } from "./run.ts";

const DEMO_MEM_MIB = 256;

/** Returns the demo's exit status. How long each step took goes to stderr. */
export async function startCommand(): Promise<number> {
  const options = { cacheDir: defaultCacheDir(), progress: terminalProgress() };
  const started = performance.now();
  const kernel = await ensureKernel(options);
  const kernelAt = performance.now();
  await ensureInitramfs({ ...options, kernel });
  const seconds = (ms: number) => `${(ms / 1000).toFixed(2)} s`;
  process.stderr.write(
    `Kernel ${kernel.version}: ${seconds(kernelAt - started)}. ` +
      `Initramfs: ${seconds(performance.now() - kernelAt)}. Booting it.\n`,
  );
  return runCommand([DEMO_PROGRAM], {
    mem: DEMO_MEM_MIB,
    vcpus: 1,
    accel: "auto",
    add: [],
    env: [],
    timings: true,
  });
}
