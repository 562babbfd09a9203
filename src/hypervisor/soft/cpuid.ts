/**
 * What CPUID shows (SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E; Linux Documentation/virt/kvm/x86/cpuid.rst):
 * x86-64-v1 with CMPXCHG16B, POPCNT, LAHF, RDTSCP, RDRAND and fast string operations, as an AMD family 15
 * processor, the newest vendor and family that Linux gives the fewest speculation workarounds, under KVM's
 * paravirtual clock.
 */
import { PHYSICAL_BITS } from "./mmu.ts";

export interface CpuidResult {
  eax: number;
  ebx: number;
  ecx: number;
  edx: number;
}

const text = (s: string): number =>
  s.charCodeAt(0) | (s.charCodeAt(1) << 8) | (s.charCodeAt(2) << 16) | (s.charCodeAt(3) << 24);

/** Leaf 1 EDX. */
const FPU = 1 << 0;
const DE = 1 << 2;
const PSE = 1 << 3;
const TSC = 1 << 4;
const MSR = 1 << 5;
const PAE = 1 << 6;
const CX8 = 1 << 8;
const APIC = 1 << 9;
const PGE = 1 << 13;
const CMOV = 1 << 15;
const CLFSH = 1 << 19;
const MMX = 1 << 23;
const FXSR = 1 << 24;
const SSE = 1 << 25;
const SSE2 = 1 << 26;
/** Leaf 1 ECX. */
const CX16 = 1 << 13;
const X2APIC = 1 << 21;
const POPCNT = 1 << 23;
const TSC_DEADLINE = 1 << 24;
const RDRAND = 1 << 30;
const HYPERVISOR = 1 << 31;
/** Leaf 7 EBX and EDX. */
const ERMS = 1 << 9;
const FSRM = 1 << 4;
/** Leaf 80000001 EDX and ECX. */
const SYSCALL = 1 << 11;
const NX = 1 << 20;
const PDPE1GB = 1 << 26;
const RDTSCP = 1 << 27;
const LM = 1 << 29;
const LAHF64 = 1 << 0;
/** Leaf 80000007 EDX. */
const INVARIANT_TSC = 1 << 8;
/** Leaf 80000021 EAX: a null selector clears the base. Without it Linux loads FS and GS twice in each task switch. */
const NULL_SELECTOR_CLEARS_BASE = 1 << 6;
/** Leaf 6 EAX: the APIC timer runs in all C-states. */
const ARAT = 1 << 2;

const BASIC_EDX =
  FPU | DE | PSE | TSC | MSR | PAE | CX8 | APIC | PGE | CMOV | CLFSH | MMX | FXSR | SSE | SSE2;
/** Bits that leaf 80000001 EDX repeats from leaf 1 on AMD processors. */
const REPEATED = FPU | DE | PSE | TSC | MSR | PAE | CX8 | APIC | PGE | CMOV | MMX | FXSR;

/** Family 15, model 0x3f, stepping 0. */
const SIGNATURE = 0x0003_0ff0;
const BRAND = "Sparkler software CPU (x86-64 on WebAssembly)";

/** KVM leaf 40000001 EAX: NOP_IO_DELAY, CLOCKSOURCE2, CLOCKSOURCE_STABLE. */
const KVM_FEATURES = (1 << 1) | (1 << 3) | (1 << 24);

export function cpuid(leaf: number, _subleaf: number, apicId: number): CpuidResult {
  const none = { eax: 0, ebx: 0, ecx: 0, edx: 0 };
  switch (leaf >>> 0) {
    case 0:
    case 0x8000_0000:
      return {
        eax: leaf === 0 ? 7 : 0x8000_0021 | 0,
        ebx: text("Auth"),
        edx: text("enti"),
        ecx: text("cAMD"),
      };
    case 1:
      return {
        eax: SIGNATURE,
        ebx: (apicId << 24) | (1 << 16) | (8 << 8),
        ecx: CX16 | X2APIC | POPCNT | TSC_DEADLINE | RDRAND | HYPERVISOR,
        edx: BASIC_EDX,
      };
    case 6:
      return { ...none, eax: ARAT };
    case 7:
      return { ...none, ebx: ERMS, edx: FSRM };
    case 0x4000_0000:
      return { eax: 0x4000_0001, ebx: text("KVMK"), ecx: text("VMKV"), edx: text("M\0\0\0") };
    case 0x4000_0001:
      return { ...none, eax: KVM_FEATURES };
    case 0x8000_0001:
      return {
        eax: SIGNATURE,
        ebx: 0,
        ecx: LAHF64,
        edx: (BASIC_EDX & REPEATED) | SYSCALL | NX | PDPE1GB | RDTSCP | LM,
      };
    case 0x8000_0002:
    case 0x8000_0003:
    case 0x8000_0004: {
      const at = ((leaf >>> 0) - 0x8000_0002) * 16;
      const part = BRAND.padEnd(48, "\0").slice(at, at + 16);
      return {
        eax: text(part.slice(0, 4)),
        ebx: text(part.slice(4, 8)),
        ecx: text(part.slice(8, 12)),
        edx: text(part.slice(12, 16)),
      };
    }
    case 0x8000_0007:
      return { ...none, edx: INVARIANT_TSC };
    case 0x8000_0008:
      return { ...none, eax: PHYSICAL_BITS | (48 << 8) };
    case 0x8000_0021:
      return { ...none, eax: NULL_SELECTOR_CLEARS_BASE };
    default:
      return none;
  }
}
