/**
 * The MP table (Intel MultiProcessor Specification 1.4), for kernels built without ACPI. A kernel looks for it
 * in the last KiB of base memory, so it must be the first table of the area.
 */

import { APIC_ADDR, IOAPIC_ADDR, IOAPIC_PINS } from "./layout.ts";
import { checksum, type TableArea } from "./table-area.ts";

const OEM_ID = "SPARKLER";
const PRODUCT_ID = "000000000000";
const MP_SPEC_1_4 = 4;

const FLOATING_POINTER_SIZE = 16;
const CHECKSUM_FLOATING_POINTER = 10;
const CHECKSUM_HEADER = 7;
const HEADER_LENGTH = 4;

/** Entry types (section 4.3). */
const ENTRY_PROCESSOR = 0;
const ENTRY_BUS = 1;
const ENTRY_IOAPIC = 2;
const ENTRY_IO_INTERRUPT = 3;
const ENTRY_LOCAL_INTERRUPT = 4;

const CPU_ENABLED = 1 << 0;
const CPU_BOOT = 1 << 1;
/** CPU signature and feature flags: family 6; on-chip FPU and APIC. Kernels read CPUID instead. */
const CPU_SIGNATURE = 0x600;
const CPU_FEATURES = 0x201;
const APIC_VERSION = 0x14;
const IOAPIC_ENABLED = 1;

/** Interrupt types (table 4-11). Flags 0: polarity and trigger of the bus, which for ISA is edge, active high. */
const INT_VECTORED = 0;
const INT_NMI = 1;
const INT_EXTINT = 3;
const ISA_BUS = 0;
const ALL_LOCAL_APICS = 0xff;

/** Writes the floating pointer and the table for `vcpus` processors (1 to 254, APIC ids from 0). */
export function writeMpTable(area: TableArea, vcpus: number): void {
  const table = mpConfigurationTable(vcpus);
  const pointer = new Uint8Array(FLOATING_POINTER_SIZE);
  const view = new DataView(pointer.buffer);
  putAscii(pointer, 0, "_MP_");
  view.setUint32(4, area.position + FLOATING_POINTER_SIZE, true);
  pointer[8] = FLOATING_POINTER_SIZE / 16;
  pointer[9] = MP_SPEC_1_4;
  pointer[CHECKSUM_FLOATING_POINTER] = checksum(pointer);
  const both = new Uint8Array(pointer.length + table.length);
  both.set(pointer);
  both.set(table, pointer.length);
  area.place(both);
}

function mpConfigurationTable(vcpus: number): Uint8Array {
  const ioapicId = vcpus + 1;
  const entries: number[][] = [];
  for (let id = 0; id < vcpus; id++) {
    const flags = id === 0 ? CPU_ENABLED | CPU_BOOT : CPU_ENABLED;
    entries.push([
      ENTRY_PROCESSOR,
      id,
      APIC_VERSION,
      flags,
      ...u32(CPU_SIGNATURE),
      ...u32(CPU_FEATURES),
      ...u32(0),
      ...u32(0),
    ]);
  }
  entries.push([ENTRY_BUS, ISA_BUS, ...ascii("ISA   ")]);
  entries.push([ENTRY_IOAPIC, ioapicId, APIC_VERSION, IOAPIC_ENABLED, ...u32(IOAPIC_ADDR)]);
  for (let pin = 0; pin < IOAPIC_PINS; pin++) {
    entries.push([ENTRY_IO_INTERRUPT, INT_VECTORED, 0, 0, ISA_BUS, pin, ioapicId, pin]);
  }
  entries.push([ENTRY_LOCAL_INTERRUPT, INT_EXTINT, 0, 0, ISA_BUS, 0, 0, 0]);
  entries.push([ENTRY_LOCAL_INTERRUPT, INT_NMI, 0, 0, ISA_BUS, 0, ALL_LOCAL_APICS, 1]);

  const header = [
    ...ascii("PCMP"),
    ...[0, 0],
    ...[MP_SPEC_1_4, 0],
    ...ascii(OEM_ID),
    ...ascii(PRODUCT_ID),
    ...u32(0),
    ...[0, 0],
    ...[entries.length & 0xff, entries.length >> 8],
    ...u32(APIC_ADDR),
    ...u32(0),
  ];
  const table = new Uint8Array([...header, ...entries.flat()]);
  new DataView(table.buffer).setUint16(HEADER_LENGTH, table.length, true);
  table[CHECKSUM_HEADER] = checksum(table);
  return table;
}

function u32(value: number): number[] {
  return [value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24];
}

function ascii(text: string): number[] {
  return [...text].map((c) => c.charCodeAt(0));
}

function putAscii(into: Uint8Array, at: number, text: string): void {
  into.set(ascii(text), at);
}
