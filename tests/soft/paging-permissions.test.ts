/** Access rights, accessed and dirty bits, and page-fault error codes (SDM vol. 3A, 4.6 to 4.8). */
import { describe, expect, test } from "bun:test";
import { RAX, RDI } from "../../src/hypervisor/soft/layout.ts";
import { code } from "./code.ts";
import { CODE, Guest, ROOT, SPARE } from "./guest.ts";

const P = 1n;
const RW = 2n;
const US = 4n;
const A = 0x20n;
const D = 0x40n;
const PS = 0x80n;
const XD = 1n << 63n;

/** Error code bits. */
const ERROR = { P: 1, W: 2, U: 4, RSVD: 8, I: 16 } as const;

const CR0 = 0x8000_0033n;
const CR0_WP = 0x1_0000n;
const EFER = 0x501n;
const EFER_NXE = 0x800n;

/** Where each level's entry lies, PML4 first: entries 1, 3, 1 and 7 of four tables. */
const PDPT = SPARE;
const PD = SPARE + 0x1000;
const PT = SPARE + 0x2000;
const ENTRY = [ROOT + 8, PDPT + 3 * 8, PD + 8, PT + 7 * 8];
const TABLES = [PDPT, PD, PT];
/** The linear page these entries map, and the physical page, by whatever page size. */
const LINEAR = 0x80_c020_7000n;
const TARGET = SPARE + 0x7000;
/** Data of the page; its start holds code. */
const DATA_OFFSET = 0x800;
const FRAME = { 3: TARGET, 2: SPARE, 1: 0 } as const;

/** Level of the entry that maps the page: 3 is a PTE (4 KiB), 2 a PDE (2 MiB), 1 a PDPTE (1 GiB). */
type Leaf = 1 | 2 | 3;
const ACCESSES = ["read", "write", "execute"] as const;
type Access = (typeof ACCESSES)[number];

const PROGRAM: Record<Access, number[]> = {
  read: code(`
    8a 07 | mov al, [rdi]
  `),
  write: code(`
    88 07 | mov [rdi], al
  `),
  execute: code(`
    ff e7 | jmp rdi
  `),
};
const TARGET_CODE = code(`
  e6 f1 | out 0xf1, al
  eb fe | jmp .
`);

interface Setting {
  access: Access;
  cpl: 0 | 3;
  wp: boolean;
  nxe: boolean;
}

const SETTINGS: Setting[] = ACCESSES.flatMap((access) =>
  ([0, 3] as const).flatMap((cpl) =>
    [false, true].flatMap((wp) => [false, true].map((nxe) => ({ access, cpl, wp, nxe }))),
  ),
);

interface Outcome {
  /** Error code, or undefined if the access succeeds. */
  error: number | undefined;
  /** The entries afterwards. */
  entries: bigint[];
}

/** Reserved bits of an entry: address bits above MAXPHYADDR (40), XD without NXE, and what PS brings. */
function reserved(level: number, leaf: boolean, nxe: boolean): bigint {
  let mask = 0x000f_ff00_0000_0000n;
  if (!nxe) mask |= XD;
  if (level === 0) mask |= PS;
  if (leaf && level === 2) mask |= 0x1f_e000n;
  if (leaf && level === 1) mask |= 0x3fff_e000n;
  return mask;
}

/** What the manual says, read entry by entry. */
function expected(entries: bigint[], leaf: Leaf, s: Setting): Outcome {
  const after = [...entries];
  let error = 0;
  if (s.access === "write") error |= ERROR.W;
  if (s.cpl === 3) error |= ERROR.U;
  if (s.access === "execute" && s.nxe) error |= ERROR.I;
  const fault = (bits: number): Outcome => ({ error: error | bits, entries: after });
  for (let level = 0; level <= leaf; level++) {
    const entry = entries[level]!;
    if (!(entry & P)) return fault(0);
    if (entry & reserved(level, level === leaf, s.nxe)) return fault(ERROR.P | ERROR.RSVD);
    if (level < leaf) after[level]! |= A;
  }
  const used = entries.slice(0, leaf + 1);
  const writable = used.every((e) => e & RW);
  const user = used.every((e) => e & US);
  const executable = !used.some((e) => e & XD);
  if (s.cpl === 3 && !user) return fault(ERROR.P);
  if (s.access === "write" && !writable && (s.cpl === 3 || s.wp)) return fault(ERROR.P);
  if (s.access === "execute" && s.nxe && !executable) return fault(ERROR.P);
  after[leaf]! |= s.access === "write" ? A | D : A;
  return { error: undefined, entries: after };
}

