/** Conversions between integers, single and double precision (SDM vol. 1, 11.4.1.5 and 10.4.3). */
import type { Context } from "../context.ts";
import { SLOW } from "../sse-slow.ts";
import type { Size } from "../values.ts";
import {
  c32,
  c64,
  cf64,
  type Expr,
  f32,
  f32x4,
  f64,
  f64x2,
  i32,
  i32x4,
  i64,
  i64x2,
  v128,
} from "../wasm/expr.ts";
import { type Insn, insn, type Semantics } from "./insn.ts";
import {
  checkInexact,
  elementBytes,
  fastOrSlow,
  LEAST32,
  MOST32,
  normalResult,
  ordinary,
  PD,
  PS,
  readSource,
  SD,
  type Shape,
  SS,
  slow,
  slowResult,
  slowToDestination,
  slowVector,
  splat32,
  splat64,
  writeDestination,
} from "./sse-lanes.ts";
import { checkPending, enterMmx, lowAddress, SSE, writeMmx } from "./sse-operands.ts";

/** Two lanes in the low half of a register, as CVTPS2PD and CVTTPS2PI read them. */
const PS_LOW = { width: 32, lanes: 2 } as const;

/** CVTSI2Sx from r/m32 and r/m64. */
const fromInteger =
  (s: Shape): Semantics =>
  (c) => {
    const { f } = c;
    const value = f.let(c.operand(1).read());
    const scalar = s.width === 64 ? f64 : f32;
    if (c.size === 4 && s.width === 64) {
      // Every 32-bit integer is a double.
      writeDestination(c, s, f64.convert_i32_s(value));
      return;
    }
    // Integers up to 2^24 (2^53) are singles (doubles).
    const limit = s.width === 64 ? 1n << 53n : 1n << 24n;
    const isExact = () =>
      c.size === 4
        ? i32.le_u(i32.add(value, c32(Number(limit))), c32(Number(2n * limit)))
        : i64.le_u(i64.add(value, c64(limit)), c64(2n * limit));
    fastOrSlow(
      f,
      (leave) => {
        checkInexact(f, leave, isExact);
        writeDestination(c, s, c.size === 4 ? scalar.convert_i32_s(value) : scalar.convert_i64_s(value));
      },
      () => slowToDestination(c, c.size === 4 ? SLOW.fromInt32 : SLOW.fromInt64, s, undefined, value),
    );
  };

/** 32-bit integers to singles, of which the helper converts `lanes`; those below 2^24 convert exactly. */
function integersToSingles(c: Context, lanes: 2 | 4, value: Expr, write: (v: Expr) => void): void {
  const { f } = c;
  const isExact = () => i32x4.all_true(i32x4.eq(i32x4.shr_s(value, c32(24)), i32x4.shr_s(value, c32(31))));
  fastOrSlow(
    f,
    (leave) => {
      checkInexact(f, leave, isExact);
      write(f32x4.convert_i32x4_s(value));
    },
    () => {
      slow(c, SLOW.fromInt32, { width: 32, lanes }, undefined, value);
      write(slowVector());
    },
  );
}

const cvtdq2ps: Semantics = (c) => integersToSingles(c, 4, c.f.let(c.xmmRm()), (v) => c.writeXmmReg(v));

const cvtdq2pd: Semantics = (c) =>
  c.writeXmmReg(f64x2.convert_low_i32x4_s(v128.load64_zero(lowAddress(c, 8))));

/**
 * The source of CVTPI2PS and CVTPI2PD, which are MMX instructions only with a register operand (SDM vol. 2,
 * CVTPI2PD; AMD processors do the same for CVTPI2PS).
 */
const readMmxSource = (c: Context): Expr => {
  if (!c.mem) {
    checkPending(c);
    enterMmx(c);
  }
  return c.f.let(v128.load64_zero(lowAddress(c, 8)));
};

const cvtpi2ps: Semantics = (c) =>
  integersToSingles(c, 2, readMmxSource(c), (v) => c.f.store(8, c.regAddress(), 0, i64x2.extract_lane(v, 0)));

const cvtpi2pd: Semantics = (c) => c.writeXmmReg(f64x2.convert_low_i32x4_s(readMmxSource(c)));

const TWO_31 = 2 ** 31;
const TWO_63 = 2 ** 63;

