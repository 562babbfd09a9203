/**
 * The memory management unit: page walks, TLBs, and the slow path of guest memory accesses (SDM vol. 3A,
 * chapter 4). Linear addresses travel as two 32-bit halves; physical addresses as a number (below 2^52).
 */
import { CR0_BITS, CR4_BITS, EFER_BITS, PTE, PTE_LARGE_RESERVED } from "./bits.ts";
import { LOCKED, READ, READ_WRITE, SEGMENT_SHIFT, WRITE } from "./context.ts";
import {
  BOUNCE,
  CODE_LINES,
  CPL,
  CR0,
  CR3,
  CR4,
  EFER,
  FAULT_VECTOR,
  GUEST_BASE,
  JUMP_CACHE,
  JUMP_ENTRIES,
  LARGE_SLOTS,
  RAM_SIZE,
  REG,
  SS,
  TLB_BYTES,
  TLB_ENTRIES,
  TLB_EPOCH,
  TLB_LARGE,
  TLB_LISTED,
  TLB_LOG,
  TLB_LOG_COUNT,
  TLB_SUPERVISOR,
  TLB_USER,
  XTLB_BYTES,
  XTLB_ENTRIES,
  XTLB_SUPERVISOR,
  XTLB_USER,
} from "./layout.ts";
import type { State } from "./state.ts";

const { P, RW, US, A, D, PS, G } = PTE;
/** Execute-disable, in the high word of an entry. */
const XD = 0x8000_0000 | 0;

/** Page-fault error code bits (SDM vol. 3A, 4.7). */
const PF = { P: 1, W: 2, U: 4, RSVD: 8, I: 16 } as const;

/** SS as descriptors and records name it. */
const STACK_SEGMENT = REG.segBase + 8 * SS;

/** Physical-address bits the CPUID shows (leaf 0x80000008). */
export const PHYSICAL_BITS = 40;
/** Bits 40..51 of an entry, in its high word, are reserved. */
const RESERVED_HIGH = 0x000f_ff00;

/** All TLBs together, and their entries. */
const TLBS_END = XTLB_USER + XTLB_BYTES;
const ALL_ENTRIES = (TLBS_END - TLB_SUPERVISOR) / 16;

/** "Vector" of a refusal (see {@link Mmu} refuse): the instruction is to be interpreted. */
export const INTERPRET = -2;

/** Memory-mapped I/O and physical addresses outside RAM. */
export interface PhysicalBus {
  read(gpa: number, size: number): number;
  write(gpa: number, size: number, value: number): void;
}

/** Sees what is written to RAM while it is set (see jit/lockstep.ts); device accesses are refused then. */
export interface WriteWatch {
  /** A page is about to be written: a physical address in it. */
  touch(physical: number): void;
  /** The write TLB has got an entry, by word offset: further writes to its page are not seen. */
  filled(entry: number): void;
  /** Something has been done that cannot be undone. */
  spoil(): void;
}

/** Told of a write into a page that holds decoded code: physical page and byte range in it. */
export type CodeWrite = (page: number, from: number, to: number) => void;

export class Mmu {
  private readonly i32: Int32Array;
  private readonly u8: Uint8Array;
  /** Result of the last {@link walk}: physical address, and whether the leaf is global. */
  private physical = 0;
  private leafGlobal = false;
  /** Its page size: 0 is 4 KiB, 1 is 2 MiB, 2 is 1 GiB. */
  private leafLevel = 0;
  /** Physical addresses of a pending bounce write: of its first byte, and of the second page if it crosses. */
  private pendingFirst = 0;
  private pendingSecond = 0;
  watch: WriteWatch | undefined;
  /** Statistics. */
  misses = 0;

  constructor(
    private readonly state: State,
    private readonly ramBytes: number,
    private readonly bus: PhysicalBus,
    private readonly codeWrite: CodeWrite,
  ) {
    this.i32 = state.i32;
    this.u8 = state.bytes;
    this.i32[RAM_SIZE >> 2] = ramBytes | 0;
    this.flushAll();
    this.flushJumpCache();
  }

