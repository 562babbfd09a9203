/**
 * Decoded blocks: straight runs of instructions as records that the interpreter walks, kept by physical
 * address and mode, and dropped when the bytes they came from change.
 *
 * A block never leaves its page. Its records hold page offsets instead of addresses, so one block serves
 * every virtual mapping of its page. Dropping a block overwrites the handler of each of its records with
 * the `stale` pseudo-instruction: whatever still points at them, the running block included, looks the
 * instruction up again.
 */
import { DECODED, Decoder, TOO_LONG, TRUNCATED } from "./decoder.ts";
import type { Interpreter } from "./interpreter.ts";
import type { Jit } from "./jit/jit.ts";
import {
  BLOCK_ENTRIES,
  BLOCK_PROBES,
  BLOCK_TABLE,
  CODE_LINES,
  GUEST_BASE,
  MODE,
  MODE_REPLAY,
  MODE_TF,
  MODE_USER,
  RECORD,
  RECORD_BYTES,
  RECORDS,
  RECORDS_END,
  RIP,
  STALE,
  STALE_PAGES,
} from "./layout.ts";
import type { Mmu } from "./mmu.ts";
import type { State } from "./state.ts";
import { INSTRUCTIONS, type Insn } from "./table/index.ts";

/** Instructions of a block at most; its records and a terminator must fit the arena's reserve. */
const MAX_BLOCK = 64;
/** Room kept free at the end of the arena: one block, its counter, its guard and its terminator. */
const RESERVE = (MAX_BLOCK + 3) * RECORD_BYTES;

const UD = INSTRUCTIONS.findIndex((i) => i.mnemonic === "ud2");
const FPU_UNAVAILABLE = INSTRUCTIONS.findIndex((i) => i.mnemonic === "fpu unavailable");

/** Whether an FPU instruction may run, as CR0 and CR4 stand. */
export type FpuCheck = (kind: NonNullable<Insn["fpu"]>) => boolean;

export class Blocks {
  private next = RECORDS;
  /** Start and end of the records decoded from each physical page. */
  private readonly pages = new Map<number, number[]>();
  private readonly decoder = new Decoder();
  private readonly crossingBytes = new Uint8Array(32);
  /** Statistics: blocks decoded, instructions decoded, pages dropped, arena flushes. */
  decoded = 0;
  instructions = 0;
  dropped = 0;
  flushes = 0;

  constructor(
    private readonly state: State,
    private readonly mmu: Mmu,
    private readonly interpreter: Interpreter,
    private readonly fpuUsable: FpuCheck,
    private readonly unknown: (bytes: Uint8Array) => void,
    /** Compiles hot blocks; undefined: everything is interpreted. */
    private readonly jit: Jit | undefined,
  ) {}

  /**
   * Compiles the block at RIP, whose counting record is `record`, if it lies in `physicalPage`: the page tables may
   * lead elsewhere by now.
   */
  compile(record: number, physicalPage: number): void {
    const { state, mmu } = this;
    if (!this.pages.get(physicalPage / 4096)?.includes(record)) {
      state.set(record + RECORD.slot, this.interpreter.pseudo.skip);
      return;
    }
    const mode = state.get(MODE);
    const low = state.get(RIP) & ~0xfff;
    const high = state.get(RIP + 4);
    const page = (distance: number): number | undefined => {
      if (distance === 0) return physicalPage;
      const at = (low >>> 0) + distance;
      // A region does not go over a boundary of 4 GiB.
      return at < 0 || at > 0xffff_ffff ? undefined : mmu.cachedPage(at | 0, high);
    };
    this.jit!.request(record, {
      user: (mode & MODE_USER) !== 0,
      page,
      find: (distance) => {
        const at = page(distance & ~0xfff);
        return at === undefined ? 0 : this.find(at + (distance & 0xfff), mode);
      },
    });
  }

  /** Record of the block at the state's RIP, decoding it if need be; 0 after a fault. */
  at(low: number, high: number): number {
    const page = this.mmu.fetchPage(low, high);
    if (page < 0) return 0;
    if (page + 4096 > this.mmu.ramSize) {
      // Nothing there to execute: the bus answers all ones, which is no instruction.
      this.state.fault(6);
      return 0;
    }
    const physical = page + (low & 0xfff);
    const mode = this.state.get(MODE);
    return this.find(physical, mode) || this.decode(low, high, physical, mode);
  }

