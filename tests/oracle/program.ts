/**
 * The machine code of the native runner: a static executable that maps the file on its standard input,
 * runs every case in it and writes the results into the same file. The loop never returns from a signal of
 * a case: the handler copies the registers out of the ucontext and jumps back into the loop, which is why
 * the signals are not blocked while handled (SA_NODEFER) and why RSP may hold anything (SA_ONSTACK).
 */

import { Assembler, at, CC_AE, CC_B, CC_E, CC_NE, ref } from "./asm.ts";
import { elfExecutable } from "./elf.ts";
import {
  CASE_CODE,
  CASE_CODE_LENGTH,
  CASE_CODE_OFFSET,
  CASE_FLAGS,
  CASE_TRAP_END,
  CODE_PAGE,
  CONTINUATION,
  DATA_CROSS,
  DATA_FIRST,
  ELF_HEADER_BYTES,
  END_EXCEPTION,
  END_HANG,
  END_SYSTEM_CALL,
  FS_BASE,
  FX_BYTES,
  GS_BASE,
  HEADER_CURRENT,
  HEADER_DONE,
  PAGE_SIZE,
  R12,
  R13,
  R14,
  R15,
  RAX,
  RBP,
  RBX,
  RCX,
  RDI,
  RDX,
  RECORD_GPRS,
  RECORD_RFLAGS,
  RECORD_WINDOW,
  RESULT_CR2,
  RESULT_END,
  RESULT_ERROR,
  RESULT_RIP,
  RSI,
  RSP,
  RUNNER_CONTINUE,
  RUNNER_TEXT,
} from "./layout.ts";
import {
  SIGPROF,
  SIGSYS,
  SYS_RT_SIGRETURN,
  UC_CR2,
  UC_EFLAGS,
  UC_ERR,
  UC_FPSTATE,
  UC_GPRS,
  UC_RIP,
  UC_TRAPNO,
} from "./linux.ts";
import {
  DATA_OFFSET,
  EXIT_RUNNER_FAULT,
  emitSetup,
  emitTables,
  RUNNER_DATA,
  RUNNER_DATA_BYTES,
  STACK_TOP,
} from "./setup.ts";

/** FXSAVE writes this much; the rest of the image is the kernel's in a signal frame. */
const FX_DEFINED_BYTES = 416;

const TRAP_DB = 1;
const TRAP_PF = 14;
const RFLAGS_RESET = 2;

/** Variables, 8 bytes each, at the start of the runner's data. `frame` is what IRETQ pops. */
const VARIABLES = [
  "index",
  "count",
  "tick",
  "fpu",
  "fsgsbase",
  "header",
  "case",
  "result",
  "resultGprsEnd",
  "stride",
  "window",
  "guestRsp",
  "frameRip",
  "frameCs",
  "frameRflags",
  "frameRsp",
  "frameSs",
];

/** The runner as an ELF executable file. */
export function runnerExecutable(): Uint8Array {
  const a = new Assembler();
  VARIABLES.forEach((name, i) => {
    a.labelAt(name, DATA_OFFSET - ELF_HEADER_BYTES + 8 * i);
  });
  a.labelAt("textStart", -ELF_HEADER_BYTES);
  // RUNNER_CONTINUE must not move when the code changes.
  a.jmp("fellThrough");
  const entry = a.size;
  emitSetup(a);
  emitLoop(a);
  emitFellThrough(a);
  emitSignal(a);
  emitSaveWindow(a);
  emitTables(a);
  const code = a.assemble(RUNNER_CONTINUE);
  return elfExecutable(code, RUNNER_TEXT, entry, RUNNER_DATA, RUNNER_DATA_BYTES);
}

