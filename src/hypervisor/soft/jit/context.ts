/**
 * The context of compiled code: the same semantics as the interpreter's, with operands known, general
 * registers and flags in WebAssembly locals, and every way out through shared exits that write them back.
 */
import { Context, type Operand, running, type Variant } from "../context.ts";
import { FLAG_OP, jumpCacheEntry, pendingFlags } from "../core.ts";
import type { LaterOperation } from "../flags.ts";
import { HELPER } from "../helpers.ts";
import {
  BUDGET,
  CS,
  DS,
  ES,
  EXIT,
  RECORD,
  REG,
  RETURN_DEPTH,
  RETURN_LIMIT,
  RETURN_STACK,
  SS,
  XMM,
} from "../layout.ts";
import type { State } from "../state.ts";
import type { Insn } from "../table/index.ts";
import { ops, type Size, zeroAddress, zext, zext64 } from "../values.ts";
import { I32 } from "../wasm/encoding.ts";
import { c32, c64, type Expr, i32, i64 } from "../wasm/expr.ts";
import type { Label } from "../wasm/func.ts";
import { IN_LOCALS, type RegionState } from "./region-state.ts";

/** Segment bases that are 0 in 64-bit mode (SDM vol. 1, 3.3.4). */
const FLAT_BASES = new Set([ES, CS, SS, DS].map((segment) => REG.segBase + 8 * segment));

/** Instructions whose flags stay pending. All others compute theirs at once. */
const PENDING = new Set(["add", "or", "and", "sub", "xor", "cmp", "test", "neg", "inc", "dec"]);
/** Instructions that neither read nor write arithmetic flags except through `condition`. */
const NO_FLAGS = new Set([
  "mov",
  "movzx",
  "movsx",
  "movsxd",
  "lea",
  "push",
  "pop",
  "leave",
  "nop",
  "not",
  "bswap",
  "movnti",
  "jmp",
  "call",
  "ret",
  "xchg",
  "cbw/cwde/cdqe",
  "cwd/cdq/cqo",
  "xlatb",
  "cld",
  "std",
  "movsb",
  "movs",
  "stosb",
  "stos",
  "lodsb",
  "lods",
  "loop",
  "jrcxz",
  "mfence/lfence/sfence",
]);
const SETS_FLAGS_ANYWAY = new Set(["comiss", "comisd", "ucomiss", "ucomisd"]);

/** What compiled code depends on of a table entry besides its semantics. */
export type JitInsn = Pick<Insn, "mnemonic" | "operands" | "fpu">;

function usesFlags(insn: JitInsn): boolean {
  if (insn.fpu === "sse" || insn.fpu === "mmx") return SETS_FLAGS_ANYWAY.has(insn.mnemonic);
  if (NO_FLAGS.has(insn.mnemonic)) return false;
  return !/^(j|set|cmov)/.test(insn.mnemonic);
}

/** Instructions after which all six flags have values that do not depend on those before. */
const DEFINES_FLAGS = new Set(["add", "or", "and", "sub", "xor", "cmp", "test", "neg", "imul", "mul"]);
/** Instructions that can only go on with the next one while their operands are registers. */
const CANNOT_LEAVE = new Set([
  "mov",
  "movzx",
  "movsx",
  "movsxd",
  "lea",
  "nop",
  "not",
  "bswap",
  "xchg",
  "cbw/cwde/cdqe",
  "cwd/cdq/cqo",
]);

/**
 * True if nobody can see the flags with which a block is entered: its instructions define them anew before
 * any reads them and before the block can be left, by a fault or otherwise.
 */
export function flagsUnobserved(insns: readonly { insn: Insn; variant: Variant }[]): boolean {
  for (const { insn, variant } of insns) {
    if (variant.mem && insn.mnemonic !== "lea" && insn.mnemonic !== "nop") return false;
    if (DEFINES_FLAGS.has(insn.mnemonic)) return true;
    if (!CANNOT_LEAVE.has(insn.mnemonic)) return false;
  }
  return false;
}

