/**
 * Numbers of the KVM API on x86-64 (Linux Documentation/virt/kvm/api.rst, include/uapi/linux/kvm.h): requests,
 * capabilities, exits and structure layouts (offsets and sizes in bytes), under the names they have there.
 */

export const KVM_API_VERSION = 12;

/** System requests. */
export const KVM_GET_API_VERSION = 0xae00;
export const KVM_CREATE_VM = 0xae01;
export const KVM_GET_MSR_INDEX_LIST = 0xc004_ae02;
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
export const KVM_GET_IRQCHIP = 0xc208_ae62;
export const KVM_SET_IRQCHIP = 0x8208_ae63;
export const KVM_GET_PIT2 = 0x8070_ae9f;
export const KVM_SET_PIT2 = 0x4070_aea0;
export const KVM_SET_CLOCK = 0x4030_ae7b;
export const KVM_GET_CLOCK = 0x8030_ae7c;

/** vCPU requests. */
export const KVM_RUN = 0xae80;
export const KVM_GET_REGS = 0x8090_ae81;
export const KVM_SET_REGS = 0x4090_ae82;
export const KVM_GET_SREGS = 0x8138_ae83;
export const KVM_SET_SREGS = 0x4138_ae84;
export const KVM_TRANSLATE = 0xc018_ae85;
export const KVM_GET_MSRS = 0xc008_ae88;
export const KVM_SET_MSRS = 0x4008_ae89;
export const KVM_SET_FPU = 0x41a0_ae8d;
export const KVM_GET_LAPIC = 0x8400_ae8e;
export const KVM_SET_LAPIC = 0x4400_ae8f;
export const KVM_SET_CPUID2 = 0x4008_ae90;
export const KVM_GET_CPUID2 = 0xc008_ae91;
export const KVM_GET_MP_STATE = 0x8004_ae98;
export const KVM_SET_MP_STATE = 0x4004_ae99;
export const KVM_GET_VCPU_EVENTS = 0x8040_ae9f;
export const KVM_SET_VCPU_EVENTS = 0x4040_aea0;
export const KVM_GET_DEBUGREGS = 0x8080_aea1;
export const KVM_SET_DEBUGREGS = 0x4080_aea2;
export const KVM_SET_TSC_KHZ = 0xaea2;
export const KVM_GET_TSC_KHZ = 0xaea3;
export const KVM_GET_XSAVE = 0x9000_aea4;
export const KVM_SET_XSAVE = 0x5000_aea5;
export const KVM_GET_XCRS = 0x8188_aea6;
export const KVM_SET_XCRS = 0x4188_aea7;
export const KVM_KVMCLOCK_CTRL = 0xaead;
export const KVM_GET_XSAVE2 = 0x9000_aecf;

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
export const KVM_CAP_TSC_CONTROL = 60;
export const KVM_CAP_GET_TSC_KHZ = 61;
export const KVM_CAP_TSC_DEADLINE_TIMER = 72;
export const KVM_CAP_IMMEDIATE_EXIT = 136;
export const KVM_CAP_XSAVE2 = 208;

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

/** struct kvm_irqchip: u32 chip_id, padding, and the chip's state. */
export const IRQCHIP_BYTES = 520;
export const KVM_IRQCHIP_PIC_MASTER = 0;
export const KVM_IRQCHIP_PIC_SLAVE = 1;
export const KVM_IRQCHIP_IOAPIC = 2;

/** struct kvm_pit_state2. */
export const PIT_STATE2_BYTES = 112;

/** struct kvm_clock_data: u64 clock, u32 flags, padding, u64 realtime, host_tsc. */
export const CLOCK_DATA_BYTES = 48;
export const CLOCK_FLAGS = 8;
export const CLOCK_REALTIME = 16;
export const KVM_CLOCK_REALTIME = 1 << 2;

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

/** struct kvm_mp_state: u32. */
export const MP_STATE_BYTES = 4;
export const KVM_MP_STATE_RUNNABLE = 0;
export const KVM_MP_STATE_UNINITIALIZED = 1;
export const KVM_MP_STATE_INIT_RECEIVED = 2;
export const KVM_MP_STATE_HALTED = 3;
export const KVM_MP_STATE_SIPI_RECEIVED = 4;

/** struct kvm_vcpu_events: exception, interrupt, nmi, u32 sipi_vector, u32 flags, smi, ... */
export const VCPU_EVENTS_BYTES = 64;

/** struct kvm_debugregs: u64 db[4], dr6, dr7, flags. */
export const DEBUGREGS_BYTES = 128;

/** struct kvm_xsave: the processor's XSAVE area; KVM_CAP_XSAVE2 is its size where it is more than this. */
export const XSAVE_BYTES = 4096;

/** struct kvm_xcrs: u32 nr_xcrs, flags, then kvm_xcr: u32 xcr, reserved, u64 value. */
export const XCRS_BYTES = 392;
