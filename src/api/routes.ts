/** Every endpoint of Firecracker's API. The router, the OpenAPI document and the tests are made from this table. */

import { MmdsError } from "../mmds/store.ts";
import { loggerSettings } from "../vmm/config.ts";
import { ConfigError } from "../vmm/config-error.ts";
import * as resources from "../vmm/schema/resources.ts";
import { ApiError, isRefusal, wrongMoment } from "./errors.ts";
import { type Api, type Route, route } from "./route.ts";
import * as schemas from "./schemas.ts";

const NO_SNAPSHOT = "snapshots cannot be made or loaded yet.";
const NO_PMEM = "there is no pmem device yet.";
const NO_HOTPLUG = "devices cannot be added or removed while the guest runs.";
const NO_MEMORY_HOTPLUG = "memory cannot be added while the guest runs.";

const instanceRoutes: Route[] = [
  route({
    method: "GET",
    path: "/",
    operationId: "describeInstance",
    summary: "Id, state and version of the microVM.",
    when: "both",
    response: schemas.InstanceInfo,
    metric: "instance_info",
    run: ({ instance, version }) => ({
      id: instance.options.id,
      state: instance.state,
      vmm_version: version,
      app_name: "Firecracker",
    }),
  }),
  route({
    method: "GET",
    path: "/version",
    operationId: "getFirecrackerVersion",
    summary: "Version of Firecracker's API that is served.",
    when: "both",
    response: schemas.FirecrackerVersion,
    metric: "vmm_version",
    run: ({ version }) => ({ firecracker_version: version }),
  }),
  route({
    method: "GET",
    path: "/vm/config",
    operationId: "getExportVmConfig",
    summary: "The whole configuration.",
    when: "both",
    response: schemas.FullVmConfiguration,
    run: ({ instance }) => instance.resources.toJson(),
  }),
  route({
    method: "PATCH",
    path: "/vm",
    operationId: "patchVm",
    summary: "Pauses or resumes the guest.",
    when: "post",
    body: schemas.Vm,
    failure: "Internal VMM error",
    run: ({ instance }, { state }) =>
      timed(instance.options.metrics, state === "Paused" ? "pause_vm" : "resume_vm", () =>
        state === "Paused" ? instance.pause() : instance.resume(),
      ),
  }),
  route({
    method: "PUT",
    path: "/actions",
    operationId: "createSyncAction",
    summary: "Starts the guest, presses Ctrl-Alt-Del, or writes the metrics.",
    when: "both",
    body: schemas.InstanceActionInfo,
    metric: "actions",
    run: (api, { action_type }) => act(api, action_type),
  }),
];

const machineRoutes: Route[] = [
  route({
    method: "PUT",
    path: "/boot-source",
    operationId: "putGuestBootSource",
    summary: "Kernel, initrd and kernel command line.",
    when: "pre",
    body: resources.BootSource,
    metric: "boot_source",
    failure: "Boot source error",
    run: ({ instance }, body) => instance.resources.setBootSource(body),
  }),
  route({
    method: "GET",
    path: "/machine-config",
    operationId: "getMachineConfiguration",
    summary: "vCPUs and memory.",
    when: "both",
    response: resources.MachineConfig,
    metric: "machine_cfg",
    run: ({ instance }) => instance.resources.machine,
  }),
  route({
    method: "PUT",
    path: "/machine-config",
    operationId: "putMachineConfiguration",
    summary: "Sets vCPUs and memory.",
    when: "pre",
    body: resources.MachineConfig,
    metric: "machine_cfg",
    failure: "Machine config error",
    deprecated: ({ cpu_template }) => templateWarning("PUT", cpu_template),
    run: ({ instance }, body) => instance.resources.setMachine(body),
  }),
  route({
    method: "PATCH",
    path: "/machine-config",
    operationId: "patchMachineConfiguration",
    summary: "Changes some of vCPUs and memory.",
    when: "pre",
    body: resources.MachineConfigUpdate,
    metric: "machine_cfg",
    failure: "Machine config error",
    deprecated: ({ cpu_template }) => templateWarning("PATCH", cpu_template),
    run({ instance }, body) {
      if (Object.keys(body).length === 0) throw new ApiError("Empty PATCH request.");
      instance.resources.updateMachine(body);
    },
  }),
  route({
    method: "PUT",
    path: "/cpu-config",
    operationId: "putCpuConfiguration",
    summary: "CPU features that the guest sees.",
    when: "pre",
    body: resources.CpuConfig,
    metric: "cpu_cfg",
    lacks: "there are no CPU templates yet.",
  }),
  route({
    method: "PUT",
    path: "/logger",
    operationId: "putLogger",
    summary: "Where the log goes and what is in it.",
    when: "pre",
    body: resources.Logger,
    metric: "logger",
    failure: "Logger error",
    run: ({ instance }, body) => instance.options.log.update(loggerSettings(body)),
  }),
  route({
    method: "PUT",
    path: "/metrics",
    operationId: "putMetrics",
    summary: "Where the metrics go. Once only.",
    when: "pre",
    body: resources.Metrics,
    metric: "metrics",
    failure: "Metrics error",
    run({ instance }, { metrics_path }) {
      const { metrics } = instance.options;
      if (metrics.isOpen) throw new ConfigError("Reinitialization of metrics not allowed.");
      metrics.open(metrics_path);
    },
  }),
];

