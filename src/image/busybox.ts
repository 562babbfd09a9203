/** busybox: the user space of the default initramfs, from Debian's package busybox-static. */

import { existsSync, readFileSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { cachedDirectory, cachedFile, type ImageOptions } from "./cache.ts";
import { ImageError } from "./errors.ts";
import { PackageClient } from "./packages.ts";

const PACKAGE = "busybox-static";
/** How the table of applet names begins in the binary: NUL-separated, sorted, ended by an empty name. */
const APPLETS_START = Buffer.from("[\0[[\0");

/** The names that a busybox binary answers to, without running it. @throws ImageError if it is no busybox. */
export function appletNames(binary: Uint8Array): string[] {
  const bytes = Buffer.from(binary.buffer, binary.byteOffset, binary.byteLength);
  const start = bytes.indexOf(APPLETS_START);
  const end = bytes.indexOf("\0\0", start);
  if (start < 0 || end < 0) throw new ImageError("not a busybox with a shell: no applet names found in it");
  return bytes.toString("latin1", start, end).split("\0");
}

/** The path of a static busybox, from the cache or from its Debian package (0.9 MB). */
export async function ensureBusybox(options: ImageOptions): Promise<string> {
  const root = join(options.cacheDir, "busybox");
  const current = join(root, "current");
  if (existsSync(current)) {
    const binary = join(root, readFileSync(current, "utf8").trim(), "busybox");
    if (existsSync(binary)) return binary;
  }
  const client = new PackageClient(options, "or give an initramfs of your own with --initrd");
  const wanted = await client.find(PACKAGE);
  const name = wanted.version.replaceAll(":", "_");
  const dir = join(root, name);
  await cachedDirectory(dir, async (temporary) => {
    // Merged /usr or not: newer Debian has it in /usr/bin.
    await client.unpack(wanted, temporary, ["*bin/busybox"]);
    const found = ["bin", "usr/bin"]
      .map((bin) => join(temporary, bin, "busybox"))
      .find((path) => existsSync(path));
    if (found === undefined) throw new ImageError(`the package ${PACKAGE} ${wanted.version} has no busybox`);
    renameSync(found, join(temporary, "busybox"));
    for (const dir of ["bin", "usr"]) rmSync(join(temporary, dir), { recursive: true, force: true });
  });
  await cachedFile(current, async () => `${name}\n`, true);
  return join(dir, "busybox");
}

const PASSWD = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUP = "root:x:0:\nnogroup:x:65534:\n";
const HOSTS = "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 sparkler\n";

/** What a root file system is written to: an archive, or a directory of the host. Paths are guest paths. */
export interface RootWriter {
  directory(path: string, options?: { mode?: number }): void;
  file(path: string, content: Uint8Array | string, options?: { mode?: number }): void;
  symlink(path: string, target: string): void;
}

/** A small root file system: busybox under all its names in /bin, the usual directories, users root and nobody. */
export function writeBusyboxRoot(root: RootWriter, binary: Uint8Array): void {
  for (const dir of ["/bin", "/dev", "/etc", "/proc", "/sys", "/run", "/usr", "/var"]) root.directory(dir);
  root.directory("/root", { mode: 0o700 });
  root.directory("/tmp", { mode: 0o1777 });
  root.symlink("/sbin", "bin");
  root.symlink("/usr/bin", "../bin");
  root.symlink("/usr/sbin", "../bin");
  root.file("/bin/busybox", binary, { mode: 0o755 });
  for (const name of appletNames(binary)) {
    if (name !== "busybox") root.symlink(`/bin/${name}`, "busybox");
  }
  root.file("/etc/passwd", PASSWD);
  root.file("/etc/group", GROUP);
  root.file("/etc/hosts", HOSTS);
}
