/** Code of test guests: system instructions on top of the oracle's assembler, and what every guest here needs. */

import { I8042_COMMAND_PORT, PDPTE_START, SERIAL_PORT_START } from "../../src/boot/layout.ts";
import { Assembler, at, CC_AE, CC_NE } from "../oracle/asm.ts";

export const RAX = 0;
export const RCX = 1;
export const RDX = 2;
export const RBX = 3;
export const RSP = 4;
export const RSI = 6;
export const RDI = 7;

/** A guest ends its test by a write here. */
export const FINISH_PORT = 0x5f0;
/** A write here ends the vCPU's thread, with the backend of `dying-backend.ts`. */
export const DEATH_PORT = 0x5f1;

const IOAPIC = 0xfec0_0000;
const IOAPIC_WINDOW = IOAPIC + 0x10;
const IOREDTBL = 0x10;
export const LAPIC = 0xfee0_0000;
export const APIC_EOI = LAPIC + 0xb0;
export const APIC_SPURIOUS = LAPIC + 0xf0;
export const APIC_ICR_LOW = LAPIC + 0x300;
export const APIC_ICR_HIGH = LAPIC + 0x310;
export const APIC_LVT_TIMER = LAPIC + 0x320;
export const APIC_LVT_LINT0 = LAPIC + 0x350;
export const APIC_TIMER_INITIAL = LAPIC + 0x380;
export const APIC_TIMER_DIVIDE = LAPIC + 0x3e0;

/** Software enable, spurious vector 255. */
const APIC_ENABLED = 0x1ff;
/** Gate of 64-bit interrupt type at privilege 0, for code selector 8 of the boot GDT. */
const INTERRUPT_GATE = 0x8e00;
const CODE_SELECTOR = 8;
/** Page table entries: present and writable; and a page of 2 MiB. */
const PAGE_TABLE = 3;
const PAGE_2M = 0x83;

export class GuestCode extends Assembler {
  cli(): void {
    this.raw(0xfa);
  }
  sti(): void {
    this.raw(0xfb);
  }
  hlt(): void {
    this.raw(0xf4);
  }
  pause(): void {
    this.raw(0xf3, 0x90);
  }
  /** An invalid instruction. */
  ud2(): void {
    this.raw(0x0f, 0x0b);
  }
  /** `lidt [rax]`. */
  lidt(): void {
    this.raw(0x0f, 0x01, 0x18);
  }
  wrmsr(): void {
    this.raw(0x0f, 0x30);
  }
  rdtsc(): void {
    this.raw(0x0f, 0x31);
  }
  /** `inc dword [rbx]`, with LOCK. */
  lockIncrement(): void {
    this.raw(0xf0, 0xff, 0x03);
  }
  /** Calls `label` through RAX. */
  call(label: string): void {
    this.lea(RAX, { label, disp: 0 });
    this.raw(0xff, 0xd0);
  }

  /** `out dx, al/ax/eax`. */
  outDx(size: number): void {
    this.raw(...operandSize(size), size === 1 ? 0xee : 0xef);
  }
  /** `in al/ax/eax, dx`. */
  inDx(size: number): void {
    this.raw(...operandSize(size), size === 1 ? 0xec : 0xed);
  }
  /** `rep outs`, from [RSI]. */
  repOuts(size: number): void {
    this.raw(...operandSize(size), 0xf3, size === 1 ? 0x6e : 0x6f);
  }
  /** `rep ins`, to [RDI]. */
  repIns(size: number): void {
    this.raw(...operandSize(size), 0xf3, size === 1 ? 0x6c : 0x6d);
  }
  /** `mov [rbx], al/ax/eax/rax`. */
  storeA(size: number): void {
    this.raw(...operandSize(size), ...(size === 8 ? [0x48] : []), size === 1 ? 0x88 : 0x89, 0x03);
  }
  /** `mov al/ax/eax/rax, [rbx]`. */
  loadA(size: number): void {
    this.raw(...operandSize(size), ...(size === 8 ? [0x48] : []), size === 1 ? 0x8a : 0x8b, 0x03);
  }

  /** Writes `value` to `port`. Uses RAX and RDX. */
  outPort(port: number, size: number, value: number): void {
    this.movImm(RDX, port);
    this.movImm(RAX, value);
    this.outDx(size);
  }

  /** Writes 32 bits to a physical address below 4 GiB. Uses RAX and RBX. */
  poke(address: number, value: number): void {
    this.movImm(RBX, address);
    this.movImm(RAX, value);
    this.storeA(4);
  }

  /** Ends the test: the stop may take a few more instructions to arrive. */
  finish(): void {
    this.outPort(FINISH_PORT, 1, 0);
    this.spin();
  }

  /** `jmp` to itself. */
  spin(): void {
    this.raw(0xeb, 0xfe);
  }

