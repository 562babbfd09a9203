/** SSE, SSE2 and MMX instructions. */
import type { Insn } from "./insn.ts";
import { mmxInstructions } from "./mmx.ts";
import { sseConversions } from "./sse-convert.ts";
import { sseFloats } from "./sse-float.ts";
import { sseIntegers } from "./sse-integer.ts";
import { sseMoves } from "./sse-move.ts";
import { sseShuffles } from "./sse-shuffle.ts";

export const sseInstructions = (): Insn[] => [
  ...sseMoves(),
  ...sseIntegers(),
  ...sseShuffles(),
  ...sseFloats(),
  ...sseConversions(),
  ...mmxInstructions(),
];
