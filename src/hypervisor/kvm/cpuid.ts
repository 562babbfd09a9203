/**
 * What CPUID shows to a guest (SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E): what KVM supports of the host's
 * processor, with the leaves that depend on the vCPU, made as Firecracker makes them.
 */

import {
  CPUID_ENTRY2_BYTES,
  CPUID2_HEADER,
  KVM_CPUID_FLAG_SIGNIFICANT_INDEX as SIGNIFICANT_INDEX,
} from "./api.ts";

/** One leaf; registers are unsigned. */
export interface CpuidEntry {
  readonly function: number;
  readonly index: number;
  /** KVM_CPUID_FLAG bits. */
  readonly flags: number;
  eax: number;
  ebx: number;
  ecx: number;
  edx: number;
}

/** Which vCPU of how many, all in one package. vCPU n has APIC id n. */
export interface CpuidOptions {
  readonly index: number;
  readonly count: number;
  /** Two threads a core, if there is more than one vCPU; one otherwise. */
  readonly smt?: boolean | undefined;
  /** KVM_CAP_TSC_DEADLINE_TIMER is there. */
  readonly tscDeadline: boolean;
}

/** Changes made to a finished CPUID, such as a template's. */
export type CpuidFilter = (entries: CpuidEntry[]) => CpuidEntry[];

/** Leaf 1. */
const EBX_CLFLUSH_64_BYTES = 8 << 8;
const ECX_PDCM = 1 << 15;
const ECX_TSC_DEADLINE = 1 << 24;
const ECX_HYPERVISOR = 1 << 31;
const EDX_HTT = 1 << 28;
/** Leaf 4 and 0x8000001D: EAX. */
const CACHE_LEVEL_SHIFT = 5;
const CACHE_SHARING_SHIFT = 14;
const CACHE_CORES_SHIFT = 26;
const LAST_CACHE_LEVEL = 3;
/** Leaf 6. */
const EAX_TURBO_BOOST = 1 << 1;
const ECX_ENERGY_PERF_BIAS = 1 << 3;
/** Leaf 7, subleaf 0. */
const EBX_FDP_EXCPTN_ONLY = 1 << 6;
const EBX_FPU_CS_DS_DEPRECATED = 1 << 13;
const ECX_WAITPKG = 1 << 5;
const EDX_ARCH_CAPABILITIES = 1 << 29;
/** Leaf 0xB: ECX level types. */
const LEVEL_SMT = 1 << 8;
const LEVEL_CORE = 2 << 8;
/** Leaf 0x80000001. */
const ECX_TOPOLOGY_EXTENSIONS = 1 << 22;
/** Leaf 0x8000001E: EBX. */
const CORE_THREADS_SHIFT = 8;
/** Leaf 0x80000008: ApicIdSize in ECX. */
const APIC_ID_SIZE_SHIFT = 12;

const LEAF_TOPOLOGY = 0xb;
const LEAF_TOPOLOGY_V2 = 0x1f;
const LEAF_BRAND = 0x8000_0002;
const BRAND_LEAVES = 3;

const HEADER_WORDS = CPUID2_HEADER / 4;
const ENTRY_WORDS = CPUID_ENTRY2_BYTES / 4;

/** kvm_cpuid2 with room for `count` entries, for KVM to fill. */
export function cpuidBuffer(count: number): Uint8Array {
  const struct = new Uint8Array(CPUID2_HEADER + count * CPUID_ENTRY2_BYTES);
  new Uint32Array(struct.buffer)[0] = count;
  return struct;
}

/** The entries of a filled kvm_cpuid2. `struct` begins on a multiple of 4 bytes. */
export function decodeCpuid(struct: Uint8Array): CpuidEntry[] {
  const words = new Uint32Array(struct.buffer, struct.byteOffset, struct.length >>> 2);
  const entries: CpuidEntry[] = [];
  for (let i = 0, at = HEADER_WORDS; i < words[0]!; i++, at += ENTRY_WORDS) {
    entries.push({
      function: words[at]!,
      index: words[at + 1]!,
      flags: words[at + 2]!,
      eax: words[at + 3]!,
      ebx: words[at + 4]!,
      ecx: words[at + 5]!,
      edx: words[at + 6]!,
    });
  }
  return entries;
}

