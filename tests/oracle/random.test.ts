import { expect, test } from "bun:test";
import { CaseBatch } from "./batch.ts";
import { FX_ST, RFLAGS_DF, RFLAGS_STATUS, RSP } from "./layout.ts";
import { Random } from "./random.ts";

const ROUNDS = 20_000;

test("the same seed gives the same sequence, another seed another", () => {
  const draw = (seed: number): number[] => {
    const r = new Random(seed);
    return Array.from({ length: 100 }, () => r.u32());
  };
  expect(draw(7)).toEqual(draw(7));
  expect(draw(7)).not.toEqual(draw(8));
  expect(new Set(draw(0)).size).toBe(100);
});

test("xoshiro128** is the reference generator", () => {
  // Independent BigInt model of one hundred steps from the state after seeding with 1.
  const r = new Random(1);
  const mask = 0xffff_ffffn;
  const rotl = (x: bigint, k: bigint): bigint => ((x << k) | (x >> (32n - k))) & mask;
  let z = 1n;
  const splitmix = (): bigint => {
    z = (z + 0x9e3779b9n) & mask;
    let v = z;
    v = ((v ^ (v >> 16n)) * 0x85ebca6bn) & mask;
    v = ((v ^ (v >> 13n)) * 0xc2b2ae35n) & mask;
    return v ^ (v >> 16n);
  };
  const s = [splitmix(), splitmix(), splitmix(), splitmix()];
  for (let i = 0; i < 100; i++) {
    expect(BigInt(r.u32())).toBe((rotl((s[1]! * 5n) & mask, 7n) * 9n) & mask);
    const t = (s[1]! << 9n) & mask;
    s[2]! ^= s[0]!;
    s[3]! ^= s[1]!;
    s[1]! ^= s[2]!;
    s[0]! ^= s[3]!;
    s[2]! ^= t;
    s[3] = rotl(s[3]!, 11n);
  }
});

test("below stays below and reaches every value", () => {
  const r = new Random(3);
  const seen = new Set(Array.from({ length: 1000 }, () => r.below(7)));
  expect([...seen].sort()).toEqual([0, 1, 2, 3, 4, 5, 6]);
});

test("interesting64 reaches the boundaries and always gives unsigned halves", () => {
  const r = new Random(11);
  const seen = new Set<string>();
  for (let i = 0; i < ROUNDS; i++) {
    r.interesting64();
    expect(r.low).toBe(r.low >>> 0);
    expect(r.high).toBe(r.high >>> 0);
    seen.add(((BigInt(r.high) << 32n) | BigInt(r.low)).toString(16));
  }
  const boundaries = [
    0n,
    1n,
    -1n,
    0x7fn,
    0x80n,
    0xffn,
    0x100n,
    -0x80n,
    -0x81n,
    0x7fffn,
    0x8000n,
    0xffffn,
    -0x8000n,
  ];
  boundaries.push(0x7fff_ffffn, 0x8000_0000n, 0xffff_ffffn, 0x1_0000_0000n, -0x8000_0000n, -0x8000_0001n);
  boundaries.push(0x7fff_ffff_ffff_ffffn, 0x8000_0000_0000_0000n, -2n, 0x8000_0000_0000_0001n);
  for (const b of boundaries) expect(seen).toContain(BigInt.asUintN(64, b).toString(16));
});

test("float32 and float64 reach every class of value", () => {
  const r = new Random(5);
  const classes = { zero: 0, denormal: 0, infinite: 0, quiet: 0, signalling: 0, negative: 0, normal: 0 };
  const wide = { ...classes };
  for (let i = 0; i < ROUNDS; i++) {
    const bits = r.float32();
    expect(bits).toBe(bits >>> 0);
    count(classes, bits >>> 31, (bits >>> 23) & 0xff, 0xff, bits & 0x7fffff, (bits & 0x400000) !== 0);
    r.float64();
    const mantissa = (r.high & 0xfffff) * 2 ** 32 + r.low;
    count(wide, r.high >>> 31, (r.high >>> 20) & 0x7ff, 0x7ff, mantissa, (r.high & 0x80000) !== 0);
  }
  for (const n of [...Object.values(classes), ...Object.values(wide)])
    expect(n).toBeGreaterThan(ROUNDS / 1000);
});

function count(
  into: Record<"zero" | "denormal" | "infinite" | "quiet" | "signalling" | "negative" | "normal", number>,
  sign: number,
  exponent: number,
  top: number,
  mantissa: number,
  quiet: boolean,
): void {
  into.negative += sign;
  if (exponent === 0) into[mantissa === 0 ? "zero" : "denormal"]++;
  else if (exponent < top) into.normal++;
  else if (mantissa === 0) into.infinite++;
  else into[quiet ? "quiet" : "signalling"]++;
}

test("fill functions leave RSP alone and make valid cases", () => {
  const r = new Random(9);
  const cases = new CaseBatch(2000, { withFpu: true });
  let df = 0;
  let unmasked = 0;
  for (let i = 0; i < cases.count; i++) {
    const rsp = cases.gpr(i, RSP);
    r.fillGprs(cases, i);
    r.fillRflags(cases, i, true);
    r.fillWindow(cases, i, i % 2 === 0);
    r.fillSse(cases, i, true, true);
    r.fillX87(cases, i, true);
    expect(cases.gpr(i, RSP)).toBe(rsp);
    expect(cases.rflags(i) & ~(RFLAGS_STATUS | RFLAGS_DF)).toBe(0);
    // An unmasked x87 flag that is already set would trap in the next case that waits.
    expect(cases.fsw(i) & ~cases.fcw(i) & 0x3f).toBe(0);
    if (cases.rflags(i) & RFLAGS_DF) df++;
    if ((cases.fcw(i) & 0x3f) !== 0x3f) unmasked++;
  }
  cases.validate();
  expect(df).toBeGreaterThan(100);
  expect(unmasked).toBeGreaterThan(100);
  const st = cases.fx(0).subarray(FX_ST, FX_ST + 10);
  expect(st.some((b) => b !== 0)).toBe(true);
  expect(cases.window(1).some((b) => b !== 0)).toBe(true);
});
