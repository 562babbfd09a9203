/** A first look at what will be started, before anything is loaded that could say it for sure. */

import { closeFile, fileStatus, openFile, readText } from "../platform/files.ts";
import type { FirecrackerFlags } from "./firecracker.ts";

const STDIN = 0;
/** st_rdev of /dev/null: major 1, minor 3. */
const NULL_DEVICE = 0x103n;
/** Of a configuration file: what makes virtio devices. */
const DEVICES: ReadonlySet<string> = new Set(["drives", "network-interfaces", "vsock", "balloon", "entropy"]);

/**
 * Whether the machine of `flags` seems to want a thread for its vCPU. A wrong answer costs time, and nothing else: the
 * builder decides, and a thread can come later.
 */
export function wantsVcpuThread({ configFile, api, accel }: FirecrackerFlags): boolean {
  if (configFile === undefined) return false;
  if (api || accel === "soft") return true;
  try {
    return hasInput() || !isPlain(configFile);
  } catch {
    // Whoever reads the file says what is wrong with it.
    return true;
  }
}

/** Somebody may write to the guest's serial port. */
function hasInput(): boolean {
  const { kind, rdev } = fileStatus(STDIN);
  return !(kind === "character device" && rdev === NULL_DEVICE);
}

/** A configuration with one vCPU and no device. Throws if it cannot be read. */
function isPlain(configFile: string): boolean {
  const fd = openFile(configFile, { nonblock: true });
  try {
    // What is no file can be read only once.
    return fileStatus(fd).kind === "file" && Object.entries(parse(readText(fd))).every(plainPart);
  } finally {
    closeFile(fd);
  }
}

function parse(text: string): Record<string, unknown> {
  return JSON.parse(text);
}

function plainPart([name, value]: [string, unknown]): boolean {
  if (name === "machine-config") {
    return typeof value === "object" && value !== null && "vcpu_count" in value && value.vcpu_count === 1;
  }
  return !DEVICES.has(name) || value === null || (Array.isArray(value) && value.length === 0);
}
