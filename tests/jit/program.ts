/**
 * Random programs: parts that run one after the other, and functions that they call. A program is a tree, so that
 * a failing one can be made smaller by taking pieces away.
 */
import { littleEndian } from "../oracle/encoder.ts";
import { DATA_END, R8, RAX, RBP, RBX, RCX, RDI, RDX, RSI, RSP } from "../oracle/layout.ts";
import type { Random } from "../oracle/random.ts";
import { type Assembled, type Assembler, assemble } from "./assembler.ts";
import { OTHER_STACK_TOP, RBP_VALUE, RBX_VALUE, STACK_TOP } from "./memory-map.ts";
import { FREE, mov32, Straight, type Unit } from "./straight.ts";

/** Loop counters by nesting depth, and what recursions count with. */
const COUNTERS = [12, 13, 14];
const RECURSION = 15;
const PAGE = 4096;

/** Condition codes (SDM vol. 1, appendix B). */
const CC_B = 2;
const CC_E = 4;
const CC_NE = 5;
const CC_S = 8;
const CC_L = 12;
const CC_G = 15;

/** A piece of a program. */
export interface Node {
  /** Writes it; `children` are written through the callback, by number. */
  emit(a: Assembler, child: (n: number) => void): void;
  readonly children: Node[][];
}

export interface Program {
  /** Each begins with its own stack and data pointers, so that a fault in the one before does not matter. */
  readonly parts: Node[][];
  /** Without loops into each other: number n calls only higher ones. */
  readonly functions: Node[][];
  /** Registers with values of their own at the start, by number. */
  readonly registers: ReadonlyMap<number, bigint>;
  /** Distance from a page boundary at which each function begins; undefined: right behind the one before. */
  readonly placement: readonly (number | undefined)[];
}

export interface ProgramOptions {
  native: boolean;
  parts: number;
  /** Code may lie in several pages. */
  manyPages: boolean;
  /** Writes into its own code. */
  selfModifying: boolean;
  faultOneIn: number;
}

const part = (n: number): string => `part${n}`;
const fn = (n: number): string => `function${n}`;
/** Code that drops its return address and returns one level higher, if nothing else is above it. */
const SKIP_RETURN = "skipReturn";
/** Pointers to the functions. */
const TABLE = "table";

/** Machine code of a program at a linear address. */
export function assembleProgram(program: Program, base: number): Assembled {
  return assemble(base, (a) => {
    const write = (nodes: readonly Node[]): void => {
      for (const node of nodes) node.emit(a, (n) => write(node.children[n]!));
    };
    program.parts.forEach((nodes, n) => {
      a.label(part(n));
      if (n === 0) for (const [reg, value] of program.registers) emitMov64(a, reg, value);
      a.emit(...mov32(RSP, STACK_TOP), ...mov32(RBX, RBX_VALUE), ...mov32(RBP, RBP_VALUE));
      write(nodes);
    });
    a.label(part(program.parts.length));
    a.emit(0xcc);
    program.functions.forEach((nodes, n) => {
      const distance = program.placement[n];
      if (distance !== undefined) a.padTo(Math.ceil(a.here / PAGE) * PAGE + PAGE - distance);
      a.label(fn(n));
      write(nodes);
      a.emit(0xc3);
    });
    a.label(SKIP_RETURN);
    a.emit(0x48, 0x83, 0xc4, 0x08, 0xc3); // add rsp, 8; ret
    a.label(TABLE);
    program.functions.forEach((_, n) => {
      a.address(fn(n));
    });
  });
}

/** Linear addresses at which the parts begin, and the one of the final INT3. */
export function partAddresses(program: Program, code: Assembled): number[] {
  return Array.from({ length: program.parts.length + 1 }, (_, n) => code.labels.get(part(n))!);
}

function emitMov64(a: Assembler, reg: number, value: bigint): void {
  a.emit(reg > 7 ? 0x49 : 0x48, 0xb8 | (reg & 7));
  a.emit64(value);
}