export class JitContext extends Context {
  private readonly pendingFlags: boolean;

  constructor(
    private readonly region: RegionState,
    private readonly state: State,
    private readonly record: number,
    /** Distance of the instruction's page from the region's first, and whether there are others at all. */
    private readonly page: number,
    private readonly manyPages: boolean,
    private readonly insn: JitInsn,
    variant: Variant,
  ) {
    super(region.core, region.f, c32(record), variant, insn.operands);
    this.pendingFlags = PENDING.has(insn.mnemonic) || this.isPendingShift();
    if (!this.pendingFlags && usesFlags(insn)) this.settleFlags();
  }

  /** A shift by a constant: its flags follow from operand and count, or stay if the count is 0. */
  private isPendingShift(): boolean {
    const [, by] = this.operands;
    if (this.insn.mnemonic === "imul") return this.operands.length > 1;
    return /^(shl|shr|sar)$/.test(this.insn.mnemonic) && (by === "Ib" || by === "1");
  }

  // --- the record is known ---------------------------------------------------------------------

  protected override recordByte(offset: number): Expr {
    return c32(this.state.bytes[this.record + offset]!);
  }
  protected override recordHalf(offset: number): Expr {
    return c32(this.state.view.getUint16(this.record + offset, true));
  }
  override recordWord(offset: number): Expr {
    return c32(this.state.get(this.record + offset));
  }
  protected override recordLong(offset: number): Expr {
    return c64(this.state.view.getBigInt64(this.record + offset, true));
  }

  // --- registers are locals ----------------------------------------------------------------------

  override regAddress(): Expr {
    return this.file(super.regAddress());
  }
  override rmAddress(): Expr {
    return this.file(super.rmAddress());
  }
  private file(address: Expr): Expr {
    const n = (address.const32! - XMM) / 16;
    return n >= 0 && n < 16 ? this.region.vector(n) : address;
  }

  protected override registerAt(address: Expr): Expr {
    const at = address.const32!;
    if (at < REG.zero) return this.region.register(at >> 3);
    if (at === REG.zero || (this.variant.mode64 && FLAT_BASES.has(at))) return c64(0);
    if (at === REG.vbase) return i64.add(this.region.vbase, c64(this.page));
    return i64.load(zeroAddress, at);
  }

  protected override register(address: Expr, size: Size): Operand {
    const at = address.const32!;
    if (at >= REG.zero) return super.register(address, size);
    const { f, region } = this;
    const local = region.register(at >> 3);
    const high = (at & 7) === 1;
    const read = (): Expr => {
      if (size === 8) return local;
      const word = i32.wrap(local);
      return size === 4 ? word : zext(high ? i32.shr_u(word, c32(8)) : word, size);
    };
    const write = (value: Expr): void => {
      region.written[at >> 3] = true;
      if (size === 8) f.set(local, value);
      else if (size === 4) f.set(local, i64.extend_u(value));
      else {
        const mask = size === 2 ? 0xffffn : high ? 0xff00n : 0xffn;
        const part = zext64(value, size);
        f.set(local, i64.or(i64.and(local, c64(~mask)), high ? i64.shl(part, c64(8)) : part));
      }
    };
    return { read, write, modify: (change) => write(change(f.let(read()))) };
  }

  protected override tlb(): Expr {
    return c32(this.region.tlb);
  }

  // --- flags -------------------------------------------------------------------------------------

