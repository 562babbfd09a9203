/**
 * Where things lie in the guest-physical address space of an x86-64 microVM, in bytes.
 * The addresses are those of Firecracker, so that guests, debuggers and snapshots see the same machine.
 */

import { MMIO_GAP_START } from "../memory/guest-memory.ts";

/** Global descriptor table used at entry: 4 descriptors. */
export const GDT_START = 0x500;
/** Interrupt descriptor table used at entry: one empty descriptor. */
export const IDT_START = 0x520;
/** PVH: `hvm_start_info`, its module list and its memory map. */
export const PVH_INFO_START = 0x6000;
export const MODLIST_START = 0x6040;
export const MEMMAP_START = 0x7000;
/** Linux 64-bit protocol: `boot_params`, one page. */
export const ZERO_PAGE_START = 0x7000;
export const ZERO_PAGE_SIZE = 0x1000;
/** Initial RSP and RBP of the Linux 64-bit protocol. */
export const BOOT_STACK_POINTER = 0x8ff0;
/** Identity map of the first GiB in 2 MiB pages. */
export const PML4_START = 0x9000;
export const PDPTE_START = 0xa000;
export const PDE_START = 0xb000;
/** Size of that identity map: what the Linux 64-bit protocol lets a kernel touch at entry. */
export const IDENTITY_MAP_SIZE = 0x4000_0000;
/** Kernel command line, NUL-terminated; the size includes the NUL. */
export const CMDLINE_START = 0x2_0000;
export const CMDLINE_MAX_SIZE = 2048;

/** MP and ACPI tables. Reserved in the memory map up to 1 MiB. Base memory ends here (639 KiB). */
export const SYSTEM_MEM_START = 0x9_fc00;
/** ACPI root pointer: the start of the area a kernel searches for it (ACPI 6.5, 5.2.5.1). */
export const RSDP_ADDR = 0xe_0000;
/** First address at which a kernel may be loaded; RAM from here on is ordinary. */
export const HIMEM_START = 0x10_0000;

/** Boot timer: the guest writes 123 here when it has booted. */
export const BOOT_TIMER_START = MMIO_GAP_START;
/** First virtio-mmio window; each further device lies one window higher. */
export const VIRTIO_MMIO_START = 0xc000_1000;
export const VIRTIO_MMIO_SIZE = 0x1000;
/** PCI Express configuration space (ECAM), reserved even when PCI is off. */
export const PCI_MMCONFIG_START = 0xeec0_0000;
export const PCI_MMCONFIG_SIZE = 0x1000_0000;
export const IOAPIC_ADDR = 0xfec0_0000;
export const APIC_ADDR = 0xfee0_0000;

/** Global system interrupts a virtio-mmio device may use; both ends included. */
export const GSI_LEGACY_START = 5;
export const GSI_LEGACY_END = 23;
/** Input pins of the I/O APIC: GSI n is pin n. */
export const IOAPIC_PINS = 24;

export const SERIAL_PORT_START = 0x3f8;
export const SERIAL_PORT_SIZE = 8;
export const SERIAL_GSI = 4;
export const I8042_DATA_PORT = 0x60;
export const I8042_COMMAND_PORT = 0x64;
export const I8042_GSI = 1;
/** PM1 event and control block, and the SCI: used when ACPI is not hardware-reduced. */
export const PM1_EVENT_PORT = 0x600;
export const PM1_EVENT_SIZE = 4;
export const PM1_CONTROL_PORT = PM1_EVENT_PORT + PM1_EVENT_SIZE;
export const PM1_CONTROL_SIZE = 2;
/** No device has this one: 5 and up are the virtio devices', 4 the serial port's. */
export const SCI_GSI = 3;

/** Page size of the guest. */
export const PAGE_SIZE = 0x1000;
