/**
 * What an instruction's semantics are written against: operands, memory, flags and control flow of the
 * instruction being emitted. This implementation reads every operand out of the decoded record at run time
 * (the interpreter's handlers).
 */

import type { Core } from "./core.ts";
import { Flags } from "./flags.ts";
import {
  ATTENTION,
  BOUNCE,
  BUDGET,
  CURRENT,
  EXIT,
  FAULT_ERROR,
  FAULT_VECTOR,
  LINEAR,
  RECORD,
  RECORD_BYTES,
  REG,
  RETURN_DEPTH,
  RETURN_STACK,
  RIP,
  RSP,
  SS,
  TLB_BYTES,
  TLB_CURRENT,
  TLB_ENTRIES,
} from "./layout.ts";
import { konst, ops, type Size, wide, zeroAddress, zext } from "./values.ts";
import { I32 } from "./wasm/encoding.ts";
import { c32, c64, type Expr, i32, i64, type Local, select, v128 } from "./wasm/expr.ts";
import type { Func } from "./wasm/func.ts";

/** The properties that give one instruction several handlers. */
export interface Variant {
  readonly size: Size;
  /** The ModRM operand is in memory. */
  readonly mem: boolean;
  /** LOCK prefix (only where the instruction allows it). */
  readonly lock: boolean;
  /** 0, or 0xf2 / 0xf3 on a string instruction. */
  readonly rep: 0 | 0xf2 | 0xf3;
  readonly mode64: boolean;
  /** Effective addresses (and rSI, rDI, rCX of string instructions) are 32 bits. */
  readonly addr32: boolean;
}

/** Kinds of a memory access, as the slow path is told them. */
export const READ = 0;
export const WRITE = 1;
export const READ_WRITE = 2;
/** A read that must not touch memory-mapped I/O: the slow path answers {@link BOUNCE} instead. */
export const PROBE = 3;
/** Set in the kind of an atomic access. */
export const LOCKED = 0x100;
/** Above size and kind: register-file offset of the segment base that the access went through. */
export const SEGMENT_SHIFT = 20;

/** An integer operand. Values of 1, 2 and 4 bytes are i32 (zero-extended when read), of 8 bytes i64. */
export interface Operand {
  read(): Expr;
  /** Bits above the operand's size are ignored; a 4-byte register write clears the upper half. */
  write(value: Expr): void;
  /** Read, compute, write, in one access; atomic with a LOCK prefix. `change` is emitted exactly once. */
  modify(change: (old: Expr) => Expr): void;
}

/** The properties of the code around instructions, where no instruction gives any. */
export const PLAIN: Variant = { size: 4, mem: false, lock: false, rep: 0, mode64: true, addr32: false };

/** True while the slice lasts and nobody asks for attention. */
export const running = (budget: Expr = i32.load(zeroAddress, BUDGET)): Expr =>
  i32.ge_s(i32.or(budget, i32.load(zeroAddress, ATTENTION)), c32(0));

export class Context extends Flags {
  readonly size: Size;
  readonly mem: boolean;
  private linear: Expr | undefined;
  /** The access being emitted goes through SS whatever the record says. */
  private onStack = false;

  constructor(
    readonly core: Core,
    f: Func,
    readonly ip: Expr,
    readonly variant: Variant,
    readonly operands: readonly string[],
  ) {
    super(f);
    this.size = variant.size;
    this.mem = variant.mem;
  }

  get dst(): Operand {
    return this.operand(0);
  }
  get src(): Operand {
    return this.operand(1);
  }

  /** The n-th operand of the table entry, at the instruction's operand size unless its letter fixes one. */
  operand(n: number): Operand {
    const spec = this.operands[n];
    if (spec === undefined) throw new Error(`${this.f.name}: no operand ${n}`);
    const size = this.operandSize(spec);
    switch (spec[0]) {
      case "E":
      case "M":
      case "R":
        return this.rm(size);
      case "G":
      case "Z":
        return this.reg(size);
      case "I":
        return this.immediate(size);
      case "O":
        return this.memory(size);
      case "1":
        return constant(konst(size, 1));
      case "a":
        return this.fixed(0, size);
      case "c":
        return this.fixed(8, 1);
      default:
        throw new Error(`${this.f.name}: operand ${spec}`);
    }
  }

