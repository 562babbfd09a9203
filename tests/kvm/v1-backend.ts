/**
 * KVM with a CPUID of x86-64-v1 only, for a guest kernel on a KVM without hardware under it: what more there is, its
 * instruction emulator lacks.
 */

import type { CpuidEntry } from "../../src/hypervisor/kvm/cpuid.ts";
import { createKvmBackend } from "../../src/vmm/backend-kvm.ts";

/** Leaf 1 ECX: x2APIC, TSC deadline, hypervisor. */
const KEPT_1_ECX = (1 << 21) | (1 << 24) | (1 << 31);
/** Leaf 0x80000001 ECX: LAHF in 64-bit mode. */
const KEPT_EXTENDED_ECX = 1;
/** Leaf 0x80000008 EBX: XSAVEERPTR, whose lack Linux takes for a bug to work around. */
const XSAVEERPTR = 1 << 2;

function restrict(entry: CpuidEntry): CpuidEntry {
  switch (entry.function) {
    case 1:
      return { ...entry, ecx: (entry.ecx & KEPT_1_ECX) >>> 0 };
    case 7:
    case 0xd:
    case 0x14:
      return { ...entry, eax: 0, ebx: 0, ecx: 0, edx: 0 };
    case 0x8000_0001:
      return { ...entry, ecx: entry.ecx & KEPT_EXTENDED_ECX };
    case 0x8000_0008:
      return { ...entry, ebx: XSAVEERPTR };
    default:
      return entry;
  }
}

export const backend = createKvmBackend((entries) => entries.map(restrict));
