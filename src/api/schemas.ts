/** Bodies that only the API has. Those that a configuration file has too are in src/vmm/schema. */

import * as resources from "../vmm/schema/resources.ts";
import { anything, flag, type Infer, integer, list, object, oneOf, text } from "../vmm/schema/schema.ts";

const U32 = 2 ** 32 - 1;

export const InstanceActionInfo = object(
  { action_type: oneOf(["FlushMetrics", "InstanceStart", "SendCtrlAltDel"]) },
  {},
);

export const PartialDrive = object(
  { drive_id: text() },
  {
    path_on_host: text({
      description: "Path of the new disk, or of the present one if its size has changed.",
    }),
    rate_limiter: resources.RateLimiter,
  },
);

export const PartialNetworkInterface = object(
  { iface_id: text() },
  { rx_rate_limiter: resources.RateLimiter, tx_rate_limiter: resources.RateLimiter },
);

export const PartialPmem = object({ id: text() }, { rate_limiter: resources.RateLimiter });

export const BalloonUpdate = object({ amount_mib: integer(0, U32) }, {});

export const BalloonStatsUpdate = object({ stats_polling_interval_s: integer(0, 65535) }, {});

export const BalloonStartCmd = object(
  {},
  {
    acknowledge_on_stop: flag({
      default: true,
      description:
        "The run is over, and the guest may use its free memory again, once it has named all of it.",
    }),
  },
);

/** An integer that the guest gave, with all of 64 bits. */
const told = (description: string) => integer(0, 2 ** 64, { description });

export const BalloonStats = object(
  {
    target_pages: integer(0, U32, { description: "Pages of 4 KiB that the balloon is to hold." }),
    actual_pages: integer(0, U32, { description: "Pages of 4 KiB that it holds." }),
    target_mib: integer(0, U32),
    actual_mib: integer(0, U32),
  },
  {
    swap_in: told("Memory swapped in, in bytes."),
    swap_out: told("Memory swapped out, in bytes."),
    major_faults: told("Page faults that needed a disk."),
    minor_faults: told("Other page faults."),
    free_memory: told("Memory not used for anything, in bytes."),
    total_memory: told("All memory, in bytes."),
    available_memory: told("Estimate of what new programs can have without swapping, in bytes."),
    disk_caches: told("Memory that can be had by dropping cached files, in bytes."),
    hugetlb_allocations: told("Huge pages that were allocated."),
    hugetlb_failures: told("Huge pages that could not be."),
    oom_kill: told("Programs killed for lack of memory."),
    alloc_stall: told("Allocations that had to wait for memory."),
    async_scan: told("Pages looked at in the background for what can be freed."),
    direct_scan: told("Pages looked at while an allocation waited."),
    async_reclaim: told("Pages freed in the background."),
    direct_reclaim: told("Pages freed while an allocation waited."),
  },
);

export const BalloonHintingStatus = object(
  {
    host_cmd: integer(0, U32, {
      description: "Last command of the host: 0 none, 1 done, or the number of a run.",
    }),
  },
  {
    guest_cmd: integer(0, U32, {
      description: "Last command of the guest: 0 through, or the number of a run.",
    }),
  },
);

export const MemoryHotplugSizeUpdate = object(
  { requested_size_mib: integer(0, Number.MAX_SAFE_INTEGER) },
  {},
);

export const Vm = object({ state: oneOf(["Paused", "Resumed"]) }, {});

export const SnapshotCreateParams = object(
  { mem_file_path: text(), snapshot_path: text() },
  { snapshot_type: oneOf(["Full", "Diff"], { default: "Full" }) },
);

export const SnapshotLoadParams = object(
  { snapshot_path: text() },
  {
    mem_backend: object({ backend_type: oneOf(["File", "Uffd"]), backend_path: text() }, {}),
    mem_file_path: text({ deprecated: true }),
    enable_diff_snapshots: flag({ deprecated: true }),
    track_dirty_pages: flag({ default: false }),
    resume_vm: flag({ default: false }),
    network_overrides: list(object({ iface_id: text(), host_dev_name: text() }, {})),
    vsock_override: object({ uds_path: text() }, {}),
    clock_realtime: flag({ default: false }),
    huge_pages: oneOf(["Snapshot", "None", "Transparent", "2M"]),
  },
);

export const MmdsContentsObject = anything({ description: "Any JSON." });

export const InstanceInfo = object(
  { app_name: text(), id: text(), state: oneOf(["Not started", "Running", "Paused"]), vmm_version: text() },
  {},
);

export const FirecrackerVersion = object({ firecracker_version: text() }, {});

export const FullVmConfiguration = object(
  {},
  {
    "boot-source": resources.BootSource,
    drives: list(resources.Drive),
    "machine-config": resources.MachineConfig,
    entropy: resources.Entropy,
    logger: resources.Logger,
    metrics: resources.Metrics,
    "mmds-config": resources.MmdsConfig,
    "network-interfaces": list(resources.NetworkInterface),
    vsock: resources.Vsock,
    balloon: resources.Balloon,
    pmem: list(resources.Pmem),
    "memory-hotplug": resources.MemoryHotplug,
    "cpu-config": resources.CpuConfig,
  },
);

export const ErrorBody = object({ fault_message: text({ description: "What went wrong." }) }, {});

export type SnapshotLoadParams = Infer<typeof SnapshotLoadParams>;