const guest = new Guest();
let loaded: Access | undefined;

function actual(entries: bigint[], leaf: Leaf, s: Setting): Outcome {
  for (let level = 0; level <= leaf; level++) guest.write64(ENTRY[level]!, entries[level]!);
  const data = TARGET + DATA_OFFSET;
  guest.poke(TARGET, TARGET_CODE);
  guest.poke(data, [0x5a]);
  const { result, traps, end } = guest.run({
    code: PROGRAM[s.access],
    again: loaded === s.access,
    cpl: s.cpl,
    cr0: s.wp ? CR0 | CR0_WP : CR0,
    efer: s.nxe ? EFER | EFER_NXE : EFER,
    regs: { [RAX]: 0xa5, [RDI]: s.access === "execute" ? LINEAR : LINEAR + BigInt(DATA_OFFSET) },
  });
  loaded = s.access;
  const after = entries.map((_, level) => guest.read64(ENTRY[level]!));
  const [trap] = traps;
  if (trap) {
    // A fault leaves everything as it was and says where it happened.
    expect(trap.vector).toBe(14);
    expect(trap.cr2).toBe(s.access === "execute" ? LINEAR : LINEAR + BigInt(DATA_OFFSET));
    expect(BigInt(trap.rip)).toBe(s.access === "execute" ? LINEAR : BigInt(CODE));
    expect(guest.read64(data) & 0xffn).toBe(0x5an);
    return { error: trap.error, entries: after };
  }
  if (result !== (s.access === "read" ? 0x5a : 0xa5))
    throw new Error(`ended with ${result}, ${JSON.stringify(end)}`);
  if (s.access === "write") expect(guest.read64(data) & 0xffn).toBe(0xa5n);
  return { error: undefined, entries: after };
}

/** A mismatch of one case, or undefined. The text is what a failure shows. */
function check(entries: bigint[], leaf: Leaf, s: Setting): string | undefined {
  const want = expected(entries, leaf, s);
  const got = actual(entries, leaf, s);
  const hex = (o: Outcome) => `${o.error ?? "no fault"} [${o.entries.map((e) => e.toString(16)).join(" ")}]`;
  if (hex(want) === hex(got)) return undefined;
  return `${JSON.stringify(s)} [${entries.map((e) => e.toString(16)).join(" ")}]: want ${hex(want)}, got ${hex(got)}`;
}

/** Entries with address (and PS) set and these attribute bits, PML4 first. */
function entriesFor(leaf: Leaf, attributes: bigint[]): bigint[] {
  return attributes.map((bits, level) =>
    level < leaf ? bits | BigInt(TABLES[level]!) : bits | BigInt(FRAME[leaf]) | (leaf < 3 ? PS : 0n),
  );
}

/** RW, US and XD from the three bits of `n`. */
const rights = (n: number): bigint => (n & 1 ? RW : 0n) | (n & 2 ? US : 0n) | (n & 4 ? XD : 0n);

function reset(): void {
  guest.reset();
  loaded = undefined;
}

