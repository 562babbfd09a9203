/**
 * The ACPI tables of a microVM (ACPI 6.5, chapter 5), which has no sleep states and no events of fixed hardware:
 * hardware-reduced, or with the PM1 registers and the SCI that any other platform must have.
 */

import type { GuestMemory } from "../../memory/guest-memory.ts";
import {
  APIC_ADDR,
  IOAPIC_ADDR,
  PM1_CONTROL_PORT,
  PM1_CONTROL_SIZE,
  PM1_EVENT_PORT,
  PM1_EVENT_SIZE,
  SCI_GSI,
} from "../layout.ts";
import { checksum, type TableArea } from "../table-area.ts";
import type { VirtioMmioRange } from "../virtio-range.ts";
import { dsdtBody } from "./dsdt.ts";

const OEM_ID = "SPARKL";
const OEM_REVISION = 0;
const CREATOR_ID = "SPKL";
const CREATOR_REVISION = 1;
const HYPERVISOR_VENDOR_ID = "SPARKLVM";

/** System description table header (5.2.6). */
const SDT_HEADER_SIZE = 36;
const SDT_LENGTH = 4;
const SDT_REVISION = 8;
const SDT_CHECKSUM = 9;
const SDT_OEM_ID = 10;
const SDT_OEM_TABLE_ID = 16;
const SDT_OEM_REVISION = 24;
const SDT_CREATOR_ID = 28;
const SDT_CREATOR_REVISION = 32;

/** RSDP (5.2.5.3). */
const RSDP_SIZE = 36;
const RSDP_V1_SIZE = 20;
const RSDP_CHECKSUM = 8;
const RSDP_OEM_ID = 9;
const RSDP_REVISION = 15;
const RSDP_LENGTH = 20;
const RSDP_XSDT_ADDRESS = 24;
const RSDP_EXTENDED_CHECKSUM = 32;

/** FADT (5.2.9). Fields left at 0 are ignored on a hardware-reduced platform, or say "not there". */
const FADT_SIZE = 276;
const FADT_SCI_INT = 46;
const FADT_PM1A_EVT_BLK = 56;
const FADT_PM1A_CNT_BLK = 64;
const FADT_PM1_EVT_LEN = 88;
const FADT_PM1_CNT_LEN = 89;
const FADT_IAPC_BOOT_ARCH = 109;
const FADT_FLAGS = 112;
const FADT_MINOR_VERSION = 131;
const FADT_X_DSDT = 140;
const FADT_X_PM1A_EVT_BLK = 148;
const FADT_X_PM1A_CNT_BLK = 172;
const FADT_HYPERVISOR_VENDOR_ID = 268;
/** Generic address structure (table 5.1). */
const GAS_BIT_WIDTH = 1;
const GAS_ADDRESS = 4;
const GAS_SYSTEM_IO = 1;
/** Fixed feature flags (table 5.10). The button bits say that there is no such button in fixed hardware. */
const FADT_PWR_BUTTON = 1 << 4;
const FADT_SLP_BUTTON = 1 << 5;
const FADT_HW_REDUCED_ACPI = 1 << 20;
/** IA-PC boot architecture flags (table 5.11). */
const IAPC_8042 = 1 << 1;
const IAPC_VGA_NOT_PRESENT = 1 << 2;
const IAPC_MSI_NOT_SUPPORTED = 1 << 3;
const IAPC_PCIE_ASPM_CONTROLS = 1 << 4;
const IAPC_CMOS_RTC_NOT_PRESENT = 1 << 5;

/** MADT (5.2.12). */
const MADT_LOCAL_APIC = 0;
const MADT_LOCAL_APIC_SIZE = 8;
const MADT_LOCAL_APIC_ENABLED = 1;
const MADT_IO_APIC = 1;
const MADT_IO_APIC_SIZE = 12;
const MADT_HEADER_SIZE = 8;

const DSDT_REVISION = 2;
const FADT_REVISION = 6;
const MADT_REVISION = 6;
const XSDT_REVISION = 1;
const RSDP_REVISION_2 = 2;

export interface AcpiConfig {
  /** Guest-physical address for the RSDP. */
  readonly rsdp: number;
  /** 1 to 254; APIC id n belongs to vCPU n. */
  readonly vcpus: number;
  readonly virtioDevices: readonly VirtioMmioRange[];
  /**
   * True: as Firecracker. The guest then takes it that there is no PIC and no interval timer, whatever the machine
   * has (Linux: acpi_generic_reduced_hw_init).
   */
  readonly hardwareReduced: boolean;
}

/** Writes DSDT, FADT, MADT and XSDT to `area`, and the RSDP. Throws BootError if the area is too small. */
export function writeAcpiTables(memory: GuestMemory, area: TableArea, config: AcpiConfig): void {
  const dsdt = area.place(sdt("DSDT", DSDT_REVISION, new Uint8Array(dsdtBody(config.virtioDevices))));
  const fadt = area.place(sdt("FACP", FADT_REVISION, fadtBody(dsdt, config.hardwareReduced)));
  const madt = area.place(sdt("APIC", MADT_REVISION, madtBody(config.vcpus)));
  const xsdt = area.place(sdt("XSDT", XSDT_REVISION, xsdtBody([fadt, madt])));
  memory.write(config.rsdp, rsdp(xsdt));
}