const deviceRoutes: Route[] = [
  route({
    method: "PUT",
    path: "/drives/{drive_id}",
    operationId: "putGuestDriveByID",
    summary: "Adds a drive or replaces one.",
    when: "pre",
    body: resources.Drive,
    metric: "drive",
    failure: "Drive config error",
    run: ({ instance }, body) => instance.resources.setDrive(body),
  }),
  route({
    method: "PATCH",
    path: "/drives/{drive_id}",
    operationId: "patchGuestDriveByID",
    summary: "Puts another disk behind a drive of the running guest.",
    when: "post",
    body: schemas.PartialDrive,
    metric: "drive",
    failure: "Drive config error: Unable to patch the block device",
    async run({ instance }, { drive_id, path_on_host, rate_limiter }) {
      if (path_on_host === undefined && rate_limiter === undefined) {
        // Only a drive with a vhost-user backend can be told to look at itself anew.
        throw new ConfigError(
          "Device manager error: Running method expected different backend. Please verify the request arguments.",
        );
      }
      if (path_on_host !== undefined) await instance.updateDrive(drive_id, path_on_host);
      if (rate_limiter !== undefined) await instance.limitDrive(drive_id, rate_limiter);
    },
  }),
  route({
    method: "DELETE",
    path: "/drives/{drive_id}",
    operationId: "deleteGuestDriveByID",
    summary: "Removes a drive from the running guest.",
    when: "post",
    lacks: NO_HOTPLUG,
  }),
  route({
    method: "PUT",
    path: "/network-interfaces/{iface_id}",
    operationId: "putGuestNetworkInterfaceByID",
    summary: "Adds a network interface or replaces one.",
    when: "pre",
    body: resources.NetworkInterface,
    metric: "network",
    failure: "Network config error",
    run: ({ instance }, body) => instance.resources.setNetwork(body),
  }),
  route({
    method: "PATCH",
    path: "/network-interfaces/{iface_id}",
    operationId: "patchGuestNetworkInterfaceByID",
    summary: "Changes the rate limiters of a network interface.",
    when: "post",
    body: schemas.PartialNetworkInterface,
    metric: "network",
    failure: "Network config error",
    run: ({ instance }, { iface_id, rx_rate_limiter, tx_rate_limiter }) =>
      instance.limitNetwork(iface_id, rx_rate_limiter, tx_rate_limiter),
  }),
  route({
    method: "DELETE",
    path: "/network-interfaces/{iface_id}",
    operationId: "deleteGuestNetworkInterfaceByID",
    summary: "Removes a network interface from the running guest.",
    when: "post",
    lacks: NO_HOTPLUG,
  }),
  route({
    method: "PUT",
    path: "/pmem/{id}",
    operationId: "putGuestPmemByID",
    summary: "Adds a persistent memory device or replaces one.",
    when: "pre",
    body: resources.Pmem,
    metric: "pmem",
    lacks: NO_PMEM,
  }),
  route({
    method: "PATCH",
    path: "/pmem/{id}",
    operationId: "patchGuestPmemByID",
    summary: "Changes the rate limiter of a persistent memory device.",
    when: "post",
    body: schemas.PartialPmem,
    lacks: NO_PMEM,
  }),
  route({
    method: "DELETE",
    path: "/pmem/{id}",
    operationId: "deleteGuestPmemByID",
    summary: "Removes a persistent memory device from the running guest.",
    when: "post",
    lacks: NO_HOTPLUG,
  }),
  route({
    method: "PUT",
    path: "/vsock",
    operationId: "putGuestVsock",
    summary: "Sockets between guest and host programs.",
    when: "pre",
    body: resources.Vsock,
    metric: "vsock",
    failure: "Vsock config error",
    run: ({ instance }, body) => instance.resources.setVsock(body),
    deprecated: ({ vsock_id }) =>
      vsock_id === undefined ? undefined : "PUT /vsock: vsock_id field is deprecated.",
  }),
  route({
    method: "PUT",
    path: "/entropy",
    operationId: "putEntropyDevice",
    summary: "Random numbers for the guest.",
    when: "pre",
    body: resources.Entropy,
    failure: "Entropy device error",
    run: ({ instance }, body) => instance.resources.setEntropy(body),
  }),
  route({
    method: "PUT",
    path: "/serial",
    operationId: "putSerialDevice",
    summary: "Where the output of the serial port goes.",
    when: "pre",
    body: resources.Serial,
    metric: "serial",
    run: ({ instance }, body) => instance.resources.setSerial(body),
  }),
];

