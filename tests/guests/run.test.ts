/** `sparkler run` with a real guest: streams, arguments, exit status, and how it ends when the guest does not. */

import { afterAll, describe, expect, test } from "bun:test";
import { chmodSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Random } from "../../src/devices/virtio/testing/fuzz.ts";
import { finishRuns, type Result, Started, sparkler, TEST_LIMIT, temporaryDirectory } from "./sparkler.ts";

const dir = temporaryDirectory();
afterAll(() => {
  dir.remove();
  finishRuns();
});

const run = (argv: readonly string[], options: Parameters<typeof sparkler>[1] = {}) =>
  sparkler(["run", ...argv], options);

/** The guest left nothing behind on the host. */
function expectClean({ leftFiles, leftProcesses }: Result): void {
  expect({ leftFiles, leftProcesses }).toEqual({ leftFiles: [], leftProcesses: [] });
}

/** Shell text that writes to both streams in turn, `lines` times each. */
const INTERLEAVED = 'i=0; while [ $i -lt 200 ]; do echo "out $i"; echo "err $i" >&2; i=$((i + 1)); done';
const numbered = (word: string) => Array.from({ length: 200 }, (_, i) => `${word} ${i}\n`).join("");

test(
  "streams: 1 MiB of any bytes in and out, stdout and stderr unmixed, exit status",
  async () => {
    const random = new Random(1);
    const input = Uint8Array.from({ length: 2 ** 20 }, () => random.below(256));
    const result = await run(
      [
        "sh",
        "-c",
        `tee /tmp/in; sha256sum </tmp/in >&2; cat /tmp/in /tmp/in | dd bs=333 >&2 2>/dev/null; ${INTERLEAVED}; exit 42`,
      ],
      { stdin: input },
    );
    expect(result.code).toBe(42);
    expect(result.stdout.equals(Buffer.concat([input, Buffer.from(numbered("out"))]))).toBe(true);
    const digest = new Bun.CryptoHasher("sha256").update(input).digest("hex");
    const expected = [Buffer.from(`${digest}  -\n`), input, input, Buffer.from(numbered("err"))];
    expect(result.stderrBytes.equals(Buffer.concat(expected))).toBe(true);
    expectClean(result);
  },
  TEST_LIMIT,
);

test(
  "--stats: what the software CPU did, and where its time went",
  async () => {
    const { code, stdout, stderr } = await run(["--accel", "soft", "--stats", "sh", "-c", "echo done"]);
    expect([code, stdout.toString()]).toEqual([0, "done\n"]);
    const counted = new Map(
      [...stderr.matchAll(/^ *(\d+) {2}(.+)$/gm)].map(([, value, name]) => [name!, Number(value)]),
    );
    for (const name of ["instructions", "tlbMisses", "slowAccesses", "helperCalls", "exits: decode"]) {
      expect([name, counted.get(name)! > 0]).toEqual([name, true]);
    }
    const times = [...counted.keys()].filter((name) => name.startsWith("ms: "));
    expect(times).toContain("ms: code");
    expect(times).toContain("ms: slow accesses");
    expect(times).toContain("ms: compiling");
    const reasons = [...counted.keys()].filter(
      (name) => name.startsWith("exits: ") && !name.endsWith("returned"),
    );
    expect(times.filter((name) => name.startsWith("ms: exits: "))).toEqual(
      reasons.map((name) => `ms: ${name}`),
    );
    expect(counted.get("ms: code")).toBeGreaterThan(0);
    expect(counted.get("ms: exits: decode")).toBeGreaterThan(0);
  },
  TEST_LIMIT,
);

test(
  "stdin arrives while it is written, and its end is seen; without one there is an end at once",
  async () => {
    const guest = new Started(
      ["run", "sh", "-c", 'while read -r line; do echo "<$line>"; done; echo over'],
      "pipe",
    );
    await guest.write("first\n");
    await guest.expect("<first>\n");
    await guest.write("second\nthi");
    await guest.expect("<second>\n");
    await guest.write("rd\n");
    await guest.expect("<third>\n");
    await guest.child.stdin?.end();
    const { code, stdout } = await guest.result();
    expect(stdout.toString()).toBe("<first>\n<second>\n<third>\nover\n");
    expect(code).toBe(0);
  },
  TEST_LIMIT,
);