  private operandSize(spec: string): Size {
    switch (spec[1]) {
      case "b":
        return spec[0] === "I" ? this.size : 1;
      case "w":
        return 2;
      case "d":
        return 4;
      case "q":
        return 8;
      default:
        return this.size;
    }
  }

  /** Emits the semantics' normal end: go on with the next record. */
  next(): void {
    const next = this.f.let(i32.add(this.ip, c32(RECORD_BYTES)));
    this.f.returnCallIndirect(this.core.handlerType, i32.load(this.ip, RECORD_BYTES + RECORD.slot), next);
  }

  /** Leaves the interpreter with CURRENT at this instruction. */
  leave(code: number | Expr): void {
    this.f.store(4, zeroAddress, CURRENT, this.ip);
    this.f.return(typeof code === "number" ? c32(code) : code);
  }

  /** Raises an exception at this instruction; `error` -1 for none. */
  raise(vector: number, error = -1): void {
    this.f.store(4, zeroAddress, FAULT_VECTOR, c32(vector));
    this.f.store(4, zeroAddress, FAULT_ERROR, c32(error));
    this.leave(EXIT.fault);
  }

  /** Calls the TypeScript helper `id`, which may end the instruction with a fault or a changed machine. */
  helper(id: number): void {
    const code = this.callHelper(id);
    this.f.ifRarely(code, () => this.leave(code));
  }

  /** A helper that always ends the block and says how. */
  endWithHelper(id: number): void {
    this.charge();
    this.leave(this.callHelper(id));
    this.f.unreachable();
  }

  protected callHelper(id: number): Expr {
    const { size, mem, addr32, mode64, rep } = this.variant;
    if (mem) this.f.store(8, zeroAddress, LINEAR, this.linearAddress());
    const descriptor =
      id | (size << 8) | (Number(mem) << 12) | (Number(addr32) << 13) | (Number(mode64) << 14) | (rep << 16);
    return this.f.call(this.core.helper, c32(descriptor), this.ip);
  }

  // --- registers -------------------------------------------------------------------------------

  /** Fields of the decoded record: i32, and i64 for the displacement. */
  protected recordByte(offset: number): Expr {
    return i32.load8_u(this.ip, offset);
  }
  protected recordHalf(offset: number): Expr {
    return i32.load16_u(this.ip, offset);
  }
  recordWord(offset: number): Expr {
    return i32.load(this.ip, offset);
  }
  protected recordLong(offset: number): Expr {
    return i64.load(this.ip, offset);
  }

  /** The register at a register-file address (general, always-zero, vbase or segment base), as i64. */
  protected registerAt(address: Expr): Expr {
    return address.const32 === undefined ? i64.load(address) : i64.load(zeroAddress, address.const32);
  }

  /** A general register by its register-file offset, whole. */
  gpr(offset: number): Expr {
    return this.registerAt(c32(offset));
  }
  setGpr(offset: number, value: Expr): void {
    this.fixed(offset, 8).write(value);
  }
  /** rSI, rDI, rCX, ... at the instruction's address size. */
  pointer(offset: number): Expr {
    const value = this.gpr(offset);
    return this.variant.addr32 ? i64.and(value, c64(0xffff_ffffn)) : value;
  }

  /** ModRM.reg itself, without REX.R. */
  modrmReg(): Expr {
    return i32.and(i32.shr_u(this.recordByte(RECORD.aux), c32(3)), c32(7));
  }
  /** Register-file address of ModRM.reg (or the opcode's register). */
  regAddress(): Expr {
    return this.recordHalf(RECORD.reg);
  }
  /** Register-file address of ModRM.rm when it names a register. */
  rmAddress(): Expr {
    return this.recordHalf(RECORD.rm);
  }

  reg(size = this.size): Operand {
    return this.register(this.f.let(this.regAddress()), size);
  }
  /** A register at a known register-file offset (RAX = 0, RCX = 8, ...). */
  fixed(offset: number, size = this.size): Operand {
    return this.register(c32(offset), size);
  }
  rm(size = this.size): Operand {
    return this.mem ? this.memory(size) : this.register(this.f.let(this.rmAddress()), size);
  }

