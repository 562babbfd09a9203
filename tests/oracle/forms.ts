/**
 * What the table oracle exercises: every row of the instruction table in every 64-bit variant, one "form"
 * each. The x87 rows, one an opcode, are split by ModRM.reg, and by ModRM.rm where that selects the
 * operation.
 */

import { x87Operand } from "../../src/hypervisor/soft/float/x87.ts";
import { variants64 } from "../../src/hypervisor/soft/interpreter.ts";
import { INSTRUCTIONS, type Insn } from "../../src/hypervisor/soft/table/index.ts";
import type { Size } from "../../src/hypervisor/soft/values.ts";
import type { BatchOptions } from "./batch.ts";

export interface Form {
  readonly insn: Insn;
  /** For reports: mnemonic, the row's text and the variant. */
  readonly name: string;
  readonly size: Size;
  readonly mem: boolean;
  readonly lock: boolean;
  readonly rep: 0 | 0xf2 | 0xf3;
  /** Fixed ModRM.reg and ModRM.rm; -1: any. */
  readonly regField: number;
  readonly rmField: number;
  readonly state: StateKind;
  /** Some cases can run to their end, and some can raise an exception. */
  readonly mayRun: boolean;
  readonly mayFault: boolean;
  /** Why no host can judge it. */
  readonly excluded: string | undefined;
  /** AMD's processors and Intel's differ in it, and the software CPU, which says it is AMD's, does as they do. */
  readonly followsAmd: boolean;
}

/** The state a form's cases need. */
export type StateKind = "integer" | "x87" | "image";

/** Record shapes by {@link StateKind}; an FXSAVE image needs a window it fits into twice. */
export const SHAPES: Readonly<Record<StateKind, BatchOptions>> = {
  integer: {},
  x87: { withFpu: true },
  image: { withFpu: true, windowBytes: 1024 },
};

/** Rows that the host cannot judge, by mnemonic. */
const EXCLUDED: Readonly<Record<string, string>> = {
  sgdt: "the value is the host's, or Linux makes one up (UMIP)",
  sidt: "the value is the host's, or Linux makes one up (UMIP)",
  smsw: "the value is the host's, or Linux makes one up (UMIP)",
  sldt: "the value is the host's, or Linux makes one up (UMIP)",
  str: "the value is the host's, or Linux makes one up (UMIP)",
  syscall: "enters the host's kernel",
  sysenter: "AMD processors lack it in long mode",
  sysexit: "AMD processors lack it in long mode",
  int: "enters the host's kernel",
  int1: "enters the host's kernel",
  int3: "the runners end a case at it themselves",
  lar: "reads the host's descriptor tables",
  lsl: "reads the host's descriptor tables",
  verr: "reads the host's descriptor tables",
  verw: "reads the host's descriptor tables",
  lss: "reads the host's descriptor tables",
  lfs: "reads the host's descriptor tables",
  lgs: "reads the host's descriptor tables",
  "jmp far": "reads the host's descriptor tables",
  "call far": "reads the host's descriptor tables",
  "ret far": "reads the host's descriptor tables",
  iret: "reads the host's descriptor tables",
  rdtsc: "the result is the machine's own",
  rdtscp: "the result is the machine's own",
  rdpmc: "the result is the machine's own",
  rdrand: "the result is the machine's own",
  cpuid: "the result is the machine's own",
  vmcall: "enters the host's hypervisor, if any",
  vmmcall: "enters the host's hypervisor, if any",
};

/** The same for rows whose mnemonic says too little: by text. */
const EXCLUDED_TEXT: Readonly<Record<string, string>> = {
  "8c /r Ev,Sw": "the selector is the host's",
  "8e /r Sw,Ew": "reads the host's descriptor tables",
  "0f a0": "the selector is the host's",
  "0f a8": "the selector is the host's",
  "0f a1": "reads the host's descriptor tables",
  "0f a9": "reads the host's descriptor tables",
};

/** What user mode may not run: the exception is all there is to compare. */
const PRIVILEGED = new Set(
  "cli sti hlt in out insb ins outsb outs lldt ltr lgdt lidt lmsw invlpg swapgs clts sysret invd wbinvd wrmsr rdmsr".split(
    " ",
  ),
);
const UNDEFINED = new Set(["ud0", "ud1", "ud2"]);
/** A memory operand is an address, or a hint that never faults. */
const NO_ACCESS = new Set(["lea", "nop", "prefetchw"]);
const STACK = new Set(["push", "pop", "pushf", "popf", "call", "ret", "leave", "enter"]);
const DIVIDES = new Set(["div", "idiv"]);

/** Moves to and from control and debug registers are privileged too. */
const isControlMove = (insn: Insn): boolean => insn.operands.some((o) => o[0] === "C" || o[0] === "D");

function mayRun(insn: Insn): boolean {
  return !PRIVILEGED.has(insn.mnemonic) && !UNDEFINED.has(insn.mnemonic) && !isControlMove(insn);
}

