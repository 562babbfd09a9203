/**
 * A small x86-64 encoder: the instructions of the native runner and of its tests, no more (SDM vol. 2).
 * Registers are numbers in encoding order (RAX 0 ... R15 15). Nothing is optimized for size.
 */

/** A memory operand: a register plus displacement, or a label plus displacement (RIP-relative). */
export type Memory = { base: number; disp: number } | { label: string; disp: number };

/** `[base + disp]`. */
export function at(base: number, disp = 0): Memory {
  return { base, disp };
}

/** `[rip + label + disp]`. */
export function ref(label: string, disp = 0): Memory {
  return { label, disp };
}

/** Condition codes of Jcc (SDM vol. 2, appendix B.1.4.7). */
export const CC_B = 2;
export const CC_AE = 3;
export const CC_E = 4;
export const CC_NE = 5;
export const CC_S = 8;

interface Fixup {
  position: number;
  label: string;
  disp: number;
  wide: boolean;
}

export class Assembler {
  private readonly out: number[] = [];
  private readonly labels = new Map<string, number>();
  private readonly fixups: Fixup[] = [];

  /** Bytes emitted so far. */
  get size(): number {
    return this.out.length;
  }

  /** Names the current position. */
  label(name: string): void {
    this.labelAt(name, this.out.length);
  }

  /** Names a position relative to the first byte, which may lie outside the code. Throws if taken. */
  labelAt(name: string, position: number): void {
    if (this.labels.has(name)) throw new Error(`label "${name}" is defined twice: rename one`);
    this.labels.set(name, position);
  }

  /** Raw bytes. */
  raw(...bytes: number[]): void {
    this.out.push(...bytes);
  }

  /** A 64-bit little-endian number, 0 to 2^53-1. */
  quad(value: number): void {
    this.u32(value % 0x1_0000_0000);
    this.u32(Math.floor(value / 0x1_0000_0000));
  }

  /** The absolute address of a label, 64 bits. */
  quadLabel(label: string): void {
    this.fixups.push({ position: this.out.length, label, disp: 0, wide: true });
    this.quad(0);
  }

  /** Fills with zeros up to a multiple of `size`. */
  align(size: number): void {
    while (this.out.length % size !== 0) this.out.push(0);
  }

  /** `mov reg, value`, value 0 to 2^53-1. */
  movImm(reg: number, value: number): void {
    if (value <= 0xffff_ffff) {
      this.rex(false, 0, reg);
      this.raw(0xb8 | (reg & 7));
      this.u32(value);
      return;
    }
    this.rex(true, 0, reg);
    this.raw(0xb8 | (reg & 7));
    this.quad(value);
  }

  /** `mov to, from`, 64 bits. */
  mov(to: number, from: number): void {
    this.registers(0x89, from, to);
  }
  load64(reg: number, from: Memory): void {
    this.memory(true, [0x8b], reg, from);
  }
  store64(to: Memory, reg: number): void {
    this.memory(true, [0x89], reg, to);
  }
  load32(reg: number, from: Memory): void {
    this.memory(false, [0x8b], reg, from);
  }
  store32(to: Memory, reg: number): void {
    this.memory(false, [0x89], reg, to);
  }
  /** `mov word [to], reg`. */
  store16(to: Memory, reg: number): void {
    this.raw(0x66);
    this.memory(false, [0x89], reg, to);
  }
  lea(reg: number, of: Memory): void {
    this.memory(true, [0x8d], reg, of);
  }
  /** `mov reg, cs`, zero-extended. */
  movFromCs(reg: number): void {
    this.rex(false, 0, reg);
    this.raw(0x8c, 0xc8 | (reg & 7));
  }
  /** `mov reg, ss`, zero-extended. */
  movFromSs(reg: number): void {
    this.rex(false, 0, reg);
    this.raw(0x8c, 0xd0 | (reg & 7));
  }