  readAt(address: Expr, size: Size, offset = 0): Expr {
    switch (size) {
      case 1:
        return i32.load8_u(address, offset);
      case 2:
        return i32.load16_u(address, offset);
      case 4:
        return i32.load(address, offset);
      case 8:
        return i64.load(address, offset);
    }
  }

  protected register(address: Expr, size: Size): Operand {
    const f = this.f;
    const base = address.const32 === undefined ? address : zeroAddress;
    const offset = address.const32 ?? 0;
    const write = (value: Expr) => {
      if (size === 4) f.store(8, base, offset, i64.extend_u(value));
      else f.store(size, base, offset, value);
    };
    return {
      read: () => this.readAt(base, size, offset),
      write,
      modify: (change) => write(change(f.let(this.readAt(base, size, offset)))),
    };
  }

  /** The immediate, sign-extended from its encoded width. */
  immediate(size = this.size): Operand {
    return constant(
      size === 8 ? i64.extend_s(this.recordWord(RECORD.imm)) : zext(this.recordWord(RECORD.imm), size),
    );
  }

  /** The 64-bit immediate of MOV r64, imm64. */
  immediate64(): Expr {
    return this.recordLong(RECORD.disp);
  }

  // --- memory ----------------------------------------------------------------------------------

  /** The effective address without the segment base (LEA). */
  effectiveAddress(): Expr {
    let ea = i64.add(
      i64.add(
        this.registerAt(this.recordHalf(RECORD.base)),
        i64.shl(this.registerAt(this.recordHalf(RECORD.index)), i64.extend_u(this.recordByte(RECORD.scale))),
      ),
      this.recordLong(RECORD.disp),
    );
    if (this.variant.addr32) ea = i64.and(ea, c64(0xffff_ffffn));
    return ea;
  }

  /** Base of the memory operand's segment. */
  segmentBase(): Expr {
    return this.registerAt(this.recordHalf(RECORD.segment));
  }

  /** The linear address of the memory operand. Computed once an instruction. */
  linearAddress(): Expr {
    if (!this.linear) {
      const ea = this.effectiveAddress();
      let linear = i64.add(ea, this.segmentBase());
      if (!this.variant.mode64) linear = i64.and(linear, c64(0xffff_ffffn));
      this.linear = this.f.let(linear);
    }
    return this.linear;
  }

  memory(size = this.size): Operand {
    const lin = this.linearAddress();
    return {
      read: () => this.load(lin, size),
      write: (value) => this.store(lin, size, value),
      modify: (change) => this.modify(lin, size, change),
    };
  }

  /**
   * Host address of guest linear `[lin, lin+size)` for an access of `kind`. The fast path is one compare
   * against the TLB; the slow path may hand back {@link BOUNCE} (memory-mapped I/O, page crossing, code
   * pages) and ends the instruction on a fault.
   */
  translate(kind: number, lin: Expr, size: number): Local {
    const { f } = this;
    const lock = this.variant.lock && kind === READ_WRITE;
    const index = i32.wrap(i64.and(i64.shr_u(lin, c64(8)), c64((TLB_ENTRIES - 1) << 4)));
    const tlb = this.tlb();
    const entry = f.let(tlb.const32 === undefined ? i32.add(index, tlb) : index);
    const way = (tlb.const32 ?? 0) + (kind === READ || kind === PROBE ? 0 : TLB_BYTES);
    // In the entry's page, the difference to its tag is the offset there.
    const offset = i64.xor(lin, i64.load(entry, way));
    // An atomic access must be aligned: the low address bits make it miss.
    const misses = lock
      ? i64.ne(i64.and(offset, c64(-4096 | (size - 1))), c64(0))
      : i64.gt_u(offset, c64(4096 - size));
    const address = f.local(I32);
    // The addend is read in any case, so that a hit needs no jump.
    f.set(address, i32.add(i32.wrap(lin), i32.load(entry, way + 8)));
    f.ifRarely(misses, () => this.miss(kind, lin, size, address));
    return address;
  }

  /** What an access does whose page is not in the TLB. */
  protected miss(kind: number, lin: Expr, size: number, address: Local): void {
    const { f } = this;
    f.set(address, this.slow(kind, lin, size));
    f.ifRarely(i32.eqz(address), () => this.leave(EXIT.fault));
  }

