import { afterAll, describe, expect, test } from "bun:test";
import { chmodSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, utimesSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { readNewc } from "./newc.testkit.ts";
import { type RunArchiveOptions, runArchive } from "./run-archive.ts";

const dir = mkdtempSync(join(tmpdir(), "sparkler-run-"));
afterAll(() => rmSync(dir, { recursive: true }));

const text = (options: RunArchiveOptions, name: string) =>
  readNewc(runArchive(options)).get(name)?.data.toString();

/** What a shell makes of `script`: its positional parameters, NUL-terminated. */
function parameters(script: string, ...before: string[]): string[] {
  const result = Bun.spawnSync(["sh", "-c", `${script}\nprintf '%s\\0' "$@"`, "sh", ...before]);
  expect(result.exitCode).toBe(0);
  return result.stdout.toString().split("\0").slice(0, -1);
}

describe("runArchive", () => {
  test("arguments and environment reach a shell byte by byte", () => {
    const argv = [
      "-n",
      "",
      "a\nb\n",
      "it's",
      "'",
      '$(id) `id` \\ " * ~',
      "\u0081É\u{1f386}",
      " ",
      "--",
      "\t",
    ];
    const env = { "A.B": "x=y'z", EMPTY: "", LINES: "1\n2\n" };
    expect(parameters(text({ argv, env }, "sparkler/cmd") ?? "")).toEqual(argv);
    expect(parameters(text({ argv, env }, "sparkler/env") ?? "", "prog", "arg")).toEqual([
      "A.B=x=y'z",
      "EMPTY=",
      "LINES=1\n2\n",
      "prog",
      "arg",
    ]);
    expect(text({ argv, cwd: "/it's" }, "sparkler/cwd")).toBe("cwd='/it'\\''s'\n");
    expect(text({ argv }, "sparkler/adds")).toBeUndefined();
  });

  test("adds files and directories as they are", async () => {
    const tree = join(dir, "tree");
    mkdirSync(join(tree, "sub"), { recursive: true });
    writeFileSync(join(tree, "sub", "run.sh"), "#!/bin/sh\n");
    chmodSync(join(tree, "sub", "run.sh"), 0o751);
    utimesSync(join(tree, "sub", "run.sh"), 1_600_000_000, 1_600_000_000);
    symlinkSync("sub/run.sh", join(tree, "link"));
    symlinkSync(tree, join(dir, "to-tree"));
    const server = createServer().listen(join(tree, "socket"));
    await new Promise((listening) => server.once("listening", listening));
    const entries = readNewc(
      runArchive({
        argv: ["x"],
        add: [
          { host: join(dir, "to-tree"), guest: "/opt/tree/" },
          { host: join(tree, "sub", "run.sh"), guest: "/usr/local/bin/" },
          { host: join(tree, "sub", "run.sh"), guest: "/it's" },
          { host: tree, guest: "/" },
        ],
      }),
    );
    server.close();
    expect(entries.get("sparkler/adds")?.data.toString().split("\n")).toEqual([
      "add 0 '/opt/tree'",
      "add 1 '/usr/local/bin/run.sh'",
      "add 2 '/it'\\''s'",
      "add 3 '/'",
      "",
    ]);
    expect(entries.get("sparkler/add/0/sub/run.sh")).toMatchObject({ mode: 0o100751, mtime: 1_600_000_000 });
    expect(entries.get("sparkler/add/0/link")?.data.toString()).toBe("sub/run.sh");
    expect(entries.get("sparkler/add/1")?.data.toString()).toBe("#!/bin/sh\n");
    expect(entries.has("sparkler/add/0/socket")).toBe(false);
  });

  test("says what is wrong", () => {
    const add = (host: string, guest: string) => () => runArchive({ argv: ["x"], add: [{ host, guest }] });
    expect(() => runArchive({ argv: [] })).toThrow("no command");
    expect(() => runArchive({ argv: ["", "a"] })).toThrow("no command");
    expect(() => runArchive({ argv: ["a\0b"] })).toThrow("NUL byte");
    expect(() => runArchive({ argv: ["a"], cwd: "tmp" })).toThrow(
      "working directory must be an absolute path",
    );
    expect(() => runArchive({ argv: ["a"], env: { "A=B": "" } })).toThrow('"A=B"');
    expect(() => runArchive({ argv: ["a"], env: { "": "" } })).toThrow("not a name");
    expect(add("/etc/hosts", "hosts")).toThrow("absolute path in the guest: hosts");
    expect(add("/etc/hosts", "/a/../b")).toThrow('".."');
    expect(add(join(dir, "absent"), "/a")).toThrow(/^cannot add .*absent to the guest: .*no such file/i);
  });
});
