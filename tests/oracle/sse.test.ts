/**
 * SSE, SSE2 and MMX against the processor of this host: every row of the table on random states, bit for
 * bit, MXCSR and the x87 state included.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import type { Insn } from "../../src/hypervisor/soft/table/insn.ts";
import { sseInstructions } from "../../src/hypervisor/soft/table/sse.ts";
import { CaseBatch, type RecordBatch, type ResultBatch } from "./batch.ts";
import {
  DATA_CROSS,
  DATA_END,
  DATA_FIRST,
  DATA_READ_ONLY,
  END_EXCEPTION,
  END_FELL_THROUGH,
  FX_FCW,
  FX_FTW,
  FX_ST,
  FX_XMM,
  RBX,
  RDI,
  RFLAGS_STATUS,
} from "./layout.ts";
import { Random } from "./random.ts";
import { NativeRunner, nativeUnsupported } from "./runner.ts";
import { SoftRunner } from "./soft-runner.ts";

/** Cases for each row; more for a longer search. */
const CASES = Number(process.env.SPARKLER_ORACLE_CASES ?? 60);
const EDGE_CASES = 6 * CASES;
const TIMEOUT_MS = 120_000;
const SEED = Number(process.env.SPARKLER_ORACLE_SEED ?? 1);
const REPORTED = 10;

const MXCSR_DEFAULT = 0x1f80;
const MXCSR_PE = 0x20;
const MXCSR_DAZ_FTZ = 0x8040;
const MXCSR_PM = 0x1000;
/**
 * What LDMXCSR may find at any alignment: bit 17 exists on AMD processors only (unaligned operands are
 * allowed), so bit 1 is clear in every byte. Half a word of zeros makes values without reserved bits.
 */
const MXCSR_ANY = 0xfdfd_fdfd;
const MXCSR_VALID = 0xfdfd;
const FCW_DEFAULT = 0x37f;
/** IE of the x87 status word and its mask in the control word; ES and B with it. */
const X87_INVALID = 0x01;
const FSW_SUMMARY = 0x8080;
const MATH_FAULT = 16;
/** An address nothing is mapped at. */
const UNMAPPED = 0x12_3000;

const rows = sseInstructions();

/** Operations with an inline fast path, whose limits the second test looks for. */
const ARITHMETIC = /^(add|sub|mul|div|sqrt|min|max|cmp)[sp][sd]$|^u?comis[sd]$|^cvt/;

/** Encodes `insn` with random registers, prefix and operand into case `i`; aims memory operands. */
function encode(r: Random, cases: CaseBatch, i: number, insn: Insn): void {
  const memory = insn.form === "mem" || (insn.modrm && insn.form === "any" && r.oneIn(2));
  const reg = insn.regField ?? r.below(8);
  let rex = 0x40 | r.below(8);
  if (insn.sizeRule === "y" ? r.oneIn(2) : r.oneIn(8)) rex |= 8;
  const bytes: number[] = insn.prefix ? [insn.prefix] : [];
  if (memory) rex &= ~3; // [rbx + disp8] needs neither REX.X nor REX.B
  if (rex !== 0x40 || r.oneIn(4)) bytes.push(rex);
  bytes.push(0x0f, insn.opcode);
  if (memory) {
    const displacement = r.below(256) - 128;
    cases.setGpr(i, RBX, address(r) - displacement);
    bytes.push(0x43 | (reg << 3), displacement & 0xff);
  } else if (insn.modrm) bytes.push(0xc0 | (reg << 3) | r.below(8));
  if (insn.immediateRule === "b") bytes.push(r.oneIn(2) ? r.below(256) : r.below(70));
  cases.setCode(i, bytes);
}