  // --- page walk -------------------------------------------------------------------------------

  /**
   * Translates a linear address for an access; sets accessed and dirty bits. Returns false with the fault
   * noted in the state. `write` and `exec` name the access, `user` its privilege.
   */
  walk(low: number, high: number, write: boolean, exec: boolean, user: boolean): boolean {
    const { i32 } = this;
    if ((i32[CR0 >> 2]! & CR0_BITS.PG) === 0) {
      this.physical = low >>> 0;
      this.leafGlobal = false;
      this.leafLevel = 0;
      return true;
    }
    if ((high << 16) >> 16 !== high) {
      this.state.fault(13, 0);
      return false;
    }
    const nxe = (i32[EFER >> 2]! & EFER_BITS.NXE) !== 0;
    const base = (write ? PF.W : 0) | (user ? PF.U : 0) | (exec && nxe ? PF.I : 0);
    let table = i32[CR3 >> 2]! & ~0xfff;
    if (i32[(CR3 >> 2) + 1]! !== 0) return this.fail(low, high, base);
    let rights = RW | US;
    let xd = 0;
    for (let level = 3; ; level--) {
      const index =
        level === 3
          ? (high >>> 7) & 0x1ff
          : level === 2
            ? ((high & 0x7f) << 2) | (low >>> 30)
            : level === 1
              ? (low >>> 21) & 0x1ff
              : (low >>> 12) & 0x1ff;
      const entryAddress = (table >>> 0) + index * 8;
      if (entryAddress + 8 > this.ramBytes) return this.fail(low, high, base);
      const at = (GUEST_BASE + entryAddress) >>> 2;
      const entry = i32[at]!;
      const entryHigh = i32[at + 1]!;
      if ((entry & P) === 0) return this.fail(low, high, base);
      const leaf = level === 0 || (level < 3 && (entry & PS) !== 0);
      if (
        (entryHigh & RESERVED_HIGH) !== 0 ||
        (!nxe && (entryHigh & XD) !== 0) ||
        (level === 3 && (entry & PS) !== 0) ||
        (leaf && level === 1 && (entry & PTE_LARGE_RESERVED[1]) !== 0) ||
        (leaf && level === 2 && (entry & PTE_LARGE_RESERVED[2]) !== 0)
      ) {
        return this.fail(low, high, base | PF.P | PF.RSVD);
      }
      rights &= entry;
      xd |= entryHigh & XD;
      if (leaf) {
        const wp = (i32[CR0 >> 2]! & CR0_BITS.WP) !== 0;
        if (
          (user && (rights & US) === 0) ||
          (write && (rights & RW) === 0 && (user || wp)) ||
          (exec && xd !== 0)
        ) {
          return this.fail(low, high, base | PF.P);
        }
        const want = A | (write ? D : 0);
        if ((entry & want) !== want) Atomics.or(i32, at, want);
        const mask = level === 0 ? 0xfff : level === 1 ? 0x1f_ffff : 0x3fff_ffff;
        this.physical =
          (entryHigh & 0xff) * 0x1_0000_0000 + (((entry & ~mask & ~0xfff) | (low & mask)) >>> 0);
        this.leafGlobal = (entry & G) !== 0 && (i32[CR4 >> 2]! & CR4_BITS.PGE) !== 0;
        this.leafLevel = level;
        return true;
      }
      if ((entry & A) === 0) Atomics.or(i32, at, A);
      if ((entryHigh & 0xff) !== 0) return this.fail(low, high, base);
      table = entry & ~0xfff;
    }
  }

  private fail(low: number, high: number, error: number): false {
    this.state.pageFault(low, high, error);
    return false;
  }

  /** Physical address of the last successful {@link walk}. */
  get walked(): number {
    return this.physical;
  }

  /** Bytes of RAM, from physical address 0. */
  get ramSize(): number {
    return this.ramBytes;
  }

  private isRam(physical: number): boolean {
    return physical < this.ramBytes;
  }

