/**
 * `--no-api --config-file` as a process of its own, where the main thread serves the devices and its event loop has to
 * get its turns: signals, the end of the guest, and limits of time.
 */

import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { constants, tmpdir } from "node:os";
import { join } from "node:path";
import { writeConfig } from "../../bench/monitor.ts";
import { saysAndResets, saysAndSleeps, saysAndSpins, writeGuest } from "../../bench/raw-guest.ts";
import { GuestCode } from "../kvm/guest-code.ts";

const MAIN = join(import.meta.dir, "../../src/main.ts");
const MEM_MIB = 16;
/** For a machine that is busy with other things. */
const TIMEOUT = 30_000;
const hasKvm = existsSync("/dev/kvm");
if (!hasKvm) console.log("skip: there is no /dev/kvm");

const dir = mkdtempSync(join(tmpdir(), "sparkler-no-api-"));
afterAll(() => rmSync(dir, { recursive: true }));

function floods(): GuestCode {
  const guest = new GuestCode();
  guest.label("flood");
  guest.print("x");
  guest.jmp("flood");
  return guest;
}

/** An exception without a table of handlers. */
function tripleFault(): GuestCode {
  const guest = new GuestCode();
  guest.print("t");
  guest.ud2();
  return guest;
}

describe.each(hasKvm ? ["soft", "kvm"] : ["soft"])("%s", (accel) => {
  let guests = 0;

  function start(guest: GuestCode) {
    const kernel = join(dir, `${accel}-${guests++}`);
    writeGuest(kernel, guest);
    const config = writeConfig(dir, `config-${accel}-${guests}`, kernel, MEM_MIB);
    const child = Bun.spawn([process.execPath, MAIN, "--no-api", "--config-file", config, "--accel", accel], {
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
    });
    const output = child.stdout.getReader();
    return {
      child,
      stderr: () => new Response(child.stderr).text(),
      /** Until the guest has said something; undefined at the end. */
      async heard(): Promise<string | undefined> {
        const { value } = await output.read();
        return value === undefined ? undefined : new TextDecoder().decode(value);
      },
    };
  }

  test(
    "a guest that resets ends the process in order",
    async () => {
      const { child, heard } = start(saysAndResets("r"));
      expect(await heard()).toBe("r");
      expect(await heard()).toBeUndefined();
      expect(await child.exited).toBe(0);
    },
    TIMEOUT,
  );

  test(
    "a guest that breaks ends it with a message",
    async () => {
      const { child, heard, stderr } = start(tripleFault());
      expect(await heard()).toBe("t");
      expect(await stderr()).toContain("Error: The guest stopped by a triple fault");
      expect(await child.exited).toBe(1);
    },
    TIMEOUT,
  );

  test.each(["SIGTERM", "SIGINT", "SIGHUP"] as const)(
    "%s ends a guest that sleeps and one that spins",
    async (signal) => {
      for (const guest of [saysAndSleeps("s"), saysAndSpins("s")]) {
        const { child, heard } = start(guest);
        expect(await heard()).toBe("s");
        child.kill(signal);
        expect(await child.exited).toBe(128 + constants.signals[signal]);
      }
    },
    TIMEOUT,
  );

  test(
    "a signal while it starts ends it, wherever it is",
    async () => {
      for (let ms = 0; ms <= 160; ms += 20) {
        const { child } = start(saysAndSleeps("s"));
        await Bun.sleep(ms);
        child.kill("SIGTERM");
        await child.exited;
        // Before there is a handler the signal itself ends the process.
        const { exitCode, signalCode } = child;
        expect(exitCode ?? signalCode ?? "runs").toBeOneOf([143, "SIGTERM"]);
      }
    },
    TIMEOUT,
  );

  test(
    "output that is read late is all there before the end",
    async () => {
      const { child, heard } = start(floods());
      expect(await heard()).toMatch(/^x+$/);
      child.kill("SIGTERM");
      for (let text = await heard(); text !== undefined; text = await heard()) expect(text).toMatch(/^x+$/);
      expect(await child.exited).toBe(143);
    },
    TIMEOUT,
  );

  test(
    "a second signal ends it although nobody reads its output",
    async () => {
      const { child, heard } = start(floods());
      expect(await heard()).toMatch(/^x+$/);
      while (child.exitCode === null) {
        child.kill("SIGTERM");
        await Promise.race([child.exited, Bun.sleep(20)]);
      }
      expect(child.exitCode).toBe(143);
    },
    TIMEOUT,
  );
});