/** Mostly inside the window, half of the time aligned; sometimes where it faults. */
function address(r: Random): number {
  if (r.oneIn(12)) {
    const low = r.below(20);
    return r.pick([DATA_END - low, DATA_FIRST - low, DATA_READ_ONLY + 16 * r.below(4), UNMAPPED]);
  }
  const at = DATA_CROSS + r.below(96) - 48;
  return r.oneIn(2) ? at & ~15 : at;
}

/** A state that fits the row: floats or integers, every MXCSR control. */
function randomState(r: Random, cases: CaseBatch, i: number, insn: Insn): void {
  const floats = !r.oneIn(3);
  r.fillGprs(cases, i);
  r.fillRflags(cases, i);
  r.fillWindow(cases, i, floats);
  r.fillX87(cases, i);
  r.fillSse(cases, i, floats, true);
  if (r.oneIn(3)) cases.setMxcsr(i, r.oneIn(2) ? MXCSR_DEFAULT : MXCSR_DEFAULT | MXCSR_PE);
  // Where the byte-masked stores go.
  cases.setGpr(i, RDI, address(r));
  if (insn.mnemonic === "ldmxcsr") {
    const window = cases.window(i);
    const words = new Uint32Array(window.buffer, window.byteOffset, window.length / 4);
    const bits = r.oneIn(4) ? MXCSR_ANY : MXCSR_VALID;
    for (let at = 0; at < words.length; at++) words[at]! &= bits;
  }
}

const EXPONENTS32 = [0, 1, 2, 25, 51, 62, 63, 64, 65, 126, 127, 127, 128, 150, 189, 190, 191, 253, 254];
const EXPONENTS64 = [
  0, 1, 2, 54, 485, 511, 512, 513, 0x368, 0x369, 0x37f, 0x380, 0x381, 1022, 1023, 1023, 1024, 1075, 0x47e,
  1533, 1534, 1535, 2045, 2046,
];

/**
 * Operands whose sums, products, quotients and roots lie around the limits of the formats, with significands
 * of any length, so that results are exact, nearly exact, tiny or too large about equally often.
 */
function edgeState(r: Random, cases: CaseBatch, i: number): void {
  const quiet = [MXCSR_DEFAULT, MXCSR_DEFAULT | MXCSR_PE];
  const special = [MXCSR_DEFAULT | MXCSR_DAZ_FTZ, MXCSR_DEFAULT & ~MXCSR_PM];
  cases.setMxcsr(i, r.pick(r.oneIn(4) ? special : quiet));
  const wide = r.oneIn(2);
  const fill = r.oneIn(4) ? fillLimits : fillEdges;
  fill(r, new Uint32Array(cases.bytes.buffer, cases.fxAt(i) + FX_XMM, 64), wide);
  fill(r, new Uint32Array(cases.bytes.buffer, cases.window(i).byteOffset, 64), wide);
}

/** The largest value below twice the smallest normal one, 0.5, 2, 2^31 and the number before it. */
const LIMITS32 = [0x00ff_ffff, 0x3f00_0000, 0x4000_0000, 0x4f00_0000, 0x4eff_ffff];
const LIMITS64 = [
  [0x001f_ffff, 0xffff_ffff],
  [0x3fe0_0000, 0],
  [0x4000_0000, 0],
  [0x41e0_0000, 0],
  [0x41df_ffff, 0xffc0_0000],
  // As a single, just below the smallest normal one.
  [0x380f_ffff, 0xe000_0000],
] as const;

/** Half of the first limit rounds up to the smallest normal value and is tiny all the same. */
function fillLimits(r: Random, words: Uint32Array, wide: boolean): void {
  for (let at = 0; at < words.length; at += wide ? 2 : 1) {
    const sign = r.u32() & 0x8000_0000;
    if (wide) {
      const [high, low] = r.pick(LIMITS64);
      words[at] = low;
      words[at + 1] = sign | high;
    } else words[at] = sign | r.pick(LIMITS32);
  }
}

