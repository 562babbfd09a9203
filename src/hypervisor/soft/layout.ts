/**
 * The software CPU's own memory: the bottom {@link GUEST_BASE} bytes of the one shared WebAssembly memory.
 *
 * Guest RAM starts above it, and every guest access goes through a translated, bounds-checked physical
 * address, so no guest address can name anything in here. Offsets are bytes from the start of the memory.
 */

/** Where guest-physical address 0 lies in the memory. */
export const GUEST_BASE = 0x0300_0000;

/** Registers that operand fields of a decoded record can name, as byte offsets. */
export const REG = {
  /** RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8..R15: 8 bytes each, encoding order (SDM vol. 2, table 3-1). */
  gpr: 0,
  /** Always 0: an absent base, index or segment. */
  zero: 128,
  /** Linear address of the page the current block runs in. RIP = vbase + the record's page offset. */
  vbase: 136,
  /** Segment bases in encoding order: ES, CS, SS, DS, FS, GS. ES..DS are 0 in 64-bit mode. */
  segBase: 144,
} as const;

export const RAX = 0;
export const RCX = 8;
export const RDX = 16;
export const RBX = 24;
export const RSP = 32;
export const RBP = 40;
export const RSI = 48;
export const RDI = 56;
export const R8 = 64;
export const R10 = 80;
export const R11 = 88;

/** Segment register numbers (SDM vol. 2, table 2-1 reg field for Sreg). */
export const ES = 0;
export const CS = 1;
export const SS = 2;
export const DS = 3;
export const FS = 4;
export const GS = 5;
export const LDTR = 6;
export const TR = 7;

/** Arithmetic flags, kept as the values they follow from; see flags.ts. */
export const FLAG_Z = 256; // i64: ZF = (value == 0)
export const FLAG_S = 264; // i64: SF = sign bit, PF = even parity of the low byte
export const FLAG_C = 272; // i64: CF = bit 63, CF xor OF = bit 62
export const FLAG_A = 280; // i32: AF = bit 3
/** i32: RFLAGS without the arithmetic flags (TF, IF, DF, IOPL, NT, RF, VM, AC, VIF, VIP, ID; bit 1 set). */
export const FLAGS_SYSTEM = 284;

/** i32: instructions left in this slice. */
export const BUDGET = 288;
/** i32: negative when the run loop must look up (interrupt, stop request, stale code). Any thread sets it. */
export const ATTENTION = 292;
/** i32: address of the record that left the interpreter (faults, helpers). */
export const CURRENT = 296;
/** i64: RIP at an exit, and the target of a jump being looked up. */
export const RIP = 304;
/** i64: mode and address-space generation, shifted so that it can be xored into a RIP; see jump cache. */
export const MODE_TAG = 312;
/** i32: start of the data TLB of the current privilege: {@link TLB_SUPERVISOR} or {@link TLB_USER}. */
export const TLB_CURRENT = 320;
/** i32: decode mode of the current code segment, bits MODE_*. */
export const MODE = 324;
/** i32: current privilege level, 0 or 3 (1 and 2 are refused). */
export const CPL = 328;
/** i32: 1 while an interrupt is deliverable as soon as IF is set. */
export const IRQ_WAITING = 332;
/** i64: RIP at which interrupts are held off for one instruction (STI, MOV SS shadow). */
export const SHADOW_RIP = 336;

/** Pending exception: vector, error code (or -1), CR2. */
export const FAULT_VECTOR = 352;
export const FAULT_ERROR = 356;
export const FAULT_CR2 = 360;
/** i64: linear address of the memory operand, left for a helper. */
export const LINEAR = 368;

/** i32: calls of compiled code that wait for their return on the WebAssembly stack; see RETURN_STACK. */
export const RETURN_DEPTH = 376;
/** i32: entries of TLB_LOG. */
export const TLB_LOG_COUNT = 380;
/** i32: bytes of guest RAM, unsigned. */
export const RAM_SIZE = 384;

/** i32: changes whenever a translation may have been dropped from a TLB, other than for want of room. */
export const TLB_EPOCH = 388;

/** 16 bytes, 64 aligned: where slow memory accesses leave or take their data. */
export const BOUNCE = 448;

