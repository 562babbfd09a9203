/**
 * The plan of one microVM's machine: which device lies at which address, has which interrupt and which part of
 * the shared memory. Plain data, made once by the builder and sent to every thread.
 */

import { GSI_LEGACY_END, GSI_LEGACY_START, VIRTIO_MMIO_SIZE, VIRTIO_MMIO_START } from "../boot/layout.ts";
import type { VirtioMmioRange } from "../boot/virtio-range.ts";
import { BOOT_TIMER_SHARED_BYTES } from "../devices/legacy/boot-timer.ts";
import { I8042_SHARED_BYTES } from "../devices/legacy/i8042.ts";
import { PM1_SHARED_BYTES } from "../devices/legacy/pm1.ts";
import { SERIAL_SHARED_BYTES } from "../devices/legacy/serial.ts";
import { DISK_SHARE_BYTES } from "../devices/virtio/block/disk-share.ts";
import { MMIO_SHARED_BYTES } from "../devices/virtio/mmio/registers.ts";
import type { GuestMemoryLayout } from "../memory/guest-memory.ts";
import type { MmdsConfig } from "../mmds/mmds.ts";
import type { LoggerOptions } from "../observe/logger.ts";
import type { RateLimiterConfig } from "../ratelimit/rate-limiter.ts";
import { ConfigError } from "./config-error.ts";
import { DOORBELL_SHARED_BYTES } from "./doorbell.ts";
import type { OpenDisk } from "./file-disk.ts";
import { MAILBOX_SHARED_BYTES } from "./mailbox.ts";
import type { BalloonSpec, NetSpec, ProgramSpec, SerialSpec, VsockSpec } from "./spec.ts";

/** One device behind a virtio-mmio window. */
export type VirtioDevicePlan =
  | {
      kind: "block";
      id: string;
      disk: OpenDisk;
      readOnly: boolean;
      cacheType: "Unsafe" | "Writeback";
      ioEngine?: "Sync" | "Async" | undefined;
      rateLimiter?: RateLimiterConfig | undefined;
    }
  | { kind: "net"; net: NetSpec }
  | { kind: "vsock"; vsock: VsockSpec }
  | { kind: "balloon"; balloon: BalloonSpec }
  | { kind: "rng"; rateLimiter?: RateLimiterConfig | undefined }
  | { kind: "console"; program: ProgramSpec };

export interface VirtioPlan extends VirtioMmioRange {
  /** Start of the transport's registers in {@link MachinePlan.shared}, in bytes. */
  readonly offset: number;
  readonly device: VirtioDevicePlan;
  /** Of a block device: where its `DiskShare` is, likewise. */
  readonly share?: number | undefined;
}

export interface MachinePlan {
  /** See `loadBackend`. */
  readonly backend: string;
  readonly memory: WebAssembly.Memory;
  readonly ram: GuestMemoryLayout;
  /** All that threads share besides guest RAM. */
  readonly shared: SharedArrayBuffer;
  /** eventfd that wakes the vmm thread. */
  readonly wakeFd: number;
  /** Byte offsets in `shared`. */
  readonly doorbell: number;
  readonly mailboxes: readonly number[];
  readonly serialOffset: number;
  readonly i8042Offset: number;
  readonly bootTimerOffset: number;
  readonly pm1Offset: number;
  readonly virtio: readonly VirtioPlan[];
  readonly serial: SerialSpec;
  readonly mmds: MmdsConfig | undefined;
  readonly bootTimer: boolean;
  /** Two vCPUs are the threads of one core. */
  readonly smt: boolean;
  /** See VcpuOptions. */
  readonly measured: boolean;
  /** When building began, what the boot timer counts from: Unix time in ms, and CPU time of the process in us. */
  readonly startedAt: number;
  readonly startedCpu: number;
  readonly log: LoggerOptions;
}

/** As many as there are interrupts for: GSIs 5 to 23. */
const MAX_VIRTIO = GSI_LEGACY_END - GSI_LEGACY_START + 1;

/** Hands out parts of the shared memory. */
class SharedLayout {
  bytes = 0;

  take(size: number): number {
    const at = this.bytes;
    // A cache line each, so that threads working on neighbours do not slow each other down.
    this.bytes += Math.ceil(size / 64) * 64;
    return at;
  }
}

export interface PlanOptions
  extends Pick<
    MachinePlan,
    | "backend"
    | "memory"
    | "ram"
    | "wakeFd"
    | "serial"
    | "mmds"
    | "bootTimer"
    | "smt"
    | "measured"
    | "startedAt"
    | "startedCpu"
    | "log"
  > {
  readonly vcpus: number;
  readonly devices: readonly VirtioDevicePlan[];
}

/**
 * Gives every device its place. Virtio devices get windows and interrupts in the order of `devices`, so the
 * root drive must come first to be `/dev/vda`. Throws {@link ConfigError} if there are too many.
 */
export function planMachine(options: PlanOptions): MachinePlan {
  const { vcpus, devices, ...rest } = options;
  if (devices.length > MAX_VIRTIO) {
    throw new ConfigError(
      `${devices.length} devices asked for: a microVM has room for ${MAX_VIRTIO}. Leave some out.`,
    );
  }
  const layout = new SharedLayout();
  const doorbell = layout.take(DOORBELL_SHARED_BYTES);
  const mailboxes = Array.from({ length: vcpus }, () => layout.take(MAILBOX_SHARED_BYTES));
  const serialOffset = layout.take(SERIAL_SHARED_BYTES);
  const i8042Offset = layout.take(I8042_SHARED_BYTES);
  const bootTimerOffset = layout.take(BOOT_TIMER_SHARED_BYTES);
  const pm1Offset = layout.take(PM1_SHARED_BYTES);
  const virtio = devices.map((device, i) => ({
    gpa: VIRTIO_MMIO_START + i * VIRTIO_MMIO_SIZE,
    size: VIRTIO_MMIO_SIZE,
    gsi: GSI_LEGACY_START + i,
    offset: layout.take(MMIO_SHARED_BYTES),
    device,
    share: device.kind === "block" ? layout.take(DISK_SHARE_BYTES) : undefined,
  }));
  return {
    ...rest,
    doorbell,
    mailboxes,
    serialOffset,
    i8042Offset,
    bootTimerOffset,
    pm1Offset,
    virtio,
    shared: new SharedArrayBuffer(layout.bytes),
  };
}