  /** Gets the flags into locals. */
  private settleFlags(): void {
    const { f, region } = this;
    const { flags } = region;
    if (flags.kind === "pending") {
      this.settling = true;
      pendingFlags(this, flags.op, flags.a, flags.b, flags.size);
      this.settling = false;
    } else if (flags.kind === "stored") region.loadFlags();
    else if (flags.kind === "dynamic") {
      f.if(i32.ne(region.flagKind, c32(IN_LOCALS)), () => {
        f.if(region.flagKind, () => f.call(this.core.flags, region.flagKind, region.flagA, region.flagB));
        region.loadFlags();
      });
    }
    region.flags = { kind: "local" };
  }
  /** Flags of a pending operation are being computed. */
  private settling = false;

  private get inLocals(): boolean {
    return this.settling || this.region.flags.kind === "local";
  }

  override setFlagZ(value: Expr): void {
    this.f.set(this.region.zero, value);
  }
  override setFlagS(value: Expr): void {
    this.f.set(this.region.sign, value);
  }
  override setFlagC(value: Expr): void {
    this.f.set(this.region.carries, value);
  }
  override setFlagA(value: Expr): void {
    this.f.set(this.region.adjust, value);
  }
  override get flagZ(): Expr {
    return this.inLocals ? this.region.zero : super.flagZ;
  }
  override get flagS(): Expr {
    return this.inLocals ? this.region.sign : super.flagS;
  }
  override get flagC(): Expr {
    return this.inLocals ? this.region.carries : super.flagC;
  }
  override get flagA(): Expr {
    return this.inLocals ? this.region.adjust : super.flagA;
  }

  private pend(op: number, a: Expr, b: Expr, r: Expr, size: Size): void {
    const { f, region } = this;
    const [x, y, z] = size === 8 ? region.pending64 : region.pending32;
    f.set(x, a);
    f.set(y, b);
    f.set(z, r);
    region.flags = { kind: "pending", op, size, a: x, b: y, r: z };
  }

  override flagsAdd(a: Expr, b: Expr, r: Expr, size: Size): void {
    if (this.pendingFlags && !this.settling) this.pend(FLAG_OP.add, a, b, r, size);
    else super.flagsAdd(a, b, r, size);
  }
  override flagsSub(a: Expr, b: Expr, r: Expr, size: Size): void {
    if (this.pendingFlags && !this.settling) this.pend(FLAG_OP.sub, a, b, r, size);
    else super.flagsSub(a, b, r, size);
  }
  override flagsLogic(r: Expr, size: Size): void {
    if (this.pendingFlags && !this.settling) this.pend(FLAG_OP.logic, r, r, r, size);
    else super.flagsLogic(r, size);
  }

  override flagsLater(op: LaterOperation, a: Expr, b: Expr, r: Expr, size: Size, compute: () => void): void {
    if (this.pendingFlags && !this.settling) this.pend(FLAG_OP[op], a, b, r, size);
    else compute();
  }

  override carry(): Expr {
    const dynamic = this.region.flags.kind === "dynamic";
    if (dynamic && this.pendingFlags) return this.dynamicCarry();
    return this.quickCondition(1) ?? super.carry();
  }

  /** CF without settling the flags, for an INC or DEC after another: loops are made of them. */
  private dynamicCarry(): Expr {
    const { f, region } = this;
    const cf = f.local(I32);
    f.if(
      i32.lt_u(i32.sub(region.flagKind, c32(FLAG_OP.inc * 4)), c32(8)),
      () => f.set(cf, i32.wrap(region.flagB)),
      () => {
        region.writeFlags();
        f.set(region.flagKind, c32(0));
        f.set(cf, i32.wrap(i64.shr_u(super.flagC, c64(63))));
      },
    );
    return cf;
  }

  override condition(cc: number): Expr {
    const quick = this.quickCondition(cc >> 1);
    if (!quick) return super.condition(cc);
    return cc & 1 ? i32.eqz(quick) : quick;
  }