const BALLOON_FAILURE = "Balloon config error";

const balloonRoutes: Route[] = [
  route({
    method: "GET",
    path: "/balloon",
    operationId: "describeBalloonConfig",
    summary: "The balloon's configuration.",
    when: "both",
    response: resources.Balloon,
    failure: BALLOON_FAILURE,
    run: ({ instance }) => instance.resources.balloon,
  }),
  route({
    method: "PUT",
    path: "/balloon",
    operationId: "putBalloon",
    summary: "A device that takes memory from the guest.",
    when: "pre",
    body: resources.Balloon,
    failure: BALLOON_FAILURE,
    run: ({ instance }, body) => instance.resources.setBalloon(body),
  }),
  route({
    method: "PATCH",
    path: "/balloon",
    operationId: "patchBalloon",
    summary: "Changes how much memory the balloon takes.",
    when: "post",
    body: schemas.BalloonUpdate,
    failure: BALLOON_FAILURE,
    run: async ({ instance }, { amount_mib }) => (await instance.balloon()).setAmount(amount_mib),
  }),
  route({
    method: "GET",
    path: "/balloon/statistics",
    operationId: "describeBalloonStats",
    summary: "The guest's memory statistics.",
    when: "post",
    response: schemas.BalloonStats,
    failure: BALLOON_FAILURE,
    run: async ({ instance }) => (await instance.balloon()).statistics(),
  }),
  route({
    method: "PATCH",
    path: "/balloon/statistics",
    operationId: "patchBalloonStatsInterval",
    summary: "Changes how often the guest reports memory statistics.",
    when: "post",
    body: schemas.BalloonStatsUpdate,
    failure: BALLOON_FAILURE,
    run: async ({ instance }, { stats_polling_interval_s }) =>
      (await instance.balloon()).setStatsInterval(stats_polling_interval_s),
  }),
  route({
    method: "PATCH",
    path: "/balloon/hinting/start",
    operationId: "startBalloonHinting",
    summary: "Asks the guest which memory is free.",
    when: "post",
    body: schemas.BalloonStartCmd,
    bodyOptional: true,
    failure: BALLOON_FAILURE,
    run: async ({ instance }, { acknowledge_on_stop }) =>
      (await instance.balloon()).startHinting(acknowledge_on_stop ?? true),
  }),
  route({
    method: "PATCH",
    path: "/balloon/hinting/stop",
    operationId: "stopBalloonHinting",
    summary: "Ends a run of hinting.",
    when: "post",
    bodyOptional: true,
    failure: BALLOON_FAILURE,
    run: async ({ instance }) => (await instance.balloon()).stopHinting(),
  }),
  route({
    method: "GET",
    path: "/balloon/hinting/status",
    operationId: "describeBalloonHinting",
    summary: "How far hinting is.",
    when: "post",
    response: schemas.BalloonHintingStatus,
    failure: BALLOON_FAILURE,
    run: async ({ instance }) => (await instance.balloon()).hintingStatus(),
  }),
  route({
    method: "PUT",
    path: "/hotplug/memory",
    operationId: "putMemoryHotplug",
    summary: "Memory that can be added later.",
    when: "pre",
    body: resources.MemoryHotplug,
    metric: "hotplug_memory",
    lacks: NO_MEMORY_HOTPLUG,
  }),
  route({
    method: "PATCH",
    path: "/hotplug/memory",
    operationId: "patchMemoryHotplug",
    summary: "Adds or removes memory.",
    when: "post",
    body: schemas.MemoryHotplugSizeUpdate,
    metric: "hotplug_memory",
    lacks: NO_MEMORY_HOTPLUG,
  }),
  route({
    method: "GET",
    path: "/hotplug/memory",
    operationId: "getMemoryHotplug",
    summary: "How much memory has been added.",
    when: "post",
    lacks: NO_MEMORY_HOTPLUG,
  }),
];