/** `lea r64, [rip + label]` */
function emitLea(a: Assembler, reg: number, label: string): void {
  a.emit(reg > 7 ? 0x4c : 0x48, 0x8d, 0x05 | ((reg & 7) << 3));
  a.ripRelative(label);
}

const leaf = (emit: (a: Assembler) => void): Node => ({ emit, children: [] });
const bytes = (...code: number[]): Node => leaf((a) => a.emit(...code));

function unitNode(unit: Unit): Node {
  return leaf((a) => {
    const { rip } = unit;
    const start = a.here;
    if (!rip) {
      a.emit(...unit.bytes);
      return;
    }
    const displacement = littleEndian((rip.target - (start + rip.end)) | 0, 4);
    a.emit(...unit.bytes.slice(0, rip.at), ...displacement, ...unit.bytes.slice(rip.at + 4));
  });
}

/** How a loop counts: its setting up for `times` rounds, its step at the end, and the condition for another one. */
interface Counting {
  readonly begin: (reg: number, times: number) => number[];
  readonly step: (reg: number, times: number) => number[];
  readonly again: number;
}

const rexB = (reg: number): number => (reg > 7 ? 0x41 : 0x40);
const DOWN = mov32;
const UP = (reg: number): number[] => mov32(reg, 0);
const COUNTINGS: readonly Counting[] = [
  { begin: DOWN, step: (r) => [rexB(r), 0xff, 0xc8 | (r & 7)], again: CC_NE }, // dec r32
  { begin: DOWN, step: (r) => [rexB(r) | 8, 0x83, 0xe8 | (r & 7), 1], again: CC_NE }, // sub r64, 1
  { begin: DOWN, step: (r) => [rexB(r), 0x83, 0xc0 | (r & 7), 0xff], again: CC_G }, // add r32, -1
  { begin: DOWN, step: (r) => [rexB(r) | 8, 0xff, 0xc8 | (r & 7)], again: CC_G }, // dec r64
  // inc r32; cmp r32, times
  {
    begin: UP,
    step: (r, n) => [rexB(r), 0xff, 0xc0 | (r & 7), rexB(r), 0x83, 0xf8 | (r & 7), n],
    again: CC_B,
  },
  {
    begin: UP,
    step: (r, n) => [rexB(r) | 8, 0xff, 0xc0 | (r & 7), rexB(r), 0x83, 0xf8 | (r & 7), n],
    again: CC_NE,
  },
  {
    begin: UP,
    step: (r, n) => [rexB(r), 0xff, 0xc0 | (r & 7), rexB(r) | 8, 0x83, 0xf8 | (r & 7), n],
    again: CC_L,
  },
  // sub r16, 1; the upper half of the register is 0
  { begin: DOWN, step: (r) => [0x66, rexB(r), 0x83, 0xe8 | (r & 7), 1], again: CC_NE },
];

export class ProgramGenerator {
  private readonly straight: Straight;
  private labels = 0;
  private functions = 0;
  /** What breaks and continues of the loops around lead to. */
  private loops: { out: string; next: string }[] = [];

  constructor(
    private readonly random: Random,
    private readonly options: ProgramOptions,
  ) {
    this.straight = new Straight(random, options);
  }

  next(): Program {
    const { random, options } = this;
    this.labels = 0;
    this.functions = random.below(4);
    const functions = Array.from({ length: this.functions }, (_, n) => this.list(1, n + 1, 3, n + 1));
    const parts = Array.from({ length: options.parts }, () => {
      const nodes = this.list(0, 0, 5, 0);
      if (random.oneIn(options.native ? 5 : 3)) nodes.push(this.untilFault());
      return nodes;
    });
    const registers = new Map<number, bigint>();
    for (const reg of FREE) {
      random.interesting64();
      registers.set(reg, (BigInt(random.high) << 32n) | BigInt(random.low));
    }
    const placement = functions.map(() =>
      options.manyPages && random.oneIn(2) ? random.below(40) : undefined,
    );
    return { parts, functions, registers, placement };
  }

