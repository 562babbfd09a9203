/** The kernel command line. */

import { BootError, hex } from "./boot-error.ts";
import { CMDLINE_MAX_SIZE } from "./layout.ts";
import type { VirtioMmioRange } from "./virtio-range.ts";

/** What the kernel gets when the user gives no `boot_args`. No serial console: it costs boot time. */
export const DEFAULT_BOOT_ARGS =
  "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce";

/** Ends the kernel's own arguments; what follows goes to init (kernel-parameters.rst). */
const INIT_ARGS_SEPARATOR = "--";

/** Arguments with which Linux leaves the I/O APIC alone and has its interrupts from the PIC (kernel-parameters.rst). */
const WITHOUT_IO_APIC: ReadonlySet<string> = new Set([
  "noapic",
  "nolapic",
  "disableapic",
  "nosmp",
  "maxcpus=0",
  "acpi=noirq",
]);

const KIB = 1024;
const PRINTABLE_ASCII = /^[ -~]*$/;

/** The root file system's block device. */
export interface RootDevice {
  /** As in `root=`: `/dev/vda`, or `PARTUUID=` and the partition's id. */
  readonly device: string;
  readonly readOnly: boolean;
}

export interface CommandLineOptions {
  /** The user's arguments. They replace {@link DEFAULT_BOOT_ARGS} as a whole. */
  readonly bootArgs?: string | undefined;
  /** True if the microVM has a PCI bus. False by default, and then the kernel is told `pci=off`. */
  readonly pci?: boolean | undefined;
  readonly root?: RootDevice | undefined;
  /** Devices to announce with `virtio_mmio.device=`, for kernels that do not find them through ACPI. */
  readonly virtioDevices?: readonly VirtioMmioRange[] | undefined;
}

/**
 * A command line under construction. Arguments for init (after ` -- `) stay at the end, whatever is added.
 * At most {@link CMDLINE_MAX_SIZE} bytes, of printable ASCII; every method throws {@link BootError} otherwise.
 */
export class CommandLine {
  private readonly kernelArgs: string[] = [];
  private initArgs = "";

  constructor(bootArgs: string) {
    const words = bootArgs.split(" ");
    const separator = words.indexOf(INIT_ARGS_SEPARATOR);
    const own = separator < 0 ? words : words.slice(0, separator);
    const kernelArgs = own.join(" ").trim();
    if (kernelArgs !== "") this.kernelArgs.push(kernelArgs);
    if (separator >= 0) {
      this.initArgs = words
        .slice(separator + 1)
        .join(" ")
        .trim();
    }
    encodeCommandLine(this.toString());
  }

  /** Adds one argument, such as `rw` or `pci=off`. It must not be empty or contain a space. */
  add(argument: string): void {
    if (argument === "" || argument.includes(" ")) {
      throw new BootError(
        "cmdline",
        `"${argument}" is not one argument. Give it without spaces and not empty.`,
      );
    }
    this.kernelArgs.push(argument);
    try {
      encodeCommandLine(this.toString());
    } catch (error) {
      this.kernelArgs.pop();
      throw error;
    }
  }

  /** Adds `root=` and `ro` or `rw`. */
  addRoot(root: RootDevice): void {
    this.add(`root=${root.device}`);
    this.add(root.readOnly ? "ro" : "rw");
  }

  /** Adds `virtio_mmio.device=<size>@<base>:<irq>` (drivers/virtio/virtio_mmio.c). */
  addVirtioDevice(range: VirtioMmioRange): void {
    const size = range.size % KIB === 0 ? `${range.size / KIB}K` : `${range.size}`;
    this.add(`virtio_mmio.device=${size}@${hex(range.gpa)}:${range.gsi}`);
  }

  toString(): string {
    const kernelArgs = this.kernelArgs.join(" ");
    return this.initArgs === "" ? kernelArgs : `${kernelArgs} ${INIT_ARGS_SEPARATOR} ${this.initArgs}`;
  }
}

/**
 * The command line of a microVM, in Firecracker's order: boot arguments, `pci=off`, root device, virtio devices.
 * Throws {@link BootError} if it gets longer than {@link CMDLINE_MAX_SIZE} or is not printable ASCII.
 */
export function buildCommandLine(options: CommandLineOptions): string {
  const line = new CommandLine(options.bootArgs ?? DEFAULT_BOOT_ARGS);
  if (options.pci !== true) line.add("pci=off");
  if (options.root !== undefined) line.addRoot(options.root);
  for (const range of options.virtioDevices ?? []) line.addVirtioDevice(range);
  return line.toString();
}

/** True if the kernel is told to do without the I/O APIC. */
export function withoutIoApic(line: string): boolean {
  const words = line.split(" ");
  const separator = words.indexOf(INIT_ARGS_SEPARATOR);
  return words.some((word, i) => (separator < 0 || i < separator) && WITHOUT_IO_APIC.has(word));
}

/**
 * The bytes of a command line with its NUL. `maxLength` is the most characters the kernel takes, NUL left out.
 * Throws {@link BootError} if the line is longer or is not printable ASCII.
 */
export function encodeCommandLine(line: string, maxLength = CMDLINE_MAX_SIZE - 1): Uint8Array {
  if (!PRINTABLE_ASCII.test(line)) {
    const at = [...line].findIndex((c) => !PRINTABLE_ASCII.test(c));
    throw new BootError(
      "cmdline",
      `character ${at} is not printable ASCII. Remove control and non-ASCII characters from boot_args.`,
    );
  }
  const limit = Math.min(maxLength, CMDLINE_MAX_SIZE - 1);
  if (line.length > limit) {
    throw new BootError(
      "cmdline",
      `it would be too long: ${line.length} characters, at most ${limit}. Shorten boot_args.`,
    );
  }
  const bytes = new Uint8Array(line.length + 1);
  for (let i = 0; i < line.length; i++) bytes[i] = line.charCodeAt(i);
  return bytes;
}
