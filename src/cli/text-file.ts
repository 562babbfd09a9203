/** Files that the command line names. */

import { closeFile, openFile, readText as readAll } from "../platform/files.ts";
import { ConfigError } from "../vmm/config-error.ts";

/** The content of a file. Throws {@link ConfigError} that begins with `sentence`. */
export function readText(sentence: string, path: string): string {
  let fd: number | undefined;
  try {
    fd = openFile(path);
    return readAll(fd);
  } catch (error) {
    throw new ConfigError(`${sentence}: ${path}: ${error instanceof Error ? error.message : String(error)}`);
  } finally {
    if (fd !== undefined) closeFile(fd);
  }
}