function emitLoop(a: Assembler): void {
  a.label("next");
  a.load64(RBP, ref("header"));
  a.load64(RBX, ref("index"));
  a.store32(at(RBP, HEADER_CURRENT), RBX);
  a.load64(RAX, ref("count"));
  a.cmp(RBX, RAX);
  a.jcc(CC_B, "prepare");
  a.movImm(RAX, 1);
  a.store32(at(RBP, HEADER_DONE), RAX);
  a.movImm(RDI, 0);
  a.jmp("exit");

  a.label("prepare");
  a.load64(R15, ref("case"));
  a.load64(R14, ref("result"));
  a.lea(RAX, at(R14, RECORD_WINDOW));
  a.store64(ref("resultGprsEnd"), RAX);

  // The whole data page, because an earlier case may have written outside its window.
  a.load64(RBX, ref("window"));
  a.movImm(RAX, 0);
  a.movImm(RDI, DATA_FIRST);
  a.movImm(RCX, PAGE_SIZE / 8);
  a.repStosq();
  emitWindowAddress(a, RDI);
  a.lea(RSI, at(R15, RECORD_WINDOW));
  a.mov(RCX, RBX);
  a.shr(RCX, 3);
  a.repMovsq();

  // The whole code page too: the case before may have modified it.
  a.lea(RSI, ref("padding"));
  a.load64(RAX, at(RSI));
  a.movImm(RDI, CODE_PAGE);
  a.movImm(RCX, PAGE_SIZE / 8);
  a.repStosq();
  a.load32(RDI, at(R15, CASE_CODE_OFFSET));
  a.addImm(RDI, CODE_PAGE);
  a.store64(ref("frameRip"), RDI);
  a.lea(RSI, at(R15, CASE_CODE));
  a.load32(RCX, at(R15, CASE_CODE_LENGTH));
  a.repMovsb();
  a.load32(RAX, at(R15, CASE_FLAGS));
  a.cmpImm(RAX, CASE_TRAP_END);
  a.jcc(CC_E, "codeReady");
  a.movImm(RCX, CODE_PAGE + PAGE_SIZE);
  a.sub(RCX, RDI);
  a.cmpImm(RCX, CONTINUATION.length);
  a.jcc(CC_B, "continuationFits");
  a.movImm(RCX, CONTINUATION.length);
  a.label("continuationFits");
  a.lea(RSI, ref("continuation"));
  a.repMovsb();
  a.label("codeReady");

  a.load64(RAX, ref("fsgsbase"));
  a.test(RAX, RAX);
  a.jcc(CC_E, "basesReady");
  a.movImm(RAX, FS_BASE);
  a.wrfsbase(RAX);
  a.movImm(RAX, GS_BASE);
  a.wrgsbase(RAX);
  a.label("basesReady");
  a.load64(RAX, ref("fpu"));
  a.test(RAX, RAX);
  a.jcc(CC_E, "fpuReady");
  a.add(RBX, R15);
  a.fxrstor64(at(RBX, RECORD_WINDOW));
  a.label("fpuReady");

  a.load64(RAX, at(R15, RECORD_RFLAGS));
  a.store64(ref("frameRflags"), RAX);
  a.load64(RAX, at(R15, RECORD_GPRS + 8 * RSP));
  a.store64(ref("frameRsp"), RAX);
  for (let reg = RAX; reg <= R15; reg++) {
    if (reg !== RSP) a.load64(reg, at(R15, RECORD_GPRS + 8 * reg));
  }
  // IRETQ loads RIP, RFLAGS and RSP at once, and serializes after the code page was written.
  a.lea(RSP, ref("frameRip"));
  a.iretq();
}

function emitFellThrough(a: Assembler): void {
  a.label("fellThrough");
  a.store64(ref("guestRsp"), RSP);
  a.load64(RSP, ref("resultGprsEnd"));
  for (let reg = R15; reg >= RAX; reg--) {
    if (reg === RSP) a.pushMemory(ref("guestRsp"));
    else a.push(reg);
  }
  a.pushfq();
  a.movImm(RSP, STACK_TOP);
  emitCleanFlags(a);
  a.load64(R14, ref("result"));
  a.load64(RAX, ref("fpu"));
  a.test(RAX, RAX);
  a.jcc(CC_E, "endOfCode");
  a.load64(RBX, ref("window"));
  a.add(RBX, R14);
  a.fxsave64(at(RBX, RECORD_WINDOW));
  a.label("endOfCode");
  a.load64(R15, ref("case"));
  a.load32(RAX, at(R15, CASE_CODE_OFFSET));
  a.load32(RBX, at(R15, CASE_CODE_LENGTH));
  a.add(RAX, RBX);
  a.addImm(RAX, CODE_PAGE);
  a.store64(at(R14, RESULT_RIP), RAX);
  a.movImm(RAX, 0);
  a.store64(at(R14, RESULT_END), RAX);
  a.store64(at(R14, RESULT_CR2), RAX);
  a.jmp("saveWindow");
}

