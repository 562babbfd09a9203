/**
 * What the instructions of a region share: the locals that hold the guest's registers and flags, and the exits. It writes
 * the code that gets them from the CPU state and back.
 */
import { Context, PLAIN } from "../context.ts";
import { type Core, FLAG_OP, pendingFlags } from "../core.ts";
import { BUDGET, EXIT, FLAG_A, FLAG_C, FLAG_S, FLAG_Z, REG, REGION_LIVE, XMM } from "../layout.ts";
import { type Size, zeroAddress } from "../values.ts";
import { type ByteWriter, I32, I64, V128 } from "../wasm/encoding.ts";
import { c32, type Expr, i32, i64, type Local, VectorAddress, v128 } from "../wasm/expr.ts";
import { Func, type Label } from "../wasm/func.ts";

/** Where the arithmetic flags are, as the emitter knows it at a point of the code. */
export type FlagState =
  /** In the CPU state. */
  | { kind: "stored" }
  /** In the locals `zero`, `sign`, `carries` and `adjust`. */
  | { kind: "local" }
  /** Follow from an operation whose operands are at hand. */
  | { kind: "pending"; op: number; size: Size; a: Expr; b: Expr; r: Expr }
  /**
   * As the local `flagKind` says at run time: 0 in the CPU state, {@link IN_LOCALS}, or an operation on `flagA` and
   * `flagB`.
   */
  | { kind: "dynamic" };

/** Value of `flagKind` while the flags are in locals. */
export const IN_LOCALS = -1;

/** What all instructions of a region share. */
export class RegionState {
  readonly gpr: (Local | undefined)[] = new Array(16);
  readonly xmm: (VectorAddress | undefined)[] = new Array(16);
  /** Registers the region writes. */
  readonly written = new Array<boolean>(16).fill(false);
  readonly vbase: Local;
  readonly budget: Local;
  /** Operands of the pending operation, for operands of up to 4 bytes and of 8. */
  readonly pending32: readonly [Local, Local, Local];
  readonly pending64: readonly [Local, Local, Local];
  readonly flagKind: Local;
  readonly flagA: Local;
  readonly flagB: Local;
  /** The stored forms of the flags, see FLAG_Z, FLAG_S, FLAG_C and FLAG_A. */
  readonly zero: Local;
  readonly sign: Local;
  readonly carries: Local;
  readonly adjust: Local;
  /** Parameters of the exits: record, its page's linear address, code. */
  readonly exitRecord: Local;
  readonly exitPage: Local;
  readonly exitCode: Local;
  readonly target: Local;
  flags: FlagState = { kind: "dynamic" };
  /** Exits: to `target`, with `exitCode` at `exitRecord`, and to the interpreter at `exitRecord`. */
  leave: Label = { depth: 0 };
  fault: Label = { depth: 0 };
  miss: Label = { depth: 0 };

  constructor(
    readonly f: Func,
    readonly core: Core,
    /** Where the region will be in the interpreter's table. */
    readonly slot: number,
    /** Start of the data TLB of the privilege that the region runs at. */
    readonly tlb: number,
  ) {
    this.vbase = f.permanent(I64);
    this.budget = f.permanent(I32);
    this.pending32 = [f.permanent(I32), f.permanent(I32), f.permanent(I32)];
    this.pending64 = [f.permanent(I64), f.permanent(I64), f.permanent(I64)];
    this.flagKind = f.permanent(I32);
    this.flagA = f.permanent(I64);
    this.flagB = f.permanent(I64);
    this.zero = f.permanent(I64);
    this.sign = f.permanent(I64);
    this.carries = f.permanent(I64);
    this.adjust = f.permanent(I32);
    this.exitRecord = f.permanent(I32);
    this.exitPage = f.permanent(I64);
    this.exitCode = f.permanent(I32);
    this.target = f.permanent(I64);
  }

  register(n: number): Local {
    let local = this.gpr[n];
    if (!local) {
      local = this.f.permanent(I64);
      this.gpr[n] = local;
    }
    return local;
  }

  /** XMM register `n` as an address that stands for its local. */
  vector(n: number): VectorAddress {
    let address = this.xmm[n];
    if (!address) {
      address = new VectorAddress(XMM + 16 * n, this.f.permanent(V128));
      this.xmm[n] = address;
    }
    return address;
  }

