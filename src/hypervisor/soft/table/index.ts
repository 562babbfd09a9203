/** The whole instruction table, and finding an entry by opcode. */

import { arithmeticInstructions } from "./arithmetic.ts";
import { bitInstructions } from "./bits.ts";
import { controlInstructions } from "./control.ts";
import { flagInstructions } from "./flags.ts";
import type { Insn } from "./insn.ts";
import { moveInstructions } from "./move.ts";
import { multiplyInstructions } from "./multiply.ts";
import { privilegeInstructions } from "./privilege.ts";
import { segmentInstructions } from "./segments.ts";
import { shiftInstructions } from "./shift.ts";
import { sseInstructions } from "./sse.ts";
import { stringInstructions } from "./string.ts";
import { systemInstructions } from "./system.ts";
import { timeInstructions } from "./time.ts";
import { x87Instructions } from "./x87.ts";

export type { Insn } from "./insn.ts";

/** Every entry, in a fixed order; an entry's index is its identity. */
export const INSTRUCTIONS: readonly Insn[] = [
  ...arithmeticInstructions(),
  ...multiplyInstructions(),
  ...shiftInstructions(),
  ...bitInstructions(),
  ...moveInstructions(),
  ...flagInstructions(),
  ...stringInstructions(),
  ...controlInstructions(),
  ...systemInstructions(),
  ...privilegeInstructions(),
  ...segmentInstructions(),
  ...timeInstructions(),
  ...sseInstructions(),
  ...x87Instructions(),
];

/** Entry numbers by map * 256 + opcode, those with a mandatory prefix first. */
export const BY_OPCODE: readonly (readonly number[])[] = (() => {
  const lists: number[][] = Array.from({ length: 512 }, () => []);
  INSTRUCTIONS.forEach((insn, index) => {
    if (!insn.pseudo) lists[insn.map * 256 + insn.opcode]!.push(index);
  });
  const rank = (i: number): number => {
    const { prefix, rmField } = INSTRUCTIONS[i]!;
    return (prefix === undefined ? 2 : prefix === 0 ? 1 : 0) + (rmField === undefined ? 0.5 : 0);
  };
  for (const list of lists) list.sort((a, b) => rank(a) - rank(b));
  return lists;
})();
