/** The cache directory: every entry is made under a temporary name and appears whole, or not at all. */

import { existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync, statSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { ImageError } from "./errors.ts";
import type { Progress } from "./progress.ts";

/** What every function that makes an image needs. */
export interface ImageOptions {
  /** See {@link defaultCacheDir}. */
  cacheDir: string;
  progress: Progress;
}

/** Temporary entries of a run that was killed are removed after this time, ms. */
const STALE_AFTER = 24 * 3600 * 1000;
const TEMPORARY_PREFIX = ".new-";

/** Removes what killed runs left in `parent`. */
function removeStale(parent: string): void {
  for (const name of readdirSync(parent)) {
    if (!name.startsWith(TEMPORARY_PREFIX)) continue;
    const path = join(parent, name);
    const age = Date.now() - (statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? Date.now());
    if (age > STALE_AFTER) rmSync(path, { recursive: true, force: true });
  }
}

/**
 * Makes an empty directory in `parent`, which is made too; the caller removes or renames it. Should the process
 * be killed first, a later call removes it. @throws ImageError if that place cannot be written to.
 */
export function temporaryDirectory(parent: string): string {
  try {
    mkdirSync(parent, { recursive: true });
    removeStale(parent);
    return mkdtempSync(join(parent, TEMPORARY_PREFIX));
  } catch (cause) {
    throw new ImageError(`cannot write to the cache: ${cause instanceof Error ? cause.message : cause}`, {
      cause,
    });
  }
}

/**
 * Makes the directory `path` with `make` unless it exists. `make` fills a temporary directory beside it, which
 * is then renamed; of several processes that do this at once, the first to finish wins and the others use its.
 */
export async function cachedDirectory(
  path: string,
  make: (temporary: string) => Promise<void>,
): Promise<void> {
  if (existsSync(path)) return;
  const temporary = temporaryDirectory(dirname(path));
  try {
    await make(temporary);
    try {
      renameSync(temporary, path);
    } catch (error) {
      if (!existsSync(path)) throw error;
    }
  } finally {
    rmSync(temporary, { recursive: true, force: true });
  }
}

/** As {@link cachedDirectory} for a file; an existing file is replaced if `replace` is set. */
export async function cachedFile(
  path: string,
  make: () => Promise<Uint8Array | string>,
  replace = false,
): Promise<void> {
  if (!replace && existsSync(path)) return;
  const content = await make();
  const temporary = temporaryDirectory(dirname(path));
  try {
    const file = join(temporary, basename(path));
    await Bun.write(file, content);
    renameSync(file, path);
  } finally {
    rmSync(temporary, { recursive: true, force: true });
  }
}