/** XMM0..XMM15, 16 bytes each. */
export const XMM = 512;
/** i32 MXCSR. */
export const MXCSR = 768;
/** FXSAVE-shaped x87 state (bytes 0..159 of the FXSAVE64 image). MM0..7 are the low halves of the registers. */
export const X87 = 1024;
/** 16-byte scratch lanes of SIMD semantics. */
export const SCRATCH = 1536;
/** 512 bytes for the memory operand of an x87 or FXSAVE instruction. */
export const X87_OPERAND = 2048;

/** Model-specific and control registers, i64 each. */
export const CR0 = 3072;
export const CR2 = 3080;
export const CR3 = 3088;
export const CR4 = 3096;
export const EFER = 3104;
export const STAR = 3112;
export const LSTAR = 3120;
export const CSTAR = 3128;
export const SFMASK = 3136;
export const KERNEL_GS_BASE = 3144;
export const GDTR_BASE = 3152;
export const IDTR_BASE = 3160;
/** i32 limits. */
export const GDTR_LIMIT = 3168;
export const IDTR_LIMIT = 3172;
/** Selectors (i32 each, ES CS SS DS FS GS LDTR TR), then attributes (i32), limits (i32), in the same order. */
export const SEG_SELECTOR = 3184;
export const SEG_ATTR = 3216;
export const SEG_LIMIT = 3248;
/** LDTR and TR base, i64 each. */
export const LDTR_BASE = 3280;
export const TR_BASE = 3288;

export const SYSENTER_CS = 3296;
export const SYSENTER_ESP = 3304;
export const SYSENTER_EIP = 3312;
/** i32: IA32_TSC_AUX. */
export const TSC_AUX = 3320;
/** DR0..DR3, DR6, DR7, i64 each. */
export const DR = 3344;
/** i64: what the time-stamp counter is ahead of host time in ns, modulo 2^64. */
export const TSC_OFFSET = 3392;
/** i64, a statistic: accesses and fetches that missed the TLB. */
export const TLB_MISSES = 3400;

/** Edge-triggered interrupt inputs raised since the vCPU last looked: one bit a GSI. Any thread sets it. */
export const GSI_EDGES = 3328;
/** i32: 1 when the monitor wants `run` to return. */
export const STOP = 3332;
/** i32: a device thread has written to a page that holds decoded code (see STALE_PAGES). */
export const STALE = 3336;
/** i32: 0 the vCPU runs; {@link PAUSE_ASKED} by the monitor, {@link PAUSE_TAKEN} once the vCPU waits. */
export const PAUSE = 3340;
export const PAUSE_ASKED = 1;
export const PAUSE_TAKEN = 2;

/**
 * Where the calls counted by RETURN_DEPTH expect to be returned to, i64 each. Compiled code makes a guest's
 * call a WebAssembly call; a RET whose target is the top entry returns from it (EXIT.returned).
 */
export const RETURN_STACK = 0x1000;
export const RETURN_LIMIT = 96;
/**
 * Entry of the return stack for a change of privilege that compiled calls wait behind: no RET goes there, since the
 * address is not canonical. The change back takes it off again.
 */
export const RETURN_BARRIER = 1n << 63n;

/** Data TLBs: entry = { i64 tag, i32 addend, i32 }; write entries TLB_BYTES above the read entries. */
export const TLB_ENTRIES = 2048;
export const TLB_BYTES = TLB_ENTRIES * 16;
export const TLB_SUPERVISOR = 0x1_0000;
export const TLB_USER = TLB_SUPERVISOR + 2 * TLB_BYTES;
/** Execute TLBs: { i64 tag, i32 physical page, i32 }, supervisor then user. */
export const XTLB_ENTRIES = 1024;
export const XTLB_BYTES = XTLB_ENTRIES * 16;
export const XTLB_SUPERVISOR = TLB_USER + 2 * TLB_BYTES;
export const XTLB_USER = XTLB_SUPERVISOR + XTLB_BYTES;
/** Word offsets of the TLB entries that a CR3 load must drop, each once: TLB_LISTED has a byte an entry. */
export const TLB_LOG = 0x3_8000;
export const TLB_LISTED = 0x4_4000;
/**
 * By hash of a 2 MiB or 1 GiB region: bit 0 or 1 set when parts of a page of that size may be cached. INVLPG must
 * drop all of them (SDM vol. 3A, 4.10.4.1), and the TLBs hold them as 4 KiB pages.
 */
