/** Loads an uncompressed kernel: a 64-bit x86 ELF executable (`vmlinux`). */

import type { GuestMemory } from "../memory/guest-memory.ts";
import { hex, mib } from "./boot-error.ts";
import { type ByteSource, readExact, truncated } from "./byte-source.ts";
import {
  alignUp,
  type BootProtocol,
  checkIdentityMapped,
  checkKernelRange,
  kernelError,
  type LoadedKernel,
  readU64,
} from "./kernel-image.ts";

/** First bytes of every ELF file: 0x7f, "ELF", little-endian. */
export const ELF_MAGIC = 0x464c_457f;

const EI_CLASS = 4;
const EI_DATA = 5;
const ELFCLASS64 = 2;
const ELFDATA2LSB = 1;
const ET_EXEC = 2;
const ET_DYN = 3;
const EM_X86_64 = 62;

const EHDR_SIZE = 64;
const E_TYPE = 16;
const E_MACHINE = 18;
const E_ENTRY = 24;
const E_PHOFF = 32;
const E_PHENTSIZE = 54;
const E_PHNUM = 56;

const PHDR_SIZE = 56;
const P_OFFSET = 8;
const P_PADDR = 24;
const P_FILESZ = 32;
const P_MEMSZ = 40;
const P_ALIGN = 48;
const PT_LOAD = 1;
const PT_NOTE = 4;

const NHDR_SIZE = 12;
/** Xen's note that names the 32-bit physical entry point (xen/include/public/elfnote.h). */
const XEN_ELFNOTE_PHYS32_ENTRY = 18;
const XEN_NOTE_NAME = "Xen\0";
/** More than any kernel has; bounds what is read into memory. */
const MAX_NOTES_SIZE = 1024 * 1024;

interface Segment {
  readonly offset: number;
  readonly gpa: number;
  readonly fileSize: number;
  readonly memSize: number;
}

/**
 * Puts every PT_LOAD segment straight into guest RAM, which must be zero, at its physical address.
 * With a Xen PHYS32_ENTRY note the kernel is entered by PVH, else by the Linux 64-bit protocol; `forced`
 * overrules that. Nothing is written before the whole file has been checked. Throws {@link BootError}.
 */
export function loadElf(memory: GuestMemory, source: ByteSource, forced?: BootProtocol): LoadedKernel {
  const header = readElfHeader(source);
  const { segments, pvhEntry } = readProgramHeaders(source, header);
  const end = checkSegments(memory, segments);
  const entry = chooseEntry(header.entry, pvhEntry, forced);
  if (!segments.some((s) => entry.address >= s.gpa && entry.address < s.gpa + s.memSize)) {
    throw kernelError(
      `the ${entry.protocol} entry point ${hex(entry.address)} lies in no loaded segment. Use an unmodified vmlinux.`,
    );
  }
  if (entry.protocol === "linux64") checkIdentityMapped(end);
  const pieces = segments.map(({ offset, gpa, fileSize }) => ({ offset, gpa, size: fileSize }));
  if (source.place?.(memory, pieces)) return { protocol: entry.protocol, entry: entry.address, end };
  for (const s of segments) {
    memory.fill(s.gpa, s.memSize, (into) => {
      readExact(source, s.offset, into.subarray(0, s.fileSize), "kernel");
      into.fill(0, s.fileSize);
    });
  }
  return { protocol: entry.protocol, entry: entry.address, end };
}

function readElfHeader(source: ByteSource): { entry: number; phoff: number; phnum: number } {
  if (source.size < EHDR_SIZE) throw truncated("kernel", source.size, EHDR_SIZE);
  const bytes = new Uint8Array(EHDR_SIZE);
  readExact(source, 0, bytes, "kernel");
  const view = new DataView(bytes.buffer);
  if (view.getUint32(0, true) !== ELF_MAGIC) throw kernelError("Invalid ELF magic number.");
  if (bytes[EI_CLASS] !== ELFCLASS64 || bytes[EI_DATA] !== ELFDATA2LSB) {
    throw kernelError("the ELF file is not 64-bit little-endian. Give an x86_64 kernel.");
  }
  const machine = view.getUint16(E_MACHINE, true);
  if (machine !== EM_X86_64) {
    throw kernelError(
      `the ELF file is for machine ${machine}, not x86_64 (${EM_X86_64}). Give an x86_64 kernel.`,
    );
  }
  const type = view.getUint16(E_TYPE, true);
  if (type !== ET_EXEC && type !== ET_DYN) {
    throw kernelError(
      `the ELF file is of type ${type}, not an executable. Give a linked kernel (vmlinux), not a module.`,
    );
  }
  const phnum = view.getUint16(E_PHNUM, true);
  if (view.getUint16(E_PHENTSIZE, true) !== PHDR_SIZE || phnum === 0) {
    throw kernelError("the ELF file has no valid program headers. Use an unmodified vmlinux.");
  }
  const phoff = readU64(view, E_PHOFF);
  if (phoff < EHDR_SIZE) {
    throw kernelError("the ELF program headers overlap the ELF header. Use an unmodified vmlinux.");
  }
  return { entry: readU64(view, E_ENTRY), phoff, phnum };
}

