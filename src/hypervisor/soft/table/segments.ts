/** Instructions on segment registers. Loads of descriptors are TypeScript helpers. */
import type { Context } from "../context.ts";
import { HELPER } from "../helpers.ts";
import { DS, ES, FS, GS, REG, SEG_ATTR, SEG_LIMIT, SEG_SELECTOR } from "../layout.ts";
import type { Size } from "../values.ts";
import { c32, c64, type Expr, i32, i64 } from "../wasm/expr.ts";
import { type Insn, insn, type Semantics } from "./insn.ts";
import { viaHelper } from "./shared.ts";

/** By segment number, a bit each: those whose load has no effect on interrupts (SS), and those that do not exist. */
const DATA_SEGMENTS = (1 << ES) | (1 << DS) | (1 << FS) | (1 << GS);
const NO_SEGMENTS = 0xff & ~((1 << (GS + 1)) - 1);

const isOneOf = (segment: Expr, bits: number): Expr => i32.and(i32.shr_u(c32(bits), segment), c32(1));

/** The r/m operand, of 2 bytes in memory whatever the operand size is. */
const operand = (c: Context, size: Size) => (c.mem ? c.memory(2) : c.rm(size));

const moveFrom: Semantics = (c) => {
  const segment = c.f.let(c.modrmReg());
  c.f.ifRarely(isOneOf(segment, NO_SEGMENTS), () => c.raise(6));
  const selector = c.f.let(i32.load16_u(i32.shl(segment, c32(2)), SEG_SELECTOR));
  operand(c, c.size).write(c.size === 8 && !c.mem ? i64.extend_u(selector) : selector);
};

const moveTo: Semantics = (c) => {
  const { f } = c;
  // Needed outside of what is conditional below.
  if (c.mem) c.linearAddress();
  const segment = f.let(c.modrmReg());
  f.ifRarely(isOneOf(segment, ~DATA_SEGMENTS), () => c.endWithHelper(HELPER.movToSeg));
  const selector = f.let(operand(c, 2).read());
  f.if(
    i32.and(selector, c32(0xfffc)),
    () => c.helper(HELPER.movToSeg),
    () => {
      // A null selector. As setSegment in segments.ts.
      const at = f.let(i32.shl(segment, c32(2)));
      f.store(4, at, SEG_SELECTOR, selector);
      f.store(4, at, SEG_ATTR, c32(0));
      f.store(4, at, SEG_LIMIT, c32(0));
      f.store(8, i32.shl(segment, c32(3)), REG.segBase, c64(0));
    },
  );
};

const system = { system: true } as const;
const legacy = { ...system, size: "stack", only: "legacy" } as const;
const byte = (opcode: number): string => opcode.toString(16).padStart(2, "0");

export const segmentInstructions = (): Insn[] => [
  ...insn("mov sreg", "8c /r", "Ev,Sw", moveFrom, system),
  ...insn("mov sreg", "8e /r", "Sw,Ew", moveTo, { ...system, size: "w" }),
  ...insn("push sreg", "0f a0", "", viaHelper(HELPER.pushSeg), { ...system, size: "stack" }),
  ...insn("push sreg", "0f a8", "", viaHelper(HELPER.pushSeg), { ...system, size: "stack" }),
  ...insn("pop sreg", "0f a1", "", viaHelper(HELPER.popSeg), { ...system, size: "stack" }),
  ...insn("pop sreg", "0f a9", "", viaHelper(HELPER.popSeg), { ...system, size: "stack" }),
  ...[0x06, 0x0e, 0x16, 0x1e].flatMap((op) =>
    insn("push sreg", byte(op), "", viaHelper(HELPER.pushSeg), legacy),
  ),
  ...[0x07, 0x17, 0x1f].flatMap((op) => insn("pop sreg", byte(op), "", viaHelper(HELPER.popSeg), legacy)),
  ...insn("lss", "0f b2 /r", "Gv,Mv", viaHelper(HELPER.lss), system),
  ...insn("lfs", "0f b4 /r", "Gv,Mv", viaHelper(HELPER.lfs), system),
  ...insn("lgs", "0f b5 /r", "Gv,Mv", viaHelper(HELPER.lgs), system),
];