  /** An even condition from the pending operation; undefined (and the flags stored) when it gives no shortcut. */
  private quickCondition(pair: number): Expr | undefined {
    const state = this.region.flags;
    if (state.kind === "pending") {
      const { size, a, b, r } = state;
      const o = ops(size);
      const zero = size === 8 ? c64(0) : c32(0);
      const signed = (v: Expr) => (size === 1 ? i32.extend8_s(v) : size === 2 ? i32.extend16_s(v) : v);
      const isZero = () => o.eqz(zext(r, size));
      const isNegative = () => o.lt_s(signed(r), zero);
      if (pair === 2) return isZero();
      if (pair === 4) return isNegative();
      if (state.op === FLAG_OP.logic) {
        if (pair === 0 || pair === 1) return c32(0);
        if (pair === 3) return isZero();
        if (pair === 6) return isNegative();
        if (pair === 7) return o.le_s(signed(r), zero);
      } else if (state.op === FLAG_OP.sub) {
        const x = zext(a, size);
        const y = zext(b, size);
        if (pair === 1) return o.lt_u(x, y);
        if (pair === 3) return o.le_u(x, y);
        if (pair === 6) return o.lt_s(signed(a), signed(b));
        if (pair === 7) return o.le_s(signed(a), signed(b));
      } else if (state.op === FLAG_OP.inc || state.op === FLAG_OP.dec) {
        if (pair === 1) return o.ne(b, zero);
      } else if (state.op === FLAG_OP.add && pair === 1) return o.lt_u(zext(r, size), zext(a, size));
    }
    if (state.kind !== "stored") this.settleFlags();
    return undefined;
  }

  // --- exits -------------------------------------------------------------------------------------

  /** The interpreter does the instruction and goes on to the end of the block. */
  protected override miss(): void {
    this.exitFrom(this.region.miss);
  }
  /** What {@link BOUNCE} is for ends in a miss here. */
  override commit(): void {}

  override leave(code: number | Expr): void {
    const { f, region } = this;
    if (code !== EXIT.fault) f.set(region.exitCode, typeof code === "number" ? c32(code) : code);
    this.exitFrom(region.fault);
  }

  /** Takes an exit at this instruction. */
  private exitFrom(exit: Label): void {
    const { f, region } = this;
    const saved = region.flags;
    region.setDynamic();
    f.set(region.exitRecord, c32(this.record));
    if (this.manyPages) f.set(region.exitPage, this.registerAt(c32(REG.vbase)));
    f.br(exit);
    region.flags = saved;
  }

  /** Brings the CPU state up to date for code that looks at where the instruction is. */
  private writeBackAll(): void {
    this.f.store(8, zeroAddress, REG.vbase, this.registerAt(c32(REG.vbase)));
    this.writeBack();
  }

  override helper(id: number): void {
    const { f, region } = this;
    if (id === HELPER.sseScalar) {
      // Touches MXCSR and its operands' scratch only.
      const code = f.let(this.callHelper(id));
      f.ifRarely(code, () => this.leave(code));
      return;
    }
    if (this.mem) this.linearAddress();
    const inLocals = region.flags.kind === "local";
    this.writeBackAll();
    const code = f.let(this.callHelper(id));
    f.ifRarely(code, () => this.stop(code));
    region.reload();
    // The helper may have written over the code of this very region.
    f.ifRarely(region.isDropped(), () => this.exitTo(this.nextRip()));
    // The call may be conditional: the flags are afterwards where they are without it.
    if (inLocals) region.loadFlags();
  }

  override endWithHelper(id: number): void {
    if (this.mem) this.linearAddress();
    this.charge();
    this.writeBackAll();
    this.stop(this.f.let(this.callHelper(id)));
  }

  /** Leaves with the CPU state already written back. */
  private stop(code: Expr): void {
    super.leave(code);
  }

  override interrupted(): void {
    this.exitTo(this.rip());
  }

  override charge(): void {
    const { budget } = this.region;
    this.f.set(budget, i32.sub(budget, this.recordByte(RECORD.count)));
  }

  protected override writeBack(): void {
    this.region.writeFlags();
    this.region.writeRegisters();
  }

