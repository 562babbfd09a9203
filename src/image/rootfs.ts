/** Root file systems: ext4 images from a directory, of busybox, or of Debian packages. */

import {
  chmodSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { dirname, join, resolve } from "node:path";
import { ensureBusybox, type RootWriter, writeBusyboxRoot } from "./busybox.ts";
import { type ImageOptions, temporaryDirectory } from "./cache.ts";
import { ImageError } from "./errors.ts";
import type { Progress } from "./progress.ts";
import { runOk } from "./spawn.ts";

const BLOCK_SIZE = 4096;
/** Free space in an image of automatic size, bytes, besides the 30 % on top of its content. */
const SLACK = 16 * 2 ** 20;
/** Smallest image: room for a journal of the smallest size that mke2fs makes by itself. */
const MIN_SIZE = 16 * 2 ** 20;
const MKE2FS_MISSING = "it is needed to make ext4 images; install the package e2fsprogs";
const MKE2FS = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", String(BLOCK_SIZE), "-E", "root_owner=0:0"];

/** Where mke2fs is found when PATH lacks the system directories, as it does for ordinary users on Debian. */
function mke2fs(): string[] {
  const path = `${process.env.PATH ?? ""}:/usr/sbin:/sbin`;
  return [Bun.which("mke2fs", { PATH: path }) ?? "mke2fs", ...MKE2FS.slice(1)];
}

/** Bytes that the files below `dir` take in blocks of an ext4 file system, with an inode and a block for each. */
function contentSize(dir: string): number {
  let size = BLOCK_SIZE;
  for (const name of readdirSync(dir)) {
    const path = join(dir, name);
    const stats = lstatSync(path);
    if (stats.isDirectory()) size += contentSize(path);
    else size += BLOCK_SIZE / 8 + Math.ceil(stats.size / BLOCK_SIZE) * BLOCK_SIZE;
  }
  return size;
}

/** Size of the image for `content` bytes of files, bytes. */
function imageSize(content: number): number {
  return Math.ceil((content * 1.3 + SLACK) / BLOCK_SIZE) * BLOCK_SIZE;
}

/** @throws ImageError unless `size` is a sensible number of bytes. */
function checkSize(size: number): void {
  if (!Number.isSafeInteger(size) || size < MIN_SIZE) {
    throw new ImageError(`an image of ${size} bytes: it must have at least ${MIN_SIZE / 2 ** 20} MiB`);
  }
}

/** Runs `make` on a temporary path beside `out` and moves the result to `out`. */
async function makeFile(out: string, make: (temporary: string) => Promise<void>): Promise<void> {
  let temporary: string;
  try {
    temporary = mkdtempSync(join(dirname(resolve(out)), ".new-"));
  } catch (cause) {
    throw new ImageError(`cannot write ${out}: ${cause instanceof Error ? cause.message : cause}`, { cause });
  }
  try {
    const file = join(temporary, "image");
    await make(file);
    renameSync(file, out);
  } finally {
    rmSync(temporary, { recursive: true, force: true });
  }
}

/**
 * Makes the ext4 image `out` from the directory `dir`, `size` bytes large, or as large as its content asks for.
 * Owners are taken over as they are. An existing `out` is replaced when the new one is complete.
 * @throws ImageError if `dir` is no directory, mke2fs is not installed, or the content does not fit.
 */
export async function makeExt4(dir: string, out: string, size?: number): Promise<void> {
  if (!statSync(dir, { throwIfNoEntry: false })?.isDirectory()) {
    throw new ImageError(`${dir} is not a directory: an image is made from a directory`);
  }
  const bytes = size ?? imageSize(contentSize(dir));
  checkSize(bytes);
  await makeFile(out, async (temporary) => {
    writeFileSync(temporary, "");
    truncateSync(temporary, bytes);
    await runOk([...mke2fs(), "-d", dir, temporary], { missing: MKE2FS_MISSING });
  });
}

/** Writes a root file system below a directory of the host. */
function directoryWriter(dir: string): RootWriter {
  return {
    directory(path, { mode = 0o755 } = {}) {
      mkdirSync(join(dir, path), { recursive: true });
      // mkdir's mode is cut by the umask.
      chmodSync(join(dir, path), mode);
    },
    file(path, content, { mode = 0o644 } = {}) {
      writeFileSync(join(dir, path), content);
      chmodSync(join(dir, path), mode);
    },
    symlink(path, target) {
      symlinkSync(target, join(dir, path));
    },
  };
}

export interface RootfsOptions extends ImageOptions {
  /** The image file to write. */
  out: string;
  /** Bytes; by default as much as the content asks for. */
  size?: number;
}

/** Makes an ext4 image with nothing but busybox. @throws ImageError */
export async function busyboxRootfs(options: RootfsOptions): Promise<void> {
  const binary = await Bun.file(await ensureBusybox(options)).bytes();
  const dir = temporaryDirectory(options.cacheDir);
  try {
    writeBusyboxRoot(directoryWriter(dir), binary);
    await makeExt4(dir, options.out, options.size);
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

export interface DebianRootfsOptions {
  out: string;
  /** Packages besides the essential ones and apt. */
  packages: readonly string[];
  /** Debian's code name or `stable`; by default this system's, if it is a Debian. */
  suite?: string;
  size?: number;
  progress: Progress;
}

/** Code name of the Debian that this machine runs, from os-release(5). */
async function hostSuite(): Promise<string | undefined> {
  const release = Bun.file("/etc/os-release");
  const text = (await release.exists()) ? await release.text() : "";
  if (!/^ID=debian$/m.test(text)) return undefined;
  return /^VERSION_CODENAME="?([a-z]+)"?$/m.exec(text)?.[1];
}

/**
 * Makes an ext4 image of a minimal Debian with `packages`, by mmdebstrap; root is not needed where the kernel
 * lets users make namespaces.
 * @throws ImageError if mmdebstrap or mke2fs is not installed or fails.
 */
export async function debianRootfs(options: DebianRootfsOptions): Promise<void> {
  const { packages, out, size, progress } = options;
  for (const name of packages) {
    if (!/^[a-z0-9][a-z0-9+.:-]*$/.test(name))
      throw new ImageError(`not the name of a Debian package: ${name}`);
  }
  if (size !== undefined) checkSize(size);
  const suite = options.suite ?? (await hostSuite()) ?? "stable";
  const include = packages.length === 0 ? [] : [`--include=${packages.join(",")}`];
  await makeFile(out, async (temporary) => {
    const tar = `${temporary}.tar`;
    const step = progress.start(`Installing Debian ${suite}`);
    try {
      await runOk(["mmdebstrap", "--quiet", "--variant=minbase", "--format=tar", ...include, suite, tar], {
        missing: "it is needed for Debian root file systems; install the package mmdebstrap",
      });
    } finally {
      step.finish();
    }
    const writing = progress.start("Writing the image");
    try {
      await imageFromTar(tar, temporary, size);
    } finally {
      writing.finish();
    }
  });
}

/** Unpacks `$1` to `$2`, makes the image `$3` of `$4` bytes (or by its content and `$5`); the rest is mke2fs's call. */
const IMAGE_FROM_TAR = `set -e
tar=$1 dir=$2 image=$3 size=$4 slack=$5
shift 5
mkdir "$dir"
tar -x -p --numeric-owner --exclude='./dev/*' -C "$dir" -f "$tar"
[ "$size" -gt 0 ] || size=$(( $(du -s -k "$dir" | cut -f 1) * 1331 + slack ))
truncate -s $(( (size + 4095) / 4096 * 4096 )) "$image"
status=0
"$@" -d "$dir" "$image" || status=$?
rm -rf "$dir"
exit $status`;

/** Makes the image `out` from a tar archive, with the archive's owners, for which a user needs a namespace. */
async function imageFromTar(tar: string, out: string, size: number | undefined): Promise<void> {
  const [program, ...flags] = mke2fs();
  if (Bun.which(program) === null) throw new ImageError(`mke2fs is not installed: ${MKE2FS_MISSING}`);
  const namespace = process.getuid?.() === 0 ? [] : ["unshare", "--user", "--map-root-user", "--map-auto"];
  const parameters = [tar, `${out}.d`, out, String(size ?? 0), String(SLACK)];
  await runOk([...namespace, "sh", "-c", IMAGE_FROM_TAR, "sh", ...parameters, program, ...flags], {
    missing: "it is needed to give files their owners; install the package util-linux, or run this as root",
  });
}
