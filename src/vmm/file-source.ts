/** Kernel and initrd files as the boot loader reads them: straight into guest RAM. */

import { type ByteSource, bufferSource } from "../boot/byte-source.ts";
import { SystemError } from "../platform/errno.ts";
import { closeFile, fileStatus, openFile, readAt } from "../platform/files.ts";
import { addressOf } from "../platform/memory.ts";
import { ConfigError } from "./config-error.ts";
import { mapLaidOut, pageRuns } from "./laid-out-kernel.ts";
import type { HostRange } from "./reclaim.ts";
import type { FileSource } from "./spec.ts";

/** Opens a kernel or initrd. Throws {@link ConfigError} that begins with `sentence`. */
export function openBootFile(sentence: string, path: string): FileSource {
  let fd: number;
  try {
    // Non-blocking: a FIFO given by mistake must not hang here.
    fd = openFile(path, { nonblock: true });
  } catch (error) {
    if (error instanceof SystemError || error instanceof RangeError) {
      throw new ConfigError(`${sentence} ${error.message}`);
    }
    throw error;
  }
  const { kind } = fileStatus(fd);
  if (kind === "file" || kind === "block") return { fd, path };
  closeFile(fd);
  throw new ConfigError(`${sentence} ${path} is a ${kind}`);
}

/** The whole of an open file. */
export function fileSource(file: FileSource): ByteSource {
  return {
    size: fileStatus(file.fd).size,
    read: (offset, into) => readAt(file.fd, into, offset),
  };
}

/**
 * An open kernel file. What a guest needs of it is kept in `cacheDir` as it lies in RAM. `onMapped` is told where a file
 * may be mapped then.
 */
export function kernelSource(
  file: FileSource,
  cacheDir: string,
  onMapped?: (ranges: HostRange[]) => void,
): ByteSource {
  return {
    ...fileSource(file),
    place(memory, pieces) {
      const placed = mapLaidOut(memory, file, pieces, cacheDir);
      const runs = pageRuns(pieces.filter(({ size }) => size > 0));
      // Also after a failure: it may have come in the middle.
      onMapped?.(
        runs.map(({ start, end }) => {
          const address = addressOf(memory.slice(start, end - start));
          return { start: address, end: address + end - start };
        }),
      );
      return placed;
    },
  };
}

/** Linux wants each archive of a concatenated initramfs to begin on a multiple of 4 (buffer-format.rst). */
const ARCHIVE_ALIGNMENT = 4;

/** Files and archives one behind the other, zeros between them up to a multiple of 4. */
export function concatenated(parts: readonly (FileSource | Uint8Array)[]): ByteSource {
  const pieces: { start: number; source: ByteSource }[] = [];
  let size = 0;
  for (const part of parts) {
    const start = Math.ceil(size / ARCHIVE_ALIGNMENT) * ARCHIVE_ALIGNMENT;
    const source = part instanceof Uint8Array ? bufferSource(part) : fileSource(part);
    pieces.push({ start, source });
    size = start + source.size;
  }
  return {
    size,
    read(offset, into) {
      let done = 0;
      while (done < into.length && offset + done < size) {
        const at = offset + done;
        const next = pieces.find(({ start, source }) => at < start + source.size)!;
        if (at < next.start) {
          const gap = Math.min(next.start - at, into.length - done);
          into.fill(0, done, done + gap);
          done += gap;
          continue;
        }
        const room = into.subarray(
          done,
          done + Math.min(into.length - done, next.start + next.source.size - at),
        );
        const count = next.source.read(at - next.start, room);
        if (count === 0) break;
        done += count;
      }
      return done;
    },
  };
}
