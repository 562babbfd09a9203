/** The walk through the API in the README, typed into a shell as it is printed there. */

import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync, mkdirSync, readFileSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { bootFiles } from "../guests/boot-files.ts";
import { temporaryDirectory } from "./support.ts";

const BOOT_TIMEOUT = 60_000;
const launcher = new URL("../../bin/sparkler", import.meta.url).pathname;
const readme = readFileSync(new URL("../../README.md", import.meta.url), "utf8");

const dir = temporaryDirectory();
afterAll(dir.remove);

beforeAll(async () => {
  const { vmlinux, initramfs } = await bootFiles();
  mkdirSync(join(dir.path, "bin"));
  symlinkSync(launcher, join(dir.path, "bin/sparkler"));
  symlinkSync(vmlinux, join(dir.path, "vmlinux"));
  symlinkSync(initramfs, join(dir.path, "initramfs.cpio"));
}, 120_000);

interface Step {
  readonly command: string;
  /** What the README shows after it. */
  readonly output: string;
}

/** The commands of the first console block that has `text` in it. */
function walkThrough(text: string): Step[] {
  const blocks = [...readme.matchAll(/^```console\n([\s\S]*?)^```$/gm)].map((match) => match[1]!);
  const block = blocks.find((candidate) => candidate.includes(text));
  if (block === undefined) throw new Error(`no console block in the README has ${text}`);
  return block
    .split(/^\$ /m)
    .slice(1)
    .map((step) => {
      const [command = "", ...output] = step.split("\n");
      return { command, output: output.join("\n") };
    });
}

/** A shell that takes one command after the other. */
class Shell {
  private readonly process: Bun.Subprocess<"pipe", "pipe", "ignore">;
  private output = "";
  private commands = 0;

  constructor(cwd: string) {
    this.process = Bun.spawn(["bash", "--noprofile", "--norc"], {
      cwd,
      stdin: "pipe",
      stdout: "pipe",
      stderr: "ignore",
    });
    void this.collect();
  }

  private async collect(): Promise<void> {
    const decoder = new TextDecoder();
    for await (const chunk of this.process.stdout) this.output += decoder.decode(chunk, { stream: true });
  }

  /** The command's output and exit code. */
  async run(command: string, timeoutMs = BOOT_TIMEOUT): Promise<{ output: string; code: number }> {
    const end = `@@end${this.commands++}`;
    this.output = "";
    this.process.stdin.write(`${command}\nprintf '\\n%s %d\\n' ${end} $?\n`);
    this.process.stdin.flush();
    const match = await until(
      () => new RegExp(`([\\s\\S]*)\\n${end} (\\d+)\\n$`).exec(this.output),
      timeoutMs,
    );
    return { output: match[1]!, code: Number(match[2]) };
  }

  close(): void {
    this.process.kill("SIGKILL");
  }
}

async function until<T>(ask: () => T | null | undefined | false, timeoutMs = BOOT_TIMEOUT): Promise<T> {
  const end = performance.now() + timeoutMs;
  for (;;) {
    const found = ask();
    if (found) return found;
    if (performance.now() > end) throw new Error(`waited in vain for ${ask}`);
    await Bun.sleep(5);
  }
}

test(
  "boot source, drive, machine, start, pause, resume and Ctrl-Alt-Del work as printed",
  async () => {
    const steps = walkThrough("--api-sock sparkler.sock");
    const typed = steps.map(({ command }) => command).join("\n");
    for (const part of ["boot-source", "drives/", "machine-config", "InstanceStart", "Paused", "Resumed"]) {
      expect(typed).toContain(part);
    }
    expect(steps.at(-1)!.command).toContain("SendCtrlAltDel");
    const shell = new Shell(dir.path);
    let monitor = 0;
    try {
      for (const { command, output } of steps) {
        // "once it is up": its console has to show so.
        if (command.includes("SendCtrlAltDel")) {
          await until(() =>
            readFileSync(join(dir.path, "console.log"), "utf8").includes("a shell on the console"),
          );
        }
        const result = await shell.run(command);
        expect({ command, ...result, output: result.output.trimEnd() }).toEqual({
          command,
          code: 0,
          output: output.trimEnd(),
        });
        if (command.endsWith("&")) {
          monitor = Number((await shell.run("echo $!")).output);
          await until(() => existsSync(join(dir.path, "sparkler.sock")));
        }
      }
      expect((await shell.run(`wait ${monitor}`)).code).toBe(0);
      monitor = 0;
    } finally {
      if (monitor > 0) process.kill(monitor, "SIGKILL");
      shell.close();
    }
    expect(existsSync(join(dir.path, "sparkler.sock"))).toBe(false);
  },
  2 * BOOT_TIMEOUT,
);
