/** `sparkler run --rootfs`: directories, images, and what is on a disk when the monitor was killed. */

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { Random } from "../../src/devices/virtio/testing/fuzz.ts";
import { type BootFiles, bootFiles } from "./boot-files.ts";
import {
  fileInImage,
  finishRuns,
  host,
  hostHas,
  Started,
  sparkler,
  TEST_LIMIT,
  temporaryDirectory,
} from "./sparkler.ts";

const dir = temporaryDirectory();
afterAll(() => {
  dir.remove();
  finishRuns();
});

let files: BootFiles;
beforeAll(async () => {
  files = await bootFiles();
}, 120_000);

const run = (rootfs: string, argv: readonly string[], options: Parameters<typeof sparkler>[1] = {}) =>
  sparkler(["run", "--rootfs", rootfs, ...argv], options);

/** A directory with busybox as the programs `names` in /bin. */
function busyboxRoot(name: string, names: readonly string[]): string {
  const root = join(dir.path, name);
  mkdirSync(join(root, "bin"), { recursive: true });
  const [first, ...others] = names;
  copyFileSync(files.busybox, join(root, "bin", first!));
  chmodSync(join(root, "bin", first!), 0o755);
  for (const other of others) symlinkSync(first!, join(root, "bin", other));
  return root;
}

const SHELL = [
  "busybox",
  "sh",
  "cat",
  "ls",
  "stat",
  "mkdir",
  "cp",
  "mv",
  "rm",
  "dd",
  "sync",
  "mount",
  "sha256sum",
  "seq",
  "cmp",
];

const missing = ["mke2fs", "e2fsck", "debugfs"].filter((program) => !hostHas(program));
if (missing.length > 0)
  console.log(`skip: root file systems of a guest: ${missing.join(" and ")} not installed`);

