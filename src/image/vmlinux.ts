/**
 * The vmlinux ELF inside a bzImage. Linux Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header":
 * the protected-mode code follows the setup sectors, and payload_offset counts from its start.
 */

import { decompress, detectCompression } from "./decompress.ts";
import { ImageError } from "./errors.ts";

const SETUP_SECTS = 0x1f1;
const BOOT_FLAG = 0x1fe;
const BOOT_FLAG_MAGIC = 0xaa55;
const HEADER = 0x202;
const HEADER_MAGIC = 0x53726448; // "HdrS"
const VERSION = 0x206;
/** Boot protocol 2.08, the first with payload_offset. */
const VERSION_PAYLOAD = 0x0208;
const PAYLOAD_OFFSET = 0x248;
const PAYLOAD_LENGTH = 0x24c;
const SECTOR_SIZE = 512;
/** setup_sects of 0 means this. */
const DEFAULT_SETUP_SECTS = 4;
/** The build appends the decompressed size to every payload but gzip, which ends with it anyway. */
const SIZE_TRAILER = 4;
/** Larger than any kernel: what the size trailer is trusted for. */
const MAX_VMLINUX = 2 ** 30;

const ELF_MAGIC = 0x464c457f;
const ELFCLASS64 = 2;

function isElf64(bytes: Uint8Array): boolean {
  return (
    bytes.length >= 64 &&
    new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true) === ELF_MAGIC &&
    bytes[4] === ELFCLASS64
  );
}

/**
 * Extracts the 64-bit vmlinux ELF from the bytes of a bzImage; an ELF is returned as it is.
 * @throws ImageError if `image` is neither, its payload is corrupt or the program to decompress it is missing.
 */
export async function extractVmlinux(image: Uint8Array): Promise<Uint8Array> {
  if (isElf64(image)) return image;
  const view = new DataView(image.buffer, image.byteOffset, image.byteLength);
  if (
    image.length < PAYLOAD_LENGTH + 4 ||
    view.getUint16(BOOT_FLAG, true) !== BOOT_FLAG_MAGIC ||
    view.getUint32(HEADER, true) !== HEADER_MAGIC
  ) {
    throw new ImageError("not a Linux kernel: neither a 64-bit ELF (vmlinux) nor an x86 bzImage");
  }
  const version = view.getUint16(VERSION, true);
  if (version < VERSION_PAYLOAD) {
    const text = `${version >> 8}.${(version & 0xff).toString().padStart(2, "0")}`;
    throw new ImageError(`bzImage with boot protocol ${text}: too old, 2.08 (Linux 2.6.26) is needed`);
  }
  const start =
    ((image[SETUP_SECTS] || DEFAULT_SETUP_SECTS) + 1) * SECTOR_SIZE + view.getUint32(PAYLOAD_OFFSET, true);
  const end = start + view.getUint32(PAYLOAD_LENGTH, true);
  if (end > image.length || end - start <= SIZE_TRAILER) {
    throw new ImageError(`corrupt bzImage: its payload ends at byte ${end}, the file at ${image.length}`);
  }
  const payload = image.subarray(start, end);
  if (isElf64(payload)) return payload;
  const kind = detectCompression(payload);
  if (kind === undefined) {
    const magic = Buffer.from(payload.subarray(0, 8)).toString("hex");
    throw new ImageError(`bzImage payload in an unknown compression (begins with ${magic})`);
  }
  const size = view.getUint32(end - SIZE_TRAILER, true);
  if (size > MAX_VMLINUX) throw new ImageError(`corrupt bzImage: its kernel is said to have ${size} bytes`);
  const stream = kind === "gzip" ? payload : payload.subarray(0, -SIZE_TRAILER);
  const vmlinux = await decompress(stream, kind, size);
  if (vmlinux.length !== size) {
    throw new ImageError(`corrupt bzImage: its kernel has ${vmlinux.length} bytes instead of ${size}`);
  }
  if (!isElf64(vmlinux))
    throw new ImageError("the bzImage holds no 64-bit ELF: a 32-bit kernel cannot be booted");
  return vmlinux;
}
