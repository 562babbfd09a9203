/** The contract of a CPU backend: what the machine builder hands to a vCPU, and how a run ends. */

/** A segment register with its hidden part (SDM vol. 3A, 3.4.3). `flags` has the KVM_SEGMENT layout of a
 * descriptor's bits 40-55: type, S, DPL, P, AVL, L, D/B, G at bits 0-15 (limit bits 48-51 left out). */
export interface Segment {
  selector: number;
  base: bigint;
  /** Byte-granular limit, already scaled. */
  limit: number;
  /** Descriptor bits 40-47 in bits 0-7 and bits 52-55 in bits 12-15, as in the GDT (e.g. 0xa09b). */
  flags: number;
}

/** Descriptor-table register. */
export interface TableRegister {
  base: bigint;
  limit: number;
}

/** Register state in which a vCPU enters the kernel. What is not named is 0 (rflags: 2). */
export interface BootRegisters {
  rip: bigint;
  rsp: bigint;
  rbp: bigint;
  rsi: bigint;
  rbx: bigint;
  cr0: bigint;
  cr3: bigint;
  cr4: bigint;
  efer: bigint;
  cs: Segment;
  /** Used for DS, ES, FS, GS and SS. */
  data: Segment;
  tr: Segment;
  gdt: TableRegister;
  idt: TableRegister;
}

/** Why a vCPU stopped for good. */
export type VcpuEnd =
  /** Triple fault. */
  | { kind: "shutdown"; detail: string }
  /** The i8042 reset line, or a backend's own system event. */
  | { kind: "reset" }
  /** Asked to stop by the monitor. */
  | { kind: "stopped" }
  /** The backend cannot go on. `detail` is for the user: registers, RIP bytes and a hint. */
  | { kind: "error"; detail: string };
