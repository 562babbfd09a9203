/** Which status flags an instruction leaves undefined (SDM vol. 1, appendix A, and vol. 2, each instruction). */

import {
  RFLAGS_AF as AF,
  RFLAGS_CF as CF,
  RFLAGS_OF as OF,
  RFLAGS_PF as PF,
  RFLAGS_STATUS,
  RFLAGS_SF as SF,
  RFLAGS_ZF as ZF,
} from "./layout.ts";

const BY_MNEMONIC: Readonly<Record<string, number>> = {
  and: AF,
  or: AF,
  xor: AF,
  test: AF,
  mul: SF | ZF | AF | PF,
  imul: SF | ZF | AF | PF,
  div: RFLAGS_STATUS,
  idiv: RFLAGS_STATUS,
  bt: OF | SF | AF | PF,
  bts: OF | SF | AF | PF,
  btr: OF | SF | AF | PF,
  btc: OF | SF | AF | PF,
  bsf: CF | OF | SF | AF | PF,
  bsr: CF | OF | SF | AF | PF,
};

/**
 * Status flags with no defined value after `mnemonic` has run with an operand of `size` bytes. `count`: the
 * count of a shift or rotate as encoded, before it is masked.
 */
export function undefinedFlags(mnemonic: string, size: number, count: number): number {
  const masked = count & (size === 8 ? 63 : 31);
  switch (mnemonic) {
    case "shl":
    case "shr":
    case "sar": {
      if (masked === 0) return 0;
      const carry = mnemonic !== "sar" && masked >= 8 * size ? CF : 0;
      return AF | carry | (masked === 1 ? 0 : OF);
    }
    case "rol":
    case "ror":
    case "rcl":
    case "rcr":
      return masked <= 1 ? 0 : OF;
    case "shld":
    case "shrd":
      if (masked === 0) return 0;
      if (masked > 8 * size) return RFLAGS_STATUS;
      return AF | (masked === 1 ? 0 : OF);
    default:
      return BY_MNEMONIC[mnemonic] ?? 0;
  }
}
