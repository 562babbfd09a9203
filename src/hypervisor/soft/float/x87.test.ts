import { describe, expect, test } from "bun:test";
import { hostIsX64, type OracleShape, Random, runOnHost } from "./host-oracle.ts";
import { VECTOR_MF, VECTOR_UD, X87, type X87Cpu, x87Operand } from "./x87.ts";

const OPERAND = 112;
const STUB = 224;
const FLAGS = 232;
const RAX = 240;
const RECORD = 256;
const SIGILL = 4;
const SIGFPE = 8;
const FLAG_BITS = 0x45;

/**
 * Record: FNSAVE image at 0, memory operand at 112, stub (out: signal) at 224, RFLAGS at 232, RAX at 240.
 * The stub finds its operand at [rdi], inside the output record.
 */
const SHAPE: OracleShape = {
  inSize: RECORD,
  outSize: RECORD,
  stubOffset: STUB,
  before: [
    ...[0x48, 0x8d, 0x73, OPERAND], // lea rsi,[rbx+112]
    ...[0x48, 0x8d, 0x7d, OPERAND], // lea rdi,[rbp+112]
    ...[0xb9, OPERAND / 8, 0, 0, 0, 0xf3, 0x48, 0xa5], // mov ecx,14; rep movsq
    ...[0x48, 0x8d, 0x7d, OPERAND],
    ...[0xdd, 0x23], // frstor [rbx]
    ...[0xff, 0xb3, FLAGS, 0, 0, 0, 0x9d], // push [rbx+232]; popfq
    ...[0x48, 0x8b, 0x83, RAX, 0, 0, 0], // mov rax,[rbx+240]
  ],
  after: [
    ...[0x9c, 0x8f, 0x85, FLAGS, 0, 0, 0], // pushfq; pop [rbp+232]
    ...[0x48, 0x89, 0x85, RAX, 0, 0, 0], // mov [rbp+240],rax
    ...[0x4c, 0x89, 0xbd, STUB, 0, 0, 0], // mov [rbp+224],r15
    ...[0xdd, 0x75, 0], // fnsave [rbp]
  ],
};

interface Form {
  op: number;
  modrm: number;
  opsize16: boolean;
}

const TRANSCENDENTAL = new Set([0xf0, 0xf1, 0xf2, 0xf3, 0xf9, 0xfb, 0xfe, 0xff]);
const isTranscendental = (form: Form): boolean => form.op === 0xd9 && TRANSCENDENTAL.has(form.modrm);

function allForms(): Form[] {
  const forms: Form[] = [];
  for (let op = 0xd8; op <= 0xdf; op++) {
    for (let reg = 0; reg < 8; reg++) {
      const modrm = (reg << 3) | 7; // [rdi]
      forms.push({ op, modrm, opsize16: false });
      const operand = x87Operand(op, modrm);
      if (operand && operand.size > 10) forms.push({ op, modrm, opsize16: true });
    }
    for (let modrm = 0xc0; modrm <= 0xff; modrm++) forms.push({ op, modrm, opsize16: false });
  }
  return forms;
}

/** An f80 biased to special encodings; `near` is a sign and exponent word to stay close to. */
function extended(random: Random, near: number): { signExponent: number; significand: bigint } {
  const fraction = random.pattern(63);
  const integer = 1n << 63n;
  const sign = random.below(2) << 15;
  const kind = random.below(20);
  if (kind === 0) return { signExponent: sign, significand: 0n };
  if (kind === 1) return { signExponent: sign | 0x7fff, significand: integer };
  if (kind === 2) return { signExponent: sign | 0x7fff, significand: integer | fraction };
  if (kind === 3) return { signExponent: sign, significand: random.pattern(64) };
  if (kind === 4) return { signExponent: sign | random.below(0x8000), significand: fraction };
  let exp: number;
  if (kind < 8) exp = 16383 + random.below(70) - 3;
  else if (kind < 9) exp = 16383 - random.below(80);
  else if (kind < 10) exp = random.below(70);
  else if (kind < 11) exp = 0x7ffe - random.below(70);
  else if (kind < 12) exp = random.below(0x7fff);
  else if (kind < 13) exp = 16383 + random.pick([-126, -127, -149, -150, -1022, -1074, 127, 128, 1023, 1024]);
  else if (kind < 14) exp = (near & 0x7fff) + random.below(300) - 150;
  else exp = (near & 0x7fff) + random.below(5) - 2;
  exp = Math.max(1, Math.min(0x7ffe, exp));
  return { signExponent: sign | exp, significand: integer | fraction };
}

