/** `sparkler doctor`: what this host can do for microVMs, and what to do about what it cannot. */

import { accessSync, constants, existsSync, readFileSync } from "node:fs";
import { ioUringProblem, ioUringRefusal, userfaultfdRefusal } from "../platform/host-probe.ts";
import { kvmProblem } from "../vmm/accel.ts";
import { EXIT_OK } from "./exit.ts";

export interface Finding {
  readonly name: string;
  /** What it is good for. */
  readonly use: string;
  /** Why it is not there and what to do, in sentences; undefined: it is there. */
  readonly problem: string | undefined;
}

const TUN_PATH = "/dev/net/tun";
const UFFD_PATH = "/dev/userfaultfd";
const CGROUP_ROOT = "/sys/fs/cgroup";
/** linux/capability.h. */
const CAP_NET_ADMIN = 12n;

/** Programs that are used if they are there, and the Debian package that has them. */
const PROGRAMS = [
  { name: "passt", pack: "passt", use: "network for a guest without privileges" },
  { name: "mke2fs", pack: "e2fsprogs", use: "root file systems from directories" },
  { name: "mmdebstrap", pack: "mmdebstrap", use: "Debian root file systems" },
  { name: "apt-get", pack: "apt", use: "fetching the default kernel" },
] as const;

/** Prints what was found. Returns {@link EXIT_OK}: the software CPU runs a guest everywhere. */
export async function doctorCommand(): Promise<number> {
  process.stdout.write(formatFindings(await examine()));
  return EXIT_OK;
}

async function examine(): Promise<Finding[]> {
  const kvm = await kvmProblem();
  return [
    {
      name: "KVM",
      use: "guests at the speed of the processor",
      problem: kvm && `${kvm.text} Until then guests run on the software CPU.`,
    },
    {
      name: "tap",
      use: "network-interfaces",
      problem: tapProblem(access(TUN_PATH), effectiveCapabilities()),
    },
    {
      name: "userfaultfd",
      use: "snapshot memory from a handler",
      problem: userfaultfdProblem(access(UFFD_PATH), userfaultfdRefusal()),
    },
    { name: "io_uring", use: "drives with io_engine Async", problem: ioUringProblem(ioUringRefusal()) },
    {
      name: "cgroups",
      use: "the jailer's resource limits",
      problem: cgroupProblem(existsSync(`${CGROUP_ROOT}/cgroup.controllers`), access(CGROUP_ROOT)),
    },
    ...PROGRAMS.map(({ name, pack, use }) => ({ name, use, problem: programProblem(Bun.which(name), pack) })),
  ];
}

/** One line for what is there, two for what is not. */
export function formatFindings(findings: readonly Finding[]): string {
  const width = Math.max(...findings.map(({ name }) => name.length)) + 2;
  return findings
    .map(({ name, use, problem }) => {
      const line = `${problem === undefined ? "yes" : "no "}  ${name.padEnd(width)}${use}\n`;
      return problem === undefined ? line : `${line}${" ".repeat(5 + width)}${problem}\n`;
    })
    .join("");
}

/** `tun`: errno name of opening the tun device for reading and writing, or undefined. */
export function tapProblem(tun: string | undefined, capabilities: bigint): string | undefined {
  if (tun === "ENOENT") return `There is no ${TUN_PATH}: load the tun module (modprobe tun).`;
  if (tun !== undefined) return `${TUN_PATH} cannot be opened (${tun}): have its owner allow it.`;
  if ((capabilities & (1n << CAP_NET_ADMIN)) !== 0n) return undefined;
  return (
    "No CAP_NET_ADMIN to create tap devices: have one made for this user " +
    "(ip tuntap add NAME mode tap user USER), or run as root."
  );
}

/** `device`: errno name of opening the device; `call`: that of the system call. */
export function userfaultfdProblem(device: string | undefined, call: string | undefined): string | undefined {
  if (device === undefined || call === undefined) return undefined;
  if (call === "ENOSYS") return "The host's kernel has no userfaultfd: use one with CONFIG_USERFAULTFD.";
  return `userfaultfd is refused (${call}): allow ${UFFD_PATH} to this user, or set vm.unprivileged_userfaultfd=1.`;
}

/** `write`: errno name of writing to the root of the hierarchy. */
export function cgroupProblem(version2: boolean, write: string | undefined): string | undefined {
  if (!version2)
    return "There is no cgroup version 2 hierarchy: boot with systemd.unified_cgroup_hierarchy=1.";
  if (write === undefined) return undefined;
  return `${CGROUP_ROOT} cannot be written (${write}): run as root, or in a delegated cgroup.`;
}

export function programProblem(path: string | null, pack: string): string | undefined {
  return path === null ? `It is not installed: apt-get install ${pack}.` : undefined;
}

/** Errno name of reading and writing `path`, or undefined. */
function access(path: string): string | undefined {
  try {
    accessSync(path, constants.R_OK | constants.W_OK);
    return undefined;
  } catch (error) {
    return error instanceof Error && "code" in error ? String(error.code) : String(error);
  }
}

/** This process's effective capabilities, bit n for capability n (proc(5)). */
function effectiveCapabilities(): bigint {
  const hex = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1];
  return BigInt(`0x${hex ?? "0"}`);
}