/** CVTSx2SI and CVTTSx2SI to r32 and r64. */
const toInteger =
  (s: Shape, truncate: boolean): Semantics =>
  (c) => {
    const { f } = c;
    const source = readSource(c, s);
    const x = s.width === 64 ? source : f.let(f64.promote(source));
    const limit = c.size === 4 ? TWO_31 : TWO_63;
    const [to32, to64] = truncate
      ? [SLOW.truncateToInt32, SLOW.truncateToInt64]
      : [SLOW.toInt32, SLOW.toInt64];
    fastOrSlow(
      f,
      (leave) => {
        const whole = f.let(truncate ? f64.trunc(x) : f64.nearest(x));
        const inRange = i32.and(f64.ge(whole, cf64(-limit)), f64.lt(whole, cf64(limit)));
        f.brIf(leave, i32.eqz(inRange));
        checkInexact(f, leave, () => f64.eq(whole, x), truncate);
        c.operand(0).write(c.size === 4 ? i32.trunc_sat_f64_s(whole) : i64.trunc_sat_f64_s(whole));
      },
      () => {
        slow(c, c.size === 4 ? to32 : to64, s, undefined, source);
        c.operand(0).write(slowResult(c.size));
      },
    );
  };

/**
 * Packed floating point to 32-bit integers: CVT(T)PS2DQ, CVT(T)PD2DQ, CVT(T)PS2PI, CVT(T)PD2PI. The
 * first `lanes` elements of `source` count; the others must be 0.
 */
function toIntegers(
  c: Context,
  s: Shape,
  lanes: 2 | 4,
  truncate: boolean,
  source: Expr,
  write: (v: Expr) => void,
): void {
  const { f } = c;
  const single = s.width === 32;
  const limit = single ? splat32 : splat64;
  const round = single ? f32x4 : f64x2;
  fastOrSlow(
    f,
    (leave) => {
      const whole = f.let(truncate ? round.trunc(source) : round.nearest(source));
      const inRange = v128.and(s.ops.ge(whole, limit(-TWO_31)), s.ops.lt(whole, limit(TWO_31)));
      f.brIf(leave, i32.eqz(s.all(inRange)));
      checkInexact(f, leave, () => s.all(s.ops.eq(whole, source)), truncate);
      write(single ? i32x4.trunc_sat_f32x4_s(whole) : i32x4.trunc_sat_f64x2_s_zero(whole));
    },
    () => {
      const operation = truncate ? SLOW.truncateToInt32 : SLOW.toInt32;
      slow(c, operation, { width: s.width, lanes }, undefined, source);
      write(slowVector());
    },
  );
}

const toXmmIntegers =
  (s: Shape, truncate: boolean): Semantics =>
  (c) =>
    toIntegers(c, s, s.lanes === 4 ? 4 : 2, truncate, c.f.let(c.xmmRm()), (v) => c.writeXmmReg(v));

const toMmxIntegers =
  (s: Shape, truncate: boolean): Semantics =>
  (c) => {
    checkPending(c);
    const source = c.f.let(s.width === 32 ? v128.load64_zero(lowAddress(c, 8)) : c.xmmRm());
    enterMmx(c);
    toIntegers(c, s, 2, truncate, source, (v) => writeMmx(c, c.regAddress(), i64x2.extract_lane(v, 0)));
  };

/** CVTSS2SD: exact. */
const cvtss2sd: Semantics = (c) => {
  const source = readSource(c, SS);
  fastOrSlow(
    c.f,
    (leave) => {
      c.f.brIf(leave, i32.eqz(ordinary(SS, source)));
      c.f.store(8, c.regAddress(), 0, f64.promote(source));
    },
    () => {
      slow(c, SLOW.convert, SS, undefined, source);
      c.f.store(8, c.regAddress(), 0, slowResult(8));
    },
  );
};

const cvtps2pd: Semantics = (c) => {
  const source = c.f.let(v128.load64_zero(lowAddress(c, 8)));
  fastOrSlow(
    c.f,
    (leave) => {
      c.f.brIf(leave, i32.eqz(PS.all(ordinary(PS, source))));
      c.writeXmmReg(f64x2.promote_low_f32x4(source));
    },
    () => {
      slow(c, SLOW.convert, PS_LOW, undefined, source);
      c.writeXmmReg(slowVector());
    },
  );
};