describe("page access rights", () => {
  for (const [leaf, name] of [
    [3, "4 KiB"],
    [2, "2 MiB"],
    [1, "1 GiB"],
  ] as const) {
    test(`${name} pages: RW, US and XD of every level, by access, privilege, WP and NXE`, () => {
      reset();
      const failures: string[] = [];
      for (const s of SETTINGS) {
        for (let n = 0; n < 8 ** (leaf + 1); n++) {
          const attributes = Array.from(
            { length: leaf + 1 },
            (_, level) => P | rights((n >> (3 * level)) & 7),
          );
          // XD without NXE is a reserved bit whatever else is set: one entry with it is as good as all.
          if (!s.nxe && attributes.filter((a) => a & XD).length > 1) continue;
          const failure = check(entriesFor(leaf, attributes), leaf, s);
          if (failure) failures.push(failure);
        }
      }
      expect(failures.slice(0, 5)).toEqual([]);
    });

    test(`${name} pages: entries that are not present`, () => {
      reset();
      const failures: string[] = [];
      for (const s of SETTINGS) {
        for (let present = 0; present < 2 ** (leaf + 1) - 1; present++) {
          for (const n of [0, 3, 7]) {
            const attributes = Array.from(
              { length: leaf + 1 },
              (_, level) => (present & (1 << level) ? P : 0n) | rights(s.nxe ? n : n & 3),
            );
            const failure = check(entriesFor(leaf, attributes), leaf, s);
            if (failure) failures.push(failure);
          }
        }
      }
      expect(failures.slice(0, 5)).toEqual([]);
    });

    test(`${name} pages: each reserved bit faults, each ignored bit does not`, () => {
      reset();
      const failures: string[] = [];
      const all = Array.from({ length: leaf + 1 }, () => P | RW | US);
      for (let level = 0; level <= leaf; level++) {
        for (let bit = 7; bit < 64; bit++) {
          const one = 1n << BigInt(bit);
          const isReserved = (reserved(level, level === leaf, true) & one) !== 0n;
          const isIgnored = (bit >= 9 && bit <= 11) || (bit >= 52 && bit <= 62);
          const pat = level === leaf && leaf < 3 && bit === 12;
          if (!isReserved && !isIgnored && !pat) continue;
          const entries = entriesFor(leaf, all);
          entries[level]! |= one;
          for (const s of SETTINGS) {
            const failure = check(entries, leaf, s);
            if (failure) failures.push(failure);
          }
        }
      }
      expect(failures.slice(0, 5)).toEqual([]);
    });
  }

  test("accessed and dirty bits that are set already stay, and a read leaves D alone", () => {
    reset();
    const all = [P | RW | US, P | RW | US, P | RW | US, P | RW | US];
    const failures: string[] = [];
    for (let n = 0; n < 32; n++) {
      const entries = entriesFor(3, all).map((e, level) => (n & (1 << level) ? e | A : e));
      if (n & 16) entries[3]! |= D;
      for (const s of SETTINGS) {
        const failure = check(entries, 3, s);
        if (failure) failures.push(failure);
      }
    }
    expect(failures.slice(0, 5)).toEqual([]);
  });

  test("a write after a read sets D, also when the read has filled the TLB", () => {
    reset();
    entriesFor(3, [P | RW, P | RW, P | RW, P | RW]).forEach((e, level) => {
      guest.write64(ENTRY[level]!, e);
    });
    const dirty: boolean[] = [];
    guest.run({
      code: code(`
        8a 07 | mov al, [rdi]
        8a 07 | mov al, [rdi]
        e6 80 | out 0x80, al
        88 07 | mov [rdi], al
        e6 80 | out 0x80, al
      `),
      regs: { [RDI]: LINEAR },
      onOut: () => dirty.push((guest.read64(ENTRY[3]!) & D) !== 0n),
    });
    expect(dirty).toEqual([false, true]);
  });

  test("read-modify-write of a read-only page is a write fault; a compare is a read", () => {
    reset();
    entriesFor(3, [P | RW | US, P | RW | US, P | RW | US, P | US]).forEach((e, level) => {
      guest.write64(ENTRY[level]!, e);
    });
    const error = (program: number[]) =>
      guest.run({ code: program, cpl: 3, regs: { [RDI]: LINEAR } }).traps[0]?.error;
    const WRITE = ERROR.P | ERROR.W | ERROR.U;
    expect(
      error(
        code(`
          01 07 | add [rdi], eax
        `),
      ),
    ).toBe(WRITE);
    expect(
      error(
        code(`
          f0 0f b1 0f | lock cmpxchg [rdi], ecx
        `),
      ),
    ).toBe(WRITE);
    // CMPXCHG writes, or faults, whether the compare succeeds or not (SDM vol. 2A, CMPXCHG).
    expect(
      error(
        code(`
          0f b1 0f | cmpxchg [rdi], ecx
        `),
      ),
    ).toBe(WRITE);
    expect(
      error(
        code(`
          aa | stosb
        `),
      ),
    ).toBe(WRITE);
    expect(
      error(
        code(`
          3b 07 | cmp eax, [rdi]
        `),
      ),
    ).toBeUndefined();
  });
});

