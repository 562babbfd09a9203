import { describe, expect, test } from "bun:test";
import { bitLength, F80, makeFloat, packF32, packF64, unpackF32, unpackF64 } from "./float.ts";
import { Random } from "./host-oracle.ts";
import { FloatEnv, OE, PE, round, UE } from "./round.ts";
import { integerSqrt } from "./soft-float.ts";
import * as sse from "./sse.ts";

const MXCSR_DEFAULT = 0x1f80;
const view = new DataView(new ArrayBuffer(8));

function toNumber(bits: bigint): number {
  view.setBigUint64(0, bits);
  return view.getFloat64(0);
}
function fromNumber(value: number): bigint {
  view.setFloat64(0, value);
  return view.getBigUint64(0);
}
function fromSingle(value: number): bigint {
  view.setFloat32(0, value);
  return BigInt(view.getUint32(0));
}

describe("arithmetic against the engine's own doubles", () => {
  const engine: [number, (a: number, b: number) => number][] = [
    [sse.SSE_ADD, (a, b) => a + b],
    [sse.SSE_SUB, (a, b) => a - b],
    [sse.SSE_MUL, (a, b) => a * b],
    [sse.SSE_DIV, (a, b) => a / b],
    [sse.SSE_SQRT, (_a, b) => Math.sqrt(b)],
  ];

  test("f64, nearest", () => {
    const random = new Random(21);
    for (let i = 0; i < 20_000; i++) {
      const a = (BigInt(random.below(4096)) << 52n) | random.pattern(52);
      const b = (BigInt(random.below(4096)) << 52n) | random.pattern(52);
      const [op, compute] = engine[i % engine.length];
      const want = compute(toNumber(a), toNumber(b));
      const got = toNumber(sse.sseArith(op, 64, a, b, MXCSR_DEFAULT).bits);
      expect(Object.is(got, want)).toBe(true);
    }
  });

  test("f64 to f32 is Math.fround", () => {
    const random = new Random(22);
    for (let i = 0; i < 10_000; i++) {
      const value = toNumber((BigInt(random.below(4096)) << 52n) | random.pattern(52));
      if (Number.isNaN(value)) continue;
      const got = sse.sseConvert(64, fromNumber(value), MXCSR_DEFAULT).bits;
      expect(got).toBe(fromSingle(value));
    }
  });
});

describe("values", () => {
  test("packing undoes unpacking", () => {
    const random = new Random(23);
    for (let i = 0; i < 5000; i++) {
      const single = (BigInt(random.below(512)) << 23n) | random.pattern(23);
      expect(packF32(unpackF32(single))).toBe(single);
      const double = (BigInt(random.below(4096)) << 52n) | random.pattern(52);
      expect(packF64(unpackF64(double))).toBe(double);
    }
  });

  test("bitLength next to powers of two", () => {
    for (let bits = 1; bits < 700; bits++) {
      const power = 1n << BigInt(bits);
      expect(bitLength(power)).toBe(bits + 1);
      expect(bitLength(power - 1n)).toBe(bits);
    }
  });

  test("integerSqrt is the floor", () => {
    const random = new Random(24);
    for (let i = 0; i < 2000; i++) {
      const r = (random.pattern(64) << BigInt(random.below(200))) + 1n;
      expect(integerSqrt(r * r)).toBe(r);
      expect(integerSqrt(r * r + 2n * r)).toBe(r);
    }
  });
});

describe("x87 overflow and underflow", () => {
  const env = new FloatEnv();
  env.x87 = true;

  test("masked: infinity and denormal", () => {
    env.begin(0, 0x3f);
    expect(round(env, F80, 0, 20_000, 1n)).toMatchObject({ cls: 2, sign: 0 });
    expect(env.flags).toBe(OE | PE);
    env.begin(0, 0x3f);
    expect(round(env, F80, 1, -16_445, 3n).exp).toBe(-16_444);
    expect(env.flags).toBe(0);
    env.begin(0, 0x3f);
    round(env, F80, 1, -16_446, 3n);
    expect(env.flags).toBe(UE | PE);
  });

  test("unmasked: the exponent moves by 24576", () => {
    env.begin(0, 0);
    expect(round(env, F80, 0, 20_000, 1n)).toEqual(makeFloat(1, 0, 20_000 - 24_576, 1n << 63n, false));
    expect(env.flags).toBe(OE);
    env.begin(0, 0);
    expect(round(env, F80, 0, -20_000, 1n)).toEqual(makeFloat(1, 0, 24_576 - 20_000, 1n << 63n, false));
    expect(env.flags).toBe(UE);
  });
});
