/** Bit tests, scans and counts. */
import type { Operand } from "../context.ts";
import { konst, ops, sext64, zext, zext64 } from "../values.ts";
import { I32 } from "../wasm/encoding.ts";
import { c32, c64, type Expr, i32, i64 } from "../wasm/expr.ts";
import { type Insn, insn, type Semantics } from "./insn.ts";

/** BT, BTS, BTR, BTC. With a register index and a memory operand the index reaches beyond the operand. */
const bitTest =
  (change: "bt" | "bts" | "btr" | "btc"): Semantics =>
  (c) => {
    const { f, size } = c;
    const bits = size * 8;
    const o = ops(size);
    const index = f.let(c.src.read());
    const at = f.let(o.and(index, konst(size, bits - 1)));
    const mask = f.let(o.shl(konst(size, 1), at));
    let target: Operand = c.dst;
    if (c.mem && c.operands[1]![0] === "G") {
      const offset = i64.shl(
        i64.shr_s(sext64(index, size), c64(size === 8 ? 6 : size === 4 ? 5 : 4)),
        c64(Math.log2(size)),
      );
      const narrow = (v: Expr, is32: boolean): Expr => (is32 ? i64.and(v, c64(0xffff_ffffn)) : v);
      const ea = narrow(i64.add(c.effectiveAddress(), offset), c.variant.addr32);
      const base = c.segmentBase();
      const address = f.let(narrow(i64.add(ea, base), !c.variant.mode64));
      target = {
        read: () => c.load(address, size),
        write: (v) => c.store(address, size, v),
        modify: (m) => c.modify(address, size, m),
      };
    }
    const cf = f.local(I32);
    const test = (v: Expr) => {
      const hit = o.ne(o.and(v, mask), konst(size, 0));
      f.set(cf, hit);
    };
    if (change === "bt") test(target.read());
    else {
      target.modify((v) => {
        test(v);
        return change === "bts"
          ? o.or(v, mask)
          : change === "btr"
            ? o.and(v, o.xor(mask, konst(size, -1)))
            : o.xor(v, mask);
      });
    }
    // ZF is unaffected; OF, SF, AF and PF are undefined and stay.
    c.setCarryOverflow(cf, c.f.let(c.overflow()));
  };

/** BSF and BSR: ZF set and the destination unchanged when the source is 0 (as all processors do). */
const bitScan =
  (forward: boolean): Semantics =>
  (c) => {
    const { f, size } = c;
    const o = ops(size);
    const v = f.let(c.src.read());
    const source = zext(v, size);
    c.setFlagZ(zext64(v, size));
    f.if(o.ne(source, konst(size, 0)), () => {
      const width = size === 8 ? 63 : 31;
      c.dst.write(forward ? o.ctz(source) : o.sub(konst(size, width), o.clz(source)));
    });
  };

const popcnt: Semantics = (c) => {
  const v = c.f.let(c.src.read());
  const r = c.f.let(ops(c.size).popcnt(zext(v, c.size)));
  c.dst.write(r);
  c.setFlagZ(zext64(v, c.size));
  c.setFlagS(c64(1)); // PF = SF = 0
  c.setFlagC(c64(0));
  c.setFlagA(c32(0));
};

const bswap: Semantics = (c) => {
  const v = c.f.let(c.dst.read());
  if (c.size === 8) {
    const swapHalf = (x: Expr) => {
      const t = c.f.let(x);
      return i64.or(
        i64.shl(i64.and(t, c64(0x00ff00ff00ff00ffn)), c64(8)),
        i64.and(i64.shr_u(t, c64(8)), c64(0x00ff00ff00ff00ffn)),
      );
    };
    const bytes = c.f.let(swapHalf(v));
    const words = i64.or(
      i64.shl(i64.and(bytes, c64(0x0000ffff0000ffffn)), c64(16)),
      i64.and(i64.shr_u(bytes, c64(16)), c64(0x0000ffff0000ffffn)),
    );
    c.dst.write(i64.rotl(words, c64(32)));
  } else if (c.size === 4) {
    c.dst.write(
      i32.or(
        i32.and(i32.rotl(v, c32(8)), c32(0x00ff00ff)),
        i32.and(i32.rotl(v, c32(24)), c32(0xff00ff00 | 0)),
      ),
    );
  } else c.dst.write(c32(0)); // undefined for 16 bits; processors clear the register
};

export const bitInstructions = (): Insn[] => [
  ...(["bt", "bts", "btr", "btc"] as const).flatMap((name, n) => [
    ...insn(
      name,
      `0f ${(0xa3 + 8 * n).toString(16)} /r`,
      "Ev,Gv",
      bitTest(name),
      name === "bt" ? {} : { lock: true },
    ),
    ...insn(name, `0f ba /${4 + n}`, "Ev,Ib", bitTest(name), name === "bt" ? {} : { lock: true }),
  ]),
  ...insn("bsf", "0f bc /r", "Gv,Ev", bitScan(true)),
  ...insn("bsr", "0f bd /r", "Gv,Ev", bitScan(false)),
  ...insn("popcnt", "f3 0f b8 /r", "Gv,Ev", popcnt),
  ...insn("bswap", "0f c8+r", "Zv", bswap),
];