  // --- TLBs ------------------------------------------------------------------------------------

  private fill(low: number, high: number, user: boolean, write: boolean): void {
    const { i32 } = this;
    const base = (user ? TLB_USER : TLB_SUPERVISOR) + (write ? TLB_BYTES : 0);
    const at = (base + (((low >>> 12) & (TLB_ENTRIES - 1)) << 4)) >> 2;
    i32[at] = low & ~0xfff;
    i32[at + 1] = high;
    i32[at + 2] = (GUEST_BASE + (this.physical - (this.physical % 4096)) - (low & ~0xfff)) | 0;
    this.track(at, low, high);
    if (write) this.watch?.filled(at);
  }

  /** Remembers what a later flush has to know of the entry just filled at word `at`. */
  private track(at: number, low: number, high: number): void {
    if (this.leafLevel > 0) this.u8[TLB_LARGE + largeSlot(low, high, this.leafLevel)]! |= this.leafLevel;
    if (this.leafGlobal) return;
    const number = (at - (TLB_SUPERVISOR >> 2)) >> 2;
    if (this.u8[TLB_LISTED + number] !== 0) return;
    this.u8[TLB_LISTED + number] = 1;
    const { i32 } = this;
    i32[(TLB_LOG >> 2) + i32[TLB_LOG_COUNT >> 2]!++] = at;
  }

  /** Entries that the next CR3 load drops. */
  get tracked(): number {
    return this.i32[TLB_LOG_COUNT >> 2]!;
  }

  /** True if decoded code covers any of `[physical, physical+size)`, which stays within a page. */
  private hitsCode(physical: number, size: number): boolean {
    const at = (CODE_LINES + Math.floor(physical / 4096) * 8) >> 2;
    const offset = physical % 4096;
    for (let line = offset >> 6; line <= (offset + size - 1) >> 6; line++) {
      if (this.i32[at + (line >> 5)]! & (1 << (line & 31))) return true;
    }
    return false;
  }

  /** Refuses a watched write over decoded code: nothing has happened, it is to be done by itself. */
  private refuse(): number {
    this.state.fault(INTERPRET);
    return 0;
  }

  private hasCode(physical: number): boolean {
    const at = (CODE_LINES + Math.floor(physical / 4096) * 8) >> 2;
    return (this.i32[at]! | this.i32[at + 1]!) !== 0;
  }

  /** Physical page for execution at a linear address, through the execute TLB; -1 after a fault. */
  fetchPage(low: number, high: number): number {
    const { i32 } = this;
    const user = i32[CPL >> 2] === 3;
    const at = ((user ? XTLB_USER : XTLB_SUPERVISOR) + (((low >>> 12) & (XTLB_ENTRIES - 1)) << 4)) >> 2;
    if (i32[at] === (low & ~0xfff) && i32[at + 1] === high) return i32[at + 2]! >>> 0;
    if (!this.walk(low, high, false, true, user)) return -1;
    const page = this.physical - (this.physical % 4096);
    if (!this.isRam(page)) return page;
    i32[at] = low & ~0xfff;
    i32[at + 1] = high;
    i32[at + 2] = page | 0;
    this.track(at, low, high);
    return page;
  }

  /** The physical page that the execute TLB has for a page at the current privilege; undefined: none. */
  cachedPage(low: number, high: number): number | undefined {
    const { i32 } = this;
    const tlb = i32[CPL >> 2] === 3 ? XTLB_USER : XTLB_SUPERVISOR;
    const at = (tlb + (((low >>> 12) & (XTLB_ENTRIES - 1)) << 4)) >> 2;
    return i32[at] === low && i32[at + 1] === high ? i32[at + 2]! >>> 0 : undefined;
  }

  /** Makes the TLB entry at a word offset one that no address of its index matches, in its page's number already. */
  private empty(at: number): void {
    const last = (((at - (TLB_SUPERVISOR >> 2)) >> 2) & (XTLB_ENTRIES - 1)) === XTLB_ENTRIES - 1;
    this.i32[at] = last ? 0 : -1;
    this.i32[at + 1] = last ? 0 : -1;
  }

