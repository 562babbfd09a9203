/** Writing cpio archives in the format that Linux unpacks as initramfs: "newc" (Documentation/driver-api/early-userspace/buffer-format.rst). */

import { ImageError } from "./errors.ts";

const MAGIC = "070701";
const TRAILER = "TRAILER!!!";
const HEADER_SIZE = 110;
/** Sizes are 8 hexadecimal digits. */
const MAX_FIELD = 0xffff_ffff;
/** PATH_MAX: a longer name makes the kernel skip the entry. */
const MAX_NAME = 4096;
const S_IFIFO = 0o010000;
const S_IFCHR = 0o020000;
const S_IFDIR = 0o040000;
const S_IFBLK = 0o060000;
const S_IFREG = 0o100000;
const S_IFLNK = 0o120000;

/** Permission bits and modification time (whole seconds since 1970). Owner and group are always root. */
export interface EntryOptions {
  mode?: number;
  mtime?: number;
}

/** One archive under construction. Paths are guest paths; a leading `/` is dropped. */
export class CpioWriter {
  private readonly parts: Uint8Array[] = [];
  private readonly directories = new Set<string>();
  private length = 0;
  private ino = 1;
  private finished = false;

  /** Adds a directory and, before it, those of its parents that are not in the archive yet (mode 0755). */
  directory(path: string, options: EntryOptions = {}): void {
    const name = this.name(path);
    if (name === "" || this.directories.has(name)) return;
    this.parents(name);
    this.directories.add(name);
    this.entry(name, S_IFDIR | (options.mode ?? 0o755), 2, options.mtime, new Uint8Array(0));
  }

  file(path: string, content: Uint8Array | string, options: EntryOptions = {}): void {
    const data = typeof content === "string" ? Buffer.from(content) : content;
    this.leaf(path, S_IFREG | (options.mode ?? 0o644), options.mtime, data);
  }

  symlink(path: string, target: string, options: EntryOptions = {}): void {
    this.leaf(path, S_IFLNK | 0o777, options.mtime, Buffer.from(target));
  }

  fifo(path: string, options: EntryOptions = {}): void {
    this.leaf(path, S_IFIFO | (options.mode ?? 0o644), options.mtime, new Uint8Array(0));
  }

  /** Adds a device node; `kind` is character or block. */
  device(path: string, kind: "c" | "b", major: number, minor: number, options: EntryOptions = {}): void {
    const type = kind === "c" ? S_IFCHR : S_IFBLK;
    this.leaf(path, type | (options.mode ?? 0o600), options.mtime, new Uint8Array(0), [major, minor]);
  }

  /** Ends the archive. Its length is a multiple of 4, so another archive may follow it directly. */
  finish(): Uint8Array {
    if (!this.finished) this.entry(TRAILER, 0, 1, 0, new Uint8Array(0), [0, 0], 0);
    this.finished = true;
    const archive = new Uint8Array(this.length);
    let at = 0;
    for (const part of this.parts) {
      archive.set(part, at);
      at += part.length;
    }
    return archive;
  }

  private name(path: string): string {
    if (path.includes("\0")) throw new ImageError(`path with a NUL byte: ${JSON.stringify(path)}`);
    const parts = path.split("/").filter((part) => part !== "" && part !== ".");
    if (parts.includes("..")) throw new ImageError(`path with "..": ${path}`);
    return parts.join("/");
  }

  private parents(name: string): void {
    const end = name.lastIndexOf("/");
    if (end > 0) this.directory(name.slice(0, end));
  }

  private leaf(
    path: string,
    mode: number,
    mtime: number | undefined,
    data: Uint8Array,
    rdev?: [number, number],
  ) {
    const name = this.name(path);
    if (name === "" || name === TRAILER)
      throw new ImageError(`not a path for a file: ${JSON.stringify(path)}`);
    this.parents(name);
    this.entry(name, mode, 1, mtime, data, rdev);
  }

  private entry(
    name: string,
    mode: number,
    nlink: number,
    mtime: number | undefined,
    data: Uint8Array,
    rdev: [number, number] = [0, 0],
    ino = this.ino++,
  ): void {
    if (this.finished) throw new Error("the archive is finished");
    const nameBytes = Buffer.from(`${name}\0`);
    if (nameBytes.length > MAX_NAME) throw new ImageError(`path longer than ${MAX_NAME - 1} bytes: ${name}`);
    if (data.length > MAX_FIELD) {
      throw new ImageError(`${name} has ${data.length} bytes: an initramfs holds files of less than 4 GiB`);
    }
    const seconds = Math.min(MAX_FIELD, Math.max(0, Math.floor(mtime ?? 0)));
    const fields = [
      ino,
      mode,
      0,
      0,
      nlink,
      seconds,
      data.length,
      0,
      0,
      rdev[0],
      rdev[1],
      nameBytes.length,
      0,
    ];
    const header = MAGIC + fields.map((field) => field.toString(16).toUpperCase().padStart(8, "0")).join("");
    this.push(Buffer.from(header, "latin1"));
    this.push(nameBytes);
    this.pad(HEADER_SIZE + nameBytes.length);
    this.push(data);
    this.pad(data.length);
  }

  private push(bytes: Uint8Array): void {
    if (bytes.length === 0) return;
    this.parts.push(bytes);
    this.length += bytes.length;
  }

  private pad(length: number): void {
    if (length % 4 !== 0) this.push(new Uint8Array(4 - (length % 4)));
  }
}
