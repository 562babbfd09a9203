/** Programs for the local APIC and the I/O APIC: snippets of machine code, and a run whose handlers send EOIs. */
import { code, le32 } from "./code.ts";
import { CODE, Guest, type RunOptions, type Trap } from "./guest.ts";

export const APIC_BASE_MSR = 0x1b;
export const TSC_DEADLINE_MSR = 0x6e0;
export const X2APIC = 0x800;

/** xAPIC register offsets. */
export const ID = 0x20;
export const TPR = 0x80;
export const PPR = 0xa0;
export const EOI = 0xb0;
export const SVR = 0xf0;
export const ISR = 0x100;
export const IRR = 0x200;
export const ICR = 0x300;
export const LVT_TIMER = 0x320;
export const TIMER_INITIAL = 0x380;
export const TIMER_CURRENT = 0x390;
export const TIMER_DIVIDE = 0x3e0;
export const LAPIC = 0xfee0_0000;
export const IOAPIC = 0xfec0_0000;

export const PERIODIC = 0x2_0000;
export const DEADLINE_MODE = 0x4_0000;
export const MASKED = 0x1_0000;

/** MOV DWORD PTR [address], value. Clobbers RDX. */
export function store(address: number, value: number): number[] {
  // mov edx, address; mov dword ptr [rdx], value
  return [0xba, ...le32(address), 0xc7, 0x02, ...le32(value)];
}
export const apic = (register: number, value: number) => store(LAPIC + register, value);
export const ioapic = (index: number, value: number) => [
  ...store(IOAPIC, index),
  ...store(IOAPIC + 0x10, value),
];
/** Redirection of a pin: vector and flags, to APIC 0. */
export const redirect = (pin: number, value: number) => [
  ...ioapic(0x10 + 2 * pin, value),
  ...ioapic(0x11 + 2 * pin, 0),
];
/** MOV EAX, [address]; OUT 0xf2, EAX. */
export const show = (register: number) => [0xba, ...le32(LAPIC + register), 0x8b, 0x02, 0xe7, 0xf2];
/** WRMSR; clobbers RAX, RCX, RDX. */
export const wrmsr = (msr: number, value: bigint) => [
  0xb9,
  ...le32(msr),
  0xb8,
  ...le32(Number(value & 0xffff_ffffn)),
  0xba,
  ...le32(Number(value >> 32n)),
  0x0f,
  0x30,
];
export const selfIpi = (vector: number) => apic(ICR, 0x4_0000 | vector);

export const STI = code("fb | sti");
export const CLI = code("fa | cli");
export const NOP = code("90 | nop");
export const HLT = code("f4 | hlt");
/** Tells the test that the guest is set up. */
export const READY = code("e6 f2 | out 0xf2, al");
/** Sleeps until interrupts have counted [RDI] up to RBX. One that comes after the look wakes the HLT: STI holds it off. */
export const SLEEP_UNTIL_COUNTED = code(`
           | again:
  fa       | cli
  48 39 1f | cmp [rdi], rbx
  73 04    | jae $+6
  fb       | sti
  f4       | hlt
  eb f6    | jmp again
`);

/** Outcome of {@link ApicGuest.start}. */
export interface Seen {
  traps: Trap[];
  /** Vectors in the order of delivery. */
  vectors: number[];
  outs: number[];
  result: number | undefined;
}

/** A new machine each, because nothing else resets an APIC. Its xAPIC is enabled. */
export class ApicGuest extends Guest {
  /** `jit`: as SoftVcpu takes it. */
  constructor(jit?: boolean | number) {
    super(jit);
    // The identity map does not reach the APICs' pages.
    this.pages.map(LAPIC, LAPIC, 2);
    this.pages.map(IOAPIC, IOAPIC, 2);
    this.start(apic(SVR, 0x1ff));
  }

  /** Writes the EOI register, as a handler does before it returns. */
  eoi(): void {
    this.vcpu.cpu.apic.mmioWrite(LAPIC + EOI, 0);
  }

  /** Runs a program; every interrupt handler sends an EOI and returns, an exception ends the run. */
  start(program: number[], options: Partial<RunOptions> = {}): Seen {
    const outs: number[] = [];
    const { traps, result } = this.run({
      code: program,
      onOut: (_port, value) => outs.push(value),
      onTrap: (t) => {
        if (t.vector < 32) return false;
        this.eoi();
        return true;
      },
      ...options,
    });
    return { traps, vectors: traps.map((t) => t.vector), outs, result };
  }
}

/** Offset in the program of the instruction at which the first interrupt came in. */
export const where = (s: Seen): number => s.traps[0]!.rip - CODE;