  /** Leaves the region for a RIP. */
  exitTo(rip: Expr): void {
    const { f, region } = this;
    f.set(region.target, rip);
    region.writeFlags();
    f.br(region.leave);
  }

  override callDirect(): void {
    if (this.callInside) {
      this.charge();
      this.callInside();
      return;
    }
    this.callTo(this.instructionPointer(i64.add(this.registerAt(c32(REG.vbase)), this.immediateOffset())));
  }
  private immediateOffset(): Expr {
    return c64(this.state.get(this.record + RECORD.imm));
  }

  /** A call becomes a WebAssembly call if the block it returns to is in the region. */
  override callTo(rip: Expr): void {
    const { f, region } = this;
    if (!this.returns) {
      this.jumpTo(rip);
      return;
    }
    this.charge();
    const target = f.let(rip);
    this.writeBack();
    const depth = f.let(i32.load(zeroAddress, RETURN_DEPTH));
    f.ifRarely(i32.ge_u(depth, c32(RETURN_LIMIT)), () => f.returnCall(this.core.dispatch, target));
    const back = f.let(this.nextRip());
    f.store(8, i32.shl(depth, c32(3)), RETURN_STACK, back);
    f.store(4, zeroAddress, RETURN_DEPTH, i32.add(depth, c32(1)));
    const code = this.callThroughJumpCache(target);
    f.ifRarely(code, () => f.return(code));
    region.reload();
    f.set(region.budget, i32.load(zeroAddress, BUDGET));
    // The callee may have written over the code of this very region.
    f.ifRarely(region.isDropped(), () => this.exitTo(back));
    this.returns();
  }

  override returnTo(rip: Expr): void {
    const { f, region } = this;
    this.charge();
    const target = f.let(this.instructionPointer(rip));
    const depth = f.let(i32.load(zeroAddress, RETURN_DEPTH));
    const top = i32.add(i32.shl(depth, c32(3)), c32(RETURN_STACK - 8));
    const expected = i32.and(i32.ne(depth, c32(0)), i64.eq(i64.load(top), target));
    f.if(i32.and(expected, running(region.budget)), () => {
      const saved = region.flags;
      this.writeBack();
      f.store(4, zeroAddress, RETURN_DEPTH, i32.sub(depth, c32(1)));
      f.return(c32(EXIT.returned));
      region.flags = saved;
    });
    this.within?.(target);
    this.exitTo(target);
  }

  /** Calls what lies at a RIP: as dispatch does, but without a frame of its own in between when it is known. */
  private callThroughJumpCache(target: Expr): Expr {
    const { f, region } = this;
    const code = f.local(I32);
    const cached = jumpCacheEntry(f, target);
    f.if(
      i32.and(cached.hit, running(region.budget)),
      () => {
        f.store(8, zeroAddress, REG.vbase, i64.and(target, c64(-4096)));
        const record = f.let(cached.record);
        f.set(code, f.callIndirect(this.core.handlerType, I32, i32.load(record), record));
      },
      () => f.set(code, f.call(this.core.dispatch, target)),
      true,
    );
    return code;
  }

  /** Set by the emitter: goes to a RIP if that is an entry of the region. */
  within: ((rip: Expr) => void) | undefined;

  /** Set by the emitter when a direct call and its return are edges inside the region: makes it. */
  callInside: (() => void) | undefined;

  /** Set by the emitter when a call's return is in the region: goes on there. */
  returns: (() => void) | undefined;

  override jumpTo(rip: Expr): void {
    this.charge();
    const target = this.f.let(this.instructionPointer(rip));
    this.within?.(target);
    this.exitTo(target);
  }

  override jumpDirect(taken: Expr): void {
    this.charge();
    this.branch?.(taken, this);
  }

  /** Set by the emitter: writes the block's direct branch. */
  branch: ((taken: Expr, c: JitContext) => void) | undefined;
}