  /** Start of the data TLB of the current privilege. */
  protected tlb(): Expr {
    return i32.load(zeroAddress, TLB_CURRENT);
  }

  private slow(kind: number, lin: Expr, size: number): Expr {
    const lock = this.variant.lock && kind === READ_WRITE ? LOCKED : 0;
    const access = size | ((kind | lock) << 8);
    const segment = this.onStack
      ? c32((REG.segBase + 8 * SS) << SEGMENT_SHIFT)
      : i32.shl(this.recordHalf(RECORD.segment), c32(SEGMENT_SHIFT));
    return this.f.call(
      this.core.slow,
      i32.wrap(lin),
      i32.wrap(i64.shr_u(lin, c64(32))),
      i32.or(segment, c32(access)),
    );
  }

  /** Makes a write that went to the bounce buffer real. */
  commit(address: Expr, lin: Expr, size: number): void {
    this.f.ifRarely(i32.eq(address, c32(BOUNCE)), () => {
      this.f.call(this.core.commit, i32.wrap(lin), i32.wrap(i64.shr_u(lin, c64(32))), c32(size));
    });
  }

  load(lin: Expr, size: Size): Expr {
    const address = this.translate(READ, lin, size);
    return this.f.let(this.readAt(address, size));
  }

  store(lin: Expr, size: Size, value: Expr): void {
    const shared = this.f.let(value);
    const address = this.translate(WRITE, lin, size);
    this.f.store(size, address, 0, shared);
    this.commit(address, lin, size);
  }

  modify(lin: Expr, size: Size, change: (old: Expr) => Expr): void {
    const { f } = this;
    const address = this.translate(READ_WRITE, lin, size);
    if (!this.variant.lock) {
      const old = f.let(this.readAt(address, size));
      f.store(size, address, 0, change(old));
    } else {
      const old = f.local(wide(size));
      f.loop((again) => {
        f.set(old, this.readAt(address, size));
        const seen = f.atomicCmpxchg(size, address, old, zext(change(old), size));
        f.brIf(again, ops(size).ne(seen, old));
      });
    }
    this.commit(address, lin, size);
  }

  /** 16-byte load. `aligned`: #GP(0) unless the address is a multiple of 16 (SDM vol. 1, 4.6.4). */
  load128(lin: Expr, aligned: boolean): Expr {
    if (aligned) this.checkAlignment(lin);
    return this.f.let(v128.load(this.translate(READ, lin, 16)));
  }

  store128(lin: Expr, value: Expr, aligned: boolean): void {
    if (aligned) this.checkAlignment(lin);
    const address = this.translate(WRITE, lin, 16);
    this.f.store(16, address, 0, value);
    this.commit(address, lin, 16);
  }

  checkAlignment(lin: Expr): void {
    this.f.ifRarely(i32.and(i32.wrap(lin), c32(15)), () => this.raise(13, 0));
  }

  // --- stack -----------------------------------------------------------------------------------

  private stackAddress(rsp: Expr): Expr {
    if (this.variant.mode64) return rsp;
    return i64.and(
      i64.add(i64.and(rsp, c64(0xffff_ffffn)), i64.load(zeroAddress, REG.segBase + 8 * SS)),
      c64(0xffff_ffffn),
    );
  }

  setStackPointer(value: Expr): void {
    this.setGpr(RSP, this.variant.mode64 ? value : i64.and(value, c64(0xffff_ffffn)));
  }

  /** Pushes `size` bytes. RSP changes only when the write has not faulted. */
  push(value: Expr, size: Size): void {
    const shared = this.f.let(value);
    const rsp = this.f.let(i64.sub(this.gpr(RSP), c64(size)));
    const address = this.f.let(this.stackAddress(rsp));
    this.throughStack(() => this.store(address, size, shared));
    this.setStackPointer(rsp);
  }

  /** Reads the top of the stack, `size` bytes, `above` bytes above RSP. RSP stays. */
  peek(size: Size, above = 0): Expr {
    const rsp = i64.add(this.gpr(RSP), c64(above));
    const address = this.f.let(this.stackAddress(rsp));
    return this.throughStack(() => this.load(address, size));
  }