  private hash(physical: number): number {
    return (Math.imul(physical, 0x9e3779b1 | 0) ^ (physical >>> 12)) & (BLOCK_ENTRIES - 1);
  }

  private find(physical: number, mode: number): number {
    const { i32 } = this.state;
    let slot = this.hash(physical);
    for (let i = 0; i < BLOCK_PROBES; i++) {
      const at = (BLOCK_TABLE + slot * 16) >> 2;
      if (i32[at] === (physical | 0) && i32[at + 1] === mode) {
        const record = i32[at + 2]!;
        return i32[(record + RECORD.slot) >> 2] === this.interpreter.pseudo.stale ? 0 : record;
      }
      slot = (slot + 1) & (BLOCK_ENTRIES - 1);
    }
    return 0;
  }

  private insert(physical: number, mode: number, record: number): void {
    const { i32 } = this.state;
    let slot = this.hash(physical);
    let victim = (BLOCK_TABLE + slot * 16) >> 2;
    for (let i = 0; i < BLOCK_PROBES; i++) {
      const at = (BLOCK_TABLE + slot * 16) >> 2;
      const free = i32[at + 2] === 0;
      if (free || (i32[at] === (physical | 0) && i32[at + 1] === mode)) {
        victim = at;
        break;
      }
      slot = (slot + 1) & (BLOCK_ENTRIES - 1);
    }
    i32[victim] = physical | 0;
    i32[victim + 1] = mode;
    i32[victim + 2] = record;
  }

  private decode(low: number, high: number, physical: number, mode: number): number {
    if (this.next + RESERVE > RECORDS_END) this.flush();
    const { state, decoder, interpreter } = this;
    const start = this.next;
    const firstOffset = physical & 0xfff;
    const pageStart = GUEST_BASE + physical - firstOffset;
    let offset = firstOffset;
    let count = 0;
    let ended = false;
    const most = mode & MODE_TF ? 1 : MAX_BLOCK;
    // Mark first, read afterwards: a device that writes in between then sees the mark (see softWriteHook).
    this.mark(physical, 64);
    if (this.jit && !(mode & (MODE_TF | MODE_REPLAY))) this.emitCount(firstOffset, mode);
    while (count < most) {
      const status = decoder.decode(state.bytes, pageStart + offset, pageStart + 4096, mode);
      if (status === TRUNCATED) {
        if (count > 0) break;
        this.next = start;
        return this.decodeCrossing(low, high, physical, mode);
      }
      if (status === DECODED) {
        this.mark(physical - firstOffset + offset, decoder.length);
        ended = this.emit(offset, decoder, mode, ++count);
        offset += decoder.length;
      } else {
        // What comes before an undefined instruction runs first.
        if (count > 0) break;
        this.emitUndefined(offset, state.bytes.subarray(pageStart + offset, pageStart + 4096), status);
        count = 1;
        ended = true;
      }
      if (ended || offset >= 4096) break;
    }
    if (!ended) this.emitFallthrough(offset, count);
    interpreter.flush();
    this.remember(physical, start);
    this.insert(physical, mode, start);
    this.decoded++;
    this.instructions += count;
    return start;
  }