  /** `add to, from`, 64 bits. */
  add(to: number, from: number): void {
    this.registers(0x01, from, to);
  }
  sub(to: number, from: number): void {
    this.registers(0x29, from, to);
  }
  cmp(left: number, right: number): void {
    this.registers(0x39, right, left);
  }
  test(left: number, right: number): void {
    this.registers(0x85, right, left);
  }
  /** `add to, imm32` (sign-extended), 64 bits. */
  addImm(to: number, value: number): void {
    this.rex(true, 0, to);
    this.raw(0x81, 0xc0 | (to & 7));
    this.u32(value >>> 0);
  }
  /** `cmp left, imm32` (sign-extended), 64 bits. */
  cmpImm(left: number, value: number): void {
    this.rex(true, 0, left);
    this.raw(0x81, 0xf8 | (left & 7));
    this.u32(value >>> 0);
  }
  /** `shr reg, bits`, 64 bits. */
  shr(reg: number, bits: number): void {
    this.rex(true, 0, reg);
    this.raw(0xc1, 0xe8 | (reg & 7), bits);
  }

  push(reg: number): void {
    this.rex(false, 0, reg);
    this.raw(0x50 | (reg & 7));
  }
  pop(reg: number): void {
    this.rex(false, 0, reg);
    this.raw(0x58 | (reg & 7));
  }
  pushMemory(from: Memory): void {
    this.memory(false, [0xff], 6, from);
  }
  pushfq(): void {
    this.raw(0x9c);
  }
  popfq(): void {
    this.raw(0x9d);
  }
  iretq(): void {
    this.raw(0x48, 0xcf);
  }
  ret(): void {
    this.raw(0xc3);
  }
  syscall(): void {
    this.raw(0x0f, 0x05);
  }
  repStosq(): void {
    this.raw(0xf3, 0x48, 0xab);
  }
  repMovsq(): void {
    this.raw(0xf3, 0x48, 0xa5);
  }
  repMovsb(): void {
    this.raw(0xf3, 0xa4);
  }
  fxsave64(to: Memory): void {
    this.memory(true, [0x0f, 0xae], 0, to);
  }
  fxrstor64(from: Memory): void {
    this.memory(true, [0x0f, 0xae], 1, from);
  }
  wrfsbase(reg: number): void {
    this.raw(0xf3);
    this.rex(true, 0, reg);
    this.raw(0x0f, 0xae, 0xd0 | (reg & 7));
  }
  wrgsbase(reg: number): void {
    this.raw(0xf3);
    this.rex(true, 0, reg);
    this.raw(0x0f, 0xae, 0xd8 | (reg & 7));
  }

  jmp(label: string): void {
    this.raw(0xe9);
    this.relative(label);
  }
  jcc(condition: number, label: string): void {
    this.raw(0x0f, 0x80 | condition);
    this.relative(label);
  }

  /** The finished bytes, to be loaded at `base`. Throws on a label that was never defined. */
  assemble(base: number): Uint8Array {
    const bytes = Uint8Array.from(this.out);
    const view = new DataView(bytes.buffer);
    for (const f of this.fixups) {
      const position = this.labels.get(f.label);
      if (position === undefined) throw new Error(`label "${f.label}" is not defined: define it`);
      if (f.wide) view.setBigUint64(f.position, BigInt(base + position + f.disp), true);
      else view.setInt32(f.position, position + f.disp - (f.position + 4), true);
    }
    return bytes;
  }

  private u32(value: number): void {
    this.raw(value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24);
  }

  private relative(label: string, disp = 0): void {
    this.fixups.push({ position: this.out.length, label, disp, wide: false });
    this.u32(0);
  }

  private rex(wide: boolean, reg: number, rm: number): void {
    const rex = 0x40 | (wide ? 8 : 0) | (reg > 7 ? 4 : 0) | (rm > 7 ? 1 : 0);
    if (rex !== 0x40) this.raw(rex);
  }

  private registers(opcode: number, reg: number, rm: number): void {
    this.rex(true, reg, rm);
    this.raw(opcode, 0xc0 | ((reg & 7) << 3) | (rm & 7));
  }

  private memory(wide: boolean, opcode: number[], reg: number, operand: Memory): void {
    if ("label" in operand) {
      this.rex(wide, reg, 0);
      this.raw(...opcode, 0x05 | ((reg & 7) << 3));
      this.relative(operand.label, operand.disp);
      return;
    }
    this.rex(wide, reg, operand.base);
    this.raw(...opcode, 0x80 | ((reg & 7) << 3) | (operand.base & 7));
    // RSP and R12 as a base are only reachable through a SIB byte.
    if ((operand.base & 7) === 4) this.raw(0x24);
    this.u32(operand.disp >>> 0);
  }
}
