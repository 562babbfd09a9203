/**
 * The arithmetic flags, kept as the values they follow from (FLAG_Z, FLAG_S, FLAG_C and FLAG_A in layout.ts), so
 * that setting them costs a few operations and looking at a condition two or three.
 */
import { FLAG_A, FLAG_C, FLAG_S, FLAG_Z } from "./layout.ts";
import { konst, ops, type Size, sext64, zeroAddress } from "./values.ts";
import { c32, c64, type Expr, i32, i64 } from "./wasm/expr.ts";
import type { Func } from "./wasm/func.ts";

/** Operations whose flags compiled code computes when somebody looks. */
export type LaterOperation = "shl" | "shr" | "sar" | "imul" | "inc" | "dec";

/** What an instruction's semantics do with flags. */
export class Flags {
  constructor(readonly f: Func) {}

  /** ZF, SF and PF from the result. */
  setResult(result: Expr, size: Size): void {
    const r = this.f.let(sext64(result, size));
    this.setFlagZ(r);
    this.setFlagS(r);
  }

  /** The stored forms of the arithmetic flags; see FLAG_Z, FLAG_S, FLAG_C and FLAG_A in layout.ts. */
  setFlagZ(value: Expr): void {
    this.f.store(8, zeroAddress, FLAG_Z, value);
  }
  setFlagS(value: Expr): void {
    this.f.store(8, zeroAddress, FLAG_S, value);
  }
  setFlagC(value: Expr): void {
    this.f.store(8, zeroAddress, FLAG_C, value);
  }
  setFlagA(value: Expr): void {
    this.f.store(4, zeroAddress, FLAG_A, value);
  }

  /** CF, OF and AF from the vector of carries out of each bit. */
  private setCarries(carries: Expr, size: Size): void {
    const c = this.f.let(carries);
    this.setFlagC(size === 8 ? c : i64.shl(i64.extend_u(c), c64(64 - 8 * size)));
    this.setFlagA(size === 8 ? i32.wrap(c) : c);
  }

  flagsAdd(a: Expr, b: Expr, r: Expr, size: Size): void {
    const o = ops(size);
    this.setResult(r, size);
    this.setCarries(o.or(o.and(a, b), o.and(o.or(a, b), o.xor(r, konst(size, -1)))), size);
  }

  flagsSub(a: Expr, b: Expr, r: Expr, size: Size): void {
    const o = ops(size);
    this.setResult(r, size);
    const notA = o.xor(a, konst(size, -1));
    this.setCarries(o.or(o.and(notA, b), o.and(o.or(notA, b), r)), size);
  }

  /** With a carry in, the same formulas hold; only comparing operands instead does not. */
  flagsAdc(a: Expr, b: Expr, r: Expr, size: Size): void {
    this.flagsAdd(a, b, r, size);
  }
  flagsSbb(a: Expr, b: Expr, r: Expr, size: Size): void {
    this.flagsSub(a, b, r, size);
  }

  /**
   * Flags of `op` on `a` and `b` with result `r`, which `compute` sets. Compiled code computes them when
   * somebody looks.
   */
  flagsLater(_op: LaterOperation, _a: Expr, _b: Expr, _r: Expr, _size: Size, compute: () => void): void {
    compute();
  }

  /** AND, OR, XOR, TEST: CF = OF = 0; AF, which is undefined, 0. */
  flagsLogic(r: Expr, size: Size): void {
    this.setResult(r, size);
    this.setFlagC(c64(0));
    this.setFlagA(c32(0));
  }

  /** Sets CF and OF from two i32 truth values (0 or 1). */
  setCarryOverflow(carry: Expr, overflow: Expr): void {
    const cf = this.f.let(carry);
    const differ = i32.xor(cf, overflow);
    this.setFlagC(i64.shl(i64.extend_u(i32.or(i32.shl(cf, c32(1)), differ)), c64(62)));
  }

  /** Sets ZF alone from a truth value, leaving SF and PF. */
  setZero(bit: Expr): void {
    this.setFlagZ(i64.extend_u(i32.eqz(bit)));
  }

  get flagZ(): Expr {
    return i64.load(zeroAddress, FLAG_Z);
  }
  get flagS(): Expr {
    return i64.load(zeroAddress, FLAG_S);
  }
  get flagC(): Expr {
    return i64.load(zeroAddress, FLAG_C);
  }
  get flagA(): Expr {
    return i32.load(zeroAddress, FLAG_A);
  }

  /** CF as 0 or 1. */
  carry(): Expr {
    return i32.wrap(i64.shr_u(this.flagC, c64(63)));
  }
  overflow(): Expr {
    return i32.wrap(i64.shr_u(i64.xor(this.flagC, i64.shl(this.flagC, c64(1))), c64(63)));
  }
  zero(): Expr {
    return i64.eqz(this.flagZ);
  }
  sign(): Expr {
    return i32.wrap(i64.shr_u(this.flagS, c64(63)));
  }
  parity(): Expr {
    return i32.eqz(i32.and(i32.popcnt(i32.and(i32.wrap(this.flagS), c32(0xff))), c32(1)));
  }
  adjust(): Expr {
    return i32.and(i32.shr_u(this.flagA, c32(3)), c32(1));
  }

  /** Condition `cc` (SDM vol. 1, appendix B): an i32 that is not zero when it holds. */
  condition(cc: number): Expr {
    const base = ((): Expr => {
      switch (cc >> 1) {
        case 0:
          return this.overflow();
        case 1:
          return i64.lt_s(this.flagC, c64(0));
        case 2:
          return this.zero();
        case 3:
          return i32.or(i64.lt_s(this.flagC, c64(0)), this.zero());
        case 4:
          return i64.lt_s(this.flagS, c64(0));
        case 5:
          return this.parity();
        case 6:
          return this.less();
        default:
          return i32.or(this.less(), this.zero());
      }
    })();
    return cc & 1 ? i32.eqz(base) : base;
  }

  /** SF != OF. */
  private less(): Expr {
    const c = this.f.let(this.flagC);
    return i64.lt_s(i64.xor(this.flagS, i64.xor(c, i64.shl(c, c64(1)))), c64(0));
  }
}