  /** Drops every translation, global or not. */
  flushAll(): void {
    this.i32[TLB_EPOCH >> 2]!++;
    for (let at = TLB_SUPERVISOR >> 2; at < TLBS_END >> 2; at += 4) this.empty(at);
    this.i32[TLB_LOG_COUNT >> 2] = 0;
    this.u8.fill(0, TLB_LISTED, TLB_LISTED + ALL_ENTRIES);
    this.u8.fill(0, TLB_LARGE, TLB_LARGE + LARGE_SLOTS);
  }

  /** Drops what a CR3 load drops: everything that is not global. */
  flushNonGlobal(): void {
    const { i32, u8 } = this;
    i32[TLB_EPOCH >> 2]!++;
    const count = i32[TLB_LOG_COUNT >> 2]!;
    for (let n = 0; n < count; n++) {
      const at = i32[(TLB_LOG >> 2) + n]!;
      this.empty(at);
      u8[TLB_LISTED + ((at - (TLB_SUPERVISOR >> 2)) >> 2)] = 0;
    }
    i32[TLB_LOG_COUNT >> 2] = 0;
  }

  /** INVLPG: drops the translations of one page, global or not, of every privilege. */
  flushPage(low: number, high: number): void {
    const { i32 } = this;
    i32[TLB_EPOCH >> 2]!++;
    const drop = (base: number, entries: number) => {
      const at = (base + (((low >>> 12) & (entries - 1)) << 4)) >> 2;
      if (i32[at] === (low & ~0xfff) && i32[at + 1] === high) {
        this.empty(at);
      }
    };
    for (const tlb of [TLB_SUPERVISOR, TLB_USER]) {
      drop(tlb, TLB_ENTRIES);
      drop(tlb + TLB_BYTES, TLB_ENTRIES);
    }
    drop(XTLB_SUPERVISOR, XTLB_ENTRIES);
    drop(XTLB_USER, XTLB_ENTRIES);
    if (this.u8[TLB_LARGE + largeSlot(low, high, 1)]! & 1) this.flushRegion(low, high, -1 << 21);
    if (this.u8[TLB_LARGE + largeSlot(low, high, 2)]! & 2) this.flushRegion(low, high, -1 << 30);
  }

  /** Drops the translations of the region of a large page; `mask` has the bits of the region's address. */
  private flushRegion(low: number, high: number, mask: number): void {
    const { i32 } = this;
    const region = low & mask;
    for (let at = TLB_SUPERVISOR >> 2; at < TLBS_END >> 2; at += 4) {
      if ((i32[at]! & mask) === region && i32[at + 1] === high) {
        this.empty(at);
      }
    }
  }

  /** Makes later writes to a physical page take the slow path, because code has been decoded from it. */
  protectCode(physicalPage: number): void {
    const { i32 } = this;
    for (const tlb of [TLB_SUPERVISOR + TLB_BYTES, TLB_USER + TLB_BYTES]) {
      for (let at = tlb >> 2; at < (tlb + TLB_BYTES) >> 2; at += 4) {
        if (((i32[at + 2]! + i32[at]!) | 0) === ((GUEST_BASE + physicalPage) | 0)) {
          this.empty(at);
        }
      }
    }
  }

  /** Empties the jump cache. An empty entry's tag belongs to another entry's index, so it never matches. */
  flushJumpCache(): void {
    this.u8.fill(0, JUMP_CACHE, JUMP_CACHE + JUMP_ENTRIES * 16);
    this.i32[JUMP_CACHE >> 2] = 1;
  }

  /** Drops the jump-cache entry of one linear address, of whatever mode. */
  flushJump(low: number): void {
    // As core.ts computes it; the index needs only the low 24 bits of the address.
    const index = (low ^ (low >>> 12)) & (JUMP_ENTRIES - 1);
    this.i32[(JUMP_CACHE + index * 16 + 8) >> 2] = 0;
    this.i32[(JUMP_CACHE + index * 16) >> 2] = index === 0 ? 1 : 0;
    this.i32[(JUMP_CACHE + index * 16 + 4) >> 2] = 0;
  }

