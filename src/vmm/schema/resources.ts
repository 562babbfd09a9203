/**
 * The parts a microVM can be configured with, under Firecracker's names. Each is the body of an API request and
 * a key of the configuration file: one schema validates both, gives the type, and stands in the OpenAPI document.
 */

import { anything, flag, type Infer, integer, list, object, oneOf, text } from "./schema.ts";

const U32 = 2 ** 32 - 1;
/** The largest whole number that JSON carries without loss. */
const U53 = Number.MAX_SAFE_INTEGER;
const NOT_YET = { "x-supported": false } as const;
const MAC_PATTERN = "^([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}$";
const IPV4_PATTERN = "^((25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])(\\.|$)){4}$";

export const TokenBucket = object(
  {
    size: integer(0, U53, { description: "Tokens that the bucket holds." }),
    refill_time: integer(0, U53, { description: "Time to fill the bucket, in milliseconds." }),
  },
  { one_time_burst: integer(0, U53, { description: "Tokens there are once, at the start." }) },
);

export const RateLimiter = object(
  {},
  { bandwidth: TokenBucket, ops: TokenBucket },
  { description: "Limits of bytes and of operations per time." },
);

export const BootSource = object(
  { kernel_image_path: text({ description: "Path of the kernel: vmlinux or bzImage." }) },
  {
    initrd_path: text({ description: "Path of the initrd." }),
    boot_args: text({ description: "Kernel command line; replaces the default one." }),
  },
);

export const Drive = object(
  {
    drive_id: text({ description: "Letters, digits and underscores." }),
    is_root_device: flag({ description: "The kernel mounts this drive as root." }),
  },
  {
    path_on_host: text({ description: "Path of the disk image or block device." }),
    partuuid: text({ description: "Partition of the root drive to boot from, by its id." }),
    is_read_only: flag({ default: false }),
    cache_type: oneOf(["Unsafe", "Writeback"], {
      default: "Unsafe",
      description: "`Writeback`: the guest's flushes reach the storage device.",
    }),
    io_engine: oneOf(["Sync", "Async"], {
      default: "Sync",
      description: "`Async`: many transfers at once, through the host's io_uring.",
    }),
    rate_limiter: RateLimiter,
    socket: text({
      description: "Socket of a vhost-user-block backend.",
      ...NOT_YET,
      "x-reason": "There are no vhost-user drives: give path_on_host.",
    }),
  },
);

const machineFields = {
  smt: flag({ default: false, description: "Two vCPUs are the threads of one core." }),
  track_dirty_pages: flag({ default: false, ...NOT_YET }),
  huge_pages: oneOf(["None", "Transparent", "2M"], { default: "None", "x-supported": ["None"] }),
  cpu_template: oneOf(["None", "C3", "T2", "T2S", "T2CL", "T2A", "V1N1"], {
    deprecated: true,
    "x-supported": ["None"],
  }),
} as const;

const vcpuCount = integer(0, 255, { description: "Number of vCPUs, 1 to 32." });
const memSize = integer(0, 2 ** 40, { description: "Guest memory in MiB." });

export const MachineConfig = object({ vcpu_count: vcpuCount, mem_size_mib: memSize }, machineFields);

export const MachineConfigUpdate = object(
  {},
  { vcpu_count: vcpuCount, mem_size_mib: memSize, ...machineFields },
);

export const Logger = object(
  {},
  {
    log_path: text({ description: "File or FIFO for the log." }),
    level: text({ description: "Off, Error, Warning, Info, Debug or Trace, in any case.", default: "Info" }),
    show_level: flag({ default: false }),
    show_log_origin: flag({ default: false }),
    module: text({ description: "Only log what comes from this module.", ...NOT_YET }),
  },
);

export const Metrics = object(
  { metrics_path: text({ description: "File or FIFO for the metrics, one JSON line each time." }) },
  { emit_id: flag({ default: false, ...NOT_YET }), properties: anything(NOT_YET) },
);

export const Serial = object(
  {},
  {
    serial_out_path: text({ description: "File or FIFO for the output of the serial port." }),
    rate_limiter: {
      ...TokenBucket,
      description: "Bytes per time that are output; what the guest sends beyond that is lost.",
    },
  },
);

export const Entropy = object({}, { rate_limiter: RateLimiter });