  private label(): string {
    return `l${this.labels++}`;
  }

  /** `calls`: the first function that may be called; `depth`: of loops around. */
  private list(depth: number, calls: number, most: number, own: number): Node[] {
    return Array.from({ length: 1 + this.random.below(most) }, () => this.node(depth, calls, own)).flat();
  }

  private node(depth: number, calls: number, own: number): Node[] {
    const { random, options } = this;
    const inner = () => this.list(depth + 1, calls, 3, own);
    switch (random.below(30)) {
      case 0:
      case 1:
      case 2:
      case 3:
        return depth < 3 ? [this.loop(depth, inner)] : [this.unit()];
      case 4:
      case 5:
      case 6:
      case 7:
        return depth < 4 ? [this.condition(inner)] : [this.unit()];
      case 8:
      case 9:
      case 10:
        return calls < this.functions
          ? [this.call(calls + random.below(this.functions - calls))]
          : [this.unit()];
      case 11:
        return depth < 2 ? [this.recursion(calls)] : [this.unit()];
      case 12:
        return [this.pushReturn(random.oneIn(2))];
      case 13:
        return [this.skippedReturn()];
      case 14:
        return this.loops.length > 0 ? [this.leaveLoop()] : [this.unit()];
      case 15:
        return [this.pushPop()];
      case 16:
        return [this.flagsFromStack()];
      case 17:
        return [this.frame()];
      case 18:
        return calls < this.functions && own === 0 ? [this.otherStack(calls)] : [this.flagUse()];
      case 19:
        return options.selfModifying ? this.patch(depth, calls, own) : [this.unit()];
      case 20:
        return [this.table()];
      case 21:
      case 22:
        return [this.flagUse()];
      default:
        return [this.unit()];
    }
  }

  private unit(): Node {
    return unitNode(this.straight.next());
  }

  private registerUnit(): Node {
    return unitNode(this.straight.next(true));
  }

  /** A comparison before a branch, or nothing: then the branch sees what came before. */
  private compare(): number[] {
    const { random } = this;
    const reg = random.pick(FREE);
    const other = random.pick(FREE);
    const rex = 0x40 | (random.oneIn(2) ? 8 : 0) | (other > 7 ? 4 : 0) | (reg > 7 ? 1 : 0);
    const modrm = 0xc0 | ((other & 7) << 3) | (reg & 7);
    switch (random.below(8)) {
      case 0:
        return [rex, 0x39, modrm]; // cmp
      case 1:
        return [rex, 0x85, modrm]; // test
      case 2:
        return [0x66, rex & ~8, 0x39, modrm];
      case 3:
        return [rex, 0x38, modrm]; // cmp r8, r8, REX given
      case 4:
        return [rex & ~4, 0x83, 0xf8 | (reg & 7), random.below(256)];
      default:
        return [];
    }
  }

  private condition(inner: () => Node[]): Node {
    const { random } = this;
    const compare = this.compare();
    const cc = random.below(16);
    const near = random.oneIn(4);
    const otherwise = random.oneIn(2);
    const [a, b] = [this.label(), this.label()];
    const children = otherwise ? [inner(), inner()] : [inner()];
    const counter = random.oneIn(8);
    return {
      children,
      emit: (asm, child) => {
        asm.emit(...compare);
        // jrcxz over a jump, or a conditional branch
        if (counter) {
          asm.emit(0xe3, 5);
          asm.jmp(a, true);
        } else asm.jcc(cc, a, near);
        child(0);
        if (otherwise) asm.jmp(b, near);
        asm.label(a);
        if (otherwise) child(1);
        asm.label(b);
      },
    };
  }