  // --- accesses --------------------------------------------------------------------------------

  /** The interpreter's slow path: see Core.slow. */
  slow(low: number, high: number, descriptor: number): number {
    const locked = (descriptor & (LOCKED << 8)) !== 0;
    const kind = (descriptor >> 8) & 0x3f;
    const address = this.access(low, high, descriptor & 0xff, kind, locked, this.i32[CPL >> 2] === 3);
    if (address === 0 && descriptor >>> SEGMENT_SHIFT === STACK_SEGMENT) this.stackFault();
    return address;
  }

  /** After a failed access through SS: an address that is not canonical is #SS(0) there, not #GP(0). */
  stackFault(): void {
    if (this.i32[FAULT_VECTOR >> 2] === 13) this.state.fault(12, 0);
  }

  /**
   * Host address of `size` (at most 16) bytes at a linear address for an access of `kind`, or BOUNCE, or 0
   * with the fault noted. `user`: the privilege to check with (descriptor tables are read as supervisor).
   */
  access(low: number, high: number, size: number, kind: number, locked: boolean, user: boolean): number {
    this.misses++;
    const write = kind === WRITE || kind === READ_WRITE;
    if ((low & 0xfff) + size > 4096) return this.crossing(low, high, size, kind, write, user);
    if (!this.walk(low, high, write, false, user)) return 0;
    const physical = this.physical;
    if (!this.isRam(physical)) {
      if (this.watch) return this.refuse();
      this.pendingFirst = physical;
      if (kind === READ || kind === READ_WRITE) this.readPhysical(physical, size, BOUNCE);
      return BOUNCE;
    }
    if (write && this.hasCode(physical)) {
      if (this.watch && this.hitsCode(physical, size)) return this.refuse();
      this.pendingFirst = physical;
      if (kind === READ_WRITE)
        this.u8.copyWithin(BOUNCE, GUEST_BASE + physical, GUEST_BASE + physical + size);
      return BOUNCE;
    }
    if (write) {
      this.watch?.touch(physical);
      this.fill(low, high, user, true);
      this.fill(low, high, user, false);
    } else this.fill(low, high, user, false);
    if (locked && (low & (size - 1)) !== 0) {
      // Split and unaligned atomics are not atomic towards other vCPUs; with one vCPU nobody can tell.
      this.pendingFirst = physical;
      this.u8.copyWithin(BOUNCE, GUEST_BASE + physical, GUEST_BASE + physical + size);
      return BOUNCE;
    }
    return GUEST_BASE + physical;
  }

  private crossing(
    low: number,
    high: number,
    size: number,
    kind: number,
    write: boolean,
    user: boolean,
  ): number {
    if (!this.walk(low, high, write, false, user)) return 0;
    const first = this.physical;
    const nextLow = ((low & ~0xfff) + 4096) | 0;
    const nextHigh = nextLow === 0 ? (high + 1) | 0 : high;
    if (!this.walk(nextLow, nextHigh, write, false, user)) return 0;
    const second = this.physical;
    if (this.watch && !(this.isRam(first) && this.isRam(second))) return this.refuse();
    if (this.watch && write) {
      const head = 4096 - (low & 0xfff);
      const hit = (at: number, n: number) => this.isRam(at) && this.hitsCode(at, n);
      if (hit(first, head) || hit(second, size - head)) return this.refuse();
    }
    this.pendingFirst = first;
    this.pendingSecond = second;
    if (kind === READ || kind === READ_WRITE) {
      const head = 4096 - (low & 0xfff);
      this.readPhysical(first, head, BOUNCE);
      this.readPhysical(second, size - head, BOUNCE + head);
    }
    return BOUNCE;
  }

