/**
 * Test helper: runs instructions on the host CPU. It writes a static x86-64 Linux ELF of a few hundred
 * bytes that reads fixed-size records from standard input, runs one stub per record and writes fixed-size
 * records to standard output. SIGFPE, SIGILL and SIGSEGV are caught and reported per record.
 */
import { spawnSync } from "node:child_process";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

export const hostIsX64 = process.arch === "x64" && process.platform === "linux";

const CODE_BASE = 0x40_0000;
const IN_BASE = 0x1000_0000;
const OUT_BASE = 0x5000_0000;
const HEADER_SIZE = 64 + 3 * 56;
const STUB_SIZE = 16;

const SIGILL = 4;
const SIGFPE = 8;
const SIGSEGV = 11;

/** Bytes of machine code with 32-bit absolute fix-ups. */
class Code {
  readonly bytes: number[] = [];
  emit(...values: number[]): void {
    this.bytes.push(...values);
  }
  u32(value: number): void {
    this.bytes.push(value & 255, (value >>> 8) & 255, (value >>> 16) & 255, value >>> 24);
  }
  /** mov r32, imm32 for rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi (0-7). */
  movImm(register: number, value: number): void {
    this.emit(0xb8 + register);
    this.u32(value);
  }
  get here(): number {
    return CODE_BASE + HEADER_SIZE + this.bytes.length;
  }
  patch(at: number, value: number): void {
    for (let i = 0; i < 4; i++) this.bytes[at + i] = (value >>> (8 * i)) & 255;
  }
}

/** What surrounds a stub. Code runs with rbx = input record, rbp = output record; r15 must be kept. */
export interface OracleShape {
  inSize: number;
  outSize: number;
  /** Loads the state from the input record. */
  before: number[];
  /** Offset in the input record of the 64-bit stub address. */
  stubOffset: number;
  /** Stores the state; r15 holds the signal number, or 0. */
  after: number[];
}

const EAX = 0;
const EDX = 2;
const EBX = 3;
const EBP = 5;
const ESI = 6;
const EDI = 7;

function build(shape: OracleShape, stubs: number[][], count: number): Uint8Array {
  const code = new Code();
  const sigactions: number[] = [];
  for (const signal of [SIGILL, SIGFPE, SIGSEGV]) {
    code.movImm(EAX, 13); // rt_sigaction
    code.movImm(EDI, signal);
    sigactions.push(code.bytes.length + 1);
    code.movImm(ESI, 0);
    code.emit(0x31, 0xd2, 0x41, 0xba, 8, 0, 0, 0, 0x0f, 0x05); // xor edx,edx; mov r10d,8; syscall
  }
  // Read everything: rbx = cursor.
  const total = shape.inSize * count;
  code.movImm(EBX, IN_BASE);
  const readLoop = code.bytes.length;
  code.emit(0x31, 0xc0, 0x31, 0xff, 0x48, 0x89, 0xde); // xor eax,eax; xor edi,edi; mov rsi,rbx
  code.movImm(EDX, IN_BASE + total);
  code.emit(0x29, 0xda, 0x74, 9); // sub edx,ebx; jz +9
  code.emit(0x0f, 0x05, 0x48, 0x01, 0xc3); // syscall; add rbx,rax
  code.emit(0x85, 0xc0, 0x7f, (readLoop - (code.bytes.length + 4)) & 255); // test eax,eax; jg readLoop
  // Records: rbx in, rbp out, r12 count, r14 stack.
  code.movImm(EBX, IN_BASE);
  code.movImm(EBP, OUT_BASE);
  code.emit(0x41, 0xbc);
  code.u32(count);
  code.emit(0x49, 0x89, 0xe6); // mov r14,rsp
  const recordLoop = code.bytes.length;
  code.emit(0x45, 0x31, 0xff); // xor r15d,r15d
  code.emit(...shape.before);
  code.emit(0xff, 0x93); // call [rbx+disp32]
  code.u32(shape.stubOffset);
  const resume = code.here;
  code.emit(0x4c, 0x89, 0xf4); // mov rsp,r14
  code.emit(...shape.after);
  code.emit(0x48, 0x81, 0xc3);
  code.u32(shape.inSize);
  code.emit(0x48, 0x81, 0xc5);
  code.u32(shape.outSize);
  code.emit(0x41, 0xff, 0xcc, 0x0f, 0x85); // dec r12d; jnz recordLoop
  code.u32(recordLoop - (code.bytes.length + 4));
  // Write everything.
  code.movImm(EBX, OUT_BASE);
  const writeLoop = code.bytes.length;
  code.movImm(EAX, 1);
  code.movImm(EDI, 1);
  code.emit(0x48, 0x89, 0xde); // mov rsi,rbx
  code.movImm(EDX, OUT_BASE + shape.outSize * count);
  code.emit(0x29, 0xda, 0x74, 9);
  code.emit(0x0f, 0x05, 0x48, 0x01, 0xc3);
  code.emit(0x85, 0xc0, 0x7f, (writeLoop - (code.bytes.length + 4)) & 255);
  code.movImm(EAX, 231); // exit_group
  code.emit(0x31, 0xff, 0x0f, 0x05);
  // handler(edi = signal, rdx = ucontext): r15 := signal, rip := resume.
  const handler = code.here;
  code.emit(0x48, 0x89, 0x7a, 96, 0x48, 0xc7, 0x82);
  code.u32(168);
  code.u32(resume);
  code.emit(0xc3);
  const restorer = code.here;
  code.movImm(EAX, 15); // rt_sigreturn
  code.emit(0x0f, 0x05);
  while (code.bytes.length % 8) code.emit(0x90);
  const action = code.here;
  const SA_SIGINFO_NODEFER_RESTORER = 0x4400_0004;
  for (const value of [handler, 0, SA_SIGINFO_NODEFER_RESTORER, 0, restorer, 0, 0, 0]) code.u32(value);
  for (const at of sigactions) code.patch(at, action);
  while (code.here % STUB_SIZE) code.emit(0x90);
  for (const stub of stubs) {
    const bytes = [...stub, 0xc3];
    if (bytes.length > STUB_SIZE) throw new RangeError("stub too long for the oracle");
    while (bytes.length < STUB_SIZE) bytes.push(0xcc);
    code.emit(...bytes);
  }

  const image = new Uint8Array(HEADER_SIZE + code.bytes.length);
  const view = new DataView(image.buffer);
  image.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  view.setUint16(16, 2, true); // ET_EXEC
  view.setUint16(18, 62, true); // EM_X86_64
  view.setUint32(20, 1, true);
  view.setUint32(24, CODE_BASE + HEADER_SIZE, true);
  view.setUint32(32, 64, true); // e_phoff
  view.setUint16(52, 64, true);
  view.setUint16(54, 56, true);
  view.setUint16(56, 3, true);
  const segment = (index: number, flags: number, vaddr: number, fileSize: number, memSize: number): void => {
    const at = 64 + 56 * index;
    view.setUint32(at, 1, true); // PT_LOAD
    view.setUint32(at + 4, flags, true);
    view.setUint32(at + 16, vaddr, true);
    view.setUint32(at + 24, vaddr, true);
    view.setUint32(at + 32, fileSize, true);
    view.setUint32(at + 40, memSize, true);
    view.setUint32(at + 48, 0x1000, true);
  };
  segment(0, 7, CODE_BASE, image.length, image.length);
  segment(1, 6, IN_BASE, 0, total);
  segment(2, 6, OUT_BASE, 0, shape.outSize * count);
  image.set(code.bytes, HEADER_SIZE);
  return image;
}

