/**
 * A Linux for the KVM of this host. On a KVM without hardware under it this takes a kernel made for that:
 * `SPARKLER_KVM_LINUX` names the folder with its `vmlinux.xz`.
 */

import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { CpioWriter } from "../../src/image/cpio.ts";
import { decompress } from "../../src/image/decompress.ts";
import { noKvm } from "./machine.ts";

const folder =
  process.env.SPARKLER_KVM_LINUX ?? new URL("../../../shared/kvm-linux", import.meta.url).pathname;
const kernel = join(folder, "vmlinux.xz");
export const BUSYBOX = "/usr/bin/busybox";
export const BOOT_LIMIT_MS = 240_000;

/** The kernel's needs on a KVM without hardware under it; see the README beside it. */
export const BOOT_ARGS = [
  "console=ttyS0 quiet reboot=k panic=1 noxsave clearcpuid=smap,smep,fsgsbase,cx16,popcnt,erms,fsrm",
  "mitigations=off rodata=off initcall_blacklist=blake2s_mod_init,ptp_kvm_init,slab_sysfs_init",
  "GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX,-AVX2,-AVX_Fast_Unaligned_Load,-AVX512F,-AVX512VL,-AVX512BW," +
    "-AVX512DQ,-AVX512CD,-ERMS,-FSRM,-XSAVEC,-XSAVE",
].join(" ");

/** Why it cannot be booted here; undefined if it can. */
export function noLinux(): string | undefined {
  const reason = noKvm();
  if (reason !== undefined) return reason;
  if (!existsSync(kernel)) return `skipped: there is no ${kernel}; set SPARKLER_KVM_LINUX to its folder`;
  return existsSync(BUSYBOX) ? undefined : `skipped: there is no ${BUSYBOX}; install busybox-static`;
}

/** Writes the kernel to `path` as an ELF. */
export async function writeKernel(path: string): Promise<void> {
  writeFileSync(path, await decompress(readFileSync(kernel), "xz"));
}

/** An initramfs with busybox, `init`, and `more` programs by their path. */
export function initramfs(init: string, more: Readonly<Record<string, Uint8Array>> = {}): Uint8Array {
  const cpio = new CpioWriter();
  for (const name of ["/dev", "/proc"]) cpio.directory(name);
  cpio.device("/dev/console", "c", 5, 1);
  cpio.file("/bin/busybox", readFileSync(BUSYBOX), { mode: 0o755 });
  for (const [path, content] of Object.entries(more)) cpio.file(path, content, { mode: 0o755 });
  cpio.file("/init", init, { mode: 0o755 });
  return cpio.finish();
}