const cvtsd2ss: Semantics = (c) => {
  const source = readSource(c, SD);
  const size: Size = elementBytes(SS);
  fastOrSlow(
    c.f,
    (leave) => {
      const r = c.f.let(f32.demote(source));
      c.f.brIf(leave, i32.eqz(i32.or(normalResult(SS, r), f64.eq(source, SD.zero))));
      checkInexact(c.f, leave, () => f64.eq(f64.promote(r), source));
      c.f.store(size, c.regAddress(), 0, r);
    },
    () => {
      slow(c, SLOW.convert, SD, undefined, source);
      c.f.store(size, c.regAddress(), 0, slowResult(size));
    },
  );
};

/** The upper half of the register becomes 0. */
const cvtpd2ps: Semantics = (c) => {
  const { f } = c;
  const source = f.let(c.xmmRm());
  fastOrSlow(
    f,
    (leave) => {
      const r = f.let(f32x4.demote_f64x2_zero(source));
      const back = f.let(f64x2.promote_low_f32x4(r));
      // Normal as singles are, in the two lanes there are.
      const magnitude = f.let(f64x2.abs(back));
      const normal = v128.and(f64x2.gt(magnitude, splat64(LEAST32)), f64x2.le(magnitude, splat64(MOST32)));
      f.brIf(leave, i32.eqz(PD.all(v128.or(normal, f64x2.eq(source, PD.zero)))));
      checkInexact(f, leave, () => PD.all(f64x2.eq(back, source)));
      c.writeXmmReg(r);
    },
    () => {
      slow(c, SLOW.convert, PD, undefined, source);
      c.writeXmmReg(slowVector());
    },
  );
};

export const sseConversions = (): Insn[] => [
  ...insn("cvtpi2ps", "np 0f 2a /r", "Vx,Qq", cvtpi2ps, SSE),
  ...insn("cvtpi2pd", "66 0f 2a /r", "Vx,Qq", cvtpi2pd, SSE),
  ...insn("cvtsi2ss", "f3 0f 2a /r", "Vx,Ey", fromInteger(SS), SSE),
  ...insn("cvtsi2sd", "f2 0f 2a /r", "Vx,Ey", fromInteger(SD), SSE),
  ...insn("cvttps2pi", "np 0f 2c /r", "Pq,Wx", toMmxIntegers(PS, true), SSE),
  ...insn("cvttpd2pi", "66 0f 2c /r", "Pq,Wx", toMmxIntegers(PD, true), SSE),
  ...insn("cvttss2si", "f3 0f 2c /r", "Gy,Wx", toInteger(SS, true), SSE),
  ...insn("cvttsd2si", "f2 0f 2c /r", "Gy,Wx", toInteger(SD, true), SSE),
  ...insn("cvtps2pi", "np 0f 2d /r", "Pq,Wx", toMmxIntegers(PS, false), SSE),
  ...insn("cvtpd2pi", "66 0f 2d /r", "Pq,Wx", toMmxIntegers(PD, false), SSE),
  ...insn("cvtss2si", "f3 0f 2d /r", "Gy,Wx", toInteger(SS, false), SSE),
  ...insn("cvtsd2si", "f2 0f 2d /r", "Gy,Wx", toInteger(SD, false), SSE),
  ...insn("cvtps2pd", "np 0f 5a /r", "Vx,Wx", cvtps2pd, SSE),
  ...insn("cvtpd2ps", "66 0f 5a /r", "Vx,Wx", cvtpd2ps, SSE),
  ...insn("cvtss2sd", "f3 0f 5a /r", "Vx,Wx", cvtss2sd, SSE),
  ...insn("cvtsd2ss", "f2 0f 5a /r", "Vx,Wx", cvtsd2ss, SSE),
  ...insn("cvtdq2ps", "np 0f 5b /r", "Vx,Wx", cvtdq2ps, SSE),
  ...insn("cvtps2dq", "66 0f 5b /r", "Vx,Wx", toXmmIntegers(PS, false), SSE),
  ...insn("cvttps2dq", "f3 0f 5b /r", "Vx,Wx", toXmmIntegers(PS, true), SSE),
  ...insn("cvttpd2dq", "66 0f e6 /r", "Vx,Wx", toXmmIntegers(PD, true), SSE),
  ...insn("cvtdq2pd", "f3 0f e6 /r", "Vx,Wx", cvtdq2pd, SSE),
  ...insn("cvtpd2dq", "f2 0f e6 /r", "Vx,Wx", toXmmIntegers(PD, false), SSE),
];
