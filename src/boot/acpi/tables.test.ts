import { expect, test } from "bun:test";
import type { GuestMemory } from "../../memory/guest-memory.ts";
import { TableArea } from "../table-area.ts";
import { guardedMemory, MIB } from "../test-images.ts";
import { writeAcpiTables } from "./tables.ts";

const RSDP = 0xe_0000;

function sum(bytes: Uint8Array): number {
  return bytes.reduce((a, b) => (a + b) & 0xff, 0);
}

function text(bytes: Uint8Array): string {
  return String.fromCharCode(...bytes);
}

/** The table at `gpa`, after checking its header. */
function table(memory: GuestMemory, gpa: number, signature: string): Uint8Array {
  const bytes = memory.slice(gpa, memory.readU32(gpa + 4));
  expect(text(bytes.subarray(0, 4))).toBe(signature);
  expect(sum(bytes)).toBe(0);
  expect(text(bytes.subarray(10, 16))).toBe("SPARKL");
  return bytes;
}

function devices(count: number) {
  return Array.from({ length: count }, (_, i) => ({
    gpa: 0xc000_1000 + i * 0x1000,
    size: 0x1000,
    gsi: 5 + i,
  }));
}

/** Follows the pointers from the RSDP, as a kernel does. */
function build(vcpus: number, deviceCount: number, hardwareReduced = true) {
  const { memory } = guardedMemory(2 * MIB);
  const virtioDevices = devices(deviceCount);
  writeAcpiTables(memory, new TableArea(memory), { rsdp: RSDP, vcpus, virtioDevices, hardwareReduced });
  const rsdp = memory.slice(RSDP, 36);
  expect(text(rsdp.subarray(0, 8))).toBe("RSD PTR ");
  expect(sum(rsdp.subarray(0, 20))).toBe(0);
  expect(sum(rsdp)).toBe(0);
  expect(rsdp[15]).toBe(2);
  const xsdtAt = Number(memory.readU64(RSDP + 24));
  expect(table(memory, xsdtAt, "XSDT").length).toBe(36 + 2 * 8);
  const fadt = table(memory, Number(memory.readU64(xsdtAt + 36)), "FACP");
  const madt = table(memory, Number(memory.readU64(xsdtAt + 44)), "APIC");
  const view = new DataView(fadt.buffer, fadt.byteOffset, fadt.length);
  const dsdt = table(memory, Number(view.getBigUint64(140, true)), "DSDT");
  return { fadt: view, madt, dsdt };
}

test("RSDP, XSDT, FADT, MADT and DSDT are linked and checksummed", () => {
  const { fadt, dsdt } = build(1, 2);
  expect(fadt.byteLength).toBe(276);
  // Hardware-reduced, no fixed power and sleep buttons.
  expect(fadt.getUint32(112, true)).toBe((1 << 20) | (1 << 5) | (1 << 4));
  // 8042, no VGA, no MSI, no ASPM, no CMOS RTC.
  expect(fadt.getUint16(109, true)).toBe(0b11_1110);
  const names = text(dsdt);
  for (const part of ["COM1", "PS2_", "V000", "V001", "LNRO0005"]) expect(names).toContain(part);
  expect(names).not.toContain("V002");
});

test("a platform that is not hardware-reduced has PM1 registers and an SCI", () => {
  const reduced = build(1, 1).fadt;
  for (const field of [46, 56, 64, 88, 148, 172]) expect(reduced.getUint16(field, true)).toBe(0);
  const { fadt } = build(1, 1, false);
  expect(fadt.getUint32(112, true)).toBe((1 << 5) | (1 << 4));
  expect(fadt.getUint16(46, true)).toBe(3);
  // Event block: 4 bytes at port 0x600; control block: 2 bytes behind it. Each as a port and as a generic address.
  expect([fadt.getUint32(56, true), fadt.getUint8(88)]).toEqual([0x600, 4]);
  expect([fadt.getUint32(64, true), fadt.getUint8(89)]).toEqual([0x604, 2]);
  const address = (at: number) => [
    fadt.getUint8(at),
    fadt.getUint8(at + 1),
    Number(fadt.getBigUint64(at + 4, true)),
  ];
  expect(address(148)).toEqual([1, 32, 0x600]);
  expect(address(172)).toEqual([1, 16, 0x604]);
  // No SMI command port (ACPI mode always), no PM timer, no general-purpose events.
  for (const field of [48, 76, 80, 84]) expect(fadt.getUint32(field, true)).toBe(0);
});

test("the MADT lists one I/O APIC and every vCPU", () => {
  const { madt } = build(3, 0);
  expect([...madt.subarray(36, 44)]).toEqual([0, 0, 0xe0, 0xfe, 0, 0, 0, 0]);
  expect([...madt.subarray(44, 56)]).toEqual([1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
  for (let id = 0; id < 3; id++) {
    expect([...madt.subarray(56 + id * 8, 64 + id * 8)]).toEqual([0, 8, id, id, 1, 0, 0, 0]);
  }
  expect(madt.length).toBe(56 + 3 * 8);
});

test("the largest machine fits", () => {
  const { madt, dsdt } = build(253, 19);
  expect(madt.length).toBe(56 + 253 * 8);
  expect(text(dsdt)).toContain("V018");
});

test("a full table area is an error", () => {
  const { memory } = guardedMemory(2 * MIB);
  const area = new TableArea(memory);
  area.place(new Uint8Array(0x4_0000));
  expect(() => area.place(new Uint8Array(0x401))).toThrow("do not fit below 0xe0000");
});
