/**
 * `--no-api --config-file` as a process of its own, where the main thread serves the devices and its event loop has to
 * get its turns: signals, the end of the guest, and limits of time.
 */

import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { constants, tmpdir } from "node:os";
import { join } from "node:path";
import { writeConfig } from "../../bench/monitor.ts";
import { saysAndResets, saysAndSleeps, saysAndSpins, writeGuest } from "../../bench/raw-guest.ts";
import { GuestCode } from "../kvm/guest-code.ts";

const MAIN = join(import.meta.dir, "../../src/main.ts");
const MEM_MIB = 16;
/** For a machine that is busy with other things. */
const TIMEOUT = 30_000;
/** More than the serial port and the pipe behind it hold, in bytes. */
const FLOOD = 200_000;
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

/** Names of a process's threads. */
function threadNames(pid: number): string[] {
  const tasks = `/proc/${pid}/task`;
  return readdirSync(tasks).map((task) => readFileSync(`${tasks}/${task}/comm`, "latin1").trim());
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

  function command(guest: GuestCode): string[] {
    const kernel = join(dir, `${accel}-${guests++}`);
    writeGuest(kernel, guest);
    const config = writeConfig(dir, `config-${accel}-${guests}`, kernel, MEM_MIB);
    return [process.execPath, MAIN, "--no-api", "--config-file", config, "--accel", accel];
  }

  function start(guest: GuestCode, stdin: "ignore" | "pipe" = "ignore") {
    const child = Bun.spawn(command(guest), { stdin, stdout: "pipe", stderr: "pipe" });
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

  test(
    "a vCPU on KVM has a thread only if something else has to be waited for",
    async () => {
      const plain = start(saysAndSleeps("s"));
      expect(await plain.heard()).toBe("s");
      expect(threadNames(plain.child.pid).includes("Worker")).toBe(accel === "soft");
      plain.child.kill("SIGTERM");

      const withInput = start(saysAndSleeps("s"), "pipe");
      expect(await withInput.heard()).toBe("s");
      expect(threadNames(withInput.child.pid)).toContain("Worker");
      withInput.child.kill("SIGTERM");

      // Nobody reads on, so the guest has to wait for room, which somebody else must notice.
      const flooding = start(floods());
      expect(await flooding.heard()).toMatch(/^x+$/);
      while (!threadNames(flooding.child.pid).includes("Worker")) await Bun.sleep(5);
      for (let bytes = 0; bytes < FLOOD; ) bytes += (await flooding.heard())?.length ?? Number.NaN;
      flooding.child.kill("SIGTERM");
      while ((await flooding.heard()) !== undefined);
      const ended = [plain, withInput, flooding].map(({ child }) => child.exited);
      expect(await Promise.all(ended)).toEqual([143, 143, 143]);
    },
    TIMEOUT,
  );

  test(
    "and if the guest makes much work for the devices",
    async () => {
      const path = join(dir, `${accel}-flood`);
      const child = Bun.spawn(command(floods()), {
        stdin: "ignore",
        stdout: Bun.file(path),
        stderr: "ignore",
      });
      while (!threadNames(child.pid).includes("Worker") || statSync(path).size === 0) await Bun.sleep(5);
      child.kill("SIGTERM");
      expect(await child.exited).toBe(143);
      expect(readFileSync(path, "latin1")).toMatch(/^x+$/);
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
