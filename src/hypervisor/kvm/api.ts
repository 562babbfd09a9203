/**
 * Numbers of the KVM API on x86-64 (Linux Documentation/virt/kvm/api.rst, include/uapi/linux/kvm.h): requests,
 * capabilities, exits and structure layouts (offsets and sizes in bytes), under the names they have there.
 */

export const KVM_API_VERSION = 12;

/** System requests. */
export const KVM_GET_API_VERSION = 0xae00;
export const KVM_CREATE_VM = 0xae01;
export const KVM_CHECK_EXTENSION = 0xae03;
export const KVM_GET_VCPU_MMAP_SIZE = 0xae04;
export const KVM_GET_SUPPORTED_CPUID = 0xc008_ae05;

/** VM requests. */
export const KVM_CREATE_VCPU = 0xae41;
export const KVM_SET_USER_MEMORY_REGION = 0x4020_ae46;
export const KVM_SET_TSS_ADDR = 0xae47;
export const KVM_CREATE_IRQCHIP = 0xae60;
export const KVM_CREATE_PIT2 = 0x4040_ae77;
export const KVM_IRQFD = 0x4020_ae76;
export const KVM_IOEVENTFD = 0x4040_ae79;

/** vCPU requests. */
export const KVM_RUN = 0xae80;
export const KVM_GET_REGS = 0x8090_ae81;
export const KVM_SET_REGS = 0x4090_ae82;
export const KVM_GET_SREGS = 0x8138_ae83;
export const KVM_SET_SREGS = 0x4138_ae84;
export const KVM_TRANSLATE = 0xc018_ae85;
export const KVM_SET_MSRS = 0x4008_ae89;
export const KVM_SET_FPU = 0x41a0_ae8d;
export const KVM_GET_LAPIC = 0x8400_ae8e;
export const KVM_SET_LAPIC = 0x4400_ae8f;
export const KVM_SET_CPUID2 = 0x4008_ae90;
export const KVM_KVMCLOCK_CTRL = 0xaead;

/** Capabilities. */
export const KVM_CAP_IRQCHIP = 0;
export const KVM_CAP_USER_MEMORY = 3;
export const KVM_CAP_SET_TSS_ADDR = 4;
export const KVM_CAP_EXT_CPUID = 7;
export const KVM_CAP_MP_STATE = 14;
export const KVM_CAP_IRQFD = 32;
export const KVM_CAP_PIT2 = 33;
export const KVM_CAP_PIT_STATE2 = 35;
export const KVM_CAP_IOEVENTFD = 36;
export const KVM_CAP_ADJUST_CLOCK = 39;
export const KVM_CAP_VCPU_EVENTS = 41;
export const KVM_CAP_DEBUGREGS = 50;
export const KVM_CAP_XSAVE = 55;
export const KVM_CAP_XCRS = 56;
export const KVM_CAP_TSC_DEADLINE_TIMER = 72;
export const KVM_CAP_IMMEDIATE_EXIT = 136;

/** kvm_run.exit_reason. */
export const KVM_EXIT = {
  UNKNOWN: 0,
  EXCEPTION: 1,
  IO: 2,
  HYPERCALL: 3,
  DEBUG: 4,
  HLT: 5,
  MMIO: 6,
  IRQ_WINDOW_OPEN: 7,
  SHUTDOWN: 8,
  FAIL_ENTRY: 9,
  INTR: 10,
  INTERNAL_ERROR: 17,
  SYSTEM_EVENT: 24,
} as const;

/** struct kvm_run. */
export const RUN_IMMEDIATE_EXIT = 1;
export const RUN_EXIT_REASON = 8;
export const RUN_IO_DIRECTION = 32;
export const RUN_IO_SIZE = 33;
export const RUN_IO_PORT = 34;
export const RUN_IO_COUNT = 36;
export const RUN_IO_DATA_OFFSET = 40;
export const RUN_MMIO_PHYS_ADDR = 32;
export const RUN_MMIO_DATA = 40;
export const RUN_MMIO_LEN = 48;
export const RUN_MMIO_IS_WRITE = 52;
/** UNKNOWN and FAIL_ENTRY: the hardware's own reason. */
export const RUN_HARDWARE_REASON = 32;
export const RUN_SYSTEM_EVENT_TYPE = 32;
export const RUN_SUBERROR = 32;
export const RUN_EMULATION_NDATA = 36;
export const RUN_EMULATION_FLAGS = 40;
export const RUN_EMULATION_INSN_SIZE = 48;
export const RUN_EMULATION_INSN_BYTES = 49;

