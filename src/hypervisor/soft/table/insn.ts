/** The instruction table's vocabulary: how an entry says what it encodes and what it does. */
import type { Context } from "../context.ts";

/** Emits an instruction's effect. The normal end (go on with the next one) is added by the caller. */
export type Semantics = (c: Context) => void;

/** How an entry's operand size follows from prefixes and mode. */
export type SizeRule =
  /** 1 byte. */
  | "b"
  /** 2, 4 or 8: operand-size prefix, REX.W. */
  | "v"
  /** 4, or 8 with REX.W. */
  | "y"
  /** 2, or 8 in 64-bit mode (stack operations, near branches). */
  | "stack"
  /** Fixed. */
  | "w"
  | "d"
  | "q";

/** Immediate bytes after ModRM: none, 1, 2, 2 or 4, 2/4/8, a memory offset of address size, 2 then 1 (ENTER), offset and selector. */
export type ImmediateRule = "" | "b" | "w" | "z" | "v" | "offset" | "wb" | "far";

export interface Options {
  /** LOCK is allowed on a memory destination. */
  lock?: boolean;
  /** The block ends here: "direct" branches carry a relative target, "indirect" ones find theirs at run time. */
  end?: "direct" | "indirect";
  /** A string instruction: F3/F2 are repeat prefixes. */
  string?: boolean;
  /** Exists only in 64-bit mode, or only outside it. */
  only?: "64" | "legacy";
  size?: SizeRule;
  immediate?: ImmediateRule;
  /** Needs the FPU: raises #NM or #UD as CR0.TS, CR0.EM and CR4.OSFXSR say. Checked when decoded. */
  fpu?: "x87" | "mmx" | "sse";
  /** No instruction of the processor: only the decoder itself puts it into a block. */
  pseudo?: boolean;
  /** The oracle cannot run it in user mode or its result is the machine's own (system state). */
  system?: boolean;
}

export interface Insn extends Options {
  readonly mnemonic: string;
  /** As in the table's source, for reports: `66 0f 6f /r Vdq,Wdq`. */
  readonly text: string;
  /** 0: one-byte map, 1: 0F. */
  readonly map: 0 | 1;
  readonly opcode: number;
  /** Mandatory prefix: 0 none of them, 0x66, 0xf2, 0xf3; undefined: prefixes keep their usual meaning. */
  readonly prefix: number | undefined;
  readonly modrm: boolean;
  /** Required ModRM.reg, ModRM.rm, and kind of ModRM.rm. */
  readonly regField: number | undefined;
  readonly rmField: number | undefined;
  readonly form: "mem" | "reg" | "any";
  readonly operands: readonly string[];
  readonly sizeRule: SizeRule;
  readonly immediateRule: ImmediateRule;
  readonly semantics: Semantics;
}

const MODRM_LETTERS = "EGMRSCDVWUPQN";

/**
 * One table entry. `encoding` is mandatory prefix (`np`, `66`, `f2`, `f3`, or nothing), `0f`, the opcode
 * (`50+r` for a register in its low bits), and `/r`, `/0`..`/7` or a whole ModRM byte (`d0`) for system
 * instructions. `operands` use the letters of SDM vol. 2D, A.2.1, plus Z (register in the opcode), a (rAX),
 * c (CL) and 1.
 */
export function insn(
  mnemonic: string,
  encoding: string,
  operands: string,
  semantics: Semantics,
  options: Options = {},
): Insn[] {
  const words = encoding.split(" ");
  let prefix: number | undefined;
  if (words[0] === "np") {
    prefix = 0;
    words.shift();
  } else if (words.length > 1 && words[1] === "0f" && /^(66|f2|f3)$/.test(words[0]!)) {
    prefix = Number.parseInt(words.shift()!, 16);
  }
  let map: 0 | 1 = 0;
  if (words[0] === "0f" && words.length > 1) {
    map = 1;
    words.shift();
  }
  const [opcodeText, modrmText] = words;
  const plusR = opcodeText!.endsWith("+r");
  const opcode = Number.parseInt(opcodeText!, 16);
  const list = operands === "" ? [] : operands.split(",");
  let regField: number | undefined;
  let rmField: number | undefined;
  let form: Insn["form"] = "any";
  if (modrmText !== undefined) {
    if (/^\/[0-7]$/.test(modrmText)) regField = Number(modrmText[1]);
    else if (modrmText !== "/r") {
      const byte = Number.parseInt(modrmText, 16);
      regField = (byte >> 3) & 7;
      rmField = byte & 7;
      form = "reg";
    }
  }
  for (const o of list) {
    if (o[0] === "M") form = "mem";
    if (o[0] === "R" || o[0] === "U" || o[0] === "N") form = "reg";
  }
  const modrm = modrmText !== undefined || list.some((o) => MODRM_LETTERS.includes(o[0]!));
  const entry: Insn = {
    ...options,
    mnemonic,
    text: `${encoding} ${operands}`.trim(),
    map,
    opcode,
    prefix,
    modrm,
    regField,
    rmField,
    form,
    operands: list,
    sizeRule: options.size ?? sizeRule(list),
    immediateRule: options.immediate ?? immediateRule(list),
    semantics,
  };
  if (!plusR) return [entry];
  return Array.from({ length: 8 }, (_, i) => ({ ...entry, opcode: opcode + i }));
}

function sizeRule(operands: readonly string[]): SizeRule {
  for (const rule of ["v", "y"] as const) if (operands.some((o) => o[1] === rule)) return rule;
  if (operands[0]?.[1] === "b") return "b";
  if (operands[0]?.[1] === "w") return "w";
  if (operands[0]?.[1] === "q") return "q";
  return "d";
}

function immediateRule(operands: readonly string[]): ImmediateRule {
  for (const o of operands) {
    if (o[0] === "O") return "offset";
    if (o[0] === "I" || o[0] === "J") {
      if (o[1] === "b" || o[1] === "w" || o[1] === "z" || o[1] === "v") return o[1];
    }
  }
  return "";
}
