/** A vCPU's thread that dies is told of, and takes nothing with it but its microVM. */

import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Death } from "./dying-backend.ts";
import { DEATH_PORT } from "./guest-code.ts";
import { backendNames } from "./machine.ts";
import { startGuest } from "./whole-machine.ts";

const dir = mkdtempSync(join(tmpdir(), "sparkler-dying-"));
afterAll(() => rmSync(dir, { recursive: true }));

/** Path of a module whose backend dies. */
function dying(on: string, death: Death): string {
  const path = join(dir, `${on} ${death}.ts`.replaceAll(" ", "-"));
  const module = JSON.stringify(join(import.meta.dir, "dying-backend.ts"));
  writeFileSync(
    path,
    `import { dyingBackend } from ${module};\nexport const backend = await dyingBackend("${on}", "${death}");\n`,
  );
  return path;
}

/** What this process has open of KVM, and its mappings of that. */
function ofKvm(): string[] {
  const open = readdirSync("/proc/self/fd").flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/self/fd/${fd}`)];
    } catch {
      // The one that lists the directory is gone.
      return [];
    }
  });
  const maps = readFileSync("/proc/self/maps", "utf8").split("\n");
  return [...open, ...maps].filter((name) => name.includes("kvm"));
}

async function nothingIsLeft(): Promise<void> {
  const deadline = performance.now() + 3000;
  while (ofKvm().length > 0 && performance.now() < deadline) await Bun.sleep(10);
  expect(ofKvm()).toEqual([]);
}

describe.each(backendNames())("%s", (backend) => {
  const vcpus = backend === "kvm" ? 2 : 1;

  test.each<[Death, string]>([
    ["exit", "a vCPU thread ended without a word"],
    ["throw", "Error: on purpose"],
  ])("while the guest runs: %s", async (way, text) => {
    const microvm = await startGuest({ backend: dying(backend, way), vcpus }, (guest) => {
      guest.outPort(DEATH_PORT, 1, 0);
      guest.spin();
    });
    const { end } = await microvm.ended;
    expect(end.kind).toBe("error");
    if (end.kind === "error") expect(end.detail).toStartWith(text);
    await expect(microvm.pause()).rejects.toThrow("the microVM has ended");
    microvm.stop();
    await nothingIsLeft();
  });

  test.each<[Death, RegExp]>([
    ["exit at start", /^vCPU [01] failed to start: its thread ended without a word$/],
    ["throw at start", /^vCPU [01] failed to start: Error: on purpose/],
  ])("while the machine is built: %s", async (way, text) => {
    const options = { backend: dying(backend, way), vcpus };
    await expect(startGuest(options, (guest) => guest.spin())).rejects.toThrow(text);
    await nothingIsLeft();
  });

  test("the next one runs", async () => {
    const microvm = await startGuest({ backend, vcpus }, (guest) => {
      guest.print("fine");
      guest.reset();
    });
    expect(await microvm.ended).toMatchObject({ end: { kind: "reset" }, consoleTail: "fine" });
  });
});