  private loop(depth: number, inner: () => Node[]): Node {
    const { random } = this;
    const reg = COUNTERS[depth]!;
    const times = 1 + random.below(depth === 0 ? 6 : 4);
    const how = random.pick(COUNTINGS);
    const near = random.oneIn(4);
    const [top, middle, next, out] = [this.label(), this.label(), this.label(), this.label()];
    // Entered in the middle: the loop then has two entries.
    const cc = random.below(16);
    const twoEntries = random.oneIn(6);
    this.loops.push({ out, next });
    const children = [inner(), random.oneIn(2) ? inner() : []];
    this.loops.pop();
    return {
      children,
      emit: (a, child) => {
        a.emit(0x41, 0x50 | (reg & 7), ...how.begin(reg, times)); // push counter
        if (twoEntries) a.jcc(cc, middle, near);
        a.label(top);
        child(0);
        a.label(middle);
        child(1);
        a.label(next);
        a.emit(...how.step(reg, times));
        a.jcc(how.again, top, near);
        a.label(out);
        a.emit(0x41, 0x58 | (reg & 7)); // pop counter
      },
    };
  }

  /** Leaves the loop around it, or goes on with its next round. */
  private leaveLoop(): Node {
    const { random } = this;
    const { out, next } = random.oneIn(4) ? random.pick(this.loops) : this.loops[this.loops.length - 1]!;
    // Only the innermost loop's labels keep the stack balanced; a fault further on is as good a test.
    const target = random.oneIn(2) ? out : next;
    const cc = random.below(16);
    const compare = this.compare();
    return leaf((a) => {
      a.emit(...compare);
      // The minimised program may lack the loop.
      a.jcc(cc, target, true);
    });
  }

  private call(n: number): Node {
    const { random } = this;
    const how = random.below(4);
    const reg = random.pick(FREE);
    return leaf((a) => {
      if (how === 0) {
        emitLea(a, reg, fn(n));
        a.emit(...(reg > 7 ? [0x41] : []), 0xff, 0xd0 | (reg & 7)); // call r64
      } else if (how === 1) {
        a.emit(0xff, 0x15); // call [rip + table entry]
        const skip = 8 * n;
        a.ripRelative(TABLE, -skip);
      } else a.call(fn(n));
    });
  }

  /** A function of its own that calls itself: deeper than compiled code nests. */
  private recursion(calls: number): Node {
    const { random } = this;
    const [self, end, over] = [this.label(), this.label(), this.label()];
    const levels = 1 + (random.oneIn(3) ? random.below(130) : random.below(8));
    const before = [this.registerUnit()];
    const after = [this.registerUnit()];
    if (calls < this.functions && levels < 10) after.push(this.call(this.functions - 1));
    return {
      children: [before, after],
      emit: (a, child) => {
        a.emit(...mov32(RECURSION, levels));
        a.call(self);
        a.jmp(over, true);
        a.label(self);
        child(0);
        a.emit(0x41, 0xff, 0xcf); // dec r15d
        a.jcc(CC_S, end);
        a.jcc(CC_E, end);
        a.call(self);
        a.label(end);
        child(1);
        a.emit(0xc3);
        a.label(over);
      },
    };
  }

  /** PUSH and RET as a jump, or CALL and POP to find one's own address. */
  private pushReturn(callPop: boolean): Node {
    const reg = this.random.pick(FREE);
    const after = this.label();
    const rex = reg > 7 ? [0x41] : [];
    return leaf((a) => {
      if (callPop) {
        a.call(after);
        a.label(after);
        a.emit(...rex, 0x58 | (reg & 7));
      } else {
        emitLea(a, reg, after);
        a.emit(...rex, 0x50 | (reg & 7), 0xc3, 0xcc);
        a.label(after);
      }
    });
  }

  /** A call whose callee returns to its caller's caller. */
  private skippedReturn(): Node {
    const after = this.label();
    const reg = this.random.pick(FREE);
    return leaf((a) => {
      emitLea(a, reg, after);
      a.emit(...(reg > 7 ? [0x41] : []), 0x50 | (reg & 7));
      a.call(SKIP_RETURN);
      a.emit(0xcc);
      a.label(after);
    });
  }

