/** The body of one WebAssembly function, written statement by statement from {@link Expr} trees. */
import { ByteWriter, F32, F64, I32, I64, V128, type ValType } from "./encoding.ts";
import { c32, type Expr, emit, f32x4, f64x2, i8x16, i16x8, i32, i32x4, i64x2, Local } from "./expr.ts";

/** `vector` with the low `size` bytes of `value` at `offset`. */
function withLane(vector: Expr, size: number, offset: number, value: Expr): Expr {
  const lane = offset / size;
  if (value.type === V128) return value;
  if (value.type === F64) return f64x2.replace_lane(vector, lane, value);
  if (value.type === F32) return f32x4.replace_lane(vector, lane, value);
  if (size === 8) return i64x2.replace_lane(vector, lane, value);
  const word = value.type === I64 ? i32.wrap(value) : value;
  const shape = size === 4 ? i32x4 : size === 2 ? i16x8 : i8x16;
  return shape.replace_lane(vector, lane, word);
}

/** A function's place in the module's index space, with its signature. */
export interface FuncRef {
  readonly index: number;
  readonly type: number;
  readonly params: readonly ValType[];
  readonly results: readonly ValType[];
}

/** A jump target inside a function. Depths are computed when the branch is written. */
export interface Label {
  readonly depth: number;
}

export class Func {
  readonly code = new ByteWriter();
  private readonly extra: ValType[] = [];
  private readonly free = new Map<ValType, Local[]>();
  private readonly taken: Local[] = [];
  private depth = 0;
  /** Code that {@link body} puts in front of everything else. */
  readonly prologue = new ByteWriter();
  private readonly hints: { at: number; likely: boolean }[] = [];
  private readonly gaps: { at: number; fill: () => ByteWriter }[] = [];

  constructor(
    readonly ref: FuncRef,
    readonly name: string,
  ) {}

  param(i: number): Local {
    const type = this.ref.params[i];
    if (type === undefined) throw new Error(`${this.name}: no parameter ${i}`);
    return new Local(type, i);
  }

  /** A local to use until the next {@link releaseSince}; holds anything until set. */
  local(type: ValType): Local {
    const local = this.free.get(type)?.pop() ?? this.permanent(type);
    this.taken.push(local);
    return local;
  }

  /** A local that is never given back. */
  permanent(type: ValType): Local {
    this.extra.push(type);
    return new Local(type, this.ref.params.length + this.extra.length - 1);
  }

  /** A point to give locals back to. */
  mark(): number {
    return this.taken.length;
  }

  /** Gives back the locals taken since `mark`: few locals keep the engine's first tiers fast. */
  releaseSince(mark: number): void {
    for (const local of this.taken.splice(mark)) {
      const list = this.free.get(local.type);
      if (list) list.push(local);
      else this.free.set(local.type, [local]);
    }
  }

  /** Computes `value` now and names it. A constant stays a constant; a local is taken as it is. */
  let(value: Expr): Expr {
    if (value.const32 !== undefined || value.const64 !== undefined) return value;
    const local = this.local(value.type);
    this.set(local, value);
    return value.width < 32 ? new Local(value.type, local.index, value.width) : local;
  }

  set(local: Local, value: Expr): void {
    emit(value, this.code);
    this.code.u8(0x21);
    this.code.u32(local.index);
  }

  private storeOp(
    prefix: number,
    opcode: number,
    align: number,
    address: Expr,
    offset: number,
    value: Expr,
  ): void {
    emit(address, this.code);
    emit(value, this.code);
    if (prefix) {
      this.code.u8(prefix);
      this.code.u32(opcode);
    } else this.code.u8(opcode);
    this.code.u32(align);
    this.code.u32(offset);
  }

  /** Stores the low `size` bytes (1, 2, 4, 8 or 16) of `value`. */
  store(size: number, address: Expr, offset: number, value: Expr): void {
    const { vector } = address;
    if (vector) {
      address.store();
      this.set(vector, withLane(vector, size, offset, value));
      return;
    }
    if (value.type === V128) this.storeOp(0xfd, 11, 4, address, offset, value);
    else if (value.type === I64) {
      const op = size === 8 ? 0x37 : size === 4 ? 0x3e : size === 2 ? 0x3d : 0x3c;
      this.storeOp(0, op, Math.log2(size), address, offset, value);
    } else if (value.type === I32) {
      const op = size === 4 ? 0x36 : size === 2 ? 0x3b : 0x3a;
      this.storeOp(0, op, Math.log2(size), address, offset, value);
    } else this.storeOp(0, size === 8 ? 0x39 : 0x38, Math.log2(size), address, offset, value);
  }

  /** An atomic compare-exchange of `size` bytes; returns the old value. */
  atomicCmpxchg(size: number, address: Expr, expected: Expr, replacement: Expr): Expr {
    const sizes =
      expected.type === I32 ? { 4: 0x48, 1: 0x4a, 2: 0x4b } : { 8: 0x49, 1: 0x4c, 2: 0x4d, 4: 0x4e };
    const opcode = (sizes as Record<number, number>)[size];
    if (opcode === undefined) throw new Error(`${this.name}: atomic cmpxchg of ${size} bytes`);
    emit(address, this.code);
    emit(expected, this.code);
    emit(replacement, this.code);
    this.code.u8(0xfe);
    this.code.u32(opcode);
    this.code.u32(Math.log2(size));
    this.code.u32(0);
    return this.popped(expected.type);
  }

  /** Moves the value on the operand stack into a fresh local. */
  private popped(type: ValType): Local {
    const local = this.local(type);
    this.code.u8(0x21);
    this.code.u32(local.index);
    return local;
  }