function emitSignal(a: Assembler): void {
  a.label("signal");
  a.load64(R12, at(RDX, UC_RIP));
  a.lea(RAX, ref("textStart"));
  a.mov(RCX, R12);
  a.sub(RCX, RAX);
  a.cmpImm(RDI, SIGPROF);
  a.jcc(CC_NE, "copyState");
  a.load64(RAX, ref("index"));
  a.load64(RBX, ref("tick"));
  a.store64(ref("tick"), RAX);
  a.cmp(RAX, RBX);
  a.jcc(CC_NE, "goOn");
  // In the runner between two cases: not a loop in a case.
  a.cmpImm(RCX, DATA_OFFSET);
  a.jcc(CC_AE, "copyState");
  a.label("goOn");
  a.ret();

  a.label("copyState");
  a.load64(R14, ref("result"));
  UC_GPRS.forEach((offset, reg) => {
    a.load64(RAX, at(RDX, offset));
    a.store64(at(R14, RECORD_GPRS + 8 * reg), RAX);
  });
  a.load64(RAX, at(RDX, UC_EFLAGS));
  a.store64(at(R14, RECORD_RFLAGS), RAX);
  a.store64(at(R14, RESULT_RIP), R12);
  a.load64(RBP, at(RDX, UC_TRAPNO));
  a.load64(RBX, at(RDX, UC_ERR));
  a.load64(R13, at(RDX, UC_CR2));
  a.load64(RSI, at(RDX, UC_FPSTATE));
  a.mov(R15, RDI);
  // Still on the signal stack: RSI points into its frame, which the next signal would overwrite.
  emitCleanFlags(a);
  a.load64(RAX, ref("fpu"));
  a.test(RAX, RAX);
  a.jcc(CC_E, "classify");
  a.load64(RDI, ref("window"));
  a.add(RDI, R14);
  a.addImm(RDI, RECORD_WINDOW);
  a.mov(R12, RCX);
  a.movImm(RCX, FX_DEFINED_BYTES / 8);
  a.repMovsq();
  a.mov(RCX, R12);

  a.label("classify");
  a.movImm(RSP, STACK_TOP);
  a.cmpImm(RCX, DATA_OFFSET);
  a.jcc(CC_AE, "outsideRunner");
  // The trap flag, set by the last instruction, traps after the jump into the runner: a normal end.
  a.cmpImm(RCX, ELF_HEADER_BYTES);
  a.jcc(CC_NE, "runnerFault");
  a.cmpImm(RBP, TRAP_DB);
  a.jcc(CC_E, "endOfCode");
  a.label("runnerFault");
  a.movImm(RDI, EXIT_RUNNER_FAULT);
  a.jmp("exit");

  a.label("outsideRunner");
  a.movImm(RAX, END_HANG);
  a.cmpImm(R15, SIGPROF);
  a.jcc(CC_E, "noException");
  a.movImm(RAX, END_SYSTEM_CALL);
  a.cmpImm(R15, SIGSYS);
  a.jcc(CC_E, "noException");
  // End, trap number and error code are adjacent: 16, 16 and 32 bits.
  a.movImm(RAX, END_EXCEPTION);
  a.store16(at(R14, RESULT_END), RAX);
  a.store16(at(R14, RESULT_END + 2), RBP);
  a.store32(at(R14, RESULT_ERROR), RBX);
  a.cmpImm(RBP, TRAP_PF);
  a.jcc(CC_E, "cr2Valid");
  a.movImm(R13, 0);
  a.label("cr2Valid");
  a.store64(at(R14, RESULT_CR2), R13);
  a.jmp("saveWindow");
  a.label("noException");
  a.store64(at(R14, RESULT_END), RAX);
  a.movImm(RAX, 0);
  a.store64(at(R14, RESULT_CR2), RAX);
  a.jmp("saveWindow");

  a.label("restorer");
  a.movImm(RAX, SYS_RT_SIGRETURN);
  a.syscall();
}

/** Copies the window, then goes on with the next case. Expects the result record in R14. */
function emitSaveWindow(a: Assembler): void {
  a.label("saveWindow");
  a.load64(RBX, ref("window"));
  emitWindowAddress(a, RSI);
  a.lea(RDI, at(R14, RECORD_WINDOW));
  a.mov(RCX, RBX);
  a.shr(RCX, 3);
  a.repMovsq();
  // The file is used again by later batches: nothing in a result may be left over from them.
  a.movImm(RAX, 0);
  for (let offset = RESULT_RIP + 8; offset < RECORD_RFLAGS; offset += 8) a.store64(at(R14, offset), RAX);
  a.load64(RCX, ref("fpu"));
  a.test(RCX, RCX);
  a.jcc(CC_E, "advance");
  a.addImm(RDI, FX_DEFINED_BYTES);
  a.movImm(RCX, (FX_BYTES - FX_DEFINED_BYTES) / 8);
  a.repStosq();
  a.label("advance");
  a.load64(RCX, ref("stride"));
  for (const pointer of ["case", "result"]) {
    a.load64(RAX, ref(pointer));
    a.add(RAX, RCX);
    a.store64(ref(pointer), RAX);
  }
  a.load64(RAX, ref("index"));
  a.addImm(RAX, 1);
  a.store64(ref("index"), RAX);
  a.jmp("next");
}

/** `reg` = address of the first byte of the window, whose size is in RBX. Changes RCX. */
function emitWindowAddress(a: Assembler, reg: number): void {
  a.movImm(reg, DATA_CROSS);
  a.mov(RCX, RBX);
  a.shr(RCX, 1);
  a.sub(reg, RCX);
}

/** Clears DF, AC, TF and NT, which a case may have set. Changes RAX. */
function emitCleanFlags(a: Assembler): void {
  a.movImm(RAX, RFLAGS_RESET);
  a.push(RAX);
  a.popfq();
}
