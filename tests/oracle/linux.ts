/** Numbers of the Linux x86-64 system call interface that the native runner uses. */

/** System call numbers (Linux, arch/x86/entry/syscalls/syscall_64.tbl). */
export const SYS_LSEEK = 8;
export const SYS_MMAP = 9;
export const SYS_RT_SIGACTION = 13;
export const SYS_RT_SIGRETURN = 15;
export const SYS_SETITIMER = 38;
export const SYS_FTRUNCATE = 77;
export const SYS_SIGALTSTACK = 131;
export const SYS_PRCTL = 157;
export const SYS_ARCH_PRCTL = 158;
export const SYS_SETRLIMIT = 160;
export const SYS_EXIT_GROUP = 231;
export const SYS_MEMFD_CREATE = 319;

export const SEEK_END = 2;
export const PROT_READ = 1;
export const PROT_WRITE = 2;
export const PROT_EXEC = 4;
export const MAP_SHARED = 0x01;
export const MAP_PRIVATE = 0x02;
export const MAP_FIXED = 0x10;
export const MAP_ANONYMOUS = 0x20;
export const MAP_POPULATE = 0x8000;
export const RLIMIT_CORE = 4;
export const ITIMER_PROF = 2;
export const ARCH_SET_GS = 0x1001;
export const ARCH_SET_FS = 0x1002;
export const PR_SET_SYSCALL_USER_DISPATCH = 59;
export const PR_SYS_DISPATCH_ON = 1;
export const AT_HWCAP2 = 26;
export const HWCAP2_FSGSBASE = 2;

export const SIGILL = 4;
export const SIGTRAP = 5;
export const SIGBUS = 7;
export const SIGFPE = 8;
export const SIGSEGV = 11;
export const SIGPROF = 27;
export const SIGSYS = 31;
export const SA_FLAGS = 0x4c00_0004; // SA_SIGINFO, SA_RESTORER, SA_ONSTACK, SA_NODEFER

/** Offsets in struct ucontext (Linux, arch/x86/include/uapi/asm/sigcontext.h), GPRs in encoding order. */
export const UC_GPRS = [144, 152, 136, 128, 160, 120, 112, 104, 40, 48, 56, 64, 72, 80, 88, 96];
export const UC_RIP = 168;
export const UC_EFLAGS = 176;
export const UC_ERR = 192;
export const UC_TRAPNO = 200;
export const UC_CR2 = 216;
export const UC_FPSTATE = 224;
