import { describe, expect, test } from "bun:test";
import { gzipSync, zstdCompressSync } from "node:zlib";
import { type Compression, canDecompress, decompress, detectCompression } from "./decompress.ts";
import { ImageError } from "./errors.ts";
import { extractVmlinux } from "./vmlinux.ts";

/** Compressible, larger than one LZ4 block when `size` says so, with matches near and far. */
function elf(size: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(size);
  let state = 1;
  for (let i = 0; i < size; i++) {
    if (i % 7 === 0) state = (state * 1103515245 + 12345) & 0x7fffffff;
    bytes[i] = i % 3000 < 1500 ? state >>> 16 : i % 251;
  }
  bytes.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  return bytes;
}

function bzImage(payload: Uint8Array, setupSects = 4, version = 0x020f): Uint8Array {
  const payloadOffset = 100;
  const start = ((setupSects || 4) + 1) * 512 + payloadOffset;
  const image = new Uint8Array(start + payload.length + 64);
  const view = new DataView(image.buffer);
  image[0x1f1] = setupSects;
  view.setUint16(0x1fe, 0xaa55, true);
  view.setUint32(0x202, 0x53726448, true);
  view.setUint16(0x206, version, true);
  view.setUint32(0x248, payloadOffset, true);
  view.setUint32(0x24c, payload.length, true);
  image.set(payload, start);
  return image;
}

function withSize(stream: Uint8Array, size: number): Uint8Array {
  const payload = new Uint8Array(stream.length + 4);
  payload.set(stream);
  new DataView(payload.buffer).setUint32(stream.length, size, true);
  return payload;
}

const COMPRESSORS: Record<Compression, string[]> = {
  gzip: ["gzip", "-c"],
  zstd: ["zstd", "-c"],
  lz4: ["lz4", "-l", "-c", "-9"],
  xz: ["xz", "--check=crc32", "--x86", "--lzma2=", "-c"],
  lzma: ["xz", "--format=lzma", "-c"],
  bzip2: ["bzip2", "-c"],
  lzo: ["lzop", "-c"],
};

function compress(kind: Compression, data: Uint8Array<ArrayBuffer>): Uint8Array {
  if (kind === "gzip") return gzipSync(data);
  if (kind === "zstd") return zstdCompressSync(data);
  return Bun.spawnSync(COMPRESSORS[kind], { stdin: data }).stdout;
}

describe("extractVmlinux", () => {
  for (const kind of Object.keys(COMPRESSORS) as Compression[]) {
    const here =
      canDecompress(kind) && (kind === "gzip" || kind === "zstd" || Bun.which(COMPRESSORS[kind][0]) !== null);
    test.skipIf(!here)(`${kind}${here ? "" : ` (no ${COMPRESSORS[kind][0]} here)`}`, async () => {
      for (const size of [100, 300_000]) {
        const vmlinux = elf(size);
        const stream = compress(kind, vmlinux);
        expect(detectCompression(stream)).toBe(kind);
        const payload = kind === "gzip" ? stream : withSize(stream, size);
        expect(Buffer.compare(await extractVmlinux(bzImage(payload)), vmlinux)).toBe(0);
      }
    });
  }

  test.skipIf(Bun.which("lz4") === null)("lz4 of several 8 MiB blocks, with long matches", async () => {
    const vmlinux = elf(17 * 2 ** 20);
    vmlinux.fill(0x55, 100_000, 9 * 2 ** 20);
    const payload = withSize(compress("lz4", vmlinux), vmlinux.length);
    expect(Buffer.compare(await extractVmlinux(bzImage(payload, 39)), vmlinux)).toBe(0);
  });

  test("an ELF is returned as it is, also as an uncompressed payload; setup_sects 0 means 4", async () => {
    const vmlinux = elf(5000);
    expect(await extractVmlinux(vmlinux)).toBe(vmlinux);
    expect(Buffer.compare(await extractVmlinux(bzImage(vmlinux, 0)), vmlinux)).toBe(0);
  });

  const rejects = async (image: Uint8Array, message: string) => {
    const error: unknown = await extractVmlinux(image).catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(ImageError);
    expect(String(error)).toContain(message);
  };

  test("says what is wrong with an image", async () => {
    const gzip = gzipSync(elf(5000));
    await rejects(new Uint8Array(10), "neither a 64-bit ELF");
    await rejects(new Uint8Array(4096), "neither a 64-bit ELF");
    await rejects(bzImage(gzip, 4, 0x0207), "boot protocol 2.07: too old");
    await rejects(bzImage(new Uint8Array(100).fill(9)), "unknown compression (begins with 0909090909090909)");
    await rejects(bzImage(gzip).subarray(0, 3000), "payload ends at byte");
    await rejects(bzImage(gzipSync(new Uint8Array(500))), "no 64-bit ELF");
    await rejects(bzImage(gzip.subarray(0, 1000)), "corrupt");
    await rejects(bzImage(withSize(zstdCompressSync(elf(5000)), 5001)), "5000 bytes instead of 5001");
    await rejects(bzImage(withSize(zstdCompressSync(elf(5000)), 2 ** 31)), "said to have 2147483648 bytes");
  });
});

describe("lz4 that is not to be trusted", () => {
  const frame = (...block: number[]) => {
    const bytes = new Uint8Array(8 + block.length);
    bytes.set([0x02, 0x21, 0x4c, 0x18, block.length]);
    bytes.set(block, 8);
    return bytes;
  };

  test("matches and literals as the block format has them", async () => {
    // Literals "ab", then a match of 4+2 bytes 2 back; literals "c" end the block.
    const out = await decompress(frame(0x22, 0x61, 0x62, 2, 0, 0x10, 0x63), "lz4", 9);
    expect(Buffer.from(out).toString()).toBe("abababab".concat("c"));
  });

  for (const [what, block, size] of [
    ["match before the start", [0x10, 0x61, 2, 0, 0x00], 100],
    ["match before the start", [0x10, 0x61, 0, 0, 0x00], 100],
    ["literals cut off", [0x30, 0x61], 100],
    ["literal length cut off", [0xf0, 0xff], 1000],
    ["match length cut off", [0x1f, 0x61, 1, 0, 255], 1000],
    ["offset cut off", [0x10, 0x61, 1], 100],
    ["more data than announced", [0x30, 0x61, 0x62, 0x63], 2],
    ["more data than announced", [0x1f, 0x61, 1, 0, 255, 10, 0], 100],
    ["does not end with literals", [0x10, 0x61, 1, 0], 100],
    ["ends after 1 of 100", [0x10, 0x61], 100],
  ] as [string, number[], number][]) {
    test(`${what}: ${block}`, async () => {
      await expect(decompress(frame(...block), "lz4", size)).rejects.toThrow(what);
    });
  }
});
