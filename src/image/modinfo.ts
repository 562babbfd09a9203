/** The `.modinfo` section of a kernel module: NUL-separated `key=value` strings (Linux include/linux/moduleinfo). */

import { ImageError } from "./errors.ts";

const ELF_MAGIC = 0x464c457f;
const ELFCLASS64 = 2;
const ELFDATA2LSB = 1;
const E_SHOFF = 0x28;
const E_SHENTSIZE = 0x3a;
const E_SHNUM = 0x3c;
const E_SHSTRNDX = 0x3e;
const SH_NAME = 0x00;
const SH_OFFSET = 0x18;
const SH_SIZE = 0x20;
const SHDR_SIZE = 0x40;

/** What loading a module takes. Names are normalised, see {@link moduleName}. */
export interface ModuleInfo {
  /** Modules that must be loaded before this one. */
  readonly depends: readonly string[];
  /** Modules that are wanted before it and after it, if there are any such. */
  readonly softPre: readonly string[];
  readonly softPost: readonly string[];
  /** The `alias` strings: which devices the module drives, e.g. `virtio:d00000002v*`. */
  readonly aliases: readonly string[];
}

/** A module's name as the kernel compares it: file name without directory and suffix, `-` replaced by `_`. */
export function moduleName(file: string): string {
  return file
    .replace(/^.*\//, "")
    .replace(/\.ko(\.(gz|xz|zst))?$/, "")
    .replaceAll("-", "_");
}

/** The section `name` of a little-endian ELF64 file. @throws ImageError on another or a damaged file. */
function elfSection(elf: Uint8Array, name: string): Uint8Array | undefined {
  const view = new DataView(elf.buffer, elf.byteOffset, elf.byteLength);
  if (
    elf.length < 64 ||
    view.getUint32(0, true) !== ELF_MAGIC ||
    elf[4] !== ELFCLASS64 ||
    elf[5] !== ELFDATA2LSB
  ) {
    throw new ImageError("not a 64-bit ELF file");
  }
  const tableOffset = Number(view.getBigUint64(E_SHOFF, true));
  const entrySize = view.getUint16(E_SHENTSIZE, true);
  const count = view.getUint16(E_SHNUM, true);
  if (entrySize < SHDR_SIZE || tableOffset + count * entrySize > elf.length) {
    throw new ImageError("damaged ELF file: its section table lies outside the file");
  }
  const section = (index: number): Uint8Array => {
    const header = tableOffset + index * entrySize;
    const offset = Number(view.getBigUint64(header + SH_OFFSET, true));
    const size = Number(view.getBigUint64(header + SH_SIZE, true));
    if (offset + size > elf.length) throw new ImageError("damaged ELF file: a section lies outside the file");
    return elf.subarray(offset, offset + size);
  };
  const namesIndex = view.getUint16(E_SHSTRNDX, true);
  if (namesIndex >= count) throw new ImageError("damaged ELF file: no section names");
  const names = section(namesIndex);
  for (let index = 0; index < count; index++) {
    const at = view.getUint32(tableOffset + index * entrySize + SH_NAME, true);
    const end = names.indexOf(0, at);
    if (end >= 0 && Buffer.from(names.subarray(at, end)).toString("latin1") === name) return section(index);
  }
  return undefined;
}

function softdepNames(words: string[], want: "pre:" | "post:"): string[] {
  const names: string[] = [];
  let kind = "";
  for (const word of words) {
    if (word.endsWith(":")) kind = word;
    else if (kind === want) names.push(moduleName(word));
  }
  return names;
}

/** Reads `.modinfo` of an uncompressed module. @throws ImageError if `elf` is no module. */
export function parseModuleInfo(elf: Uint8Array): ModuleInfo {
  const section = elfSection(elf, ".modinfo");
  if (section === undefined) throw new ImageError("not a kernel module: it has no .modinfo section");
  const values = (key: string) =>
    strings.filter((text) => text.startsWith(`${key}=`)).map((text) => text.slice(key.length + 1));
  const strings = Buffer.from(section).toString("latin1").split("\0");
  const soft = values("softdep").map((text) => text.split(/\s+/).filter((word) => word !== ""));
  return {
    depends: values("depends").flatMap((text) =>
      text
        .split(",")
        .filter((name) => name !== "")
        .map(moduleName),
    ),
    softPre: soft.flatMap((words) => softdepNames(words, "pre:")),
    softPost: soft.flatMap((words) => softdepNames(words, "post:")),
    aliases: values("alias"),
  };
}
