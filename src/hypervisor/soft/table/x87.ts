/** x87 and state-saving instructions: all run in float/x87.ts, which computes exactly in software. */
import { HELPER } from "../helpers.ts";
import { type Insn, insn } from "./insn.ts";
import { viaHelper } from "./shared.ts";

export const x87Instructions = (): Insn[] => [
  ...Array.from({ length: 8 }, (_, i) =>
    insn("x87", `d${(8 + i).toString(16)} /r`, "Ev", viaHelper(HELPER.x87), { fpu: "x87" }),
  ).flat(),
  ...insn("fwait", "9b", "", viaHelper(HELPER.fwait)),
  ...insn("fxsave", "np 0f ae /0", "Mv", viaHelper(HELPER.fxsave), { fpu: "x87" }),
  ...insn("fxrstor", "np 0f ae /1", "Mv", viaHelper(HELPER.fxrstor), { fpu: "x87" }),
  // No encoding of its own: the decoder puts it in the place of an instruction whose unit is off.
  ...insn("fpu unavailable", "d6", "", viaHelper(HELPER.fpuUnavailable), { system: true, pseudo: true }),
];
