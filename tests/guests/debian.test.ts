/**
 * An unmodified Debian on a virtio-block disk: programs whose results are known, because the same programs run on
 * the host's own processor, from the same image.
 */

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { cpSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { cachedDirectory } from "../../src/image/cache.ts";
import { bootFiles, TEST_CACHE } from "./boot-files.ts";
import {
  fileInImage,
  finishRuns,
  host,
  hostHas,
  sparkler,
  TEST_LIMIT,
  temporaryDirectory,
} from "./sparkler.ts";

const PACKAGES = ["bzip2", "openssl", "python3", "sqlite3", "xz-utils"];
const PROGRAMS = new URL("./programs", import.meta.url).pathname;

/** Results of the C library's functions may differ in the last bit where they use instructions a guest lacks. */
const BASE_CPU = "GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-FMA,-FMA4";

/** What this machine lacks to make the image and to run programs from it, if anything. */
function lacking(): string | undefined {
  for (const program of ["mmdebstrap", "mke2fs", "e2fsck", "debugfs", "chroot"]) {
    if (!hostHas(program)) return `${program} is not installed`;
  }
  if (process.getuid?.() !== 0 && Bun.spawnSync(["unshare", "--map-root-user", "true"]).exitCode !== 0) {
    return "neither root nor allowed to make user namespaces";
  }
  return undefined;
}

const reason = lacking();
if (reason !== undefined) console.log(`skip: Debian in a guest: ${reason}`);

const dir = temporaryDirectory();
afterAll(() => {
  dir.remove();
  finishRuns();
});

describe.skipIf(reason !== undefined)("Debian", () => {
  /** Has image.ext4, and in root/ the same files for the host. */
  const cached = join(
    TEST_CACHE,
    `debian-${createHash("sha256").update(JSON.stringify(PACKAGES)).digest("hex").slice(0, 12)}`,
  );
  const image = join(dir.path, "debian.ext4");
  const results = new Map<string, Buffer>();

  beforeAll(async () => {
    await bootFiles();
    await cachedDirectory(cached, async (temporary) => {
      const out = join(temporary, "image.ext4");
      const made = await sparkler(
        ["image", "rootfs", "--debian", "--include", PACKAGES.join(","), "--out", out],
        { limit: 300_000 },
      );
      if (made.code !== 0) throw new Error(`cannot make the Debian image: ${made.stderr}`);
      host(["mkdir", join(temporary, "root")]);
      host(["debugfs", "-R", `rdump / ${join(temporary, "root")}`, out]);
    });
    host(["cp", "--sparse=always", join(cached, "image.ext4"), image]);
    host(["e2fsck", "-fn", image]);

    const root = join(cached, "root");
    // Another test run may be using the same root.
    const out = `out-${process.pid}`;
    cpSync(PROGRAMS, join(root, "opt/programs"), { recursive: true });
    const tour = ["env", BASE_CPU, "chroot", root, "sh", "/opt/programs/tour.sh", `/${out}`];
    if (process.getuid?.() === 0) {
      host(["cp", "-a", "/dev/null", "/dev/zero", "/dev/urandom", join(root, "dev")]);
      host(tour);
    } else {
      const mounted = `mount --rbind /dev ${join(root, "dev")} && exec "$@"`;
      host(["unshare", "--map-root-user", "--mount", "sh", "-c", mounted, "sh", ...tour]);
    }
    for (const name of readdirSync(join(root, out))) results.set(name, readFileSync(join(root, out, name)));
    rmSync(join(root, out), { recursive: true });
  }, 400_000);

  test(
    "programs give what they give on the host, and the disk holds it",
    async () => {
      const { code, stdout, stderr, leftFiles } = await sparkler(
        [
          "run",
          "--rootfs",
          image,
          "--add",
          `${PROGRAMS}:/opt/programs`,
          "sh",
          "/opt/programs/tour.sh",
          "/out",
        ],
        { limit: 2 * TEST_LIMIT - 10_000 },
      );
      process.stderr.write(stderr.replace(/^/gm, "          "));
      expect(stdout.toString()).toBe("");
      expect(code).toBe(0);
      expect(leftFiles).toEqual([]);
      host(["e2fsck", "-fn", image]);
      expect([...results.keys()].sort()).toEqual(
        host(["debugfs", "-R", "ls -p /out", image])
          .split("\n")
          .map((line) => line.split("/")[5] ?? "")
          .filter((name) => name !== "" && !name.startsWith("."))
          .sort(),
      );
      for (const [name, expected] of results) {
        const found = fileInImage(image, `/out/${name}`);
        if (found.equals(expected)) continue;
        // The lines that differ say more than that the files do.
        const lines = expected.toString("latin1").split("\n");
        const differing = found
          .toString("latin1")
          .split("\n")
          .map((line, i) => [line, lines[i]])
          .filter(([a, b]) => a !== b);
        expect({ name, differing: differing.slice(0, 10) }).toEqual({ name, differing: [] });
      }
      expect(results.get("rsa")?.toString()).toBe("Verified OK\n");
    },
    2 * TEST_LIMIT,
  );
});