/** A table: header with the right length and checksum, then `body`. */
export function sdt(signature: string, revision: number, body: Uint8Array): Uint8Array {
  const table = new Uint8Array(SDT_HEADER_SIZE + body.length);
  const view = new DataView(table.buffer);
  putAscii(table, 0, signature);
  view.setUint32(SDT_LENGTH, table.length, true);
  table[SDT_REVISION] = revision;
  putAscii(table, SDT_OEM_ID, OEM_ID);
  putAscii(table, SDT_OEM_TABLE_ID, `${CREATOR_ID}${signature}`);
  view.setUint32(SDT_OEM_REVISION, OEM_REVISION, true);
  putAscii(table, SDT_CREATOR_ID, CREATOR_ID);
  view.setUint32(SDT_CREATOR_REVISION, CREATOR_REVISION, true);
  table.set(body, SDT_HEADER_SIZE);
  table[SDT_CHECKSUM] = checksum(table);
  return table;
}

function fadtBody(dsdt: number, hardwareReduced: boolean): Uint8Array {
  const body = new Uint8Array(FADT_SIZE - SDT_HEADER_SIZE);
  const view = new DataView(body.buffer);
  // The field offsets of the specification count from the start of the header.
  const at = (offset: number) => offset - SDT_HEADER_SIZE;
  view.setUint16(
    at(FADT_IAPC_BOOT_ARCH),
    IAPC_8042 |
      IAPC_VGA_NOT_PRESENT |
      IAPC_MSI_NOT_SUPPORTED |
      IAPC_PCIE_ASPM_CONTROLS |
      IAPC_CMOS_RTC_NOT_PRESENT,
    true,
  );
  const reduced = hardwareReduced ? FADT_HW_REDUCED_ACPI : 0;
  view.setUint32(at(FADT_FLAGS), FADT_PWR_BUTTON | FADT_SLP_BUTTON | reduced, true);
  if (!hardwareReduced) {
    const block = (field: number, extended: number, length: number, port: number, bytes: number) => {
      view.setUint32(at(field), port, true);
      body[at(length)] = bytes;
      body[at(extended)] = GAS_SYSTEM_IO;
      body[at(extended + GAS_BIT_WIDTH)] = 8 * bytes;
      view.setBigUint64(at(extended + GAS_ADDRESS), BigInt(port), true);
    };
    view.setUint16(at(FADT_SCI_INT), SCI_GSI, true);
    block(FADT_PM1A_EVT_BLK, FADT_X_PM1A_EVT_BLK, FADT_PM1_EVT_LEN, PM1_EVENT_PORT, PM1_EVENT_SIZE);
    block(FADT_PM1A_CNT_BLK, FADT_X_PM1A_CNT_BLK, FADT_PM1_CNT_LEN, PM1_CONTROL_PORT, PM1_CONTROL_SIZE);
  }
  body[at(FADT_MINOR_VERSION)] = 5;
  view.setBigUint64(at(FADT_X_DSDT), BigInt(dsdt), true);
  putAscii(body, at(FADT_HYPERVISOR_VENDOR_ID), HYPERVISOR_VENDOR_ID);
  return body;
}

/**
 * One I/O APIC that takes GSIs from 0, and a local APIC per vCPU. There are no interrupt source overrides:
 * ISA interrupts are edge-triggered and active high, and map to the GSI of the same number, as they should.
 */
function madtBody(vcpus: number): Uint8Array {
  const body = new Uint8Array(MADT_HEADER_SIZE + MADT_IO_APIC_SIZE + vcpus * MADT_LOCAL_APIC_SIZE);
  const view = new DataView(body.buffer);
  view.setUint32(0, APIC_ADDR, true);
  let at = MADT_HEADER_SIZE;
  body.set([MADT_IO_APIC, MADT_IO_APIC_SIZE], at);
  view.setUint32(at + 4, IOAPIC_ADDR, true);
  at += MADT_IO_APIC_SIZE;
  for (let id = 0; id < vcpus; id++) {
    body.set([MADT_LOCAL_APIC, MADT_LOCAL_APIC_SIZE, id, id], at);
    view.setUint32(at + 4, MADT_LOCAL_APIC_ENABLED, true);
    at += MADT_LOCAL_APIC_SIZE;
  }
  return body;
}

function xsdtBody(tables: readonly number[]): Uint8Array {
  const body = new Uint8Array(tables.length * 8);
  const view = new DataView(body.buffer);
  tables.forEach((gpa, i) => {
    view.setBigUint64(i * 8, BigInt(gpa), true);
  });
  return body;
}

function rsdp(xsdt: number): Uint8Array {
  const bytes = new Uint8Array(RSDP_SIZE);
  const view = new DataView(bytes.buffer);
  putAscii(bytes, 0, "RSD PTR ");
  putAscii(bytes, RSDP_OEM_ID, OEM_ID);
  bytes[RSDP_REVISION] = RSDP_REVISION_2;
  view.setUint32(RSDP_LENGTH, RSDP_SIZE, true);
  view.setBigUint64(RSDP_XSDT_ADDRESS, BigInt(xsdt), true);
  bytes[RSDP_CHECKSUM] = checksum(bytes.subarray(0, RSDP_V1_SIZE));
  bytes[RSDP_EXTENDED_CHECKSUM] = checksum(bytes);
  return bytes;
}

function putAscii(into: Uint8Array, at: number, text: string): void {
  for (let i = 0; i < text.length; i++) into[at + i] = text.charCodeAt(i);
}