  /** An instruction that continues in the next page: a block of its own, guarded by that page's identity. */
  private decodeCrossing(low: number, high: number, physical: number, mode: number): number {
    const { state, decoder, interpreter, crossingBytes } = this;
    const nextLow = ((low & ~0xfff) + 4096) | 0;
    const nextHigh = nextLow === 0 ? (high + 1) | 0 : high;
    const second = this.mmu.fetchPage(nextLow, nextHigh);
    if (second < 0) return 0;
    if (second + 4096 > this.mmu.ramSize) {
      state.fault(6);
      return 0;
    }
    const start = this.next;
    const head = 4096 - (physical & 0xfff);
    this.mark(physical, head);
    this.mark(second, 16);
    const from = GUEST_BASE + physical;
    crossingBytes.set(state.bytes.subarray(from, from + head), 0);
    crossingBytes.set(state.bytes.subarray(GUEST_BASE + second, GUEST_BASE + second + 16), head);
    const status = decoder.decode(crossingBytes, 0, head + 16, mode);
    const offset = physical & 0xfff;
    if (status === DECODED) {
      const guard = this.allocate();
      this.clear(guard);
      state.set(guard + RECORD.slot, interpreter.pseudo.crossing);
      state.view.setUint16(guard + RECORD.offset, offset, true);
      state.set(guard + RECORD.imm, second | 0);
      if (!this.emit(offset, decoder, mode, 1)) this.emitFallthrough(offset + decoder.length, 1);
    } else this.emitUndefined(offset, crossingBytes.subarray(0, head + 16), status);
    interpreter.flush();
    this.remember(physical, start);
    this.remember(second, start);
    this.insert(physical, mode, start);
    this.decoded++;
    this.instructions++;
    return start;
  }

  private allocate(): number {
    const record = this.next;
    this.next += RECORD_BYTES;
    return record;
  }

  private clear(record: number): void {
    this.state.bytes.fill(0, record, record + RECORD_BYTES);
  }

  /** Writes one record. True if the instruction ends its block. */
  private emit(offset: number, d: Decoder, mode: number, count: number): boolean {
    const { state, interpreter } = this;
    const { view, i32 } = state;
    const r = this.allocate();
    let insn = d.insn;
    if (insn.fpu !== undefined && !this.fpuUsable(insn.fpu)) {
      d.imm = insn.fpu === "x87" ? 1 : 0;
      insn = INSTRUCTIONS[FPU_UNAVAILABLE]!;
      d.index = FPU_UNAVAILABLE;
      d.insn = insn;
      d.mem = false;
      d.size = 4;
      d.rep = 0;
      d.lock = false;
    }
    i32[(r + RECORD.slot) >> 2] = interpreter.slotFor(d, mode);
    view.setUint16(r + RECORD.offset, offset, true);
    state.bytes[r + RECORD.length] = d.length;
    state.bytes[r + RECORD.count] = count;
    view.setUint16(r + RECORD.reg, d.reg, true);
    view.setUint16(r + RECORD.rm, d.rm, true);
    view.setUint16(r + RECORD.base, d.base, true);
    view.setUint16(r + RECORD.index, d.indexReg, true);
    view.setUint16(r + RECORD.segment, d.segment, true);
    state.bytes[r + RECORD.scale] = d.scale;
    state.bytes[r + RECORD.aux] = d.insn.modrm ? d.modrm : d.opcode;
    const next = offset + d.length;
    if (insn.end === "direct") {
      i32[(r + RECORD.imm) >> 2] = next + d.imm;
      i32[(r + RECORD.taken) >> 2] = 0;
      i32[(r + RECORD.fallthrough) >> 2] = 0;
      return true;
    }
    i32[(r + RECORD.imm) >> 2] = insn.fpu === "x87" ? d.opcode : d.imm;
    let { dispLow, dispHigh } = d;
    if (d.ripRelative) {
      dispLow = (dispLow + next) | 0;
      // A carry out of the low word, seen as unsigned.
      if (dispLow >>> 0 < next) dispHigh = (dispHigh + 1) | 0;
    }
    i32[(r + RECORD.disp) >> 2] = dispLow;
    i32[(r + RECORD.disp + 4) >> 2] = dispHigh;
    return insn.end !== undefined;
  }

  /** The record in front of a block that counts its executions. */
  private emitCount(offset: number, mode: number): void {
    const r = this.allocate();
    this.clear(r);
    this.state.set(r + RECORD.slot, this.interpreter.pseudo.count);
    this.state.view.setUint16(r + RECORD.offset, offset, true);
    this.state.set(r + RECORD.countdown, this.jit!.executions((mode & MODE_USER) !== 0));
  }

  private emitFallthrough(offset: number, count: number): void {
    const r = this.allocate();
    this.clear(r);
    this.state.set(r + RECORD.slot, this.interpreter.pseudo.fallthrough);
    // Beyond the page at its end: the record may be left as stale, and says then where to go on.
    this.state.view.setUint16(r + RECORD.offset, offset, true);
    this.state.bytes[r + RECORD.count] = count;
    this.state.set(r + RECORD.imm, offset);
  }