export const TLB_LARGE = 0x4_8000;
export const LARGE_SLOTS = 1 << 14;
/** By table slot: a byte that is 1 while the region compiled there is good. */
export const REGION_LIVE = 0x4_c000;
export const TABLE_SLOTS = 1 << 14;
/** By table slot: { i64 vbase, i32 TLB_EPOCH, i32 } for which the region's pages are known to be where they were. */
export const REGION_CHECKED = 0x10_0000;
/** Jump cache: { i64 RIP xor mode tag, i32 record, i32 }. */
export const JUMP_ENTRIES = 0x4000;
export const JUMP_CACHE = 0x8_0000;
/** Block table: { i32 physical address, i32 mode, i32 record, i32 }, open addressing. */
export const BLOCK_ENTRIES = 0x4_0000;
export const BLOCK_PROBES = 8;
export const BLOCK_TABLE = 0xa0_0000;
/** One i64 a guest page: bit n set when decoded code covers its n-th 64 bytes. Up to 3 GiB of guest RAM. */
export const CODE_LINES = 0x20_0000;
/** One bit a guest page: written by a device while it held decoded code. */
export const STALE_PAGES = CODE_LINES + 0x60_0000;
/** Decoded records. */
export const RECORDS = 0xe0_0000;
export const RECORDS_END = GUEST_BASE;

/** Bytes of one decoded record. */
export const RECORD_BYTES = 32;

/** Fields of a decoded record (byte offsets). */
export const RECORD = {
  /** u32: table slot of the handler. */
  slot: 0,
  /** u16: offset of the instruction in its page. */
  offset: 4,
  /** u8: length of the instruction in bytes. */
  length: 6,
  /** u8: on a record that ends a block, instructions in the block. */
  count: 7,
  /** u16: register-file offset of the register operand (ModRM.reg or opcode). */
  reg: 8,
  /** u16: register-file offset of the r/m operand when it is a register. */
  rm: 10,
  /** u16: register-file offsets of a memory operand's base, index and segment base. */
  base: 12,
  index: 14,
  segment: 16,
  /** u8: log2 of the index scale. */
  scale: 18,
  /** u8: spare operand byte (segment number, x87 opcode). */
  aux: 19,
  /** i32: executions left until the block is hot, on the record that starts a block. */
  countdown: 20,
  /** i32: immediate; on a direct branch, the target relative to vbase. */
  imm: 20,
  /** i64: displacement; a 64-bit immediate. */
  disp: 24,
  /** i32: on a direct branch, the record of the taken and of the fall-through block once known. */
  taken: 24,
  fallthrough: 28,
} as const;

/** MODE bits. */
export const MODE_64 = 1;
/** 32-bit default operand size (CS.D) outside 64-bit mode. */
export const MODE_32 = 2;
/** Single-step: blocks of one instruction. */
export const MODE_TF = 4;
/** FPU instructions raise an exception (CR0.EM, CR0.TS, CR4.OSFXSR). */
export const MODE_FPU_OFF = 8;
/** Interpreted to check compiled code: such blocks do not count their executions (jit/lockstep.ts). */
export const MODE_REPLAY = 16;

/** CPL 3. Code is compiled for one privilege. */
export const MODE_USER = 32;

/** Why the interpreter returned to the run loop. */
export const EXIT = {
  /** A RET has come back to the compiled call on top of the return stack. Never seen by the run loop. */
  returned: 0,
  /** Budget used up or ATTENTION: RIP says where to go on. */
  attention: 1,
  /** No decoded block at RIP. */
  decode: 2,
  /** FAULT_VECTOR is to be delivered at CURRENT's instruction. */
  fault: 3,
  /** HLT: RIP is the next instruction. */
  halt: 4,
  /** The block at CURRENT has been dropped: look its instruction up again. */
  stale: 5,
  /** A helper changed the machine state (mode, privilege, address space); RIP says where to go on. */
  changed: 6,
  /** The second page of an instruction that crosses pages must be looked up again. */
  crossing: 7,
  /** The block at CURRENT has run often enough to be compiled. */
  hot: 8,
  /** As changed, for an instruction after which TF does not trap although it was set (MOV SS, INT n). */
  changedNoTrap: 9,
  /** As changed, for an instruction after which TF traps although it was not set before (SYSRET). */
  changedTrap: 10,
} as const;
