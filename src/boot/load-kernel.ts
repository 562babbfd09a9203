/** Puts a kernel and all it needs to start into guest RAM. */

import type { BootRegisters } from "../hypervisor/types.ts";
import type { GuestMemory } from "../memory/guest-memory.ts";
import { writeAcpiTables } from "./acpi/tables.ts";
import { BootError, hex } from "./boot-error.ts";
import { type ByteSource, readExact } from "./byte-source.ts";
import { isBzImage, loadBzImage, SETUP_HEADER_LIMIT } from "./bzimage.ts";
import { encodeCommandLine, withoutIoApic } from "./cmdline.ts";
import { ELF_MAGIC, loadElf } from "./elf.ts";
import { type LoadedInitrd, loadInitrd } from "./initrd.ts";
import { type BootProtocol, kernelError, type LoadedKernel } from "./kernel-image.ts";
import { CMDLINE_START, HIMEM_START, RSDP_ADDR } from "./layout.ts";
import { writeMpTable } from "./mptable.ts";
import { writePvhInfo } from "./pvh.ts";
import { bootRegisters, writeBootTables } from "./registers.ts";
import { TableArea } from "./table-area.ts";
import { checkVirtioRanges, type VirtioMmioRange } from "./virtio-range.ts";
import { writeZeroPage } from "./zero-page.ts";

/** An 8-bit APIC id, of which 255 means all, and one more for the I/O APIC. */
const MAX_VCPUS = 253;
/** The RSDP is searched for on 16-byte boundaries (ACPI 6.5, 5.2.5.1), and is 36 bytes long. */
const RSDP_ALIGNMENT = 16;
const RSDP_LIMIT = HIMEM_START - 48;

export interface BootOptions {
  /** The finished command line, without NUL (see `buildCommandLine`). Printable ASCII, at most 2047 bytes. */
  readonly cmdline: string;
  readonly initrd?: ByteSource | undefined;
  /** Number of vCPUs, 1 to 253. vCPU n has APIC id n. */
  readonly vcpus: number;
  /** Devices to describe in the DSDT, as `V000`, `V001`, ... in this order. */
  readonly virtioDevices: readonly VirtioMmioRange[];
  /** Guest-physical address for the ACPI root pointer, 0xe0000 by default; 0: no ACPI tables. */
  readonly rsdp?: number | undefined;
  /** Enters the kernel by this protocol whatever its file suggests. */
  readonly protocol?: BootProtocol | undefined;
}

/** A microVM ready to enter its kernel. Addresses are guest-physical. */
export interface BootState {
  readonly protocol: BootProtocol;
  readonly entry: number;
  /** For the boot vCPU. The others wait for the kernel's startup IPI. */
  readonly registers: BootRegisters;
  readonly initrd: LoadedInitrd | undefined;
}

/**
 * Loads a vmlinux or bzImage, then writes initrd, command line, MP and ACPI tables, the protocol's own
 * structures, GDT and page tables. `memory` must be fresh (zeroed). Throws {@link BootError}, which says what is
 * wrong with which of the inputs; guest RAM is then undefined.
 */
export function loadKernel(memory: GuestMemory, source: ByteSource, options: BootOptions): BootState {
  const { vcpus, virtioDevices, rsdp = RSDP_ADDR } = options;
  checkMachine(memory, vcpus, virtioDevices, rsdp);
  const kernel = loadImage(memory, source, options.protocol);
  const setup = kernel.setup?.header;

  const cmdline = encodeCommandLine(options.cmdline, setup?.cmdlineSize);
  memory.write(CMDLINE_START, cmdline);
  const initrd =
    options.initrd === undefined
      ? undefined
      : loadInitrd(memory, options.initrd, kernel.end, setup?.initrdAddrMax ?? Number.POSITIVE_INFINITY);

  const area = new TableArea(memory);
  writeMpTable(area, vcpus);
  if (rsdp !== 0) {
    // A hardware-reduced machine has no PIC, so a kernel that shall not use the I/O APIC would have no interrupts.
    const hardwareReduced = !withoutIoApic(options.cmdline);
    writeAcpiTables(memory, area, { rsdp, vcpus, virtioDevices, hardwareReduced });
  }

  if (kernel.protocol === "pvh") {
    writePvhInfo(memory, { cmdline: CMDLINE_START, initrd, rsdp });
  } else {
    writeZeroPage(memory, { kernel, cmdline: { gpa: CMDLINE_START, size: cmdline.length }, initrd, rsdp });
  }
  writeBootTables(memory, kernel.protocol);
  return {
    protocol: kernel.protocol,
    entry: kernel.entry,
    registers: bootRegisters(kernel.protocol, kernel.entry),
    initrd,
  };
}

function checkMachine(
  memory: GuestMemory,
  vcpus: number,
  virtioDevices: readonly VirtioMmioRange[],
  rsdp: number,
): void {
  if (!Number.isInteger(vcpus) || vcpus < 1 || vcpus > MAX_VCPUS) {
    throw new BootError("machine", `${vcpus} vCPUs. Give 1 to ${MAX_VCPUS}.`);
  }
  if (rsdp !== 0 && !(rsdp % RSDP_ALIGNMENT === 0 && rsdp >= RSDP_ADDR && rsdp <= RSDP_LIMIT)) {
    throw new BootError(
      "machine",
      `the RSDP cannot lie at ${hex(rsdp)}. Give a multiple of 16 from ${hex(RSDP_ADDR)} to ${hex(RSDP_LIMIT)}.`,
    );
  }
  checkVirtioRanges(memory, virtioDevices);
}

function loadImage(
  memory: GuestMemory,
  source: ByteSource,
  protocol: BootProtocol | undefined,
): LoadedKernel {
  if (source.size === 0) throw kernelError("the kernel file is empty. Check kernel_image_path.");
  const head = new Uint8Array(Math.min(source.size, SETUP_HEADER_LIMIT));
  readExact(source, 0, head, "kernel");
  const view = new DataView(head.buffer);
  if (head.length >= 4 && view.getUint32(0, true) === ELF_MAGIC) return loadElf(memory, source, protocol);
  if (!isBzImage(head)) throw notAKernel(head);
  if (protocol === "pvh") {
    throw kernelError("a bzImage cannot be entered by PVH. Give the vmlinux, or use the linux64 protocol.");
  }
  return loadBzImage(memory, source);
}

/** Names what the file seems to be instead, for the files people give by mistake. */
function notAKernel(head: Uint8Array): BootError {
  const startsWith = (...bytes: number[]) => bytes.every((b, i) => head[i] === b);
  const compressed = startsWith(0x1f, 0x8b)
    ? "gzip"
    : startsWith(0xfd, 0x37, 0x7a, 0x58, 0x5a)
      ? "xz"
      : startsWith(0x28, 0xb5, 0x2f, 0xfd)
        ? "zstd"
        : undefined;
  if (compressed !== undefined) {
    return kernelError(`the file is ${compressed}-compressed. Decompress it first.`);
  }
  return kernelError(
    "the file is neither an ELF vmlinux nor a bzImage. Give a complete x86_64 Linux kernel image.",
  );
}