function mayFault(insn: Insn, mem: boolean): boolean {
  const { mnemonic } = insn;
  if (!mayRun(insn)) return true;
  if (STACK.has(mnemonic) || DIVIDES.has(mnemonic) || insn.string || mnemonic === "xlatb") return true;
  // A short branch cannot leave the code page.
  if (insn.end !== undefined) return insn.immediateRule !== "b";
  return mem && !NO_ACCESS.has(mnemonic);
}

/**
 * Where vendors differ: what a refused branch or store is checked for first, whether ModRM is fetched, bits
 * that no manual defines, the upper half of a register that is not written, width of a MOVSXD operand.
 */
function followsAmd(insn: Insn, size: Size, mem: boolean): boolean {
  switch (insn.mnemonic) {
    case "movsxd":
    case "shld":
    case "shrd":
      return size === 2;
    case "cmpxchg":
      return !mem;
    case "call":
      return insn.end === "indirect";
    case "bsf":
    case "bsr":
    case "ud0":
    case "ud1":
    case "insb":
    case "ins":
    case "outsb":
    case "outs":
    case "fxsave":
    case "fxrstor":
      return true;
    default:
      return isControlMove(insn);
  }
}

function exclusion(insn: Insn): string | undefined {
  if (insn.pseudo) return "no instruction of the processor";
  if (insn.fpu === "sse" || insn.fpu === "mmx") return "tested in sse.test.ts";
  return EXCLUDED_TEXT[insn.text] ?? EXCLUDED[insn.mnemonic];
}

/** True for D8 to DF. */
export const isX87Row = (insn: Insn): boolean => insn.map === 0 && (insn.opcode & 0xf8) === 0xd8;

function stateKind(insn: Insn): StateKind {
  if (insn.mnemonic === "fxsave" || insn.mnemonic === "fxrstor") return "image";
  return insn.fpu === "x87" || insn.mnemonic === "fwait" ? "x87" : "integer";
}

function rowForms(insn: Insn): Form[] {
  if (isX87Row(insn)) return x87Forms(insn);
  // 66 belongs to the opcode of a row with a mandatory prefix (or none), so it cannot give the size too.
  const reachable = variants64(insn).filter((v) => v.size !== 2 || insn.sizeRule !== "v" || !isNo66(insn));
  return reachable.map((v) => ({
    insn,
    name: `${insn.mnemonic} [${insn.text}] size ${v.size}${insn.modrm ? (v.mem ? " mem" : " reg") : ""}${
      v.lock ? " lock" : ""
    }${v.rep ? ` rep ${v.rep.toString(16)}` : ""}`,
    size: v.size,
    mem: v.mem,
    lock: v.lock,
    rep: v.rep,
    regField: insn.regField ?? -1,
    rmField: insn.rmField ?? -1,
    state: stateKind(insn),
    mayRun: mayRun(insn),
    mayFault: mayFault(insn, v.mem) || insn.mnemonic === "fwait",
    excluded: exclusion(insn),
    followsAmd: followsAmd(insn, v.size, v.mem),
  }));
}

const isNo66 = (insn: Insn): boolean => insn.prefix === 0 || insn.prefix === 0x66;

function x87Forms(insn: Insn): Form[] {
  const forms: Form[] = [];
  const add = (size: Size, mem: boolean, regField: number, rmField: number): void => {
    const modrm = ((mem ? 0 : 0xc0) | (regField << 3) | Math.max(0, rmField)) >>> 0;
    const defined = x87Operand(insn.opcode, modrm, size === 2);
    const fisttp = !defined && x87Operand(insn.opcode, modrm, size === 2, true);
    const rm = rmField < 0 ? "" : ` rm ${rmField}`;
    forms.push({
      insn,
      name: `x87 ${insn.opcode.toString(16)} /${regField}${mem ? ` mem size ${size}` : ` reg${rm}`}`,
      size,
      mem,
      lock: false,
      rep: 0,
      regField,
      rmField,
      state: "x87",
      mayRun: defined !== undefined,
      // A pending exception stops all but the few register forms that do not wait.
      mayFault:
        mem ||
        (!(insn.opcode === 0xdb && regField === 4) && !(insn.opcode === 0xdf && modrm === 0xe0)) ||
        !defined,
      followsAmd: false,
      excluded: fisttp ? "FISTTP belongs to SSE3, which the software CPU does not have" : undefined,
    });
  };
  for (let reg = 0; reg < 8; reg++) {
    add(4, true, reg, -1);
    // The operand size matters to the environment and state images alone.
    if (x87Operand(insn.opcode, reg << 3, true) !== x87Operand(insn.opcode, reg << 3)) add(2, true, reg, -1);
    // Where all eight ModRM.rm are one operation on ST(i), it is one form.
    const perRm = Array.from({ length: 8 }, (_, rm) => x87Operand(insn.opcode, 0xc0 | (reg << 3) | rm));
    const oneOperation = perRm.every(Boolean) && !(insn.opcode === 0xd9 && reg >= 4);
    if (oneOperation) add(4, false, reg, -1);
    else for (let rm = 0; rm < 8; rm++) add(4, false, reg, rm);
  }
  return forms;
}

/** Every form, excluded ones too. */
export function allForms(): Form[] {
  return INSTRUCTIONS.flatMap((insn) => rowForms(insn));
}
