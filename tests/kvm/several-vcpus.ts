/** Guests of several vCPUs: the first starts the others, and they answer its interrupts. */

import { at, CC_B, CC_NE } from "../oracle/asm.ts";
import { type GuestCode, RAX, RBX, RCX, RDI, RDX, RSI } from "./guest-code.ts";

const IDT = 0x22_0000;
const COUNTER = 0x23_0000;
const VECTOR = 0x41;

/** MSRs of the local APIC in x2APIC mode. */
const IA32_X2APIC_EOI = 0x80b;
const IA32_X2APIC_SIVR = 0x80f;
const IA32_X2APIC_ICR = 0x830;

/** Where the others start, and what all share. A startup IPI names the page. */
const START_PAGE = 8;
const STARTED = 0x6000;
const PINGS = 0x6004;
const IPI_VECTOR = 0x50;

/**
 * vCPU 0 starts vCPU 1 in real mode and then sends it interrupts; vCPU 1 counts each and answers by one, which vCPU
 * 0 waits for. After `rounds` it resets; without that it goes on for ever and prints a dot for each.
 */
export function pingPong(guest: GuestCode, rounds?: number): void {
  startOthers(guest, 1);
  if (rounds === undefined) {
    guest.label("round");
    guest.poke(COUNTER, 0);
    interrupt(guest, 1);
    guest.waitForCount(COUNTER, 1);
    guest.print(".");
    guest.jmp("round");
  } else {
    for (let round = 1; round <= rounds; round++) {
      interrupt(guest, 1);
      guest.waitForCount(COUNTER, round);
    }
    checkPings(guest, rounds);
  }
  handlers(guest);
}

/** vCPU 0 starts vCPUs 1 to `others`, all at once, and then has an answer from each. */
export function pingEach(guest: GuestCode, others: number): void {
  startOthers(guest, others);
  for (let vcpu = 1; vcpu <= others; vcpu++) {
    interrupt(guest, vcpu);
    guest.waitForCount(COUNTER, vcpu);
  }
  checkPings(guest, others);
  handlers(guest);
}

function writeMsr(guest: GuestCode, msr: number, high: number, low: number): void {
  guest.movImm(RCX, msr);
  guest.movImm(RDX, high);
  guest.movImm(RAX, low);
  guest.wrmsr();
}

function interrupt(guest: GuestCode, vcpu: number): void {
  writeMsr(guest, IA32_X2APIC_ICR, vcpu, 0x4000 | IPI_VECTOR);
}

/** Starts vCPUs 1 to `count`, waits until they have said so, and prints it. */
function startOthers(guest: GuestCode, count: number): void {
  guest.outPort(0x21, 1, 0xff);
  guest.outPort(0xa1, 1, 0xff);
  guest.loadIdt(IDT, VECTOR, "handler");
  // x2APIC mode: IA32_APIC_BASE bits 10 and 11, and this is the boot processor (8).
  writeMsr(guest, 0x1b, 0, 0xfee0_0d00);
  writeMsr(guest, IA32_X2APIC_SIVR, 0, 0x1ff);

  // Copies the others' code, and points their interrupt table at the handler in it.
  guest.lea(RSI, { label: "other", disp: 0 });
  guest.movImm(RDI, START_PAGE * 0x1000);
  guest.movImm(RCX, OTHER_VCPU.length);
  guest.repMovsb();
  guest.poke(IPI_VECTOR * 4, START_PAGE * 0x1000 + OTHER_VCPU_HANDLER);
  guest.poke(STARTED, 0);
  guest.poke(PINGS, 0);

  for (let vcpu = 1; vcpu <= count; vcpu++) {
    writeMsr(guest, IA32_X2APIC_ICR, vcpu, 0x4500); // INIT
    writeMsr(guest, IA32_X2APIC_ICR, vcpu, 0x4600 | START_PAGE); // startup IPI
  }
  guest.label("wait for the others");
  guest.pause();
  guest.movImm(RBX, STARTED);
  guest.load32(RAX, at(RBX));
  guest.cmpImm(RAX, count);
  guest.jcc(CC_B, "wait for the others");
  guest.print("started ");
}

/** Says that it is done, if the others have had so many interrupts, and resets. */
function checkPings(guest: GuestCode, count: number): void {
  guest.movImm(RBX, PINGS);
  guest.load32(RAX, at(RBX));
  guest.cmpImm(RAX, count);
  guest.jcc(CC_NE, "end");
  guest.print("done\n");
  guest.label("end");
  guest.reset();
}

/** What runs on interrupts, and the code of the others. */
function handlers(guest: GuestCode): void {
  guest.label("handler");
  for (const register of [RAX, RBX, RCX, RDX]) guest.push(register);
  guest.movImm(RBX, COUNTER);
  guest.lockIncrement();
  writeMsr(guest, IA32_X2APIC_EOI, 0, 0);
  for (const register of [RDX, RCX, RBX, RAX]) guest.pop(register);
  guest.iretq();
  guest.label("other");
  guest.raw(...OTHER_VCPU);
}

/** `mov ecx, msr; mov eax, low; xor edx, edx; wrmsr` in 16-bit code. */
function writeMsr16(msr: number, low: number): number[] {
  const u32 = (value: number) => [value & 0xff, (value >> 8) & 0xff, (value >> 16) & 0xff, value >>> 24];
  return [0x66, 0xb9, ...u32(msr), 0x66, 0xb8, ...u32(low), 0x66, 0x31, 0xd2, 0x0f, 0x30];
}

const OTHER_VCPU_START = [
  ...[0xfa], // cli
  ...[0x31, 0xc0], // xor ax, ax
  ...[0x8e, 0xd8], // mov ds, ax
  ...[0x8e, 0xd0], // mov ss, ax
  ...[0xbc, 0x00, 0x78], // mov sp, 0x7800
  ...writeMsr16(0x1b, 0xfee0_0c00),
  ...writeMsr16(IA32_X2APIC_SIVR, 0x1ff),
  ...[0xf0, 0x66, 0xff, 0x06, STARTED & 0xff, STARTED >> 8], // lock inc dword [STARTED]
  ...[0xfb, 0xf4, 0xeb, 0xfc], // sti; hlt; jmp to sti
];
const OTHER_VCPU_HANDLER = OTHER_VCPU_START.length;
const OTHER_VCPU = [
  ...OTHER_VCPU_START,
  ...[0xf0, 0x66, 0xff, 0x06, PINGS & 0xff, PINGS >> 8], // lock inc dword [PINGS]
  ...writeMsr16(IA32_X2APIC_EOI, 0),
  ...writeMsr16(IA32_X2APIC_ICR, 0x4000 | VECTOR), // to vCPU 0
  ...[0xcf], // iret
];
