/** The single executable: built once, then used from a directory that has nothing of the project in it. */

import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { saysAndResets, writeGuest } from "../../bench/raw-guest.ts";
import packageJson from "../../package.json" with { type: "json" };
import { buildExecutable } from "../../scripts/build.ts";
import { defaultCacheDir } from "../../src/image/cache-dir.ts";

const BUILD_TIMEOUT = 30_000;
const hasKernel = existsSync(join(defaultCacheDir(), "kernels/current"));
const hasKvm = existsSync("/dev/kvm");
if (!hasKernel) console.log("skip: no default kernel in the cache: run `npm start`");
if (!hasKvm) console.log("skip: there is no /dev/kvm");

const dir = mkdtempSync(join(tmpdir(), "sparkler-executable-"));
const executable = join(dir, "sparkler");
beforeAll(() => buildExecutable(executable), BUILD_TIMEOUT);
afterAll(() => rmSync(dir, { recursive: true }));

async function run(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  const child = Bun.spawn([executable, ...args], {
    cwd: dir,
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return { code, stdout, stderr };
}

function rawGuest(text: string): string {
  const kernel = join(dir, "guest");
  writeGuest(kernel, saysAndResets(text));
  const config = join(dir, "guest.json");
  writeFileSync(
    config,
    JSON.stringify({
      "boot-source": { kernel_image_path: kernel, boot_args: "" },
      drives: [],
      "machine-config": { vcpu_count: 1, mem_size_mib: 16 },
    }),
  );
  return config;
}

test("says its version", async () => {
  expect(await run("--version")).toMatchObject({ code: 0, stdout: `Sparkler v${packageJson.version}\n` });
});

test("knows its subcommands", async () => {
  expect((await run("openapi")).stdout).toContain('"/boot-source"');
  expect((await run("doctor")).stdout).toContain("KVM");
  const { code, stderr } = await run("--confg-file", "x");
  expect(code).toBe(153);
  expect(stderr).toContain("--config-file");
});

test("runs a guest on the software CPU with the interpreter that is in it", async () => {
  const { code, stdout } = await run("--no-api", "--config-file", rawGuest("soft"), "--accel", "soft");
  expect({ code, stdout }).toEqual({ code: 0, stdout: "soft" });
});

test.skipIf(!hasKvm)("runs a guest on KVM", async () => {
  const { code, stdout } = await run("--no-api", "--config-file", rawGuest("kvm"), "--accel", "kvm");
  expect({ code, stdout }).toEqual({ code: 0, stdout: "kvm" });
});

test("serves the API", async () => {
  const socket = join(dir, "api.sock");
  const child = Bun.spawn([executable, "--api-sock", socket], { stdin: "ignore", stderr: "ignore" });
  try {
    while (!existsSync(socket)) await Bun.sleep(5);
    const response = await fetch("http://localhost/", { unix: socket });
    expect(await response.json()).toMatchObject({ state: "Not started", app_name: expect.any(String) });
  } finally {
    child.kill();
    await child.exited;
  }
});

test.skipIf(!hasKernel)(
  "runs a program in the default guest",
  async () => {
    expect(await run("run", "--", "echo", "hi")).toMatchObject({ code: 0, stdout: "hi\n" });
  },
  60_000,
);
