/** Machine code with labels, for random programs: branches of either width, data and code addresses. */

/** Longest distance of a short branch, forwards and backwards. */
const SHORT_FORWARD = 127;
const SHORT_BACKWARD = -128;

/** Opcodes of `jmp`: relative by 1 byte and by 4. */
const JMP_SHORT = 0xeb;
const JMP_NEAR = 0xe9;
const CALL_NEAR = 0xe8;

interface Fixup {
  readonly at: number;
  readonly bytes: 1 | 4 | 8;
  readonly label: string;
  /** Where a relative value counts from; undefined: an absolute address. */
  readonly from: number | undefined;
  /** Number of the branch, for {@link Assembler.widen}. */
  readonly branch: number;
}

/** Code and the linear addresses of its labels. */
export interface Assembled {
  readonly base: number;
  readonly bytes: Uint8Array;
  readonly labels: ReadonlyMap<string, number>;
}

class ShortBranchTooFar extends Error {
  constructor(readonly branch: number) {
    super(`short branch ${branch} does not reach`);
  }
}

export class Assembler {
  readonly bytes: number[] = [];
  private readonly labels = new Map<string, number>();
  private readonly fixups: Fixup[] = [];
  private branches = 0;
  private unique = 0;

  /** `base`: linear address of the first byte. `widen`: branches that are near although short was asked for. */
  constructor(
    readonly base: number,
    private readonly widen: ReadonlySet<number> = new Set(),
  ) {}

  /** Linear address of the next byte. */
  get here(): number {
    return this.base + this.bytes.length;
  }

  emit(...bytes: number[]): void {
    this.bytes.push(...bytes);
  }

  emit32(value: number): void {
    for (let n = 0; n < 4; n++) this.bytes.push((value >>> (8 * n)) & 0xff);
  }

  emit64(value: bigint): void {
    for (let n = 0n; n < 8n; n++) this.bytes.push(Number((value >> (8n * n)) & 0xffn));
  }

  /** A label name that nothing else uses. */
  fresh(): string {
    return `.${this.unique++}`;
  }

  label(name: string): void {
    if (this.labels.has(name)) throw new Error(`label ${name} twice`);
    this.labels.set(name, this.here);
  }

  has(name: string): boolean {
    return this.labels.has(name);
  }

  /** Fills with INT3 up to a linear address. */
  padTo(address: number): void {
    while (this.here < address) this.bytes.push(0xcc);
  }

  private relative(bytes: 1 | 4, label: string, branch: number): void {
    const at = this.bytes.length;
    this.fixups.push({ at, bytes, label, from: this.here + bytes, branch });
    for (let n = 0; n < bytes; n++) this.bytes.push(0);
  }

  private isShort(near: boolean): boolean {
    return !near && !this.widen.has(this.branches);
  }

  jmp(label: string, near = false): void {
    const short = this.isShort(near);
    this.emit(short ? JMP_SHORT : JMP_NEAR);
    this.relative(short ? 1 : 4, label, this.branches++);
  }

  /** `cc`: condition code 0 to 15. */
  jcc(cc: number, label: string, near = false): void {
    const short = this.isShort(near);
    if (short) this.emit(0x70 | cc);
    else this.emit(0x0f, 0x80 | cc);
    this.relative(short ? 1 : 4, label, this.branches++);
  }

  call(label: string): void {
    this.emit(CALL_NEAR);
    this.relative(4, label, this.branches++);
  }

  /** The 4 bytes of a RIP-relative displacement; `after`: bytes of the instruction behind it. */
  ripRelative(label: string, after = 0): void {
    const at = this.bytes.length;
    this.fixups.push({ at, bytes: 4, label, from: this.here + 4 + after, branch: -1 });
    this.emit(0, 0, 0, 0);
  }

  /** 8 bytes: the label's linear address. */
  address(label: string): void {
    this.fixups.push({ at: this.bytes.length, bytes: 8, label, from: undefined, branch: -1 });
    this.emit64(0n);
  }

  finish(): Assembled {
    const bytes = Uint8Array.from(this.bytes);
    const view = new DataView(bytes.buffer);
    for (const { at, bytes: width, label, from, branch } of this.fixups) {
      const target = this.labels.get(label);
      if (target === undefined) throw new Error(`no label ${label}`);
      if (from === undefined) view.setBigUint64(at, BigInt(target), true);
      else if (width === 4) view.setInt32(at, target - from, true);
      else {
        const distance = target - from;
        if (distance > SHORT_FORWARD || distance < SHORT_BACKWARD) throw new ShortBranchTooFar(branch);
        view.setInt8(at, distance);
      }
    }
    return { base: this.base, bytes, labels: this.labels };
  }
}

/** Assembles what `write` emits, with near branches where short ones do not reach. `write` may run again. */
export function assemble(base: number, write: (a: Assembler) => void): Assembled {
  const widen = new Set<number>();
  for (;;) {
    const a = new Assembler(base, widen);
    write(a);
    try {
      return a.finish();
    } catch (error) {
      if (!(error instanceof ShortBranchTooFar)) throw error;
      widen.add(error.branch);
    }
  }
}
