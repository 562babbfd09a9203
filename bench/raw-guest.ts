/** Guests without a kernel of their own, as ELF files: a few instructions entered by the 64-bit Linux protocol. */

import { readFileSync, writeFileSync } from "node:fs";
import { makeElf } from "../src/boot/test-images.ts";
import { GuestCode, RAX, RCX, RDX } from "../tests/kvm/guest-code.ts";
import { CC_NE } from "../tests/oracle/asm.ts";

/** Where the code lies if there is nothing else: 2 MiB. */
const CODE = 0x20_0000;
const MIB = 2 ** 20;
const PHDR_SIZE = 56;
const PT_LOAD = 1;
/** A port without a device behind it (POST codes), so an access costs its exit and little more. */
export const IDLE_PORT = 0x80;

/** Says `text` on the serial port; then sleeps for good. */
export function saysAndSleeps(text: string): GuestCode {
  const guest = new GuestCode();
  guest.print(text);
  guest.cli();
  guest.label("sleep");
  guest.hlt();
  guest.jmp("sleep");
  return guest;
}

/** Says `text` on the serial port and resets: the monitor ends. */
export function saysAndResets(text: string): GuestCode {
  const guest = new GuestCode();
  guest.print(text);
  guest.reset();
  return guest;
}

/** Says `text`, then uses its processor without ever leaving the guest. */
export function saysAndSpins(text: string): GuestCode {
  const guest = new GuestCode();
  guest.print(text);
  guest.spin();
  return guest;
}

/** Says `a`, writes `count` times to {@link IDLE_PORT}, says `b`, and resets. */
export function writesPort(count: number): GuestCode {
  const guest = new GuestCode();
  guest.print("a");
  guest.movImm(RCX, count);
  guest.movImm(RDX, IDLE_PORT);
  guest.movImm(RAX, 0);
  guest.label("again");
  guest.outDx(1);
  guest.addImm(RCX, -1);
  guest.jcc(CC_NE, "again");
  guest.print("b");
  guest.reset();
  return guest;
}

/** Writes the guest as an ELF file of its own. */
export function writeGuest(path: string, guest: GuestCode): void {
  writeFileSync(path, makeElf(CODE, [{ gpa: CODE, data: guest.assemble(CODE), align: 1 }]));
}

/** Writes a copy of the kernel `vmlinux` that is entered at the guest's code, which is loaded behind the kernel. */
export function writeGuestInKernel(path: string, vmlinux: string, guest: GuestCode): void {
  const kernel = readFileSync(vmlinux);
  const headers: Buffer[] = [];
  let end = 0;
  const table = Number(kernel.readBigUInt64LE(32));
  for (let i = 0; i < kernel.readUInt16LE(56); i++) {
    const header = kernel.subarray(table + i * PHDR_SIZE, table + (i + 1) * PHDR_SIZE);
    // Without its notes, which name a PVH entry.
    if (header.readUInt32LE(0) !== PT_LOAD) continue;
    headers.push(header);
    end = Math.max(end, Number(header.readBigUInt64LE(24) + header.readBigUInt64LE(40)));
  }
  const gpa = Math.ceil(end / MIB) * MIB;
  const code = guest.assemble(gpa);
  const added = Buffer.alloc(PHDR_SIZE);
  added.writeUInt32LE(PT_LOAD, 0);
  added.writeBigUInt64LE(BigInt(kernel.length), 8);
  added.writeBigUInt64LE(BigInt(gpa), 24);
  added.writeBigUInt64LE(BigInt(code.length), 32);
  added.writeBigUInt64LE(BigInt(code.length), 40);
  added.writeBigUInt64LE(1n, 48);
  kernel.writeBigUInt64LE(BigInt(gpa), 24);
  kernel.writeBigUInt64LE(BigInt(kernel.length + code.length), 32);
  kernel.writeUInt16LE(headers.length + 1, 56);
  writeFileSync(path, Buffer.concat([kernel, code, ...headers, added]));
}