/** A memory operand of `size` bytes, biased to special values, written at `at`. */
function fillOperand(random: Random, view: DataView, at: number, form: Form): void {
  const size = x87Operand(form.op, form.modrm, form.opsize16, true)?.size ?? 0;
  for (let i = 0; i < OPERAND; i += 8) view.setBigUint64(at + i, random.u64(), true);
  if (size === 2) view.setUint16(at, Number(random.pattern(16)), true);
  else if (size === 4) {
    const exp = random.pick([0, 0, 255, 255, 127, 128, 150, random.below(256)]);
    const real = (random.below(2) << 31) | (exp << 23) | Number(random.pattern(23));
    view.setInt32(at, form.op === 0xd8 || form.op === 0xd9 ? real : Number(random.pattern(32)), true);
  } else if (size === 8) {
    const exp = random.pick([0, 0, 2047, 2047, 1023, 1024, 1080, random.below(2048)]);
    const real = (BigInt((random.below(2) << 11) | exp) << 52n) | random.pattern(52);
    view.setBigUint64(at, form.op === 0xdf ? random.pattern(64) : real, true);
  } else if (size === 10) {
    if (form.op === 0xdf)
      for (let i = 0; i < 9; i++) view.setUint8(at + i, random.below(10) * 16 + random.below(10));
    else {
      const value = extended(random, random.u32());
      view.setBigUint64(at, value.significand, true);
      view.setUint16(at + 8, value.signExponent, true);
    }
  }
}

/** Fills one input record. `masked`: all exceptions masked and none pending. */
function fillRecord(
  random: Random,
  view: DataView,
  at: number,
  form: Form,
  stub: number,
  masked: boolean,
): void {
  const masks = masked ? 0x3f : random.below(64);
  view.setUint32(at, masks | (random.pick([0, 2, 3, 3]) << 8) | (random.below(4) << 10) | 0x40, true);
  const top = random.below(8);
  let fsw = top << 11;
  if (random.below(3) === 0) fsw |= random.u32() & 0x4700;
  if (random.below(6) === 0) fsw |= random.u32() & (masked || random.below(4) === 0 ? 0x7f : masks);
  view.setUint32(at + 4, fsw, true);
  let tags = 3 << (2 * ((top + 7) & 7));
  if (random.below(5) === 0) tags = random.u32() & 0xffff;
  view.setUint32(at + 8, tags, true);
  let near = random.below(4) === 0 ? random.u32() : 16383;
  for (let i = 0; i < 8; i++) {
    const value = extended(random, near);
    view.setBigUint64(at + 28 + 10 * i, value.significand, true);
    view.setUint16(at + 36 + 10 * i, value.signExponent, true);
    if (value.signExponent & 0x7fff) near = value.signExponent;
  }
  fillOperand(random, view, at + OPERAND, form);
  view.setBigUint64(at + STUB, BigInt(stub), true);
  view.setBigUint64(at + FLAGS, BigInt((random.u32() & FLAG_BITS) | 2), true);
  view.setBigUint64(at + RAX, random.u64(), true);
}

class TestCpu implements X87Cpu {
  rflags = 0;
  rax = 0n;
  readonly flags = {
    get: (): number => this.rflags,
    set: (zf: number, pf: number, cf: number): void => {
      this.rflags = (this.rflags & ~FLAG_BITS) | (zf << 6) | (pf << 2) | cf;
    },
  };
  setAx(value: number): void {
    this.rax = (this.rax & ~0xffffn) | BigInt(value);
  }
}