test(
  "arguments, environment, working directory and added files arrive exactly",
  async () => {
    const tree = join(dir.path, "tree");
    mkdirSync(join(tree, "sub dir"), { recursive: true });
    writeFileSync(
      join(tree, "sub dir", "data"),
      Uint8Array.from({ length: 256 }, (_, i) => i),
    );
    writeFileSync(join(dir.path, "script"), '#!/bin/sh\nprintf "<%s>" "$0" "$@"\n');
    chmodSync(join(dir.path, "script"), 0o755);
    writeFileSync(join(dir.path, "secret"), "s");
    chmodSync(join(dir.path, "secret"), 0o400);
    const script = `
for a; do printf '[%s]' "$a"; done; echo
pwd; printf '%s|%s|%s\\n' "$EMPTY" "$MULTI" "\${UNSET-unset}"
/opt/new/script 'x  y' ''; echo
stat -c '%a %n' /opt/new/script /etc/secret /tree/*; od -An -tx1 '/tree/sub dir/data' | tr -d ' \\n'; echo
wc -c; exit 0`;
    const result = await run([
      ...["--env", "EMPTY=", "--env", "MULTI=a=b\nc", "--workdir", "/tmp"],
      ...["--add", `${join(dir.path, "script")}:/opt/new/`, "--add", `${tree}:/tree`],
      ...["--add", `${join(dir.path, "secret")}:/etc/secret`],
      ...["sh", "-c", script, "sh"],
      ...["", "a b", "new\nline\n", "it's", '"', "--", "--mem", "É", "*", "$HOME", "\\n", "-x"],
    ]);
    const hex = Array.from({ length: 256 }, (_, i) => i.toString(16).padStart(2, "0")).join("");
    expect(result.stdout.toString()).toBe(
      `[][a b][new\nline\n][it's]["][--][--mem][É][*][$HOME][\\n][-x]\n` +
        `/tmp\n|a=b\nc|unset\n</opt/new/script><x  y><>\n` +
        `755 /opt/new/script\n400 /etc/secret\n755 /tree/sub dir\n${hex}\n0\n`,
    );
    expect(result.stderr).toBe("");
    expect(result.code).toBe(0);
    expectClean(result);
  },
  TEST_LIMIT,
);

describe("exit status", () => {
  test.each([
    ["command not found", ["nosuch", "x"], 127, /^sparkler: nosuch: command not found\n$/],
    ["no such file", ["--", "/bin/nosuch"], 127, /^sparkler: \/bin\/nosuch: command not found\n$/],
    ["not executable", ["/etc/passwd"], 126, /^sparkler: \/etc\/passwd: not an executable file\n$/],
    ["a directory", ["--", "/tmp"], 126, /^sparkler: \/tmp: not an executable file\n$/],
    ["killed by SIGKILL", ["sh", "-c", "kill -KILL $$"], 137, /^$/],
    ["killed by SIGSEGV", ["sh", "-c", "kill -SEGV $$"], 139, /^$/],
    [
      "255, and flags after the command are its own",
      ["--", "sh", "-c", 'exit "$2"', "--mem", "0", "255"],
      255,
      /^$/,
    ],
  ] as const)(
    "%s",
    async (_, argv, code, stderr) => {
      const result = await run(argv);
      expect(result.stderr).toMatch(stderr);
      expect(result.stdout.toString()).toBe("");
      expect(result.code).toBe(code);
      expectClean(result);
    },
    TEST_LIMIT,
  );
});

describe("the guest ends before the program", () => {
  test(
    "a kernel panic is told by its reason",
    async () => {
      const result = await run(["sh", "-c", "echo before; echo c >/proc/sysrq-trigger"]);
      expect(result.stdout.toString()).toBe("before\n");
      expect(result.stderr).toStartWith(
        "sparkler: the guest's kernel panicked before the program ended: sysrq triggered crash\n",
      );
      expect(result.code).toBe(1);
      expectClean(result);
    },
    TEST_LIMIT,
  );

  test(
    "a restart, and with --console the kernel's log on stderr only",
    async () => {
      const result = await run(["--console", "sh", "-c", "echo out; reboot -f"]);
      expect(result.stdout.toString()).toBe("out\n");
      expect(result.stderr).toMatch(/^\[ +0\.000000\] Linux version /);
      expect(result.stderr).toContain("Run /init as init process");
      expect(result.stderr).toContain("sparkler: the guest restarted before the program ended.\n");
      expect(result.code).toBe(1);
      expectClean(result);
    },
    TEST_LIMIT,
  );

  test(
    "a signal to the monitor",
    async () => {
      const guest = new Started(["run", "sh", "-c", "echo up; sleep 1000"], "pipe");
      await guest.expect("up\n");
      guest.child.kill("SIGTERM");
      const result = await guest.result();
      expect(result.code).toBe(128 + 15);
      expect(result.stderr).toBe("");
      expectClean(result);
    },
    TEST_LIMIT,
  );

  test(
    "nobody reads the program's output any more",
    async () => {
      const guest = new Started(["run", "yes"], "ignore");
      await guest.expect("y\ny\n");
      await guest.stopReading();
      const result = await guest.result();
      expect(result.code).toBe(128 + 13);
      expect(result.stderr).toBe("");
      expectClean(result);
    },
    TEST_LIMIT,
  );
});

test(
  "most of the memory that a guest can have",
  async () => {
    const script =
      "grep MemTotal /proc/meminfo; dd if=/dev/urandom of=/tmp/a bs=1M count=8 2>/dev/null; cp /tmp/a /tmp/b; cmp /tmp/a /tmp/b && echo same";
    const { stdout, stderr, code } = await run(["--mem", "3072", "sh", "-c", script]);
    expect(stderr).toBe("");
    const [total, same] = stdout.toString().split("\n");
    expect(Number(/\d+/.exec(total ?? "")?.[0])).toBeGreaterThan(2.8 * 2 ** 20);
    expect(same).toBe("same");
    expect(code).toBe(0);
  },
  TEST_LIMIT,
);