/** kvm_cpuid2 with `entries`. */
export function encodeCpuid(entries: readonly CpuidEntry[]): Uint8Array {
  const struct = cpuidBuffer(entries.length);
  const words = new Uint32Array(struct.buffer);
  let at = HEADER_WORDS;
  for (const e of entries) {
    words[at] = e.function;
    words[at + 1] = e.index;
    words[at + 2] = e.flags;
    words[at + 3] = e.eax;
    words[at + 4] = e.ebx;
    words[at + 5] = e.ecx;
    words[at + 6] = e.edx;
    at += ENTRY_WORDS;
  }
  return struct;
}

/**
 * The CPUID of one vCPU, from what KVM supports. Nothing is shown that KVM does not support, and the vendor stays
 * the host's: a guest picks its instructions and its workarounds by it.
 */
export function guestCpuid(supported: readonly CpuidEntry[], options: CpuidOptions): CpuidEntry[] {
  const vendor = vendorOf(supported);
  const leaf0 = supported.find((entry) => entry.function === 0);
  const entries: CpuidEntry[] = [];
  for (const entry of supported) {
    if (entry.function === LEAF_TOPOLOGY || entry.function === LEAF_TOPOLOGY_V2) continue;
    const copy = { ...entry };
    common(copy, options);
    if (vendor === "GenuineIntel") intel(copy, options);
    if (vendor === "AuthenticAMD") amd(copy, options);
    entries.push(copy);
  }
  for (const leaf of [LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2]) {
    if (leaf0 !== undefined && leaf0.eax >= leaf) entries.push(...topology(leaf, options));
  }
  setBrand(entries, brand(vendor, supported));
  return entries;
}

function common(entry: CpuidEntry, { index, count, tscDeadline }: CpuidOptions): void {
  if (entry.function !== 1) return;
  entry.ebx = ((index << 24) | (powerOfTwo(count) << 16) | EBX_CLFLUSH_64_BYTES | (entry.ebx & 0xff)) >>> 0;
  entry.ecx &= ~(ECX_PDCM | ECX_TSC_DEADLINE);
  entry.ecx = (entry.ecx | ECX_HYPERVISOR | (tscDeadline ? ECX_TSC_DEADLINE : 0)) >>> 0;
  entry.edx = (count > 1 ? entry.edx | EDX_HTT : entry.edx & ~EDX_HTT) >>> 0;
}

function intel(entry: CpuidEntry, options: CpuidOptions): void {
  switch (entry.function) {
    case 4:
      if (entry.eax !== 0) {
        const cores = Math.max(1, options.count >> threadBits(options));
        entry.eax =
          ((cacheSharing(entry.eax, options) & 0x03ff_ffff) | ((cores - 1) << CACHE_CORES_SHIFT)) >>> 0;
      }
      break;
    case 6:
      entry.eax = (entry.eax & ~EAX_TURBO_BOOST) >>> 0;
      entry.ecx = (entry.ecx & ~ECX_ENERGY_PERF_BIAS) >>> 0;
      break;
    case 7:
      if (entry.index !== 0) break;
      entry.ebx = (entry.ebx | EBX_FDP_EXCPTN_ONLY | EBX_FPU_CS_DS_DEPRECATED) >>> 0;
      entry.ecx = (entry.ecx & ~ECX_WAITPKG) >>> 0;
      break;
    case 0xa:
      entry.eax = entry.ebx = entry.ecx = entry.edx = 0;
      break;
    default:
      break;
  }
}