  private emitUndefined(offset: number, bytes: Uint8Array, status: number): void {
    if (status !== TOO_LONG) this.unknown(bytes.slice(0, 15));
    const d = this.decoder;
    d.insn = INSTRUCTIONS[UD]!;
    d.index = UD;
    d.mem = false;
    d.lock = false;
    d.rep = 0;
    d.size = 4;
    d.length = 2;
    d.ripRelative = false;
    // The helper raises the vector found in `imm`: #UD, or #GP for more than 15 bytes.
    d.imm = status === TOO_LONG ? 13 : 6;
    this.emit(offset, d, this.state.get(MODE), 1);
  }

  private remember(physical: number, start: number): void {
    const page = Math.floor(physical / 4096);
    const list = this.pages.get(page);
    if (list) list.push(start, this.next);
    else {
      this.pages.set(page, [start, this.next]);
      this.mmu.protectCode(page * 4096);
    }
  }

  /** Sets the code-line bits of `[physical, physical+length)`, which stays within a page. */
  private mark(physical: number, length: number): void {
    const page = Math.floor(physical / 4096);
    const first = (physical & 0xfff) >> 6;
    const last = Math.min(4095, (physical & 0xfff) + length - 1) >> 6;
    for (let line = first; line <= last; line++) {
      const at = (CODE_LINES + page * 8 + (line >> 5) * 4) >> 2;
      const bit = 1 << (line & 31);
      if ((this.state.i32[at]! & bit) === 0) Atomics.or(this.state.i32, at, bit);
    }
  }

  /** A guest store has changed bytes of a page with code: drops its blocks if it hit a decoded line. */
  written(page: number, from: number, to: number): void {
    for (let line = from >> 6; line <= (to - 1) >> 6; line++) {
      if (this.state.i32[(CODE_LINES + page * 8 + (line >> 5) * 4) >> 2]! & (1 << (line & 31))) {
        this.drop(page);
        return;
      }
    }
  }

  /** Drops every block that has bytes in a physical page. */
  drop(page: number): void {
    const { i32 } = this.state;
    const list = this.pages.get(page);
    const at = (CODE_LINES + page * 8) >> 2;
    i32[at] = 0;
    i32[at + 1] = 0;
    if (!list) return;
    this.pages.delete(page);
    this.dropped++;
    this.jit?.dropPage(page * 4096);
    const { stale } = this.interpreter.pseudo;
    for (let i = 0; i < list.length; i += 2) {
      for (let r = list[i]!; r < list[i + 1]!; r += RECORD_BYTES) {
        i32[(r + RECORD.slot) >> 2] = stale;
      }
    }
  }

  /** Drops the pages that the block at `record` was decoded from. */
  dropRecordPage(record: number): void {
    for (const [page, list] of this.pages) {
      for (let i = 0; i < list.length; i += 2) {
        if (record >= list[i]! && record < list[i + 1]!) {
          this.drop(page);
          break;
        }
      }
    }
  }

  /** Drops the pages that device threads have written to since the last call. */
  dropStale(): void {
    const { i32 } = this.state;
    Atomics.store(i32, STALE >> 2, 0);
    const words = Math.ceil(this.mmu.ramSize / 4096 / 32);
    for (let w = 0; w < words; w++) {
      const at = (STALE_PAGES >> 2) + w;
      if (i32[at] === 0) continue;
      const bits = Atomics.exchange(i32, at, 0);
      for (let b = 0; b < 32; b++) if (bits & (1 << b)) this.drop(w * 32 + b);
    }
  }

  /** Drops everything and starts the arena anew. */
  flush(): void {
    const { bytes, i32 } = this.state;
    for (const page of this.pages.keys()) {
      const at = (CODE_LINES + page * 8) >> 2;
      i32[at] = 0;
      i32[at + 1] = 0;
    }
    this.pages.clear();
    bytes.fill(0, BLOCK_TABLE, BLOCK_TABLE + BLOCK_ENTRIES * 16);
    this.mmu.flushJumpCache();
    this.jit?.clear();
    this.next = RECORDS;
    this.flushes++;
  }
}
