/** The part of the native runner that runs once: memory, signals and timer (see program.ts). */

import { type Assembler, at, CC_E, CC_NE, CC_S, ref } from "./asm.ts";
import {
  CODE_PAGE,
  CONTINUATION,
  DATA_CROSS,
  DATA_FIRST,
  DATA_READ_ONLY,
  DATA_THIRD,
  FS_BASE,
  GS_BASE,
  HEADER_BYTES,
  HEADER_COUNT,
  HEADER_FPU,
  HEADER_STRIDE,
  HEADER_WINDOW,
  PAD,
  PAGE_SIZE,
  R8,
  R9,
  R10,
  R12,
  R13,
  R14,
  R15,
  RAX,
  RBX,
  RDI,
  RDX,
  RSI,
  RSP,
  RUNNER_TEXT,
} from "./layout.ts";
import {
  ARCH_SET_FS,
  ARCH_SET_GS,
  AT_HWCAP2,
  HWCAP2_FSGSBASE,
  ITIMER_PROF,
  MAP_ANONYMOUS,
  MAP_FIXED,
  MAP_POPULATE,
  MAP_PRIVATE,
  MAP_SHARED,
  PR_SET_SYSCALL_USER_DISPATCH,
  PR_SYS_DISPATCH_ON,
  PROT_EXEC,
  PROT_READ,
  PROT_WRITE,
  RLIMIT_CORE,
  SA_FLAGS,
  SEEK_END,
  SIGBUS,
  SIGFPE,
  SIGILL,
  SIGPROF,
  SIGSEGV,
  SIGSYS,
  SIGTRAP,
  SYS_ARCH_PRCTL,
  SYS_EXIT_GROUP,
  SYS_FTRUNCATE,
  SYS_LSEEK,
  SYS_MEMFD_CREATE,
  SYS_MMAP,
  SYS_PRCTL,
  SYS_RT_SIGACTION,
  SYS_SETITIMER,
  SYS_SETRLIMIT,
  SYS_SIGALTSTACK,
} from "./linux.ts";

/** Exit status when the runner itself, not a case, faulted. */
export const EXIT_RUNNER_FAULT = 99;
/** Exit status of setup step `i` of {@link SETUP_STEPS} is this plus `i`. */
export const EXIT_SETUP = 100;
export const SETUP_STEPS = [
  "lseek of the batch file",
  "mmap of the batch file",
  "memfd_create",
  "ftruncate of the data page",
  "mmap of the data page",
  "mmap of the code page",
  "sigaltstack",
  "rt_sigaction",
  "setitimer",
  "arch_prctl",
] as const;

/** Processor time after which a case counts as an endless loop is one to two of these, in microseconds. */
const TICK_MICROSECONDS = 100_000;

/** The runner's own data, well behind its code. */
export const DATA_OFFSET = 0x1_0000;
export const RUNNER_DATA = RUNNER_TEXT + DATA_OFFSET;
export const STACK_TOP = RUNNER_DATA + 0x4000;
export const ALT_STACK = RUNNER_DATA + 0x5000;
export const ALT_STACK_BYTES = 0x2_0000;
export const RUNNER_DATA_BYTES = 0x2_5000;

function call(a: Assembler, number: number, ...args: number[]): void {
  const registers = [RDI, RSI, RDX, R10, R8, R9];
  args.forEach((value, i) => {
    a.movImm(registers[i]!, value);
  });
  a.movImm(RAX, number);
  a.syscall();
}

function check(a: Assembler, step: (typeof SETUP_STEPS)[number]): void {
  a.movImm(R15, EXIT_SETUP + SETUP_STEPS.indexOf(step));
  a.test(RAX, RAX);
  a.jcc(CC_S, "fail");
}

/** Leaves the number of the file descriptor or address in RAX; the file descriptor comes from R12. */
function mapData(a: Assembler, address: number, protection: number): void {
  a.mov(R8, R12);
  a.movImm(R9, 0);
  a.movImm(RDI, address);
  a.movImm(RSI, PAGE_SIZE);
  a.movImm(RDX, protection);
  a.movImm(R10, MAP_SHARED | MAP_FIXED | MAP_POPULATE);
  a.movImm(RAX, SYS_MMAP);
  a.syscall();
  check(a, "mmap of the data page");
}

