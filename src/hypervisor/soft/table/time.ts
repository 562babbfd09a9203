/** Time-stamp counter and model-specific registers. */

import { CR4_BITS } from "../bits.ts";
import type { Context } from "../context.ts";
import { HELPER } from "../helpers.ts";
import { CPL, CR4, FS, KERNEL_GS_BASE, RAX, RCX, RDX, REG, TSC_AUX, TSC_OFFSET } from "../layout.ts";
import { zeroAddress } from "../values.ts";
import { c32, c64, cf64, type Expr, f64, i32, i64, select } from "../wasm/expr.ts";
import { type Insn, insn, type Semantics } from "./insn.ts";
import { viaHelper } from "./shared.ts";

const IA32_FS_BASE = 0xc000_0100;
const NS_PER_MS = 1e6;

/** RDTSC and RDTSCP: host time as Clock.now in clock.ts computes it. */
const readTsc =
  (withAux: boolean): Semantics =>
  (c) => {
    const { f } = c;
    const disabled = i32.and(i32.load(zeroAddress, CR4), c32(CR4_BITS.TSD));
    f.ifRarely(i32.and(i32.ne(disabled, c32(0)), i32.ne(i32.load(zeroAddress, CPL), c32(0))), () =>
      c.raise(13, 0),
    );
    const milliseconds = f.call(c.core.now);
    const host = i64.trunc_sat_f64_s(f64.mul(milliseconds, cf64(NS_PER_MS)));
    const tsc = f.let(i64.add(host, i64.load(zeroAddress, TSC_OFFSET)));
    c.setGpr(RAX, i64.and(tsc, c64(0xffff_ffffn)));
    c.setGpr(RDX, i64.shr_u(tsc, c64(32)));
    if (withAux) c.setGpr(RCX, i64.load32_u(zeroAddress, TSC_AUX));
  };

/** The bases of FS and GS and the one that SWAPGS has, here; all other registers by the helper. */
const wrmsr: Semantics = (c) => {
  const { f } = c;
  const number = f.let(i32.sub(c.fixed(RCX, 4).read(), c32(IA32_FS_BASE | 0)));
  const isBase = i32.lt_u(number, c32(3));
  f.if(
    i32.and(isBase, i32.eqz(i32.load(zeroAddress, CPL))),
    () => writeBase(c, number),
    () => c.helper(HELPER.wrmsr),
  );
};

/** Writes IA32_FS_BASE (0), IA32_GS_BASE (1) or IA32_KERNEL_GS_BASE (2) from EDX:EAX. */
function writeBase(c: Context, number: Expr): void {
  const { f } = c;
  const half = (register: number) => i64.extend_u(c.fixed(register, 4).read());
  const value = f.let(i64.or(half(RAX), i64.shl(half(RDX), c64(32))));
  const canonical = i64.eq(i64.shr_s(i64.shl(value, c64(16)), c64(16)), value);
  f.ifRarely(i32.eqz(canonical), () => c.raise(13, 0));
  const segment = i32.add(i32.shl(number, c32(3)), c32(REG.segBase + 8 * FS));
  f.store(8, select(i32.eq(number, c32(2)), c32(KERNEL_GS_BASE), segment), 0, value);
}

const system = { system: true } as const;

export const timeInstructions = (): Insn[] => [
  ...insn("rdtscp", "0f 01 f9", "", readTsc(true), system),
  ...insn("rdtsc", "0f 31", "", readTsc(false), system),
  ...insn("wrmsr", "0f 30", "", wrmsr, system),
  ...insn("rdmsr", "0f 32", "", viaHelper(HELPER.rdmsr), system),
  ...insn("rdpmc", "0f 33", "", viaHelper(HELPER.rdpmc), system),
];