function fillEdges(r: Random, words: Uint32Array, wide: boolean): void {
  const sign = () => r.u32() & 0x8000_0000;
  for (let at = 0; at < words.length; at += wide ? 2 : 1) {
    const bits = wide ? 52 : 23;
    const cut = BigInt(r.below(bits + 1));
    const random = r.oneIn(3) ? ~0n : (BigInt(r.u32()) << 32n) | BigInt(r.u32());
    const fraction = (BigInt.asUintN(bits, random) >> cut) << cut;
    if (wide) {
      words[at] = Number(BigInt.asUintN(32, fraction));
      words[at + 1] = sign() | (r.pick(EXPONENTS64) << 20) | Number(fraction >> 32n);
    } else words[at] = sign() | (r.pick(EXPONENTS32) << 23) | Number(fraction);
  }
}

/** RCPPS and RSQRTPS may each be 1.5 * 2^-12 off the true value, on either processor. */
const APPROXIMATE = /^r(cp|sqrt)[ps]s$/;
const TOLERANCE = 1.5 * 2 ** -11;

const floatBits = new Uint32Array(1);
const floatValue = new Float32Array(floatBits.buffer);
function single(bits: number): number {
  floatBits[0] = bits;
  return floatValue[0]!;
}

function xmmEqual(insn: Insn, a: number, b: number): boolean {
  if (a === b) return true;
  if (!APPROXIMATE.test(insn.mnemonic)) return false;
  return Math.abs(single(a) - single(b)) <= Math.abs(single(a)) * TOLERANCE;
}

/** Which x87 fields processors agree on for this outcome. */
function comparesX87(insn: Insn, native: ResultBatch, i: number): boolean {
  // AMD processors enter MMX mode even when MASKMOVQ faults, and not for CVTPI2PS from memory.
  if (insn.mnemonic === "maskmovq") return native.end(i) === END_FELL_THROUGH;
  return insn.mnemonic !== "cvtpi2ps";
}

/** Names what differs between the outcomes of case `i`, or nothing. */
function differences(insn: Insn, native: ResultBatch, soft: ResultBatch, i: number): string[] {
  const out: string[] = [];
  const check = (name: string, a: number | bigint, b: number | bigint) => {
    if (a !== b) out.push(`${name} is ${b.toString(16)}, not ${a.toString(16)}`);
  };
  check("end", native.end(i), soft.end(i));
  check("trap", native.trap(i), soft.trap(i));
  check("error", native.errorCode(i), soft.errorCode(i));
  check("cr2", native.cr2(i), soft.cr2(i));
  check("rip", native.rip(i), soft.rip(i));
  check("flags", native.rflags(i) & RFLAGS_STATUS, soft.rflags(i) & RFLAGS_STATUS);
  for (let reg = 0; reg < 16; reg++) check(`gpr ${reg}`, native.gpr(i, reg), soft.gpr(i, reg));
  const memory = (batch: RecordBatch) => Buffer.from(batch.window(i)).toString("hex");
  if (memory(native) !== memory(soft)) out.push(`memory is\n${memory(soft)}, not\n${memory(native)}`);
  check("mxcsr", native.mxcsr(i), soft.mxcsr(i));
  for (let reg = 0; reg < 16; reg++) {
    for (let lane = 0; lane < 4; lane++) {
      const [a, b] = [native.xmm(i, reg, lane), soft.xmm(i, reg, lane)];
      if (!xmmEqual(insn, a, b)) check(`xmm${reg}[${lane}]`, a, b);
    }
  }
  if (!comparesX87(insn, native, i)) return out;
  const [x, y] = [native.fx(i), soft.fx(i)];
  for (let at = FX_FCW; at <= FX_FTW; at++) check(`fxsave[${at}]`, x[at]!, y[at]!);
  for (let at = FX_ST; at < FX_XMM; at++) if (at % 16 < 10) check(`fxsave[${at}]`, x[at]!, y[at]!);
  return out;
}