export const KVM_EXIT_IO_OUT = 1;

export const KVM_SYSTEM_EVENT_SHUTDOWN = 1;
export const KVM_SYSTEM_EVENT_RESET = 2;

export const KVM_INTERNAL_ERROR_EMULATION = 1;
export const KVM_INTERNAL_ERROR_SIMUL_EX = 2;
export const KVM_INTERNAL_ERROR_DELIVERY_EV = 3;
export const KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON = 4;
export const KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES = 1;

/** struct kvm_userspace_memory_region: u32 slot, u32 flags, u64 guest_phys_addr, memory_size, userspace_addr. */
export const MEMORY_REGION_BYTES = 32;
export const MEMORY_REGION_GPA = 8;
export const MEMORY_REGION_SIZE = 16;
export const MEMORY_REGION_ADDR = 24;

/** struct kvm_irqfd: u32 fd, gsi, flags, resamplefd. */
export const IRQFD_BYTES = 32;

/** struct kvm_ioeventfd: u64 datamatch, addr, u32 len, s32 fd, u32 flags. */
export const IOEVENTFD_BYTES = 64;
export const IOEVENTFD_ADDR = 8;
export const IOEVENTFD_LEN = 16;
export const IOEVENTFD_FD = 20;
export const IOEVENTFD_FLAGS = 24;
export const KVM_IOEVENTFD_FLAG_DATAMATCH = 1;

/** struct kvm_pit_config: u32 flags. */
export const PIT_CONFIG_BYTES = 64;
export const KVM_PIT_SPEAKER_DUMMY = 1;

/** struct kvm_cpuid2: u32 nent, padding, then kvm_cpuid_entry2: function, index, flags, eax, ebx, ecx, edx. */
export const CPUID2_HEADER = 8;
export const CPUID_ENTRY2_BYTES = 40;
export const KVM_CPUID_FLAG_SIGNIFICANT_INDEX = 1;

/** struct kvm_msrs: u32 nmsrs, padding, then kvm_msr_entry: u32 index, u32 reserved, u64 data. */
export const MSRS_HEADER = 8;
export const MSR_ENTRY_BYTES = 16;

/** struct kvm_translation: u64 linear_address, physical_address, u8 valid. */
export const TRANSLATION_BYTES = 24;
export const TRANSLATION_PHYSICAL = 8;
export const TRANSLATION_VALID = 16;

/** struct kvm_regs, all u64. */
export const REGS_BYTES = 144;
export const REGS = {
  rax: 0,
  rbx: 8,
  rcx: 16,
  rdx: 24,
  rsi: 32,
  rdi: 40,
  rsp: 48,
  rbp: 56,
  r8: 64,
  r9: 72,
  r10: 80,
  r11: 88,
  r12: 96,
  r13: 104,
  r14: 112,
  r15: 120,
  rip: 128,
  rflags: 136,
} as const;

/** struct kvm_sregs: segments, then u64 registers. */
export const SREGS_BYTES = 312;
export const SREGS_SEGMENT = { cs: 0, ds: 24, es: 48, fs: 72, gs: 96, ss: 120, tr: 144, ldt: 168 } as const;
export const SREGS_GDT = 192;
export const SREGS_IDT = 208;
export const SREGS = { cr0: 224, cr2: 232, cr3: 240, cr4: 248, cr8: 256, efer: 264 } as const;

/** struct kvm_segment. */
export const SEGMENT_BASE = 0;
export const SEGMENT_LIMIT = 8;
export const SEGMENT_SELECTOR = 12;
export const SEGMENT_TYPE = 14;
export const SEGMENT_PRESENT = 15;
export const SEGMENT_DPL = 16;
export const SEGMENT_DB = 17;
export const SEGMENT_S = 18;
export const SEGMENT_L = 19;
export const SEGMENT_G = 20;
export const SEGMENT_AVL = 21;
export const SEGMENT_UNUSABLE = 22;

/** struct kvm_dtable: u64 base, u16 limit. */
export const DTABLE_LIMIT = 8;

/** struct kvm_fpu. */
export const FPU_BYTES = 416;
export const FPU_FCW = 128;
export const FPU_MXCSR = 408;

/** struct kvm_lapic_state: the register page. */
export const LAPIC_BYTES = 1024;
