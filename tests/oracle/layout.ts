/**
 * What the native runner and its callers agree on: the address space a case sees, and the binary layout of
 * the records. The software CPU's test harness builds the same address space from these constants.
 *
 * One physical page, the data page, is mapped four times. The bytes a case may change and that are
 * reported (its window) are the page's last and first `windowBytes / 2` bytes, so one window shows up on
 * both sides of every page boundary:
 *
 * ```
 * 0x10000000  not mapped
 * 0x10001000  data page, read-write
 * 0x10002000  data page, read-write     the window is contiguous around this address
 * 0x10003000  not mapped
 * 0x10004000  data page, read-write
 * 0x10005000  data page, read-only
 * 0x10006000  not mapped
 * 0x20000000  code page, read-write-execute, filled with INT3; not mapped before and after it
 * ```
 */

export const PAGE_SIZE = 4096;

/** First byte of the first data mapping; the page below is not mapped. */
export const DATA_FIRST = 0x1000_1000;
/** Boundary between two read-write mappings; the window is contiguous around it. */
export const DATA_CROSS = 0x1000_2000;
/** End of the second data mapping; the page from here on is not mapped. */
export const DATA_END = 0x1000_3000;
/** Third read-write mapping; the page below is not mapped, the page above is read-only. */
export const DATA_THIRD = 0x1000_4000;
/** Read-only mapping of the data page. */
export const DATA_READ_ONLY = 0x1000_5000;
/** End of the read-only mapping; the page from here on is not mapped. */
export const DATA_READ_ONLY_END = 0x1000_6000;

/** FS and GS base during a case. Both lie inside a window of 256 bytes or more. */
export const FS_BASE = DATA_CROSS - 0x40;
export const GS_BASE = DATA_THIRD + 0x20;

export const CODE_PAGE = 0x2000_0000;
/** Where in the code page a case starts unless it says otherwise: every rel8 branch lands on INT3 pads. */
export const CODE_OFFSET = 0x800;
/** What the rest of the code page is filled with: INT3. */
export const PAD = 0xcc;
export const MAX_CODE_BYTES = 32;

/** Where the runner program lies: far from every address a case is likely to form from a constant. */
export const RUNNER_TEXT = 0x5a17_3c6e_0000;
/** Bytes of ELF header and program headers in front of the runner's code. */
export const ELF_HEADER_BYTES = 64 + 3 * 56;
/** Where a case that runs off its end enters the runner. */
export const RUNNER_CONTINUE = RUNNER_TEXT + ELF_HEADER_BYTES;

/** `jmp [rip+0]` and the address it takes, as placed behind a case's code. */
export const CONTINUATION: Uint8Array = (() => {
  const bytes = new Uint8Array(14);
  bytes.set([0xff, 0x25, 0, 0, 0, 0]);
  new DataView(bytes.buffer).setBigUint64(6, BigInt(RUNNER_CONTINUE), true);
  return bytes;
})();

/** Header of the file shared with the runner; the cases follow it, then the results. */
export const HEADER_BYTES = 4096;
export const HEADER_COUNT = 0;
export const HEADER_FPU = 4;
export const HEADER_STRIDE = 8;
export const HEADER_WINDOW = 12;
/** Index of the case that is being run, written by the runner. */
export const HEADER_CURRENT = 16;
/** 1 once every case has been run. */
export const HEADER_DONE = 20;

/** Offsets in a case record (input). Offsets from {@link RECORD_RFLAGS} on are shared with the result. */
export const CASE_CODE_LENGTH = 0;
export const CASE_CODE_OFFSET = 4;
export const CASE_FLAGS = 8;
export const CASE_CODE = 16;

/** Offsets in a result record (output). */
export const RESULT_END = 0;
export const RESULT_TRAP = 2;
export const RESULT_ERROR = 4;
export const RESULT_CR2 = 8;
export const RESULT_RIP = 16;

/** Offsets in both. GPRs are in encoding order: rax rcx rdx rbx rsp rbp rsi rdi r8 ... r15. */
export const RECORD_RFLAGS = 56;
export const RECORD_GPRS = 64;
export const RECORD_WINDOW = 192;

/** Case flag: INT3 follows the code at once, so that running off the end is a #BP as any branch out is. */
export const CASE_TRAP_END = 1;

/** How a case ended. */
export const END_FELL_THROUGH = 0;
/** A processor exception: trap number, error code and CR2 are valid. */
export const END_EXCEPTION = 1;
/** The case used 100 ms or more of processor time, as an endless loop does. */
export const END_HANG = 2;
/** The case made a system call (blocked; needs Linux 5.11, before that it is really made). */
export const END_SYSTEM_CALL = 3;

/** Bytes of an FXSAVE image in a record; 416 to 511 are 0 in results. */
export const FX_BYTES = 512;

/** Offsets in an FXSAVE image (SDM vol. 1, table 10-2). */
export const FX_FCW = 0;
export const FX_FSW = 2;
export const FX_FTW = 4;
export const FX_MXCSR = 24;
export const FX_ST = 32;
export const FX_XMM = 160;

export const RAX = 0;
export const RCX = 1;
export const RDX = 2;
export const RBX = 3;
export const RSP = 4;
export const RBP = 5;
export const RSI = 6;
export const RDI = 7;
export const R8 = 8;
export const R9 = 9;
export const R10 = 10;
export const R11 = 11;
export const R12 = 12;
export const R13 = 13;
export const R14 = 14;
export const R15 = 15;

/** RFLAGS bits (SDM vol. 1, 3.4.3). */
export const RFLAGS_CF = 1 << 0;
export const RFLAGS_PF = 1 << 2;
export const RFLAGS_AF = 1 << 4;
export const RFLAGS_ZF = 1 << 6;
export const RFLAGS_SF = 1 << 7;
export const RFLAGS_TF = 1 << 8;
export const RFLAGS_DF = 1 << 10;
export const RFLAGS_OF = 1 << 11;
export const RFLAGS_NT = 1 << 14;
export const RFLAGS_AC = 1 << 18;
export const RFLAGS_ID = 1 << 21;
/** The six status flags. */
export const RFLAGS_STATUS = RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_OF;
/** What a case may start with. */
export const RFLAGS_INPUT = RFLAGS_STATUS | RFLAGS_DF | RFLAGS_TF | RFLAGS_NT | RFLAGS_AC | RFLAGS_ID;