describe.skipIf(nativeUnsupported() !== undefined)("SSE and MMX against this processor", () => {
  let native: NativeRunner;
  let soft: SoftRunner;
  beforeAll(() => {
    native = new NativeRunner();
    soft = new SoftRunner();
  });
  afterAll(() => native.close());

  /** Runs `perRow` cases of each row on both and returns the first failures, and the native results. */
  function compare(
    list: readonly Insn[],
    perRow: number,
    prepare: (r: Random, cases: CaseBatch, i: number, insn: Insn) => void,
  ): { failures: string[]; results: ResultBatch } {
    const r = new Random(SEED);
    const cases = new CaseBatch(list.length * perRow, { withFpu: true });
    const insnOf = (i: number) => list[Math.floor(i / perRow)]!;
    for (let i = 0; i < cases.count; i++) {
      prepare(r, cases, i, insnOf(i));
      encode(r, cases, i, insnOf(i));
    }
    const results = native.run(cases);
    const own = soft.run(cases);
    const failures: string[] = [];
    for (let i = 0; i < cases.count && failures.length < REPORTED; i++) {
      const insn = insnOf(i);
      const found = differences(insn, results, own, i);
      if (found.length === 0) continue;
      const before = `mxcsr ${cases.mxcsr(i).toString(16)} ${cases.describe(i)}`;
      failures.push(`${insn.mnemonic} (${insn.text}): ${found.slice(0, 6).join("; ")}\n  from ${before}`);
    }
    return { failures, results };
  }

  test(
    "every row on random states",
    () => {
      const { failures, results } = compare(rows, CASES, randomState);
      expect(failures).toEqual([]);
      // The states are worth something: each row also ran to its end, and the faults there are were met.
      const traps = new Set<number>();
      rows.forEach((insn, row) => {
        let completed = 0;
        for (let i = row * CASES; i < (row + 1) * CASES; i++) {
          if (results.end(i) === END_FELL_THROUGH) completed++;
          else if (results.end(i) === END_EXCEPTION) traps.add(results.trap(i));
        }
        expect([insn.text, completed > 0]).toEqual([insn.text, true]);
      });
      expect([...traps].sort((a, b) => a - b)).toEqual([13, 14, 19]);
    },
    TIMEOUT_MS,
  );

  test("MMX instructions raise a pending x87 exception first", () => {
    const list = rows.filter(
      (insn) => insn.operands.some((o) => /^[PQN]/.test(o)) || insn.mnemonic === "emms",
    );
    const { failures, results } = compare(list, 4, (r, cases, i, insn) => {
      randomState(r, cases, i, insn);
      cases.setMxcsr(i, MXCSR_DEFAULT);
      cases.setFcw(i, FCW_DEFAULT & ~X87_INVALID);
      cases.setFsw(i, X87_INVALID | FSW_SUMMARY);
    });
    expect(failures).toEqual([]);
    let raised = 0;
    for (let i = 0; i < results.count; i++) if (results.trap(i) === MATH_FAULT) raised++;
    expect(raised).toBeGreaterThan(results.count * 0.9);
  });

  test(
    "arithmetic around the limits of its fast paths",
    () => {
      const list = rows.filter((insn) => ARITHMETIC.test(insn.mnemonic));
      expect(list.length).toBeGreaterThan(50);
      const { failures, results } = compare(list, EDGE_CASES, (r, cases, i) => {
        r.fillGprs(cases, i);
        edgeState(r, cases, i);
      });
      expect(failures).toEqual([]);
      let inexact = 0;
      for (let i = 0; i < results.count; i++) if (results.mxcsr(i) & MXCSR_PE) inexact++;
      // Neither all exact nor all inexact: both sides of the decision were taken.
      expect(inexact / results.count).toBeGreaterThan(0.2);
      expect(inexact / results.count).toBeLessThan(0.95);
    },
    TIMEOUT_MS,
  );
});