  /** Performs the write whose data lie in BOUNCE; the last {@link access} has translated it. */
  commit(low: number, _high: number, size: number): void {
    const head = Math.min(size, 4096 - (low & 0xfff));
    this.writePhysical(this.pendingFirst, head, BOUNCE);
    if (head < size) this.writePhysical(this.pendingSecond, size - head, BOUNCE + head);
  }

  private readPhysical(physical: number, size: number, to: number): void {
    if (physical + size <= this.ramBytes) {
      this.u8.copyWithin(to, GUEST_BASE + physical, GUEST_BASE + physical + size);
      return;
    }
    this.watch?.spoil();
    this.split(size, (offset, width) => {
      const value = this.bus.read(physical + offset, width);
      for (let i = 0; i < width; i++) this.u8[to + offset + i] = value >>> (8 * i);
    });
  }

  private writePhysical(physical: number, size: number, from: number): void {
    if (physical + size <= this.ramBytes) {
      this.watch?.touch(physical);
      this.u8.copyWithin(GUEST_BASE + physical, from, from + size);
      if (this.hasCode(physical)) {
        if (this.hitsCode(physical, size)) this.watch?.spoil();
        const offset = physical % 4096;
        this.codeWrite((physical - offset) / 4096, offset, offset + size);
      }
      return;
    }
    this.watch?.spoil();
    this.split(size, (offset, width) => {
      let value = 0;
      for (let i = 0; i < width; i++) value |= this.u8[from + offset + i]! << (8 * i);
      this.bus.write(physical + offset, width, value >>> 0);
    });
  }

  /** Device accesses are at most 4 bytes wide and powers of two. */
  private split(size: number, each: (offset: number, width: number) => void): void {
    let offset = 0;
    while (offset < size) {
      const left = size - offset;
      const width = left >= 4 ? 4 : left >= 2 ? 2 : 1;
      each(offset, width);
      offset += width;
    }
  }

  // --- accesses of the CPU itself -----------------------------------------------------------------

  /** Copies `size` bytes from linear memory to `to` in the CPU's own memory. False with the fault noted. */
  readLinear(linear: bigint, size: number, to: number, user: boolean): boolean {
    let done = 0;
    while (done < size) {
      const low = Number(BigInt.asIntN(32, linear + BigInt(done)));
      const high = Number(BigInt.asIntN(32, (linear + BigInt(done)) >> 32n));
      const n = Math.min(size - done, 4096 - (low & 0xfff));
      if (!this.walk(low, high, false, false, user)) return false;
      this.readPhysical(this.physical, n, to + done);
      done += n;
    }
    return true;
  }

  /** Checks that `size` bytes can be written. False with the fault noted. */
  probeWrite(linear: bigint, size: number, user: boolean): boolean {
    let done = 0;
    while (done < size) {
      const low = Number(BigInt.asIntN(32, linear + BigInt(done)));
      const high = Number(BigInt.asIntN(32, (linear + BigInt(done)) >> 32n));
      if (!this.walk(low, high, true, false, user)) return false;
      done += 4096 - (low & 0xfff);
    }
    return true;
  }

  /** Copies `size` bytes from the CPU's own memory to linear memory, all or nothing. */
  writeLinear(linear: bigint, size: number, from: number, user: boolean): boolean {
    if (!this.probeWrite(linear, size, user)) return false;
    let done = 0;
    while (done < size) {
      const low = Number(BigInt.asIntN(32, linear + BigInt(done)));
      const high = Number(BigInt.asIntN(32, (linear + BigInt(done)) >> 32n));
      const n = Math.min(size - done, 4096 - (low & 0xfff));
      this.walk(low, high, true, false, user);
      this.writePhysical(this.physical, n, from + done);
      done += n;
    }
    return true;
  }
}

/** Slot in TLB_LARGE of the 2 MiB (level 1) or 1 GiB (level 2) region of a linear address. */
function largeSlot(low: number, high: number, level: number): number {
  const region = level === 1 ? (high << 11) | (low >>> 21) : (high << 2) | (low >>> 30);
  return (Math.imul(region, 0x9e37_79b1) >>> 18) & (LARGE_SLOTS - 1);
}