  private pushPop(): Node {
    const { random } = this;
    const from = random.pick(FREE);
    const to = random.pick(FREE);
    const small = random.oneIn(4) ? [0x66] : [];
    return bytes(
      ...small,
      ...(from > 7 ? [0x41] : []),
      0x50 | (from & 7),
      ...(random.oneIn(3) ? this.registerBytes() : []),
      ...small,
      ...(to > 7 ? [0x41] : []),
      0x58 | (to & 7),
    );
  }

  private registerBytes(): readonly number[] {
    return this.straight.next(true).bytes;
  }

  /** POPF of given flags, or PUSHF (of flags that are all defined). */
  private flagsFromStack(): Node {
    const { random } = this;
    const reg = random.pick(FREE);
    if (random.oneIn(2)) return bytes(0x68, ...littleEndian(random.u32() & 0x8d5, 4), 0x9d);
    const pop = [...(reg > 7 ? [0x41] : []), 0x58 | (reg & 7)];
    const compare = [0x83, 0xf8, random.below(256)]; // cmp eax, imm8
    // lahf, or pushf and pop
    return random.oneIn(2) ? bytes(...compare, 0x9f) : bytes(...compare, 0x9c, ...pop);
  }

  /** ENTER or its usual form, and LEAVE. */
  private frame(): Node {
    const body = this.random.oneIn(2) ? this.registerBytes() : [];
    if (this.random.oneIn(3))
      return bytes(0xc8, 8 * this.random.below(4), 0, this.random.below(3), ...body, 0xc9);
    return bytes(0x55, 0x48, 0x89, 0xe5, ...body, 0xc9); // push rbp; mov rbp, rsp; ...; leave
  }

  /** Calls a function on another stack. */
  private otherStack(calls: number): Node {
    const n = calls + this.random.below(this.functions - calls);
    return leaf((a) => {
      a.emit(0x49, 0x89, 0xe7); // mov r15, rsp
      a.emit(0x41, 0x57, ...mov32(RSP, OTHER_STACK_TOP)); // push r15
      // The functions use R15 for their recursions: it is kept on the stack it came from.
      a.emit(0x68, ...littleEndian(0, 4));
      a.call(fn(n));
      a.emit(...mov32(RSP, STACK_TOP));
    });
  }

  /** SETcc, CMOVcc, ADC or SBB: what sees the flags of whatever came before. */
  private flagUse(): Node {
    const { random } = this;
    const reg = random.pick(FREE);
    const other = random.pick(FREE);
    const wide = random.oneIn(2) ? 8 : 0;
    const rex = 0x40 | wide | (other > 7 ? 4 : 0) | (reg > 7 ? 1 : 0);
    const modrm = 0xc0 | ((other & 7) << 3) | (reg & 7);
    const cc = random.below(16);
    switch (random.below(6)) {
      case 0:
        return bytes(rex, 0x0f, 0x90 | cc, 0xc0 | (reg & 7)); // setcc
      case 1:
        return bytes(
          0x40 | wide | (reg > 7 ? 4 : 0) | (other > 7 ? 1 : 0),
          0x0f,
          0x40 | cc,
          0xc0 | ((reg & 7) << 3) | (other & 7),
        );
      case 2:
        return bytes(rex, 0x11, modrm); // adc
      case 3:
        return bytes(rex, 0x19, modrm); // sbb
      case 4:
        return bytes(0x66, rex & ~8, random.oneIn(2) ? 0x11 : 0x19, modrm);
      default:
        return bytes(rex, random.oneIn(2) ? 0x10 : 0x18, modrm); // adc, sbb r8
    }
  }