describe("page faults at a page boundary", () => {
  const boundary = LINEAR + 0x1000n;

  /** Only the page at LINEAR is there; the next one is not. */
  function onePage(): void {
    reset();
    entriesFor(3, [P | RW | US, P | RW | US, P | RW | US, P | RW | US]).forEach((e, level) => {
      guest.write64(ENTRY[level]!, e);
    });
  }

  test("CR2 is the first byte of the part that faults, and nothing has been written", () => {
    for (let before = 1; before < 8; before++) {
      onePage();
      const { traps } = guest.run({
        code: code(`
          48 89 07 | mov [rdi], rax
        `),
        regs: { [RAX]: ~0n, [RDI]: boundary - BigInt(before) },
      });
      expect([traps[0]?.vector, traps[0]?.error, traps[0]?.cr2]).toEqual([14, ERROR.W, boundary]);
      expect(guest.read64(TARGET + 0xff8)).toBe(0n);
    }
  });

  test("rep movsb stops at the boundary with its registers there", () => {
    onePage();
    const { traps } = guest.run({
      code: code(`
        b9 00 10 00 00 | mov ecx, 0x1000
        be 00 00 10 00 | mov esi, 0x100000
        f3 aa          | rep stosb
      `),
      regs: { [RAX]: 0x77, [RDI]: boundary - 0x10n },
    });
    expect([traps[0]?.vector, traps[0]?.cr2, traps[0]?.rip]).toEqual([14, boundary, CODE + 10]);
    expect(guest.reg(RDI)).toBe(boundary);
    expect(guest.read64(TARGET + 0xff8)).toBe(0x7777_7777_7777_7777n);
  });
});

describe("non-canonical addresses", () => {
  const BAD = [0x0000_8000_0000_0000n, 0xffff_7fff_ffff_ffffn, 0x8000_0000_0000_0000n];

  test("data accesses are #GP(0) and leave CR2 alone", () => {
    reset();
    for (const address of BAD) {
      for (const program of [PROGRAM.read, PROGRAM.write]) {
        for (const cpl of [0, 3] as const) {
          const { traps } = guest.run({ code: program, cpl, regs: { [RDI]: address } });
          expect([traps[0]?.vector, traps[0]?.error, traps[0]?.rip, traps[0]?.cr2]).toEqual([
            13,
            0,
            CODE,
            0n,
          ]);
        }
      }
    }
  });

  test("an access that runs into the hole from below is #GP(0)", () => {
    reset();
    const high = 0x7fff_ffff_f000n;
    // Map the last page below the hole.
    guest.pages.map(high, TARGET, 7);
    const { traps } = guest.run({
      code: code(`
        48 8b 07 | mov rax, [rdi]
      `),
      regs: { [RDI]: high + 0xffcn },
    });
    expect([traps[0]?.vector, traps[0]?.error]).toEqual([13, 0]);
  });

  test("a jump there is #GP(0)", () => {
    reset();
    for (const address of BAD) {
      const { traps } = guest.run({ code: PROGRAM.execute, cpl: 3, regs: { [RDI]: address } });
      expect([traps[0]?.vector, traps[0]?.error]).toEqual([13, 0]);
    }
  });
});