/** Address of stub `index` for the record's stub field, once {@link runOnHost} is given `stubs`. */
function stubAddress(shape: OracleShape, stubs: number[][], count: number, index: number): bigint {
  const size = build(shape, stubs, count).length;
  return BigInt(CODE_BASE + size - (stubs.length - index) * STUB_SIZE);
}

/**
 * Runs `count` records of `input` on the host. The stub field of each record holds a stub's index and is
 * replaced here by its address.
 */
export function runOnHost(shape: OracleShape, stubs: number[][], input: Uint8Array, count: number): DataView {
  const base = stubAddress(shape, stubs, count, 0);
  const wired = new Uint8Array(input);
  const view = new DataView(wired.buffer);
  for (let i = 0; i < count; i++) {
    const at = i * shape.inSize + shape.stubOffset;
    view.setBigUint64(at, base + view.getBigUint64(at, true) * BigInt(STUB_SIZE), true);
  }
  const folder = mkdtempSync(join(tmpdir(), "float-oracle-"));
  try {
    const file = join(folder, "oracle");
    writeFileSync(file, build(shape, stubs, count));
    chmodSync(file, 0o700);
    const done = spawnSync(file, { input: wired, maxBuffer: shape.outSize * count + 1 });
    if (done.error) throw done.error;
    if (done.stdout.length !== shape.outSize * count) {
      throw new Error(`host oracle ended early: status ${done.status}, signal ${done.signal}`);
    }
    return new DataView(done.stdout.buffer, done.stdout.byteOffset, done.stdout.length);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Small seeded generator (xorshift32), for reproducible operands. */
export class Random {
  private state: number;
  constructor(seed: number) {
    this.state = seed | 1;
  }
  u32(): number {
    let x = this.state;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    this.state = x;
    return x >>> 0;
  }
  below(limit: number): number {
    return this.u32() % limit;
  }
  u64(): bigint {
    return (BigInt(this.u32()) << 32n) | BigInt(this.u32());
  }
  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)];
  }
  /** A `bits`-wide pattern: random, or runs of zeros and ones with a few flipped bits (halfway cases). */
  pattern(bits: number): bigint {
    const all = (1n << BigInt(bits)) - 1n;
    const bit = (): bigint => 1n << BigInt(this.below(bits));
    switch (this.below(8)) {
      case 0:
        return 0n;
      case 1:
        return all;
      case 2:
        return bit();
      case 3:
        return all ^ bit();
      case 4:
        return (all << BigInt(this.below(bits))) & all;
      case 5:
        return (bit() | bit() | BigInt(this.below(4))) & all;
      default:
        return this.u64() & all;
    }
  }
}