function amd(entry: CpuidEntry, options: CpuidOptions): void {
  const { index, count } = options;
  const bits = threadBits(options);
  switch (entry.function) {
    case 7:
      if (entry.index === 0) entry.edx = (entry.edx & ~EDX_ARCH_CAPABILITIES) >>> 0;
      break;
    case 0x8000_0001:
      entry.ecx = (entry.ecx | ECX_TOPOLOGY_EXTENSIONS) >>> 0;
      break;
    case 0x8000_0008:
      entry.ecx = (entry.ecx & ~0xf0ff) | (count - 1) | (idBits(count) << APIC_ID_SIZE_SHIFT);
      break;
    case 0x8000_001d:
      if ((entry.eax & 0x1f) !== 0) entry.eax = cacheSharing(entry.eax, options);
      break;
    case 0x8000_001e:
      // Extended APIC id; core id and threads of a core; one node.
      entry.eax = index;
      entry.ebx = (index >> bits) | (((1 << bits) - 1) << CORE_THREADS_SHIFT);
      entry.ecx = 0;
      break;
    default:
      break;
  }
}

/** The last level is shared by all cores, what lies above it belongs to one. */
function cacheSharing(eax: number, options: CpuidOptions): number {
  const level = (eax >>> CACHE_LEVEL_SHIFT) & 7;
  const threads = level >= LAST_CACHE_LEVEL ? options.count : 1 << threadBits(options);
  return ((eax & ~(0xfff << CACHE_SHARING_SHIFT)) | ((threads - 1) << CACHE_SHARING_SHIFT)) >>> 0;
}

/** Bits of an APIC id that number the threads of a core. */
function threadBits({ count, smt = false }: CpuidOptions): number {
  return smt && count > 1 ? 1 : 0;
}

/** Extended topology (SDM vol. 2A, leaf 0BH): threads of a core, cores of the package, and the end of the list. */
function topology(leaf: number, options: CpuidOptions): CpuidEntry[] {
  const { index, count } = options;
  const bits = threadBits(options);
  const level = (subleaf: number, eax: number, ebx: number, type: number): CpuidEntry => ({
    function: leaf,
    index: subleaf,
    flags: SIGNIFICANT_INDEX,
    eax,
    ebx,
    ecx: type | subleaf,
    edx: index,
  });
  return [
    level(0, bits, 1 << bits, LEVEL_SMT),
    level(1, idBits(count), count, LEVEL_CORE),
    level(2, 0, 0, 0),
  ];
}

/** A name without the host's model, which is nothing to rely on; the frequency is, on Intel, as in Firecracker. */
function brand(vendor: string, supported: readonly CpuidEntry[]): string | undefined {
  if (vendor === "AuthenticAMD") return "AMD EPYC";
  if (vendor !== "GenuineIntel") return undefined;
  const frequency = /@ *([\d.]+[GM]Hz)/.exec(brandText(supported))?.[1];
  return frequency === undefined ? "Intel(R) Xeon(R) Processor" : `Intel(R) Xeon(R) Processor @ ${frequency}`;
}

function brandText(entries: readonly CpuidEntry[]): string {
  return Array.from({ length: BRAND_LEAVES }, (_, i) => {
    const entry = entries.find((e) => e.function === LEAF_BRAND + i);
    return entry === undefined ? "" : text(entry.eax, entry.ebx, entry.ecx, entry.edx);
  }).join("");
}

function setBrand(entries: CpuidEntry[], name: string | undefined): void {
  if (name === undefined) return;
  const bytes = new Uint8Array(BRAND_LEAVES * 16);
  new TextEncoder().encodeInto(name, bytes);
  const view = new DataView(bytes.buffer);
  for (const entry of entries) {
    const at = (entry.function - LEAF_BRAND) * 16;
    if (at < 0 || at >= bytes.length) continue;
    entry.eax = view.getUint32(at, true);
    entry.ebx = view.getUint32(at + 4, true);
    entry.ecx = view.getUint32(at + 8, true);
    entry.edx = view.getUint32(at + 12, true);
  }
}

function vendorOf(entries: readonly CpuidEntry[]): string {
  const entry = entries.find((e) => e.function === 0);
  return entry === undefined ? "" : text(entry.ebx, entry.edx, entry.ecx);
}

function text(...words: number[]): string {
  let result = "";
  for (const word of words) {
    for (let rest = word; rest !== 0; rest >>>= 8) result += String.fromCharCode(rest & 0xff);
  }
  return result;
}

/** Bits that number `count` things from 0. */
function idBits(count: number): number {
  return Math.ceil(Math.log2(count));
}

function powerOfTwo(count: number): number {
  return 2 ** idBits(count);
}
