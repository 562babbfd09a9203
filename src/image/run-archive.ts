/** The archive that is appended to the default initramfs for one run: the command and the files it needs. */

import { lstatSync, readdirSync, readFileSync, readlinkSync, type Stats, statSync } from "node:fs";
import { basename, join } from "node:path";
import { CpioWriter } from "./cpio.ts";
import { ImageError } from "./errors.ts";

/** A file or directory of the host and the absolute path it gets in the guest. */
export interface AddedPath {
  host: string;
  /** A trailing `/` means: into this directory, under its own name. */
  guest: string;
}

export interface RunArchiveOptions {
  /** Program and arguments, delivered to the guest byte by byte. A program without `/` is looked up in PATH. */
  argv: readonly string[];
  /** Environment on top of PATH and HOME, which a value here replaces. */
  env?: Readonly<Record<string, string>>;
  /** Absolute directory in the guest, `/` if left out; it must exist there. */
  cwd?: string;
  add?: readonly AddedPath[];
}

/** `text` as one word of the shell. */
function quote(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function checkText(what: string, text: string): void {
  if (text.includes("\0")) throw new ImageError(`${what} has a NUL byte: ${JSON.stringify(text)}`);
}

/** @throws ImageError unless `path` is absolute and free of `..`. */
function checkGuestPath(what: string, path: string): void {
  checkText(what, path);
  if (!path.startsWith("/")) throw new ImageError(`${what} must be an absolute path in the guest: ${path}`);
  if (path.split("/").includes("..")) throw new ImageError(`${what} must not have "..": ${path}`);
}

function errnoText(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** Adds `host` as `path`; directories with all that is in them. Sockets are left out, as tar does. */
function addTree(cpio: CpioWriter, host: string, path: string, stats: Stats): void {
  const options = { mode: stats.mode & 0o7777, mtime: stats.mtimeMs / 1000 };
  if (stats.isDirectory()) {
    cpio.directory(path, options);
    for (const name of readdirSync(host).sort()) {
      addTree(cpio, join(host, name), `${path}/${name}`, lstatSync(join(host, name)));
    }
  } else if (stats.isFile()) {
    cpio.file(path, readFileSync(host), options);
  } else if (stats.isSymbolicLink()) {
    cpio.symlink(path, readlinkSync(host), options);
  } else if (stats.isFIFO()) {
    cpio.fifo(path, options);
  } else if (stats.isCharacterDevice() || stats.isBlockDevice()) {
    // Linux new_encode_dev: 12 bits of major, 20 of minor, as stat gives st_rdev.
    const minor = (stats.rdev & 0xff) | ((stats.rdev >>> 12) & 0xfff00);
    cpio.device(path, stats.isBlockDevice() ? "b" : "c", (stats.rdev >>> 8) & 0xfff, minor, options);
  }
}

/**
 * Makes the archive; appended to the default initramfs it makes the guest run `argv`.
 * @throws ImageError on an empty command, a path that is not absolute, a NUL byte, or an unreadable host file.
 */
export function runArchive(options: RunArchiveOptions): Uint8Array {
  const { argv, env = {}, cwd = "/", add = [] } = options;
  if (argv.length === 0 || argv[0] === "") throw new ImageError("no command to run in the guest");
  for (const argument of argv) checkText("an argument of the command", argument);
  for (const [name, value] of Object.entries(env)) {
    if (name === "" || name.includes("=")) {
      throw new ImageError(`not a name for an environment variable: ${JSON.stringify(name)}`);
    }
    checkText("an environment variable", name + value);
  }
  checkGuestPath("the working directory", cwd);

  const cpio = new CpioWriter();
  cpio.directory("/sparkler");
  cpio.file("/sparkler/cmd", `set -- ${argv.map(quote).join(" ")}\n`);
  cpio.file("/sparkler/cwd", `cwd=${quote(cwd)}\n`);
  const assignments = Object.entries(env).map(([name, value]) => quote(`${name}=${value}`));
  cpio.file("/sparkler/env", `set -- ${[...assignments, '"$@"'].join(" ")}\n`);
  if (add.length > 0) {
    const lines: string[] = [];
    add.forEach(({ host, guest }, index) => {
      checkGuestPath("the guest path of an added file", guest);
      let stats: Stats;
      try {
        // What the user names may be a link to what is meant; links further down are carried as links.
        stats = statSync(host);
        if (stats.isSocket()) throw new ImageError("it is a socket");
        addTree(cpio, host, `/sparkler/add/${index}`, stats);
      } catch (error) {
        throw new ImageError(`cannot add ${host} to the guest: ${errnoText(error)}`, { cause: error });
      }
      const into = guest.endsWith("/") && !stats.isDirectory() ? guest + basename(host) : guest;
      lines.push(`add ${index} ${quote(into === "/" ? "/" : into.replace(/\/+$/, ""))}\n`);
    });
    cpio.file("/sparkler/adds", lines.join(""));
  }
  return cpio.finish();
}