  /** `likely`: whether the condition usually holds, if that is known; the engine keeps the other way out of line. */
  if(cond: Expr, then: () => void, otherwise?: () => void, likely?: boolean): void {
    if (cond.const32 !== undefined) {
      if (cond.const32 !== 0) then();
      else otherwise?.();
      return;
    }
    emit(cond, this.code);
    if (likely !== undefined) this.hints.push({ at: this.code.length, likely });
    this.code.u8(0x04);
    this.code.u8(0x40);
    this.depth++;
    then();
    if (otherwise) {
      this.code.u8(0x05);
      otherwise();
    }
    this.depth--;
    this.code.u8(0x0b);
  }

  /** What is nearly never done: an exit, a fault, a slow path. */
  ifRarely(cond: Expr, then: () => void): void {
    this.if(cond, then, undefined, false);
  }

  block(body: (leave: Label) => void): void {
    this.structured(0x02, body);
  }

  loop(body: (again: Label) => void): void {
    this.structured(0x03, body);
  }

  private structured(opcode: number, body: (label: Label) => void): void {
    this.code.u8(opcode);
    this.code.u8(0x40);
    this.depth++;
    body({ depth: this.depth });
    this.depth--;
    this.code.u8(0x0b);
  }

  br(label: Label): void {
    this.code.u8(0x0c);
    this.code.u32(this.depth - label.depth);
  }

  brIf(label: Label, cond: Expr): void {
    emit(cond, this.code);
    this.code.u8(0x0d);
    this.code.u32(this.depth - label.depth);
  }

  /** Branches to the label whose number `index` is, which must be one. */
  brTable(index: Expr, labels: readonly Label[]): void {
    emit(index, this.code);
    this.code.u8(0x0e);
    this.code.u32(labels.length - 1);
    for (const l of labels) this.code.u32(this.depth - l.depth);
  }

  return(value?: Expr): void {
    if (value) emit(value, this.code);
    this.code.u8(0x0f);
  }

  unreachable(): void {
    this.code.u8(0x00);
  }

  /** Calls `target` now; its single result, if it has one, in a local. */
  call(target: FuncRef, ...args: Expr[]): Expr {
    if (args.length !== target.params.length) throw new Error(`${this.name}: argument count of a call`);
    for (const a of args) emit(a, this.code);
    this.code.u8(0x10);
    this.code.u32(target.index);
    const result = target.results[0];
    return result === undefined ? c32(0) : this.popped(result);
  }

  /** Calls `target` for what it does: its result is dropped. */
  perform(target: FuncRef, ...args: Expr[]): void {
    for (const a of args) emit(a, this.code);
    this.code.u8(0x10);
    this.code.u32(target.index);
    for (const _ of target.results) this.code.u8(0x1a);
  }

  returnCall(target: FuncRef, ...args: Expr[]): void {
    for (const a of args) emit(a, this.code);
    this.code.u8(0x12);
    this.code.u32(target.index);
  }

  callIndirect(type: number, result: ValType | undefined, slot: Expr, ...args: Expr[]): Expr {
    for (const a of args) emit(a, this.code);
    emit(slot, this.code);
    this.code.u8(0x11);
    this.code.u32(type);
    this.code.u32(0);
    return result === undefined ? c32(0) : this.popped(result);
  }

  returnCallIndirect(type: number, slot: Expr, ...args: Expr[]): void {
    for (const a of args) emit(a, this.code);
    emit(slot, this.code);
    this.code.u8(0x13);
    this.code.u32(type);
    this.code.u32(0);
  }

  memoryCopy(dst: Expr, src: Expr, length: Expr): void {
    emit(dst, this.code);
    emit(src, this.code);
    emit(length, this.code);
    this.code.append(Uint8Array.of(0xfc, 10, 0, 0));
  }

  memoryFill(dst: Expr, value: Expr, length: Expr): void {
    emit(dst, this.code);
    emit(value, this.code);
    emit(length, this.code);
    this.code.append(Uint8Array.of(0xfc, 11, 0));
  }

  /** Leaves a gap here that {@link body} fills with statements not known yet. */
  later(fill: () => ByteWriter): void {
    this.gaps.push({ at: this.code.length, fill });
  }

  /** The finished body: local declarations, code, end; and the branch hints by their offset in it. */
  body(): { bytes: ByteWriter; hints: { offset: number; likely: boolean }[] } {
    const out = new ByteWriter(this.code.length + 32);
    const runs: { type: ValType; count: number }[] = [];
    for (const type of this.extra) {
      const last = runs[runs.length - 1];
      if (last && last.type === type) last.count++;
      else runs.push({ type, count: 1 });
    }
    out.u32(runs.length);
    for (const r of runs) {
      out.u32(r.count);
      out.u8(r.type);
    }
    out.append(this.prologue.view());
    const code = this.code.view();
    const hints: { offset: number; likely: boolean }[] = [];
    let nextHint = 0;
    let from = 0;
    const copyTo = (end: number) => {
      for (; nextHint < this.hints.length && this.hints[nextHint]!.at < end; nextHint++) {
        const { at, likely } = this.hints[nextHint]!;
        hints.push({ offset: out.length + at - from, likely });
      }
      out.append(code.subarray(from, end));
      from = end;
    };
    for (const gap of this.gaps) {
      copyTo(gap.at);
      out.append(gap.fill().view());
    }
    copyTo(code.length);
    out.u8(0x0b);
    return { bytes: out, hints };
  }
}
