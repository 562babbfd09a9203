/** Recognising and undoing the compressions that Linux images and modules come in. */

import { gunzipSync, zstdDecompressSync } from "node:zlib";
import { ImageError } from "./errors.ts";
import { decompressLz4Legacy } from "./lz4.ts";
import { isInstalled, runOk } from "./spawn.ts";

export type Compression = "gzip" | "xz" | "lzma" | "zstd" | "lz4" | "bzip2" | "lzo";

const MAGIC: readonly [Compression, readonly number[]][] = [
  ["gzip", [0x1f, 0x8b]],
  ["xz", [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00]],
  ["zstd", [0x28, 0xb5, 0x2f, 0xfd]],
  ["lz4", [0x02, 0x21, 0x4c, 0x18]],
  ["bzip2", [0x42, 0x5a, 0x68]],
  ["lzo", [0x89, 0x4c, 0x5a, 0x4f, 0x00, 0x0d, 0x0a, 0x1a]],
  // lc=3 lp=0 pb=2, the only properties in use, and a dictionary that is a multiple of 64 KiB.
  ["lzma", [0x5d, 0x00, 0x00]],
];

/** Programs for what the runtime cannot do itself. */
const PROGRAMS: Record<"xz" | "lzma" | "bzip2" | "lzo", { argv: string[]; package: string }> = {
  xz: { argv: ["xz", "-dc"], package: "xz-utils" },
  lzma: { argv: ["xz", "--format=lzma", "-dc"], package: "xz-utils" },
  bzip2: { argv: ["bzip2", "-dc"], package: "bzip2" },
  lzo: { argv: ["lzop", "-dc"], package: "lzop" },
};

/** The compression that `bytes` begin with, by magic number. */
export function detectCompression(bytes: Uint8Array): Compression | undefined {
  return MAGIC.find(([, magic]) => magic.every((byte, i) => bytes[i] === byte))?.[0];
}

/** Whether {@link decompress} can do `kind` on this machine. */
export function canDecompress(kind: Compression): boolean {
  return kind === "gzip" || kind === "zstd" || kind === "lz4" || isInstalled(PROGRAMS[kind].argv[0]);
}

/**
 * Decompresses `bytes`, which hold one `kind` stream and nothing after it. lz4 needs `size`, the number of
 * bytes that come out; for the others it is not used.
 * @throws ImageError if the data is corrupt or the program for it is not installed.
 */
export async function decompress(bytes: Uint8Array, kind: Compression, size?: number): Promise<Uint8Array> {
  switch (kind) {
    case "gzip":
    case "zstd":
      try {
        return kind === "gzip" ? gunzipSync(bytes) : zstdDecompressSync(bytes);
      } catch (cause) {
        throw new ImageError(`corrupt ${kind} data: ${cause instanceof Error ? cause.message : cause}`, {
          cause,
        });
      }
    case "lz4":
      if (size === undefined) throw new ImageError("lz4 data of unknown size");
      return decompressLz4Legacy(bytes, size);
    default: {
      const program = PROGRAMS[kind];
      const missing = `needed for ${kind} data; install the package ${program.package}`;
      return (await runOk(program.argv, { stdin: bytes, missing })).stdout;
    }
  }
}