  /** Masks the PIC, whose interrupts would come beside those of the I/O APIC, and turns the local APIC on. */
  enableApic(): void {
    this.outPort(0x21, 1, 0xff);
    this.outPort(0xa1, 1, 0xff);
    this.poke(APIC_SPURIOUS, APIC_ENABLED);
  }

  /** Initializes both PICs and unmasks every input: IRQ n comes as vector `base` + n. */
  enablePic(base: number): void {
    for (const [command, vectors, wiring] of [
      [0x20, base, 1 << 2],
      [0xa0, base + 8, 2],
    ] as const) {
      this.outPort(command, 1, 0x11);
      for (const icw of [vectors, wiring, 0x01]) this.outPort(command + 1, 1, icw);
      this.outPort(command + 1, 1, 0);
    }
  }

  /** Edge-triggered `vector` to local APIC 0 for pin `gsi`. */
  routeGsi(gsi: number, vector: number): void {
    this.poke(IOAPIC, IOREDTBL + 2 * gsi + 1);
    this.poke(IOAPIC_WINDOW, 0);
    this.poke(IOAPIC, IOREDTBL + 2 * gsi);
    this.poke(IOAPIC_WINDOW, vector);
  }

  /** Loads an IDT at `address` whose gate `vector` leads to `label`. Uses RAX, RBX. The pseudo-descriptor lies before it. */
  loadIdt(address: number, vector: number, label: string): void {
    const gate = address + vector * 16;
    this.lea(RAX, { label, disp: 0 });
    this.movImm(RBX, gate);
    // Offset bits 0-15 and selector; bits 16-31 follow the gate's type. Test code lies below 4 GiB.
    this.storeA(2);
    this.shr(RAX, 16);
    this.movImm(RBX, gate + 6);
    this.storeA(2);
    this.movImm(RBX, gate + 2);
    this.movImm(RAX, CODE_SELECTOR | (INTERRUPT_GATE << 16));
    this.storeA(4);
    this.poke(gate + 8, 0);
    this.movImm(RBX, address - 10);
    this.movImm(RAX, 0xfff);
    this.storeA(2);
    this.movImm(RBX, address - 8);
    this.movImm(RAX, address);
    this.storeA(8);
    this.movImm(RAX, address - 10);
    this.lidt();
  }

  /** Maps 1 GiB at `gib` GiB to itself in the page tables that a kernel is entered with, through a table at `directory`. */
  mapGib(gib: number, directory: number): void {
    const loop = `map ${this.size}`;
    this.movImm(RBX, directory);
    this.movImm(RAX, gib * 2 ** 30 + PAGE_2M);
    this.movImm(RCX, 512);
    this.label(loop);
    this.storeA(8);
    this.addImm(RAX, 2 ** 21);
    this.addImm(RBX, 8);
    this.addImm(RCX, -1);
    this.jcc(CC_NE, loop);
    this.movImm(RBX, PDPTE_START + 8 * gib);
    this.movImm(RAX, directory | PAGE_TABLE);
    this.storeA(8);
  }

  /** Sends ASCII text through the serial port. */
  print(text: string): void {
    for (const byte of new TextEncoder().encode(text)) this.outPort(SERIAL_PORT_START, 1, byte);
  }

  /** Pulls the reset line of the i8042. */
  reset(): void {
    this.outPort(I8042_COMMAND_PORT, 1, 0xfe);
    this.spin();
  }

  /** Waits in HLT until the 32 bits at `counter` have reached `count`. Leaves interrupts off. */
  waitForCount(counter: number, count: number): void {
    const again = `wait ${this.size}`;
    const done = `waited ${this.size}`;
    this.label(again);
    this.cli();
    this.movImm(RBX, counter);
    this.load32(RAX, at(RBX));
    this.cmpImm(RAX, count);
    this.jcc(CC_AE, done);
    this.sti();
    this.hlt();
    this.jmp(again);
    this.label(done);
  }

  /** An interrupt handler at `label` that counts at `counter` (32 bits) and ends the interrupt. */
  countingHandler(label: string, counter: number): void {
    this.handler(label, counter, () => this.poke(APIC_EOI, 0));
  }

  /** The same for an interrupt that came through the PICs. */
  countingPicHandler(label: string, counter: number): void {
    this.handler(label, counter, () => {
      this.outPort(0xa0, 1, 0x20);
      this.outPort(0x20, 1, 0x20);
    });
  }

  private handler(label: string, counter: number, end: () => void): void {
    this.label(label);
    for (const register of [RAX, RBX, RDX]) this.push(register);
    this.movImm(RBX, counter);
    this.lockIncrement();
    end();
    for (const register of [RDX, RBX, RAX]) this.pop(register);
    this.iretq();
  }
}

function operandSize(size: number): number[] {
  return size === 2 ? [0x66] : [];
}
