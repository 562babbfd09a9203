import { afterAll, beforeEach, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { dependencyNames, PackageClient, parseControl } from "./packages.ts";
import { silentProgress } from "./progress.ts";

test("control fields, folded ones too", () => {
  const fields = parseControl("Package: a\nDepends: b (= 1),\n c | d\nDescription: x\n long\n .");
  expect(fields.get("package")).toBe("a");
  expect(fields.get("description")).toBe("x\nlong\n.");
  expect(dependencyNames(fields.get("depends") ?? "")).toEqual(["b", "c"]);
  expect(dependencyNames("libc6:amd64 (>= 2), python3:any | x, foo [amd64] <!nocheck>, ")).toEqual([
    "libc6",
    "python3",
    "foo",
  ]);
});

describe("PackageClient", () => {
  const dir = mkdtempSync(join(tmpdir(), "sparkler-apt-"));
  const path = process.env.PATH;
  const bin = join(dir, "bin");
  const log = join(dir, "log");
  const options = { cacheDir: join(dir, "cache"), progress: silentProgress };
  afterAll(() => {
    process.env.PATH = path;
    rmSync(dir, { recursive: true });
  });
  /** Stands in for apt: a shell script of that name, first in PATH. */
  const stub = (name: string, script: string) =>
    writeFileSync(join(bin, name), `#!/bin/sh\necho "${name} $*" >>'${log}'\n${script}\n`, { mode: 0o755 });
  beforeEach(() => {
    rmSync(bin, { recursive: true, force: true });
    mkdirSync(bin);
    writeFileSync(log, "");
    process.env.PATH = `${bin}:${path}`;
  });
  const show = (version: string) =>
    `printf 'Package: p\\nVersion: ${version}\\nSize: 10\\nDepends: q (= 1)\\n'`;
  /** A package with the files /etc/wanted and /etc/other, as \`deb\`. */
  const buildDeb = () => {
    const root = join(dir, "root");
    mkdirSync(join(root, "DEBIAN"), { recursive: true });
    mkdirSync(join(root, "etc"), { recursive: true });
    writeFileSync(
      join(root, "DEBIAN", "control"),
      "Package: p\nVersion: 1\nArchitecture: all\nMaintainer: n\nDescription: d\n",
    );
    writeFileSync(join(root, "etc", "wanted"), "content");
    writeFileSync(join(root, "etc", "other"), "");
    const deb = join(dir, "p.deb");
    expect(Bun.spawnSync(["dpkg-deb", "-b", root, deb]).exitCode).toBe(0);
    return deb;
  };

  test("finds a package with the system's lists", async () => {
    stub("apt-cache", show("1:2-3"));
    expect(await new PackageClient(options, "x").find("p")).toEqual({
      name: "p",
      version: "1:2-3",
      size: 10,
      depends: ["q"],
    });
    expect(readFileSync(log, "utf8")).not.toContain("apt-get update");
  });

  test("without lists it fetches its own into the cache, once", async () => {
    stub(
      "apt-cache",
      `case "$*" in *Dir::State::lists=${options.cacheDir}*) ${show("5")};; *) exit 100;; esac`,
    );
    stub("apt-get", "");
    const client = new PackageClient(options, "x");
    expect((await client.find("p")).version).toBe("5");
    await client.find("p");
    expect(readFileSync(log, "utf8").match(/apt-get .* update/g)).toHaveLength(1);
    expect(readFileSync(join(options.cacheDir, "apt", "state", "apt.conf"), "utf8")).toContain(
      "#clear APT::Update",
    );
  });

  test("an unknown package, and a failed update, are errors that say what else to do", async () => {
    stub("apt-cache", "exit 100");
    stub("apt-get", "");
    await expect(new PackageClient(options, "or use --kernel").find("p")).rejects.toThrow(
      "apt knows no package p (are Debian's package sources configured?); or use --kernel",
    );
    stub("apt-get", "echo 'E: no network' >&2; exit 100");
    await expect(new PackageClient(options, "or use --kernel").find("p")).rejects.toThrow(
      "apt-get update failed: E: no network; or use --kernel",
    );
  });

  test("without apt it says so", async () => {
    process.env.PATH = bin;
    await expect(new PackageClient(options, "or use --kernel").find("p")).rejects.toThrow(
      "apt-cache is not installed: it is needed to fetch Debian packages; or use --kernel",
    );
  });

  test.skipIf(Bun.which("dpkg-deb") === null)(
    "unpacks only what is wanted, with an update if the version is gone",
    async () => {
      const deb = buildDeb();
      stub("apt-cache", show("2"));
      stub("apt-get", `case "$*" in *p=1) exit 100;; *p=2) cp '${deb}' p_2_all.deb;; esac`);
      const into = join(dir, "into");
      mkdirSync(into);
      const client = new PackageClient(options, "x");
      await client.unpack({ name: "p", version: "1", size: 10, depends: [] }, into, ["./etc/wan*"]);
      expect(readdirSync(join(into, "etc"))).toEqual(["wanted"]);
      expect(readFileSync(log, "utf8")).toMatch(/p=1.*update.*p=2/s);
      expect(readdirSync(join(options.cacheDir, "apt"))).toEqual(["state"]);
    },
  );

  test("a failed download is told in apt's words", async () => {
    stub("apt-cache", show("1"));
    stub("apt-get", 'case "$*" in *download*) echo "E: 404" >&2; exit 100;; esac');
    await expect(
      new PackageClient(options, "x").unpack({ name: "p", version: "1", size: 1, depends: [] }, dir, ["*"]),
    ).rejects.toThrow("cannot download p 1: E: 404");
  });
});