/** Runs one record on the emulator; writes an output record of the oracle's layout. */
function emulate(fpu: X87, cpu: TestCpu, form: Form, input: DataView, at: number, out: DataView): number {
  fpu.reset();
  fpu.restore(new DataView(input.buffer, at, OPERAND), false);
  cpu.rflags = Number(input.getBigUint64(at + FLAGS, true));
  cpu.rax = input.getBigUint64(at + RAX, true);
  for (let i = 0; i < OPERAND; i += 8) {
    out.setBigUint64(OPERAND + i, input.getBigUint64(at + OPERAND + i, true), true);
  }
  const operand = new DataView(new ArrayBuffer(OPERAND));
  for (let i = 0; i < OPERAND; i += 8) operand.setBigUint64(i, out.getBigUint64(OPERAND + i, true), true);
  const vector = fpu.execute(form.op, form.modrm, operand, 0n, 0n, form.opsize16);
  const shape = x87Operand(form.op, form.modrm, form.opsize16, true);
  if (vector === 0 && shape?.access === "write" && fpu.stored) {
    for (let i = 0; i < shape.size; i++) out.setUint8(OPERAND + i, operand.getUint8(i));
  }
  fpu.save(out, false);
  out.setBigUint64(FLAGS, BigInt(cpu.rflags), true);
  out.setBigUint64(RAX, cpu.rax, true);
  return vector;
}

/** Whether two f80 registers differ by at most one unit in the last place. */
function withinUlp(a: DataView, b: DataView, aAt: number, bAt: number): boolean {
  const order = (view: DataView, at: number): bigint =>
    (BigInt(view.getUint16(at + 8, true) & 0x7fff) << 63n) |
    (view.getBigUint64(at, true) & 0x7fff_ffff_ffff_ffffn);
  if ((a.getUint16(aAt + 8, true) ^ b.getUint16(bAt + 8, true)) & 0x8000) return false;
  const distance = order(a, aAt) - order(b, bAt);
  return distance >= -1n && distance <= 1n;
}

const hex = (view: DataView, at: number): string =>
  `${view.getUint16(at + 8, true).toString(16)}:${view.getBigUint64(at, true).toString(16).padStart(16, "0")}`;

interface Verdict {
  wrong: string[];
  /** Transcendental results: records compared, and those equal to the last bit. */
  compared: number;
  exact: number;
}

