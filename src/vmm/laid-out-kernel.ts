/**
 * A kernel's segments as they lie in guest RAM, in a file of the user's cache. It is mapped copy-on-write over guest
 * RAM, which takes microseconds where reading takes tens of milliseconds, and all microVMs of a host share the pages
 * that their guests do not write to. A copy, because nobody writes to that while guests run on it.
 */

import type { KernelPiece } from "../boot/byte-source.ts";
import type { GuestMemory } from "../memory/guest-memory.ts";
import {
  closeFile,
  fileStatus,
  openFile,
  readAt,
  setFileSize,
  syncData,
  writeAt,
} from "../platform/files.ts";
import { mapFilePrivately, misalignment } from "../platform/memory.ts";
import type { FileSource } from "./spec.ts";

const PAGE = 4096;
/** Less than this is read in less time than looking into the cache takes, in bytes. */
const WORTH_IT = 2 ** 20;
/** Images kept when a new one is made. */
const MAX_IMAGES = 4;
const COPY_CHUNK = 2 ** 20;
/** Part of the name: another number makes old images invalid. */
const FORMAT = 1;

/** Pages of guest RAM from `start` to before `end`, guest-physical. */
export interface PageRun {
  start: number;
  end: number;
}

/**
 * Maps `pieces` of `kernel` into `memory`, which must be zero there and inside one RAM region. Returns false, with
 * `memory` as it was, if they are better read or the cache cannot be used.
 */
export function mapLaidOut(
  memory: GuestMemory,
  kernel: FileSource,
  pieces: readonly KernelPiece[],
  cacheDir: string,
): boolean {
  const filled = pieces.filter(({ size }) => size > 0);
  if (filled.reduce((sum, { size }) => sum + size, 0) < WORTH_IT) return false;
  const runs = pageRuns(filled);
  const [first] = runs;
  if (misalignment(memory.slice(first!.start, PAGE), PAGE) !== 0) return false;
  const size = runs.at(-1)!.end - first!.start;

  let fd: number | undefined;
  try {
    const folder = `${cacheDir}/images`;
    const path = `${folder}/${imageName(kernel, filled)}`;
    fd = openImage(path, size) ?? makeImage(folder, path, kernel, filled, first!.start, size);
    for (const { start, end } of runs) {
      mapFilePrivately(memory.slice(start, end - start), fd, start - first!.start);
    }
    return true;
  } catch {
    // Whatever is mapped already holds what would be read there.
    return false;
  } finally {
    if (fd !== undefined) closeFile(fd);
  }
}

/** The pages that the pieces touch, in order, neighbours joined. */
export function pageRuns(pieces: readonly KernelPiece[]): PageRun[] {
  const runs: PageRun[] = [];
  for (const { gpa, size } of pieces.toSorted((a, b) => a.gpa - b.gpa)) {
    const start = Math.floor(gpa / PAGE) * PAGE;
    const end = Math.ceil((gpa + size) / PAGE) * PAGE;
    const last = runs.at(-1);
    if (last !== undefined && start <= last.end) last.end = Math.max(last.end, end);
    else runs.push({ start, end });
  }
  return runs;
}

/** Changes with the file, whatever its name, and with what is taken from it. */
function imageName(kernel: FileSource, pieces: readonly KernelPiece[]): string {
  const { dev, ino, size, mtime, ctime } = fileStatus(kernel.fd);
  const layout = pieces.map((piece) => [piece.gpa, piece.offset, piece.size]);
  const key = `${FORMAT} ${kernel.path} ${dev} ${ino} ${size} ${mtime} ${ctime} ${JSON.stringify(layout)}`;
  return new Bun.CryptoHasher("sha256").update(key).digest("hex").slice(0, 32);
}

function openImage(path: string, size: number): number | undefined {
  let fd: number;
  try {
    fd = openFile(path, { nonblock: true });
  } catch {
    return undefined;
  }
  const status = fileStatus(fd);
  // A page behind the end of a mapped file is a bus error.
  if (status.kind === "file" && status.size === size) return fd;
  closeFile(fd);
  return undefined;
}

/** Lays the pieces out under a temporary name, so that others see the image whole or not at all. */
function makeImage(
  folder: string,
  path: string,
  kernel: FileSource,
  pieces: readonly KernelPiece[],
  origin: number,
  size: number,
): number {
  const { chmodSync, mkdirSync, renameSync, rmSync } = fileSystem();
  mkdirSync(folder, { recursive: true });
  removeOld(folder);
  const partial = `${path}.${process.pid}`;
  const fd = openFile(partial, { write: true, create: true });
  try {
    setFileSize(fd, size);
    for (const piece of pieces) copyPiece(kernel.fd, fd, piece, piece.gpa - origin);
    // After a crash of the host the name must not lead to a file without its content.
    syncData(fd);
    chmodSync(partial, 0o444);
    renameSync(partial, path);
    return fd;
  } catch (error) {
    closeFile(fd);
    rmSync(partial, { force: true });
    throw error;
  }
}

function copyPiece(from: number, to: number, { offset, size }: KernelPiece, at: number): void {
  const chunk = new Uint8Array(Math.min(size, COPY_CHUNK));
  for (let done = 0; done < size; ) {
    const part = chunk.subarray(0, Math.min(chunk.length, size - done));
    if (readAt(from, part, offset + done) !== part.length || writeAt(to, part, at + done) !== part.length) {
      throw new Error("the kernel file or the disk ended early");
    }
    done += part.length;
  }
}

/** Guests that run on an image that is removed keep its pages. */
function removeOld(folder: string): void {
  const { readdirSync, rmSync, statSync } = fileSystem();
  const images = readdirSync(folder).map((name) => {
    const path = `${folder}/${name}`;
    return { path, mtime: statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0 };
  });
  const old = images.sort((a, b) => b.mtime - a.mtime).slice(MAX_IMAGES - 1);
  for (const { path } of old) rmSync(path, { force: true });
}

/** Loaded when an image is made, because it takes as long to load as all else here. */
function fileSystem() {
  return process.getBuiltinModule("node:fs");
}