  /** Emits an access through SS: an address that is not canonical is #SS(0), not #GP(0) (SDM vol. 3A, 6.15). */
  throughStack<T>(access: () => T): T {
    this.onStack = true;
    const result = access();
    this.onStack = false;
    return result;
  }

  /** Adds `bytes` to RSP. */
  drop(bytes: Expr): void {
    this.setStackPointer(i64.add(this.gpr(RSP), bytes));
  }

  // --- control flow ----------------------------------------------------------------------------

  /** RIP of this instruction. */
  rip(): Expr {
    return i64.add(this.registerAt(c32(REG.vbase)), i64.extend_u(this.recordHalf(RECORD.offset)));
  }

  /** RIP of the next instruction. */
  nextRip(): Expr {
    return i64.add(this.rip(), i64.extend_u(this.recordByte(RECORD.length)));
  }

  /** A RIP as the mode has it: 32 bits outside 64-bit mode. */
  instructionPointer(rip: Expr): Expr {
    return this.variant.mode64 ? rip : i64.and(rip, c64(0xffff_ffffn));
  }

  /** Brings the CPU state up to date before other code sees it. Here it always is. */
  protected writeBack(): void {}

  /** Leaves between two elements of a repeated string instruction, to come back to it. */
  interrupted(): void {
    this.f.store(8, zeroAddress, RIP, this.rip());
    this.f.return(c32(EXIT.attention));
  }

  /** Counts the block's instructions against the slice. */
  charge(): void {
    this.f.store(
      4,
      zeroAddress,
      BUDGET,
      i32.sub(i32.load(zeroAddress, BUDGET), i32.load8_u(this.ip, RECORD.count)),
    );
  }

  /** Ends the block at a target only known now. */
  jumpTo(rip: Expr): void {
    this.charge();
    this.f.returnCall(this.core.dispatch, this.instructionPointer(rip));
    this.f.unreachable();
  }

  /** Ends the block by returning to `rip`: from the WebAssembly call of a compiled caller if it waits there. */
  returnTo(rip: Expr): void {
    const { f } = this;
    this.charge();
    this.writeBack();
    const target = f.let(this.instructionPointer(rip));
    const depth = f.let(i32.load(zeroAddress, RETURN_DEPTH));
    const top = i32.add(i32.shl(depth, c32(3)), c32(RETURN_STACK - 8));
    f.if(i32.and(i32.and(i32.ne(depth, c32(0)), i64.eq(i64.load(top), target)), running()), () => {
      f.store(4, zeroAddress, RETURN_DEPTH, i32.sub(depth, c32(1)));
      f.return(c32(EXIT.returned));
    });
    f.returnCall(this.core.dispatch, target);
    f.unreachable();
  }

  /** Ends the block with a call whose return address has been pushed: to the direct target, or to `rip`. */
  callDirect(): void {
    this.jumpDirect(c32(1));
  }
  callTo(rip: Expr): void {
    this.jumpTo(rip);
  }

  /** Ends the block at the record's direct target (`taken` 1) or at the next instruction (0). */
  jumpDirect(taken: Expr): void {
    const { f } = this;
    this.charge();
    const t = f.let(taken);
    const link = f.let(
      t.const32 !== undefined
        ? i32.load(this.ip, t.const32 ? RECORD.taken : RECORD.fallthrough)
        : i32.load(i32.add(this.ip, select(t, c32(RECORD.taken), c32(RECORD.fallthrough)))),
    );
    f.if(i32.and(i32.ne(link, c32(0)), running()), () =>
      f.returnCallIndirect(this.core.handlerType, i32.load(link), link),
    );
    f.returnCall(this.core.direct, this.ip, t);
    f.unreachable();
  }

  // --- SIMD registers --------------------------------------------------------------------------

  xmmReg(): Expr {
    return v128.load(this.regAddress());
  }
  writeXmmReg(value: Expr): void {
    this.f.store(16, this.regAddress(), 0, value);
  }
  /** The 128-bit r/m operand; a memory operand must be aligned. */
  xmmRm(aligned = true): Expr {
    return this.mem ? this.load128(this.linearAddress(), aligned) : v128.load(this.rmAddress());
  }
}

function constant(value: Expr): Operand {
  const refuse = () => {
    throw new Error("an immediate operand cannot be written");
  };
  return { read: () => value, write: refuse, modify: refuse };
}