export const NetworkInterface = object(
  {
    iface_id: text({ description: "Letters, digits and underscores." }),
    host_dev_name: text({ description: "Name of the tap device." }),
  },
  {
    guest_mac: text({ pattern: MAC_PATTERN, description: "a MAC address" }),
    mtu: integer(68, 65535),
    rx_rate_limiter: RateLimiter,
    tx_rate_limiter: RateLimiter,
  },
);

export const Vsock = object(
  {
    guest_cid: integer(3, U32, { description: "Context id of the guest." }),
    uds_path: text({ description: "Socket that host programs connect to." }),
  },
  { vsock_id: text({ deprecated: true }) },
);

export const Balloon = object(
  {
    amount_mib: integer(0, U32, { description: "Memory that the balloon is to take, in MiB." }),
    deflate_on_oom: flag({ description: "The balloon shrinks when the guest has no other memory left." }),
  },
  {
    stats_polling_interval_s: integer(0, 65535, {
      default: 0,
      description: "Seconds between two memory statistics of the guest; 0: none.",
    }),
    free_page_hinting: flag({ default: false, description: "The guest can be asked which memory is free." }),
    free_page_reporting: flag({
      default: false,
      description: "Memory that the guest frees goes back to the host.",
    }),
  },
);

export const Pmem = object(
  { id: text(), path_on_host: text() },
  { root_device: flag({ default: false }), read_only: flag({ default: false }), rate_limiter: RateLimiter },
);

export const MemoryHotplug = object(
  { total_size_mib: integer(0, U53) },
  { slot_size_mib: integer(128, U53, { default: 128 }), block_size_mib: integer(2, U53, { default: 2 }) },
);

export const MmdsConfig = object(
  { network_interfaces: list(text(), { description: "Interfaces whose guests may ask." }) },
  {
    version: oneOf(["V1", "V2"], { default: "V1" }),
    ipv4_address: text({ pattern: IPV4_PATTERN, default: "169.254.169.254", description: "an IPv4 address" }),
    imds_compat: flag({
      default: false,
      description: "Answer in the format of EC2's metadata service, whatever a guest accepts.",
    }),
  },
);

export const CpuConfig = object(
  {},
  {
    kvm_capabilities: list(text()),
    cpuid_modifiers: list(
      object(
        {
          leaf: text(),
          subleaf: text(),
          flags: integer(0, U32),
          modifiers: list(object({ register: oneOf(["eax", "ebx", "ecx", "edx"]), bitmap: text() }, {})),
        },
        {},
      ),
    ),
    msr_modifiers: list(object({ addr: text(), bitmap: text() }, {})),
    reg_modifiers: list(object({ addr: text(), bitmap: text() }, {})),
    vcpu_features: list(object({ index: integer(0, U32), bitmap: text() }, {})),
  },
);

/** The configuration file (`--config-file`). */
export const VmmConfig = object(
  { "boot-source": BootSource, drives: list(Drive) },
  {
    "machine-config": MachineConfig,
    logger: Logger,
    metrics: Metrics,
    entropy: Entropy,
    serial: Serial,
    "mmds-config": MmdsConfig,
    "network-interfaces": list(NetworkInterface),
    vsock: Vsock,
    balloon: Balloon,
    pmem: list(Pmem, NOT_YET),
    "memory-hotplug": { ...MemoryHotplug, ...NOT_YET },
    "cpu-config": text({ description: "Path of a file with a CPU template.", ...NOT_YET }),
  },
);

export type BootSource = Infer<typeof BootSource>;
export type Drive = Infer<typeof Drive>;
export type MachineConfig = Infer<typeof MachineConfig>;
export type MachineConfigUpdate = Infer<typeof MachineConfigUpdate>;
export type Logger = Infer<typeof Logger>;
export type Metrics = Infer<typeof Metrics>;
export type Serial = Infer<typeof Serial>;
export type Entropy = Infer<typeof Entropy>;
export type NetworkInterface = Infer<typeof NetworkInterface>;
export type RateLimiter = Infer<typeof RateLimiter>;
export type Balloon = Infer<typeof Balloon>;
export type Vsock = Infer<typeof Vsock>;
export type MmdsConfig = Infer<typeof MmdsConfig>;
export type VmmConfig = Infer<typeof VmmConfig>;
