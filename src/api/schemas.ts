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

export const BalloonStartCmd = object({}, { acknowledge_on_stop: flag({ default: true }) });

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