/** From the entry point to the first case. Leaves through label "next"; a failed step exits. */
export function emitSetup(a: Assembler): void {
  // The auxiliary vector lies behind argc, argv, NULL, envp, NULL.
  a.load64(RBX, at(RSP));
  a.lea(RSI, at(RSP, 16));
  for (let i = 0; i < 8; i++) a.add(RSI, RBX);
  a.label("environment");
  a.load64(RAX, at(RSI));
  a.addImm(RSI, 8);
  a.test(RAX, RAX);
  a.jcc(CC_NE, "environment");
  a.label("auxiliary");
  a.load64(RAX, at(RSI));
  a.load64(RBX, at(RSI, 8));
  a.addImm(RSI, 16);
  a.test(RAX, RAX);
  a.jcc(CC_E, "auxiliaryEnd");
  a.cmpImm(RAX, AT_HWCAP2);
  a.jcc(CC_NE, "auxiliary");
  a.raw(0x83, 0xe3, HWCAP2_FSGSBASE); // and ebx, HWCAP2_FSGSBASE
  a.store64(ref("fsgsbase"), RBX);
  a.label("auxiliaryEnd");
  a.movImm(RSP, STACK_TOP);

  call(a, SYS_LSEEK, 0, 0, SEEK_END);
  check(a, "lseek of the batch file");
  a.mov(RSI, RAX);
  a.movImm(RDI, 0);
  a.movImm(RDX, PROT_READ | PROT_WRITE);
  a.movImm(R10, MAP_SHARED | MAP_POPULATE);
  a.movImm(R8, 0);
  a.movImm(R9, 0);
  a.movImm(RAX, SYS_MMAP);
  a.syscall();
  check(a, "mmap of the batch file");
  a.mov(R13, RAX);
  a.store64(ref("header"), R13);

  a.lea(RDI, ref("memfdName"));
  a.movImm(RSI, 0);
  a.movImm(RAX, SYS_MEMFD_CREATE);
  a.syscall();
  check(a, "memfd_create");
  a.mov(R12, RAX);
  a.mov(RDI, R12);
  a.movImm(RSI, PAGE_SIZE);
  a.movImm(RAX, SYS_FTRUNCATE);
  a.syscall();
  check(a, "ftruncate of the data page");
  for (const address of [DATA_FIRST, DATA_CROSS, DATA_THIRD]) mapData(a, address, PROT_READ | PROT_WRITE);
  mapData(a, DATA_READ_ONLY, PROT_READ);
  a.movImm(R8, 0xffff_ffff);
  a.movImm(R9, 0);
  a.movImm(RDI, CODE_PAGE);
  a.movImm(RSI, PAGE_SIZE);
  a.movImm(RDX, PROT_READ | PROT_WRITE | PROT_EXEC);
  a.movImm(R10, MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_POPULATE);
  a.movImm(RAX, SYS_MMAP);
  a.syscall();
  check(a, "mmap of the code page");

  a.lea(RDI, ref("altStack"));
  a.movImm(RSI, 0);
  a.movImm(RAX, SYS_SIGALTSTACK);
  a.syscall();
  check(a, "sigaltstack");
  for (const signal of [SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV, SIGPROF, SIGSYS]) {
    a.movImm(RDI, signal);
    a.lea(RSI, ref("sigaction"));
    a.movImm(RDX, 0);
    a.movImm(R10, 8);
    a.movImm(RAX, SYS_RT_SIGACTION);
    a.syscall();
    check(a, "rt_sigaction");
  }
  // No core file if a case kills the runner after all.
  a.movImm(RDI, RLIMIT_CORE);
  a.lea(RSI, ref("noCore"));
  a.movImm(RAX, SYS_SETRLIMIT);
  a.syscall();
  a.movImm(RDI, ITIMER_PROF);
  a.lea(RSI, ref("interval"));
  a.movImm(RDX, 0);
  a.movImm(RAX, SYS_SETITIMER);
  a.syscall();
  check(a, "setitimer");
  call(a, SYS_ARCH_PRCTL, ARCH_SET_FS, FS_BASE);
  check(a, "arch_prctl");
  call(a, SYS_ARCH_PRCTL, ARCH_SET_GS, GS_BASE);
  check(a, "arch_prctl");
  // System calls from outside the runner raise SIGSYS. Older kernels refuse; cases must then make none.
  call(a, SYS_PRCTL, PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, RUNNER_TEXT, DATA_OFFSET, 0);

  a.load32(RAX, at(R13, HEADER_COUNT));
  a.store64(ref("count"), RAX);
  a.load32(RBX, at(R13, HEADER_FPU));
  a.store64(ref("fpu"), RBX);
  a.load32(RBX, at(R13, HEADER_WINDOW));
  a.store64(ref("window"), RBX);
  a.load32(RBX, at(R13, HEADER_STRIDE));
  a.store64(ref("stride"), RBX);
  a.lea(R14, at(R13, HEADER_BYTES));
  a.store64(ref("case"), R14);
  a.raw(0x48, 0x0f, 0xaf, 0xc3); // imul rax, rbx
  a.add(R14, RAX);
  a.store64(ref("result"), R14);
  a.movFromCs(RAX);
  a.store64(ref("frameCs"), RAX);
  a.movFromSs(RAX);
  a.store64(ref("frameSs"), RAX);
  a.movImm(RAX, 0xffff_ffff);
  a.store64(ref("tick"), RAX);
  a.jmp("next");

  a.label("fail");
  a.mov(RDI, R15);
  a.label("exit");
  a.movImm(RAX, SYS_EXIT_GROUP);
  a.syscall();
}

/** Constants that the code refers to, behind it. */
export function emitTables(a: Assembler): void {
  a.align(16);
  a.label("sigaction");
  a.quadLabel("signal");
  a.quad(SA_FLAGS);
  a.quadLabel("restorer");
  a.quad(0);
  a.label("altStack");
  a.quad(ALT_STACK);
  a.quad(0);
  a.quad(ALT_STACK_BYTES);
  a.label("interval");
  for (let i = 0; i < 2; i++) {
    a.quad(0);
    a.quad(TICK_MICROSECONDS);
  }
  a.label("noCore");
  a.quad(0);
  a.quad(0);
  a.label("padding");
  a.raw(...new Array<number>(8).fill(PAD));
  a.label("continuation");
  a.raw(...CONTINUATION);
  a.label("memfdName");
  a.raw(0x64, 0x61, 0x74, 0x61, 0);
}