function runForms(forms: Form[], each: number, seed: number, masked: boolean): Verdict {
  const random = new Random(seed);
  const count = forms.length * each;
  const input = new DataView(new ArrayBuffer(count * RECORD));
  for (let i = 0; i < count; i++) {
    fillRecord(random, input, i * RECORD, forms[i % forms.length], i % forms.length, masked);
  }
  const stubs = forms.map((f) => [...(f.opsize16 ? [0x66] : []), f.op, f.modrm]);
  const host = runOnHost(SHAPE, stubs, new Uint8Array(input.buffer), count);
  const cpu = new TestCpu();
  const fpu = new X87(new DataView(new ArrayBuffer(160)), cpu, { fisttp: true });
  const out = new DataView(new ArrayBuffer(RECORD));
  const verdict: Verdict = { wrong: [], compared: 0, exact: 0 };
  for (let i = 0; i < count; i++) {
    const form = forms[i % forms.length];
    const at = i * RECORD;
    const vector = emulate(fpu, cpu, form, input, at, out);
    const problems: string[] = [];
    const check = (what: string, got: number | bigint | string, want: number | bigint | string): void => {
      if (got !== want) problems.push(`${what} ${got.toString(16)} host ${want.toString(16)}`);
    };
    const signal = Number(host.getBigUint64(at + STUB, true));
    check("signal", vector === VECTOR_UD ? SIGILL : vector === VECTOR_MF ? SIGFPE : 0, signal);
    const loose = isTranscendental(form);
    let exact = true;
    if (signal === 0 && vector === 0) {
      check("fcw", out.getUint16(0, true), host.getUint16(at, true));
      const ignored = loose ? 0x200 : 0;
      check("fsw", out.getUint16(4, true) & ~ignored, host.getUint16(at + 4, true) & ~ignored);
      check("ftw", out.getUint16(8, true), host.getUint16(at + 8, true));
      for (let r = 0; r < 8; r++) {
        const mine = 28 + 10 * r;
        if (hex(out, mine) === hex(host, at + mine)) continue;
        exact = false;
        if (!loose || !withinUlp(out, host, mine, at + mine)) {
          check(`st${r}`, hex(out, mine), hex(host, at + mine));
        }
      }
      check("flags", out.getUint32(FLAGS, true) & FLAG_BITS, host.getUint32(at + FLAGS, true) & FLAG_BITS);
      check("rax", out.getBigUint64(RAX, true), host.getBigUint64(at + RAX, true));
      const size = x87Operand(form.op, form.modrm, form.opsize16, true)?.size ?? 0;
      // Instruction and operand pointers differ by CPU and by where the stub lies.
      const skipFrom = size > 10 ? (form.opsize16 ? 6 : 12) : OPERAND;
      const skipTo = size > 10 ? (form.opsize16 ? 14 : 28) : OPERAND;
      for (let b = 0; b < OPERAND; b++) {
        if (b >= skipFrom && b < skipTo) continue;
        check(`byte ${b}`, out.getUint8(OPERAND + b), host.getUint8(at + OPERAND + b));
      }
      if (loose) {
        verdict.compared++;
        if (exact) verdict.exact++;
      }
    }
    if (problems.length > 0) {
      const stack = [0, 1, 2].map((r) => hex(input, at + 28 + 10 * r)).join(" ");
      verdict.wrong.push(
        `${form.op.toString(16)} ${form.modrm.toString(16)}${form.opsize16 ? " o16" : ""} fcw ${input.getUint16(at, true).toString(16)} fsw ${input.getUint16(at + 4, true).toString(16)} ftw ${input.getUint16(at + 8, true).toString(16)} st ${stack} mem ${hex(input, at + OPERAND)}: ${problems.slice(0, 4).join("; ")}`,
      );
    }
  }
  return verdict;
}

describe.skipIf(!hostIsX64)("x87 against the host CPU (skipped: host is not x86-64 Linux)", () => {
  const exactForms = allForms().filter((f) => !isTranscendental(f));
  const arithmeticForms = exactForms.filter(
    (f) => f.modrm >= 0xc0 && ((f.op === 0xd8 && (f.modrm & 7) === 1) || (f.op === 0xd9 && f.modrm >= 0xf4)),
  );
  const transcendentalForms = allForms().filter(isTranscendental);
  const COUNT = 100_000;

  for (const masked of [true, false]) {
    const which = masked ? "masked" : "unmasked or pending";
    test(`every encoding, exceptions ${which}`, () => {
      const each = Math.ceil(COUNT / exactForms.length);
      expect(runForms(exactForms, each, masked ? 1 : 2, masked).wrong.slice(0, 20)).toEqual([]);
    }, 30_000);

    test(`arithmetic, exceptions ${which}`, () => {
      const each = Math.ceil(COUNT / arithmeticForms.length);
      expect(runForms(arithmeticForms, each, masked ? 3 : 4, masked).wrong.slice(0, 20)).toEqual([]);
    }, 30_000);
  }

  for (const form of transcendentalForms) {
    test(`transcendental D9 ${form.modrm.toString(16)}: within 1 ulp, 9 of 10 equal`, () => {
      const each = 5000;
      const { wrong, compared, exact } = runForms([form], each, form.modrm, true);
      expect(wrong.slice(0, 20)).toEqual([]);
      expect(compared).toBe(each);
      expect(exact / compared).toBeGreaterThan(0.9);
      expect(runForms([form], 500, form.modrm, false).wrong.slice(0, 20)).toEqual([]);
    }, 30_000);
  }
});
