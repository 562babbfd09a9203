/** A static ELF executable of two segments: one file-backed (read, execute), one zeroed (read, write). */

import { ELF_HEADER_BYTES } from "./layout.ts";

const ET_EXEC = 2;
const EM_X86_64 = 62;
const PT_LOAD = 1;
const PT_GNU_STACK = 0x6474e551;
const PF_X = 1;
const PF_W = 2;
const PF_R = 4;
const EHDR_BYTES = 64;
const PHDR_BYTES = 56;
const PAGE = 0x1000n;

/**
 * The executable file (ELF-64 object file format, version 1.5). `code` is loaded at `text` +
 * {@link ELF_HEADER_BYTES} and starts `entry` bytes into it; `dataBytes` zero bytes lie at `data`, page-aligned.
 */
export function elfExecutable(
  code: Uint8Array,
  text: number,
  entry: number,
  data: number,
  dataBytes: number,
): Uint8Array {
  const file = new Uint8Array(ELF_HEADER_BYTES + code.length);
  const view = new DataView(file.buffer);
  file.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  view.setUint16(16, ET_EXEC, true);
  view.setUint16(18, EM_X86_64, true);
  view.setUint32(20, 1, true);
  view.setBigUint64(24, BigInt(text + ELF_HEADER_BYTES + entry), true);
  view.setBigUint64(32, BigInt(EHDR_BYTES), true);
  view.setUint16(52, EHDR_BYTES, true);
  view.setUint16(54, PHDR_BYTES, true);
  view.setUint16(56, 3, true);
  const segment = (
    index: number,
    type: number,
    flags: number,
    address: number,
    inFile: number,
    size: number,
  ) => {
    const at = EHDR_BYTES + index * PHDR_BYTES;
    view.setUint32(at, type, true);
    view.setUint32(at + 4, flags, true);
    view.setBigUint64(at + 16, BigInt(address), true);
    view.setBigUint64(at + 24, BigInt(address), true);
    view.setBigUint64(at + 32, BigInt(inFile), true);
    view.setBigUint64(at + 40, BigInt(size), true);
    view.setBigUint64(at + 48, PAGE, true);
  };
  segment(0, PT_LOAD, PF_R | PF_X, text, file.length, file.length);
  segment(1, PT_LOAD, PF_R | PF_W, data, 0, dataBytes);
  // Without it, kernels before 5.8 make every readable page executable.
  segment(2, PT_GNU_STACK, PF_R | PF_W, 0, 0, 0);
  file.set(code, ELF_HEADER_BYTES);
  return file;
}
