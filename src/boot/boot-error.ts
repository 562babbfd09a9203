/** The one error of this folder. Its message is what the API user reads. */

/** Which part of the boot configuration is at fault. */
export type BootErrorKind = "kernel" | "initrd" | "cmdline" | "machine";

const PREFIX: Record<BootErrorKind, string> = {
  kernel: "Cannot load kernel due to invalid memory configuration or invalid kernel image: ",
  initrd: "Cannot load initrd due to an invalid memory configuration or an invalid image: ",
  cmdline: "Cannot load command line string: ",
  machine: "Cannot describe the microVM to its kernel: ",
};

/** A kernel, initrd, command line or machine that cannot be booted. Says what is wrong and what to do. */
export class BootError extends Error {
  /** `detail` follows the fixed beginning of the message for this `kind`. */
  constructor(
    readonly kind: BootErrorKind,
    detail: string,
    options?: ErrorOptions,
  ) {
    super(PREFIX[kind] + detail, options);
    this.name = "BootError";
  }
}

/** An address as it is written in messages. */
export function hex(value: number): string {
  return `0x${value.toString(16)}`;
}

/** A size in bytes as whole MiB, rounded up. */
export function mib(bytes: number): number {
  return Math.ceil(bytes / (1024 * 1024));
}