function readProgramHeaders(
  source: ByteSource,
  header: { phoff: number; phnum: number },
): { segments: Segment[]; pvhEntry: number | undefined } {
  const tableSize = header.phnum * PHDR_SIZE;
  if (header.phoff + tableSize > source.size) {
    throw truncated("kernel", source.size, header.phoff + tableSize);
  }
  const table = new Uint8Array(tableSize);
  readExact(source, header.phoff, table, "kernel");
  const view = new DataView(table.buffer);
  const segments: Segment[] = [];
  let pvhEntry: number | undefined;
  for (let at = 0; at < tableSize; at += PHDR_SIZE) {
    const type = view.getUint32(at, true);
    if (type !== PT_LOAD && type !== PT_NOTE) continue;
    const offset = readU64(view, at + P_OFFSET);
    const fileSize = readU64(view, at + P_FILESZ);
    if (offset + fileSize > source.size) throw truncated("kernel", source.size, offset + fileSize);
    if (type === PT_NOTE) {
      pvhEntry ??= findPvhEntry(source, offset, fileSize, readU64(view, at + P_ALIGN));
      continue;
    }
    const memSize = readU64(view, at + P_MEMSZ);
    if (memSize === 0) continue;
    segments.push({ offset, gpa: readU64(view, at + P_PADDR), fileSize, memSize });
  }
  return { segments, pvhEntry };
}

/** The entry point that a Xen PHYS32_ENTRY note in this PT_NOTE segment names, if there is one. */
function findPvhEntry(source: ByteSource, offset: number, size: number, align: number): number | undefined {
  if (size > MAX_NOTES_SIZE) {
    throw kernelError(`the ELF notes are ${mib(size)} MiB long, at most 1 MiB. Use an unmodified vmlinux.`);
  }
  const bytes = new Uint8Array(size);
  readExact(source, offset, bytes, "kernel");
  const view = new DataView(bytes.buffer);
  // Notes are padded to 4 bytes, or to 8 where the segment says so (gABI, "Note Section").
  const padding = align === 8 ? 8 : 4;
  let at = 0;
  while (at + NHDR_SIZE <= size) {
    const nameSize = view.getUint32(at, true);
    const descSize = view.getUint32(at + 4, true);
    const type = view.getUint32(at + 8, true);
    const name = at + NHDR_SIZE;
    const desc = alignUp(name + nameSize, padding);
    if (desc + descSize > size) {
      throw kernelError("an ELF note reaches past the end of its segment. Use an unmodified vmlinux.");
    }
    if (type === XEN_ELFNOTE_PHYS32_ENTRY && isXen(bytes, name, nameSize)) {
      if (descSize === 4) return view.getUint32(desc, true);
      if (descSize === 8) return readU64(view, desc);
      throw kernelError(`the PVH entry note holds ${descSize} bytes, not 4 or 8. Use an unmodified vmlinux.`);
    }
    at = alignUp(desc + descSize, padding);
  }
  return undefined;
}

function isXen(bytes: Uint8Array, at: number, nameSize: number): boolean {
  if (nameSize !== XEN_NOTE_NAME.length) return false;
  for (let i = 0; i < nameSize; i++) {
    if (bytes[at + i] !== XEN_NOTE_NAME.charCodeAt(i)) return false;
  }
  return true;
}

/** Checks that the segments fit in RAM and lie apart. Returns where the last one ends. */
function checkSegments(memory: GuestMemory, segments: readonly Segment[]): number {
  let end = 0;
  for (const s of segments.toSorted((a, b) => a.gpa - b.gpa)) {
    if (s.fileSize > s.memSize) {
      throw kernelError(
        `the ELF segment at ${hex(s.gpa)} is larger in the file than in memory. Use an unmodified vmlinux.`,
      );
    }
    checkKernelRange(memory, s.gpa, s.gpa + s.memSize, `the ELF segment at ${hex(s.gpa)}`);
    if (s.gpa < end) {
      throw kernelError(
        `the ELF segment at ${hex(s.gpa)} overlaps the one before it. Use an unmodified vmlinux.`,
      );
    }
    end = s.gpa + s.memSize;
  }
  if (end === 0)
    throw kernelError("the ELF file has nothing to load (no PT_LOAD). Use an unmodified vmlinux.");
  return end;
}

function chooseEntry(
  elfEntry: number,
  pvhEntry: number | undefined,
  forced: BootProtocol | undefined,
): { protocol: BootProtocol; address: number } {
  const protocol = forced ?? (pvhEntry === undefined ? "linux64" : "pvh");
  if (protocol === "linux64") return { protocol, address: elfEntry };
  if (pvhEntry === undefined) {
    throw kernelError(
      "it has no PVH entry note. Build it with CONFIG_PVH=y, or boot it by the linux64 protocol.",
    );
  }
  return { protocol, address: pvhEntry };
}
