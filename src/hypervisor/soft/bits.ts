/** Bits of control registers, EFER and page-table entries. Bit 31 is negative, as in an i32. */

/** Control-register and EFER bits (SDM vol. 3A, 2.5 and 2.2.1). */
export const CR0_BITS = {
  PE: 1,
  MP: 2,
  EM: 4,
  TS: 8,
  ET: 0x10,
  NE: 0x20,
  WP: 0x1_0000,
  AM: 0x4_0000,
  PG: 0x8000_0000 | 0,
} as const;
export const CR4_BITS = {
  TSD: 4,
  DE: 8,
  PSE: 0x10,
  PAE: 0x20,
  MCE: 0x40,
  PGE: 0x80,
  PCE: 0x100,
  OSFXSR: 0x200,
  OSXMMEXCPT: 0x400,
} as const;
export const EFER_BITS = { SCE: 1, LME: 0x100, LMA: 0x400, NXE: 0x800 } as const;

/** Page-table entry, low word (SDM vol. 3A, tables 4-15 to 4-20). */
export const PTE = { P: 1, RW: 2, US: 4, A: 0x20, D: 0x40, PS: 0x80, G: 0x100 } as const;
/** Address bits that must be 0 in the entry of a large page, by its level: 1 is 2 MiB, 2 is 1 GiB. */
export const PTE_LARGE_RESERVED = { 1: 0x001f_e000, 2: 0x3fff_e000 } as const;