  /** Writes into an instruction further on, often in a loop, so that it is compiled code by then. */
  private patch(depth: number, calls: number, own: number): Node[] {
    const { random } = this;
    const target = this.label();
    const reg = random.pick([RAX, RCX, RDX]);
    const between = random.oneIn(2) ? this.list(depth + 1, calls, 2, own) : [];
    const value = random.below(256);
    const kind = random.below(3);
    const node: Node = {
      children: [between],
      emit: (a, child) => {
        if (kind === 0) {
          a.emit(0xc6, 0x05); // mov byte ptr [rip + target], imm8
          a.ripRelative(target, 1);
          a.emit(value);
        } else if (kind === 1) {
          a.emit(0xfe, 0x05); // inc byte ptr [rip + target]
          a.ripRelative(target);
        } else {
          a.emit(0x88, 0x05 | (reg << 3)); // mov byte ptr [rip + target], r8
          a.ripRelative(target);
        }
        child(0);
        a.emit(0x83, 0xc0 | reg); // add r32, imm8
        a.label(target);
        a.emit(value ^ 0x55);
      },
    };
    return [node];
  }

  /** A jump through a table of two entries. */
  private table(): Node {
    const { random } = this;
    const labels = [this.label(), this.label(), this.label(), this.label()];
    const reg = random.pick([RAX, RDX, RSI, R8]);
    const children = [[this.registerUnit()], [this.registerUnit()]];
    const rexBase = reg > 7 ? 1 : 0;
    const [table, first, second, out] = labels as [string, string, string, string];
    return {
      children,
      emit: (a, child) => {
        a.emit(...(reg > 7 ? [0x41] : []), 0x83, 0xe0 | (reg & 7), 1); // and r32, 1
        emitLea(a, RCX, table);
        // jmp [rcx + reg*8]
        a.emit(0x40 | (rexBase << 1), 0xff, 0x24, 0xc1 | ((reg & 7) << 3));
        a.label(table);
        a.address(first);
        a.address(second);
        a.label(first);
        a.emit(...mov32(RCX, 1));
        child(0);
        a.jmp(out, true);
        a.label(second);
        a.emit(...mov32(RCX, 2));
        child(1);
        a.label(out);
      },
    };
  }

  /** A loop that ends with a fault, after some rounds. */
  private untilFault(): Node {
    const { random } = this;
    const rounds = 1 + random.below(12);
    const top = this.label();
    const middle = this.random.oneIn(2) ? [this.registerUnit()] : [];
    switch (random.below(3)) {
      case 0:
        return {
          children: [middle],
          emit: (a, child) => {
            a.emit(...mov32(RDI, DATA_END - 4 * rounds));
            a.label(top);
            a.emit(0x57); // push rdi: the piece in the middle may change it
            child(0);
            a.emit(0x5f, 0x8b, 0x07, 0x8d, 0x7f, 0x04); // pop rdi; mov eax, [rdi]; lea edi, [rdi+4]
            a.emit(0x01, 0x47, 0xfc); // add [rdi-4], eax
            a.jmp(top);
          },
        };
      case 1:
        return leaf((a) => {
          a.emit(...mov32(RCX, rounds));
          a.label(top);
          a.emit(0xb8, 100, 0, 0, 0, 0x99, 0xf7, 0xf9); // mov eax, 100; cdq; idiv ecx
          a.emit(0x01, 0xc2, 0x83, 0xe9, 0x01); // add edx, eax; sub ecx, 1
          a.jmp(top);
        });
      default:
        return leaf((a) => {
          a.emit(...mov32(RDX, DATA_END - rounds));
          a.label(top);
          a.emit(0x38, 0xc1); // cmp cl, al: pending when the fault comes
          a.emit(0x8a, 0x02, 0x8d, 0x52, 0x01); // mov al, [rdx]; lea edx, [rdx+1]
          a.emit(0xd0, 0xc0); // rol al, 1
          a.emit(0x00, 0x42, 0xff); // add [rdx-1], al
          a.jmp(top);
        });
    }
  }
}
