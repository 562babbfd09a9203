import { describe, expect, test } from "bun:test";
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { BootError } from "../boot/boot-error.ts";
import { ConfigError } from "../vmm/config-error.ts";
import { Timings } from "../vmm/timings.ts";
import { explain, UsageError } from "./exit.ts";
import { RunOutcome } from "./run-outcome.ts";

const main = new URL("../main.ts", import.meta.url).pathname;
const launcher = new URL("../../bin/sparkler", import.meta.url).pathname;

function sparkler(...argv: string[]) {
  const { stdout, stderr, exitCode } = Bun.spawnSync([process.execPath, main, ...argv]);
  return { stdout: stdout.toString(), stderr: stderr.toString(), code: exitCode };
}

describe("command line", () => {
  test.each([
    [["--version"], 0, /^Sparkler v\d+\.\d+\.\d+\n$/, /^$/],
    [["--help"], 0, /--no-api[\s\S]*run \[options\]/, /^$/],
    [[], 153, /^$/, /^Usage: sparkler/],
    [["--no-ap"], 153, /^$/, /unknown option '--no-ap'\n\(Did you mean --no-api\?\)/],
    [["rum"], 153, /^$/, /unknown command 'rum'\n\(Did you mean run\?\)/],
    [["--no-api", "extra"], 153, /^$/, /too many arguments/],
    [["--no-api"], 153, /^$/, /--no-api needs --config-file/],
    [["--api-sock", "/none/s"], 1, /^$/, /Failed to open the API socket at: \/none\/s\. Check that it/],
    [["--http-api-max-payload-size", "much"], 153, /^$/, /Invalid --http-api-max-payload-size `much`/],
    [
      ["--api-sock", "/none/s", "--metadata", "/none"],
      152,
      /^$/,
      /from the mmds content file: \/none: No such/,
    ],
    [["--api-sock", "/none/s", "--metrics-path", "/none/m"], 152, /^$/, /Failed to open the metrics file/],
    [
      ["--api-sock", "/none/s", "--log-path", "/none/l"],
      1,
      /^$/,
      /Failed to open target file: \/none\/l: No/,
    ],
    [["--no-api", "--config-file", "/none"], 152, /^$/, /\/none: No such file or directory \(os error 2\)/],
    [["--no-api", "--config-file", "/none", "--enable-pci"], 153, /^$/, /--enable-pci: not supported yet/],
    [["--no-api", "--config-file", "/none", "--no-seccomp", "--start-time-us", "1"], 152, /^$/, /\/none/],
    [["--no-api", "--config-file", "/none", "--level", "loud"], 152, /^$/, /Invalid --level `loud`/],
    [["--no-api", "--config-file", "/none", "--id", "a_b"], 153, /^$/, /Invalid --id `a_b`/],
    [["run"], 153, /^$/, /missing required argument 'cmd'/],
    [["run", "--mem", "lots", "true"], 153, /^$/, /Give a whole number from 16/],
    [["run", "--accel", "soft", "--vcpus", "2", "true"], 152, /^$/, /software CPU runs 1/],
    [["run", "--accel", "soft", "--mem", "4096", "true"], 152, /^$/, /up to 3072 MiB/],
    [["run", "--add", "/etc/hosts", "true"], 153, /^$/, /give HOST:GUEST/],
    [["run", "--env", "=x", "true"], 153, /^$/, /give NAME=VALUE/],
    [
      ["run", "--kernel", "/none", "--initrd", "/none", "true"],
      152,
      /^$/,
      /kernel file cannot be opened: No such/,
    ],
    [["run", "--initrd", "/none", "true"], 153, /^$/, /--initrd needs --kernel/],
    [["image", "rootfs"], 153, /^$/, /required option '--out/],
    [["image", "rootfs", "--out", "/none/x", "--include", "curl"], 153, /^$/, /need --debian/],
  ] as const)("%j", (argv, code, stdout, stderr) => {
    const result = sparkler(...argv);
    expect(result.stderr).toMatch(stderr);
    expect(result.stdout).toMatch(stdout);
    expect(result.code).toBe(code);
  });

  test("the launcher finds Bun through links to it and in directories above, and says when there is none", () => {
    const dir = mkdtempSync(join(tmpdir(), "sparkler-launcher-"));
    try {
      symlinkSync(launcher, join(dir, "one"));
      symlinkSync("one", join(dir, "two"));
      expect(Bun.spawnSync([join(dir, "two"), "--version"]).stdout.toString()).toStartWith("Sparkler v");
      mkdirSync(join(dir, "node_modules/sparkler/bin"), { recursive: true });
      mkdirSync(join(dir, "node_modules/sparkler/src"));
      copyFileSync(launcher, join(dir, "node_modules/sparkler/bin/sparkler"));
      writeFileSync(join(dir, "node_modules/sparkler/src/main.ts"), "console.log(process.argv.slice(2))");
      const copy = join(dir, "node_modules/sparkler/bin/sparkler");
      const missing = Bun.spawnSync([copy, "x"]);
      expect(missing.stderr.toString()).toContain("Run: npm install");
      expect(missing.exitCode).toBe(1);
      mkdirSync(join(dir, "node_modules/@oven/bun-linux-x64/bin"), { recursive: true });
      symlinkSync(process.execPath, join(dir, "node_modules/@oven/bun-linux-x64/bin/bun"));
      expect(Bun.spawnSync([copy, "a b", ""]).stdout.toString()).toBe('[ "a b", "" ]\n');
    } finally {
      rmSync(dir, { recursive: true });
    }
  });
});

describe("errors", () => {
  test("exit codes by kind, and a stack only for what the user cannot mend", () => {
    expect(explain(new ConfigError("c"))).toEqual({ message: "c", code: 152 });
    expect(explain(new BootError("kernel", "k")).code).toBe(152);
    expect(explain(new UsageError("u"))).toEqual({ message: "u", code: 153 });
    expect(explain(new TypeError("bug")).message).toContain("cli.test.ts");
    expect(explain("text")).toEqual({ message: "text", code: 1 });
  });
});

describe("outcome of a run", () => {
  const end = { end: { kind: "reset" }, consoleTail: "", stats: {} } as const;

  function outcome(wait = false) {
    let stops = 0;
    const result = new RunOutcome(wait, new Timings(), () => stops++);
    return { result, stops: () => stops };
  }

  test("the first exit line counts and stops the machine", () => {
    const { result, stops } = outcome();
    for (const line of ["ready", "exit 3", "exit 4", "error late"]) result.control(line);
    expect(result.result(end).status).toBe(3);
    expect(stops()).toBe(1);
  });

  test("with an image that stays the guest shuts down by itself", () => {
    const { result, stops } = outcome(true);
    result.control("exit 0");
    expect(stops()).toBe(0);
    expect(result.result(end)).toEqual({ status: 0, message: undefined });
  });

  test("what a guest may not say is ignored", () => {
    const { result, stops } = outcome();
    for (const line of ["exit", "exit -1", "exit 1000", "exit 1 2", "", "\0", "reboot now"])
      result.control(line);
    expect(stops()).toBe(0);
    expect(result.result(end).status).toBeUndefined();
    expect(result.result(end).message).toStartWith(
      "the guest restarted before the program ended.\nIt printed",
    );
  });

  test("errors of the guest's init and of the output", () => {
    const init = outcome();
    init.result.control("error cannot mount /dev/vda\x1b[2J");
    expect(init.result.result(end)).toEqual({
      status: 1,
      message: "the guest could not run the program: cannot mount /dev/vda?[2J",
    });
    const full = outcome();
    full.result.outputBroken("ENOSPC", "No space left on device (os error 28)");
    expect(full.result.result(end).status).toBe(1);
    expect(full.result.result(end).message).toContain("No space left");
    const pipe = outcome();
    pipe.result.outputBroken("EPIPE", "Broken pipe");
    expect(pipe.result.result(end)).toEqual({ status: 141, message: undefined });
  });

  test("only the end of a long console is shown", () => {
    const consoleTail = Array.from({ length: 100 }, (_, i) => `line ${i}\r\n`).join("");
    const { message } = outcome().result.result({
      ...end,
      end: { kind: "error", detail: "broke." },
      consoleTail,
    });
    expect(message).toStartWith("broke.\nThe last lines of its console:\n  line 80\n");
    expect(message).toEndWith("\n  line 99");
  });

  test("a panic is told by its reason", () => {
    const consoleTail = "[    1.0] Kernel panic - not syncing: out\x1b of luck\r\n[    1.1] Call Trace:\r\n";
    expect(outcome().result.result({ ...end, consoleTail }).message).toBe(
      "the guest's kernel panicked before the program ended: out? of luck\n" +
        "The last lines of its console:\n" +
        "  [    1.0] Kernel panic - not syncing: out? of luck\n  [    1.1] Call Trace:",
    );
  });
});