const mmdsRoutes: Route[] = [
  route({
    method: "PUT",
    path: "/mmds/config",
    operationId: "putMmdsConfig",
    summary: "How the guest reaches the metadata service.",
    when: "pre",
    body: resources.MmdsConfig,
    metric: "mmds",
    failure: "MMDS config error",
    deprecated: ({ version }) =>
      version === "V2" ? undefined : "PUT /mmds/config: V1 is deprecated. Use V2 instead.",
    run: ({ instance }, body) => instance.resources.setMmds(body),
  }),
  route({
    method: "GET",
    path: "/mmds",
    operationId: "getMmds",
    summary: "The metadata.",
    when: "both",
    response: schemas.MmdsContentsObject,
    metric: "mmds",
    run: ({ mmds }) => mmds.get() ?? {},
  }),
  route({
    method: "PUT",
    path: "/mmds",
    operationId: "putMmds",
    summary: "Replaces the metadata.",
    when: "both",
    body: schemas.MmdsContentsObject,
    metric: "mmds",
    run: (api, body) => changeMmds(api, () => api.mmds.put(body)),
  }),
  route({
    method: "PATCH",
    path: "/mmds",
    operationId: "patchMmds",
    summary: "Changes the metadata by a JSON merge patch (RFC 7396).",
    when: "both",
    body: schemas.MmdsContentsObject,
    metric: "mmds",
    run: (api, body) => changeMmds(api, () => api.mmds.patch(body)),
  }),
];

const snapshotRoutes: Route[] = [
  route({
    method: "PUT",
    path: "/snapshot/create",
    operationId: "createSnapshot",
    summary: "Saves the paused guest.",
    when: "post",
    body: schemas.SnapshotCreateParams,
    lacks: NO_SNAPSHOT,
  }),
  route({
    method: "PUT",
    path: "/snapshot/load",
    operationId: "loadSnapshot",
    summary: "Restores a saved guest.",
    when: "pre",
    body: schemas.SnapshotLoadParams,
    lacks: NO_SNAPSHOT,
    refuse: memoryBackend,
    deprecated: ({ mem_file_path, enable_diff_snapshots }) =>
      mem_file_path !== undefined
        ? "PUT /snapshot/load: mem_file_path field is deprecated."
        : enable_diff_snapshots !== undefined
          ? "PUT /snapshot/load: enable_diff_snapshots field is deprecated."
          : undefined,
  }),
];

export const ROUTES: readonly Route[] = [
  ...instanceRoutes,
  ...machineRoutes,
  ...deviceRoutes,
  ...balloonRoutes,
  ...mmdsRoutes,
  ...snapshotRoutes,
];

async function act(
  { instance }: Api,
  action: "FlushMetrics" | "InstanceStart" | "SendCtrlAltDel",
): Promise<void> {
  const started = instance.state !== "Not started";
  if (action === "InstanceStart") {
    if (started) throw wrongMoment("pre");
    try {
      await instance.start();
    } catch (error) {
      if (!isRefusal(error)) throw error;
      throw new ApiError(`Start microvm error: ${error.message}`);
    }
    return;
  }
  if (!started) throw wrongMoment("post");
  if (action === "SendCtrlAltDel") instance.sendCtrlAltDel();
  else if (!(await instance.flushMetrics())) {
    throw new ApiError(
      "Internal VMM error: Failed to write metrics: the file is full or nobody reads the FIFO.",
    );
  }
}

async function timed(
  metrics: Api["instance"]["options"]["metrics"],
  gauge: string,
  action: () => Promise<void>,
): Promise<void> {
  const start = performance.now();
  await action();
  metrics.store("latencies_us", gauge, Math.round((performance.now() - start) * 1000));
}

function templateWarning(method: string, template: string | undefined): string | undefined {
  return template === undefined ? undefined : `${method} /machine-config: cpu_template field is deprecated.`;
}

async function changeMmds({ instance }: Api, change: () => void): Promise<void> {
  try {
    change();
  } catch (error) {
    if (!(error instanceof MmdsError)) throw error;
    if (error.kind === "too-large") throw new ApiError(`MMDS limit exceeded error: ${error.message}`, 413);
    throw new ApiError(`MMDS error: ${error.message}`);
  }
  await instance.metadataChanged();
}

function memoryBackend(body: schemas.SnapshotLoadParams): string | undefined {
  const both = body.mem_backend !== undefined && body.mem_file_path !== undefined;
  if (both) return "too many fields: either `mem_backend` or `mem_file_path` exclusively is required";
  if (body.mem_backend !== undefined || body.mem_file_path !== undefined) return undefined;
  return "missing field: either `mem_backend` or `mem_file_path` is required";
}