describe.skipIf(missing.length > 0)("--rootfs", () => {
  test(
    "a directory: its files as they are, changes are lost, nothing stays behind",
    async () => {
      const root = busyboxRoot("shell", SHELL);
      mkdirSync(join(root, "data"));
      writeFileSync(join(root, "data", "empty"), "");
      writeFileSync(join(root, "data", "Ünï cödé"), "content\n", { mode: 0o640 });
      symlinkSync("Ünï cödé", join(root, "data", "link"));
      const script =
        "cat /data/link; stat -c '%a %s %n' /data/*; echo new >/data/new; cat /data/new; " +
        "mount; cat /proc/self/comm; [ -c /dev/null ] && pwd";
      const result = await run(root, ["sh", "-c", script]);
      expect(result.stderr).toBe("");
      expect(result.stdout.toString()).toMatch(
        /^content\n644 0 \/data\/empty\n777 12 \/data\/link\n640 8 \/data\/Ünï cödé\nnew\n\/dev\/vda on \/ type ext4 [\s\S]* on \/proc type proc [\s\S]*cat\n\/\n$/,
      );
      expect(result.code).toBe(0);
      expect(result.leftFiles).toEqual([]);
      expect(readdirSync(join(root, "data")).sort()).toEqual(["empty", "link", "Ünï cödé"]);
    },
    TEST_LIMIT,
  );

  test(
    "a directory with one program and nothing else",
    async () => {
      const root = busyboxRoot("single", ["echo"]);
      const result = await run(root, ["echo", "just", "me"]);
      expect(result.stderr).toBe("");
      expect(result.stdout.toString()).toBe("just me\n");
      expect(result.code).toBe(0);
      const absent = await run(root, ["sh", "-c", "true"]);
      expect(absent.stderr).toBe("sparkler: sh: command not found\n");
      expect(absent.code).toBe(127);
      expect([...result.leftFiles, ...absent.leftFiles]).toEqual([]);
    },
    2 * TEST_LIMIT,
  );

  test(
    "an image keeps what is written, and only one microVM may write to it",
    async () => {
      const image = join(dir.path, "kept.ext4");
      host(["mke2fs", "-q", "-F", "-t", "ext4", "-d", busyboxRoot("kept", SHELL), image, "32M"]);
      const random = new Random(3);
      const input = Uint8Array.from({ length: 3 * 2 ** 20 + 77 }, () => random.below(256));
      const script = `
echo up; cat >/big; mkdir -p /many/deep; for i in $(seq 300); do echo "file $i" >/many/$i; done
for i in $(seq 1 3 300); do rm /many/$i; done; mv /many/2 "/many/deep/a b"; echo written`;
      const first = new Started(["run", "--rootfs", image, "sh", "-c", script], "pipe");
      await first.write(input.subarray(0, 1000));
      await first.expect("up\n");
      const second = await run(image, ["true"]);
      expect(second.stderr).toContain(`is in use by another microVM: ${image}.`);
      expect(second.code).toBe(152);
      await first.write(input.subarray(1000));
      await first.child.stdin?.end();
      const { code, stdout, stderr, leftFiles } = await first.result();
      expect(stderr).toBe("");
      expect(stdout.toString()).toBe("up\nwritten\n");
      expect(code).toBe(0);
      expect(leftFiles).toEqual([]);
      host(["e2fsck", "-fn", image]);
      expect(fileInImage(image, "/big").equals(input)).toBe(true);
      expect(fileInImage(image, "/many/deep/a b").toString()).toBe("file 2\n");
      expect(fileInImage(image, "/many/300").toString()).toBe("file 300\n");

      const again = await run(image, [
        "sh",
        "-c",
        "sha256sum </big; ls /many | busybox wc -l; ls /many/deep",
      ]);
      const digest = new Bun.CryptoHasher("sha256").update(input).digest("hex");
      expect(again.stdout.toString()).toBe(`${digest}  -\n200\na b\n`);
      expect(again.stderr).toBe("");
    },
    2 * TEST_LIMIT,
  );

  test.each([1, 2, 3, 4])(
    "a monitor killed after the guest's sync loses nothing that was synced (seed %d)",
    async (seed) => {
      const random = new Random(seed * 7919);
      const image = join(dir.path, `killed-${seed}.ext4`);
      host(["mke2fs", "-q", "-F", "-t", "ext4", "-d", busyboxRoot(`killed-${seed}`, SHELL), image, "32M"]);
      // Each file is of another size; every third replaces an older one, every fourth is moved into place.
      const script = `
mkdir /d; i=0
while [ $i -lt 400 ]; do
  name=$((i % 3 == 0 ? i / 2 : i))
  dd if=/dev/urandom of=/d/tmp bs=$((1000 + i * 37)) count=$((i % 5 + 1)) 2>/dev/null
  sum=$(sha256sum </d/tmp)
  if [ $((i % 4)) = 0 ]; then mv /d/tmp /d/$name; else cp /d/tmp /d/$name; fi
  sync
  echo "synced $i $name \${sum%% *}"
  i=$((i + 1))
done`;
      const guest = new Started(["run", "--rootfs", image, "sh", "-c", script], "ignore");
      await guest.expect(`synced ${random.below(25)} `);
      await Bun.sleep(random.below(60));
      guest.child.kill("SIGKILL");
      const { code, stdout, leftFiles, leftProcesses } = await guest.result();
      expect(code).toBe("SIGKILL");
      expect({ leftFiles, leftProcesses }).toEqual({ leftFiles: [], leftProcesses: [] });

      const lines = stdout.toString().split("\n").slice(0, -1);
      const synced = new Map(lines.map((line) => line.split(" ").slice(2) as [string, string]));
      expect(synced.size).toBeGreaterThan(0);
      const copy = `${image}.copy`;
      copyFileSync(image, copy);
      // Replays the journal; 1 means that it had something to mend, which a journal replay counts as.
      host(["e2fsck", "-p", copy], [0, 1]);
      host(["e2fsck", "-fn", copy]);
      const next = lines.length;
      const atRisk = String(next % 3 === 0 ? Math.floor(next / 2) : next);
      for (const [name, sum] of synced) {
        // The file that the guest was writing when it died may be the old one or half of the new one.
        if (name === atRisk) continue;
        const digest = new Bun.CryptoHasher("sha256").update(fileInImage(copy, `/d/${name}`)).digest("hex");
        expect({ name, digest }).toEqual({ name, digest: sum });
      }
      for (const file of [copy, image]) rmSync(file);
    },
    TEST_LIMIT,
  );

  test(
    "a disk that is full or whose file is short fails in the guest, not in the monitor",
    async () => {
      const image = join(dir.path, "small.ext4");
      host(["mke2fs", "-q", "-F", "-t", "ext4", "-d", busyboxRoot("small", SHELL), image, "16M"]);
      const full = await run(image, [
        "sh",
        "-c",
        "dd if=/dev/zero of=/x bs=64k 2>&1 | busybox grep -o 'No space.*'; rm /x; echo ok",
      ]);
      expect(full.stdout.toString()).toBe("No space left on device\nok\n");
      expect(full.code).toBe(0);
      host(["e2fsck", "-fn", image]);
      truncateSync(image, 8 * 2 ** 20);
      const short = await run(image, ["true"]);
      expect(short.stderr).toContain("cannot mount /dev/vda as ext4");
      expect(short.code).toBe(1);
      expect(readFileSync(image).length).toBe(8 * 2 ** 20);
    },
    2 * TEST_LIMIT,
  );
});
