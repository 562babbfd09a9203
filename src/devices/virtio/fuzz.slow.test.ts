/** A million mutations of each device: its own test, with SPARKLER_FUZZ. */

import { expect, test } from "bun:test";

const MUTATIONS = 1_000_000;
const LIMIT = 10 * 60_000;
const folder = new URL(".", import.meta.url).pathname;
for (const file of [...new Bun.Glob("**/*.test.ts").scanSync(folder)].sort()) {
  const source = await Bun.file(`${folder}${file}`).text();
  if (file.endsWith(".slow.test.ts") || !source.includes("fuzzDevice(")) continue;
  test(
    `${file}: ${MUTATIONS} mutations`,
    async () => {
      const child = Bun.spawn([process.execPath, "test", `${folder}${file}`, "-t", "mutations"], {
        env: { ...process.env, SPARKLER_FUZZ: String(MUTATIONS) },
        stdout: "pipe",
        stderr: "pipe",
      });
      const [output, code] = await Promise.all([new Response(child.stderr).text(), child.exited]);
      if (code !== 0) console.log(output);
      expect(code).toBe(0);
      expect(output).toContain(`(pass) survives ${MUTATIONS} mutations`);
    },
    LIMIT,
  );
}
