/** The machine around the CPU, with a scripted one: threads, mailbox, doorbells, files, streams, exit codes. */

import { afterAll, describe, expect, test } from "bun:test";
import {
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buildMicrovm } from "../../src/vmm/builder.ts";
import type { MicrovmEvents } from "../../src/vmm/microvm.ts";
import { tinyKernel } from "./tiny-kernel.ts";

const dir = mkdtempSync(join(tmpdir(), "sparkler-machine-"));
afterAll(() => rmSync(dir, { recursive: true }));

const kernel = join(dir, "kernel");
writeFileSync(kernel, tinyKernel());

const entry = new URL("./entry.ts", import.meta.url).pathname;

type Input = "ignore" | "pipe" | Uint8Array | number;

function spawn<In extends Input = "ignore">(command: string, flags: object, stdin?: In) {
  return Bun.spawn<In | "ignore", "pipe", "pipe">([process.execPath, entry, command, JSON.stringify(flags)], {
    stdin: stdin ?? "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
}

async function finish(child: Bun.Subprocess<Input, "pipe", "pipe">) {
  const [stdout, stderr, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return { stdout, stderr, code };
}

let configs = 0;
function firecracker(script: string, drives: object[] = [], more: object = {}) {
  const path = join(dir, `config-${configs++}.json`);
  writeFileSync(
    path,
    JSON.stringify({
      "boot-source": { kernel_image_path: kernel, boot_args: `script=${script}` },
      drives,
      ...more,
    }),
  );
  return { api: false, configFile: path, id: "test", accel: "auto", level: "Warn" };
}

const run = (script: string) => {
  // The command line of `run` is its own, so the script's name travels in an option of the guest's.
  return {
    kernel,
    initrd: kernel,
    mem: 64,
    vcpus: 1,
    accel: "auto",
    add: [],
    env: [],
    bootArgs: `script=${script}`,
  };
};

describe("configuration file", () => {
  test("a guest drives its block device, prints on its serial port and resets: exit code 0", async () => {
    const disk = join(dir, "disk");
    writeFileSync(disk, "");
    truncateSync(disk, 64 * 512 + 100);
    const { ino, dev, rdev } = statSync(disk, { bigint: true });
    const drive = {
      drive_id: "data",
      is_root_device: false,
      path_on_host: disk,
      cache_type: "Writeback",
    };
    const { stdout, stderr, code } = await finish(spawn("firecracker", firecracker("block", [drive])));
    const id = `${dev}${rdev}${ino}`.slice(0, 20);
    expect(stdout).toBe(`sectors=64 status=0,0,0,0,1 same=0 id=${id}\n`);
    expect(code).toBe(0);
    expect(stderr).toContain("block data");
    const content = readFileSync(disk);
    const expected = Buffer.alloc(64 * 512 + 100);
    for (let i = 0; i < 4096; i++) expected[1024 + i] = (i * 7) & 0xff;
    expect(content.equals(expected)).toBe(true);
  });

  test("a disk that another microVM writes to is refused", async () => {
    const path = join(dir, "shared-disk");
    writeFileSync(path, Buffer.alloc(4096));
    const drive = { drive_id: "d", is_root_device: false, path_on_host: path };
    const first = spawn("firecracker", firecracker("hang", [drive]));
    const reader = first.stdout.getReader();
    expect(new TextDecoder().decode((await reader.read()).value)).toStartWith("u");
    const second = await finish(spawn("firecracker", firecracker("hang", [drive])));
    expect(second.stderr).toContain(`is in use by another microVM: ${path}`);
    expect(second.code).toBe(152);
    first.kill("SIGTERM");
    expect(await first.exited).toBe(143);
  });

  test("SIGTERM and SIGINT end a guest that runs for ever", async () => {
    for (const [signal, code] of [
      ["SIGTERM", 143],
      ["SIGINT", 130],
    ] as const) {
      const child = spawn("firecracker", firecracker("hang"));
      const reader = child.stdout.getReader();
      await reader.read();
      child.kill(signal);
      expect(await child.exited).toBe(code);
    }
  });

  test("a triple fault and a failing CPU are told on stderr, exit code 1", async () => {
    const triple = await finish(spawn("firecracker", firecracker("triple")));
    expect(triple.stderr).toContain("The guest stopped by a triple fault: rip 100000");
    expect(triple.code).toBe(1);
    const broken = await finish(spawn("firecracker", firecracker("throw")));
    expect(broken.stderr).toContain("script failed: Error: on purpose");
    expect(broken.code).toBe(1);
  });

  test("a slow reader of the serial output loses nothing", async () => {
    const flags = JSON.stringify(firecracker("flood"));
    const child = Bun.spawn(
      ["sh", "-c", '"$0" "$1" firecracker "$2" | { sleep 0.3; cat; }', process.execPath, entry, flags],
      { stdin: "ignore", stdout: "pipe", stderr: "pipe" },
    );
    const { stdout, code } = await finish(child);
    const lines = stdout.split("\n");
    expect(lines.length).toBe(20_001);
    expect(lines[19_999]).toBe("line 019999");
    expect(lines.every((line, i) => line === (i < 20_000 ? `line ${String(i).padStart(6, "0")}` : ""))).toBe(
      true,
    );
    expect(code).toBe(0);
  });

  test("serial output to a file, the log to another", async () => {
    const serial = join(dir, "serial.out");
    const log = join(dir, "vm.log");
    const { stdout, stderr, code } = await finish(
      spawn("firecracker", {
        ...firecracker("panic", [], { serial: { serial_out_path: serial } }),
        logPath: log,
        level: "Info",
        showLevel: true,
      }),
    );
    expect({ stdout, stderr, code }).toEqual({ stdout: "", stderr: "", code: 0 });
    expect(readFileSync(serial, "utf8")).toStartWith("one\nKernel panic");
    expect(readFileSync(log, "utf8")).toMatch(/ \[test:main:INFO\] Running Sparkler v[\s\S]*exit_code=0\n$/);
  });

  test("stdin is typed at the serial port, from a pipe and from a file", async () => {
    const long = `${"typed at the port ".repeat(500)}.`;
    const piped = await finish(spawn("firecracker", firecracker("echo"), new TextEncoder().encode(long)));
    expect({ out: piped.stdout, code: piped.code }).toEqual({ out: long.slice(0, -1), code: 0 });
    const path = join(dir, "typed");
    writeFileSync(path, long);
    const fd = openSync(path, "r");
    const child = spawn("firecracker", firecracker("echo"), fd);
    closeSync(fd);
    const filed = await finish(child);
    expect({ out: filed.stdout, code: filed.code }).toEqual({ out: long.slice(0, -1), code: 0 });
  });

  test("the boot timer is logged once", async () => {
    const flags = { ...firecracker("timer"), level: "Info", bootTimer: true };
    const { stderr, code } = await finish(spawn("firecracker", flags));
    expect(
      stderr.match(/\[test:fc_vcpu 0\] Guest-boot-time = +\d+ us \d+ ms, +\d+ CPU us \d+ CPU ms\n/g)?.length,
    ).toBe(1);
    expect(code).toBe(0);
  });

  test("bad configurations: exit code 152", async () => {
    const config = firecracker("hang", [
      { drive_id: "d", is_root_device: true, path_on_host: join(dir, "none") },
    ]);
    const { stderr, code } = await finish(spawn("firecracker", config));
    expect(stderr).toContain("No such file or directory (os error 2)");
    expect(code).toBe(152);
    const unread = await finish(spawn("firecracker", { ...config, configFile: join(dir, "no.json") }));
    expect(unread.stderr).toContain("Unable to open or read from the configuration file");
    expect(unread.code).toBe(152);
  });
});

describe("run", () => {
  test("streams pass through unmixed, stdin ends, and the exit status is the program's", async () => {
    const input = "0123456789abcdef".repeat(20_000);
    const { stdout, stderr, code } = await finish(
      spawn("run", run("program"), new TextEncoder().encode(input)),
    );
    expect(stderr).toBe(`${input.length} bytes\n`);
    expect(stdout === input).toBe(true);
    expect(code).toBe(7);
  });

  test("an output whose reader has gone ends the run as SIGPIPE ends a program", async () => {
    const script =
      "{ printf first; sleep 0.3; printf second; sleep 3 2>/dev/null & } | " +
      '{ "$0" "$1" run "$2"; echo $? >&2; } | head -c 5';
    const flags = JSON.stringify(run("program"));
    const child = Bun.spawn(["bash", "-c", script, process.execPath, entry, flags], {
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
    });
    expect(await finish(child)).toEqual({ stdout: "first", stderr: "141\n", code: 0 });
  });

  test("a guest that dies first shows the end of its console, without control characters", async () => {
    const { stderr, code } = await finish(spawn("run", run("panic")));
    expect(stderr).toBe(
      "sparkler: the guest's kernel panicked before the program ended: ?[31mout of coffee\n" +
        "The last lines of its console:\n  one\n  Kernel panic - not syncing: ?[31mout of coffee\n",
    );
    expect(code).toBe(1);
  });
});

describe("in one process", () => {
  const backend = new URL("./scripted-cpu.ts", import.meta.url).href;

  async function build(script: string, output: string, events: MicrovmEvents = {}) {
    const fd = openSync(output, "w");
    const source = { fd: openSync(kernel, "r"), path: kernel };
    const log = { id: "t", fd: 2, level: "Error", showLevel: false, showOrigin: false } as const;
    const disk = join(dir, "embedded-disk");
    writeFileSync(disk, Buffer.alloc(64 * 512));
    try {
      const microvm = await buildMicrovm(
        {
          vcpus: 1,
          memMib: 64,
          kernel: source,
          initrd: [],
          bootArgs: `script=${script}`,
          drives: [{ id: "d", path: disk, readOnly: false, root: false, cacheType: "Writeback" }],
          entropy: true,
          serial: { outputFd: fd, keepTail: true },
          bootTimer: false,
          log,
        },
        { backend, events },
      );
      return { microvm, close: () => closeSync(fd) };
    } finally {
      closeSync(source.fd);
    }
  }

  test("machines come and go without leaving descriptors behind", async () => {
    const output = join(dir, "embedded");
    let before = 0;
    for (let i = 0; i < 6; i++) {
      const { microvm, close } = await build("block", output);
      expect(await microvm.ended).toMatchObject({ end: { kind: "reset" } });
      close();
      expect(readFileSync(output, "utf8")).toContain("status=0,0,0,0,1 same=0");
      microvm.stop();
      // The first ones load code and start the runtime's helper threads, which have descriptors of their own.
      if (i === 2) before = readdirSync("/proc/self/fd").length;
    }
    expect(readdirSync("/proc/self/fd").length).toBeLessThanOrEqual(before);
  });

  test("Ctrl-Alt-Del reaches the guest's keyboard", async () => {
    const output = join(dir, "keyboard");
    const { microvm, close } = await build("keyboard", output);
    const end = Date.now() + 4000;
    while (readFileSync(output, "utf8") === "" && Date.now() < end) await Bun.sleep(5);
    microvm.sendCtrlAltDel();
    const { end: reason, consoleTail } = await microvm.ended;
    close();
    expect(reason).toEqual({ kind: "reset" });
    expect(consoleTail).toBe("ready\n14 11 e0 71 ");
  });

  test("stop ends a guest that runs for ever, and a machine that cannot be built leaves no lock", async () => {
    const output = join(dir, "stopped");
    const { microvm, close } = await build("hang", output);
    await expect(build("hang", output)).rejects.toThrow("in use by another microVM");
    microvm.stop();
    expect((await microvm.ended).end).toEqual({ kind: "stopped" });
    close();
    const again = await build("hang", output);
    again.microvm.stop();
    await again.microvm.ended;
    again.close();
  });
});