  /** Makes the flags dynamic: their kind and operands go to locals, nothing is computed. */
  setDynamic(): void {
    const { f, flags } = this;
    if (flags.kind === "stored") f.set(this.flagKind, c32(0));
    else if (flags.kind === "local") f.set(this.flagKind, c32(IN_LOCALS));
    else if (flags.kind === "pending") {
      f.set(this.flagKind, c32(flags.op * 4 + Math.log2(flags.size)));
      f.set(this.flagA, widen(flags.a));
      if (flags.op !== FLAG_OP.logic) f.set(this.flagB, widen(flags.b));
    }
  }

  /** Writes the registers and the budget back to the CPU state. */
  writeRegisters(): void {
    const { f } = this;
    f.later(() =>
      this.registerCode((out) => {
        for (let n = 0; n < 16; n++)
          if (this.written[n]) out.store(8, zeroAddress, REG.gpr + 8 * n, this.gpr[n]!);
        for (const x of this.xmm) if (x?.written) out.store(16, zeroAddress, x.const32, x.vector);
      }),
    );
    f.store(4, zeroAddress, BUDGET, this.budget);
  }

  /** Writes the flags back, wherever they are. */
  writeFlags(): void {
    const { f, flags } = this;
    if (flags.kind === "pending") {
      const c = new Context(this.core, f, zeroAddress, PLAIN, []);
      pendingFlags(c, flags.op, flags.a, flags.b, flags.size);
      return;
    }
    if (flags.kind === "local") this.storeLocals();
    if (flags.kind === "dynamic") {
      f.if(
        i32.eq(this.flagKind, c32(IN_LOCALS)),
        () => this.storeLocals(),
        () => f.if(this.flagKind, () => f.call(this.core.flags, this.flagKind, this.flagA, this.flagB)),
      );
    }
  }

  private storeLocals(): void {
    const { f } = this;
    f.store(8, zeroAddress, FLAG_Z, this.zero);
    f.store(8, zeroAddress, FLAG_S, this.sign);
    f.store(8, zeroAddress, FLAG_C, this.carries);
    f.store(4, zeroAddress, FLAG_A, this.adjust);
  }

  /** Gets the flags from the CPU state into locals. */
  loadFlags(): void {
    const { f } = this;
    this.flags = { kind: "local" };
    f.set(this.zero, i64.load(zeroAddress, FLAG_Z));
    f.set(this.sign, i64.load(zeroAddress, FLAG_S));
    f.set(this.carries, i64.load(zeroAddress, FLAG_C));
    f.set(this.adjust, i32.load(zeroAddress, FLAG_A));
  }

  /** Reads the registers again after code that works on the CPU state. */
  reload(): void {
    this.f.later(() => this.registerCode((out) => this.loadRegisters(out)));
    this.flags = { kind: "stored" };
  }

  private loadRegisters(out: Func): void {
    for (let n = 0; n < 16; n++) {
      const local = this.gpr[n];
      if (local) out.set(local, i64.load(zeroAddress, REG.gpr + 8 * n));
    }
    for (const x of this.xmm) if (x) out.set(x.vector, v128.load(zeroAddress, x.const32));
  }

  /** Statements about registers, written once it is known which the region uses. */
  private registerCode(write: (out: Func) => void): ByteWriter {
    const scratch = new Func(this.f.ref, this.f.name);
    write(scratch);
    return scratch.code;
  }

  /** True once the region's code may be wrong: something has written over it. */
  isDropped(): Expr {
    return i32.eqz(i32.load8_u(c32(this.slot), REGION_LIVE));
  }

  /** Writes the function's prologue, when all is known; `check` comes when `vbase` is the entered page's. */
  finish(check: (out: Func) => void): void {
    const out = new Func(this.f.ref, this.f.name);
    out.set(this.vbase, i64.load(zeroAddress, REG.vbase));
    check(out);
    out.set(this.exitPage, this.vbase);
    out.set(this.budget, i32.load(zeroAddress, BUDGET));
    out.set(this.exitCode, c32(EXIT.fault));
    this.loadRegisters(out);
    this.f.prologue.append(out.code.view());
  }
}

const widen = (value: Expr): Expr => (value.type === I64 ? value : i64.extend_u(value));
