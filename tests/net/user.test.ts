/** `sparkler run --net user`: a guest with a network and a monitor without privileges. */

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { chmodSync, copyFileSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { bootFiles } from "../guests/boot-files.ts";
import {
  finishRuns,
  hostHas,
  Started,
  sparkler,
  TEST_LIMIT,
  temporaryDirectory,
} from "../guests/sparkler.ts";
import { Namespace, noNamespaces } from "./namespace.ts";

/** User and group of nobody. */
const NOBODY = "65534";
const MIB = 2 ** 20;
const FILE_BYTES = Number(process.env.SPARKLER_NET_MIB ?? 16) * MIB;
/** A machine of the network beyond the host. */
const FAR = "198.51.100.1";

function lacking(): string | undefined {
  for (const program of ["passt", "setpriv"]) if (!hostHas(program)) return `${program} is not installed`;
  return noNamespaces();
}

const reason = lacking();
if (reason !== undefined) console.log(`skip: network through passt: ${reason}`);

const dir = temporaryDirectory();
const file = join(dir.path, "data");
const cache = join(dir.path, "cache");
let space: Namespace;
let far: Namespace;
/** Starts the monitor as nobody, in the namespace. */
let prefix: string[];
let boot: string[];

beforeAll(async () => {
  if (reason !== undefined) return;
  const content = Buffer.alloc(FILE_BYTES);
  for (let at = 0; at < FILE_BYTES; at += 65536) crypto.getRandomValues(content.subarray(at, at + 65536));
  writeFileSync(file, content);
  // The cache of whoever runs the tests may be closed to others.
  const files = await bootFiles();
  const kernel = join(dir.path, "vmlinux");
  const initramfs = join(dir.path, "initramfs");
  copyFileSync(files.vmlinux, kernel);
  copyFileSync(files.initramfs, initramfs);
  mkdirSync(cache);
  for (const path of [dir.path, cache]) chmodSync(path, 0o777);
  boot = ["--kernel", kernel, "--initrd", initramfs];

  space = new Namespace();
  far = new Namespace();
  space.connect(far, "198.51.100.2/24", `${FAR}/24`);
  prefix = [
    ...space.prefix,
    ...["setpriv", `--reuid=${NOBODY}`, `--regid=${NOBODY}`, "--clear-groups", "--no-new-privs"],
  ];
}, 120_000);

afterAll(() => {
  space?.remove();
  far?.remove();
  dir.remove();
  finishRuns();
});

const options = () => ({ prefix, env: { XDG_CACHE_HOME: cache, TMPDIR: cache, HOME: cache } });

describe.skipIf(reason !== undefined)("a guest with --net user", () => {
  test(
    "a file down and up again, a forwarded port, and no way to the host's loopback addresses",
    async () => {
      await far.peer("http", file, "7001");
      const take = await far.peer("take", file, "7002");
      await space.peer("serve", file, "7001");
      const script = `
        wget -q -O /tmp/data http://${FAR}:7001/; nc ${FAR} 7002 </tmp/data; wc -c </tmp/data
        (timeout 3 nc 10.0.2.2 7001; true) 2>/dev/null | wc -c
        echo waiting; echo from the guest | nc -l -p 80; echo over`;
      const guest = new Started(
        ["run", ...boot, "--net", "user", "-p", "8080:80", "--", "sh", "-c", script],
        "ignore",
        options(),
      );
      expect(await take.line()).toBe("same");
      await guest.expect(`${FILE_BYTES}\n0\n`);
      await guest.expect("waiting\n");
      expect(await (await space.peer("fetch", "127.0.0.1", "8080")).line()).toBe("from the guest");
      await guest.expect("over\n");
      const { code, stderr, leftProcesses } = await guest.result();
      expect({ code, stderr, leftProcesses }).toEqual({ code: 0, stderr: "", leftProcesses: [] });
    },
    2 * TEST_LIMIT,
  );

  test(
    "a TAP device that this user may not make is refused, and why",
    async () => {
      const argv = ["run", ...boot, "--net", "tap:absent", "--", "true"];
      const { code, stdout, stderr } = await sparkler(argv, options());
      expect({ code, stdout: stdout.toString() }).toEqual({ code: 152, stdout: "" });
      expect(stderr).toMatch(/Open tap device failed: .*(Permission denied|Operation not permitted)/);
    },
    TEST_LIMIT,
  );

  test(
    "a port that is taken ends the run and is named",
    async () => {
      await space.peer("serve", file, "7003");
      const argv = ["run", ...boot, "-p", "7003:80", "--", "sleep", "60"];
      const { code, stderr, ms } = await sparkler(argv, options());
      expect(code).toBe(1);
      expect(stderr).toContain("passt, which carries the guest's network, has ended: ");
      expect(stderr).toContain("7003");
      expect(ms).toBeLessThan(30_000);
    },
    TEST_LIMIT,
  );
});

test("flags that cannot be", async () => {
  // All that the launcher needs, and no passt.
  const programs = join(dir.path, "programs");
  mkdirSync(programs);
  for (const name of ["dirname", "readlink"]) symlinkSync(Bun.which(name)!, join(programs, name));
  const run = async (...flags: string[]) => {
    const { code, stderr } = await sparkler(["run", ...flags, "--", "true"], { env: { PATH: programs } });
    return { code, stderr: stderr.trim() };
  };
  expect(await run("--net", "bridge")).toEqual({
    code: 153,
    stderr: "Error: --net bridge: give user or tap:NAME.",
  });
  for (const publish of ["80", "0:80", "80:65536", "80:80/icmp", "localhost:1:2"]) {
    expect((await run("-p", publish)).stderr).toBe(
      `Error: -p ${publish}: give [ADDRESS:]HOST:GUEST[/udp], with ports from 1 to 65535.`,
    );
  }
  expect((await run("--net", "tap:x", "-p", "1:2")).stderr).toContain("-p is for --net user");
  expect((await run("--net", "user")).stderr).toContain("not installed: apt-get install passt");
});
