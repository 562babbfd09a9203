/** Builds a microVM: the whole machine, in the order in which it comes to be. */

import { buildCommandLine } from "../boot/cmdline.ts";
import { loadKernel } from "../boot/load-kernel.ts";
import { defaultCacheDir } from "../image/cache-dir.ts";
import { GuestMemory, type GuestMemoryLayout } from "../memory/guest-memory.ts";
import { Logger } from "../observe/logger.ts";
import { SystemError } from "../platform/errno.ts";
import { EventFd } from "../platform/eventfd.ts";
import { closeFile } from "../platform/files.ts";
import { type BackendMemory, loadBackend } from "./backend.ts";
import { CommandSender } from "./commands.ts";
import { ConfigError } from "./config-error.ts";
import { type DeviceHost, DeviceThread } from "./device-host.ts";
import { CONTROL_STOP, Doorbell, SLOT_CONTROL } from "./doorbell.ts";
import { openDisk } from "./file-disk.ts";
import { concatenated, kernelSource } from "./file-source.ts";
import { type MachinePlan, planMachine, type VirtioDevicePlan } from "./machine.ts";
import { Microvm, type MicrovmEvents, type RunningDrive } from "./microvm.ts";
import type { HostRange } from "./reclaim.ts";
import type { SpareVcpu } from "./spare-vcpu.ts";
import type { DriveSpec, MachineSpec } from "./spec.ts";
import type { Timings } from "./timings.ts";
import { type VcpuHost, VcpuThread } from "./vcpu-host.ts";
import { VCPU_WORKER } from "./worker-urls.ts";

export interface BuildOptions {
  /** See `loadBackend`. */
  readonly backend: string;
  readonly events?: MicrovmEvents;
  /**
   * The calling thread serves the devices, instead of one of their own: it sleeps in epoll_wait and gives its event loop
   * a turn when there is something for it. It runs the vCPU as well, if the guest has one, no virtio device and a backend
   * that can do that, and there is no `vcpuThread`. For a process without other business.
   */
  readonly devicesHere?: boolean | undefined;
  /** The process ends with the microVM, so nothing need be given back when it has ended. */
  readonly endsProcess?: boolean | undefined;
  /** A thread for a vCPU that has been started before. */
  readonly vcpuThread?: SpareVcpu | undefined;
  readonly timings?: Timings;
}

const MIB = 2 ** 20;

/** What a microVM opens, a little more than it takes: threads load code and have event loops, devices have queues. */
const DESCRIPTORS = 6;
const DESCRIPTORS_PER_THREAD = 5;
const DESCRIPTORS_PER_DEVICE = 4;

/**
 * Builds the machine that `spec` describes and starts its guest. Throws `ConfigError` or `BootError` if that
 * cannot be; then nothing of it is left. The spec's descriptors stay the caller's.
 */
export async function buildMicrovm(spec: MachineSpec, options: BuildOptions): Promise<Microvm> {
  const { timings } = options;
  const startedAt = performance.timeOrigin + performance.now();
  const { user, system } = process.cpuUsage();
  const log = new Logger(spec.log, "main");

  checkDescriptors(spec);
  const backend = await loadBackend(options.backend);
  // Threads take longest to come up, so they begin at once and load their code while the rest is made ready.
  const thread = options.devicesHere === true ? undefined : new DeviceThread();
  const oneForAll =
    thread === undefined && options.vcpuThread === undefined && backend.leavesGuest === true && isPlain(spec);
  const threads = Array.from(
    { length: oneForAll ? 0 : spec.vcpus },
    (_, i) => new VcpuThread(options.vcpuThread?.take() ?? new Worker(VCPU_WORKER), i, options.backend),
  );
  let vcpus: readonly VcpuHost[] = threads;
  const drives: RunningDrive[] = [];
  const wake = EventFd.create();
  let releaseBackend = () => {};
  const closeDrives = () => {
    for (const { disk } of drives.splice(0)) closeFile(disk.fd);
  };
  let released = false;
  const release = () => {
    closeDrives();
    // A thread that breaks early is heard of by the builder and by the microVM.
    if (released) return;
    released = true;
    releaseBackend();
    wake.close();
  };
  let devices: DeviceHost | undefined = thread;
  let doorbell: Doorbell | undefined;
  try {
    for (const { id, path, readOnly, ioEngine } of spec.drives) {
      drives.push({ id, readOnly, async: ioEngine === "Async", disk: openDisk(id, path, readOnly) });
    }

    const ramBytes = spec.memMib * MIB;
    const made = createMemory(() => backend.createMemory(ramBytes, spec.vcpus), spec.memMib);
    const { memory } = made;
    releaseBackend = () => backend.release?.(memory);
    const ram = guestRam(made, ramBytes);
    const plan = planMachine({
      backend: options.backend,
      memory,
      ram,
      wakeFd: wake.fd,
      vcpus: spec.vcpus,
      devices: virtioDevices(spec, drives),
      serial: spec.serial,
      mmds: spec.mmds,
      bootTimer: spec.bootTimer,
      smt: spec.smt ?? false,
      measured: spec.measured ?? false,
      startedAt,
      startedCpu: user + system,
      log: spec.log,
    });
    const bell = new Doorbell(plan.shared, plan.doorbell, wake);
    doorbell = bell;
    let host: DeviceHost | undefined = thread;
    if (host === undefined) {
      const { serveHere } = await import("./devices-here.ts");
      ({ host, vcpus } = await serveHere(bell, threads));
    }
    devices = host;
    timings?.mark("memory");

    const vcpusReady = Promise.all(vcpus.map((vcpu) => vcpu.build(plan)));
    // Waited for below; a thread that fails while the kernel loads must not count as an unhandled rejection.
    vcpusReady.catch(() => {});
    const devicesReady = host.build(plan);
    devicesReady.catch(() => {});

    const fileRanges: HostRange[] = [];
    const kernel = kernelSource(spec.kernel, defaultCacheDir(), (ranges) => fileRanges.push(...ranges));
    const boot = loadKernel(new GuestMemory(ram), kernel, {
      cmdline: commandLine(spec, plan),
      initrd: spec.initrd.length === 0 ? undefined : concatenated(spec.initrd),
      vcpus: spec.vcpus,
      virtioDevices: plan.virtio,
    });
    log.info(`Kernel loaded using ${boot.protocol === "pvh" ? "PVH" : "64-bit Linux"} boot protocol`);
    timings?.mark("kernel loaded");

    await devicesReady;
    // A guest that starts the others must find them; the first one may begin as soon as it can.
    if (spec.vcpus > 1) await vcpusReady;
    const sender = new CommandSender(host, bell);
    const microvm = new Microvm(
      {
        devices: host,
        vcpus,
        doorbell: bell,
        requestStop: () => backend.requestStop(memory),
        requestPause: () => backend.requestPause(memory),
        requestResume: () => backend.requestResume(memory),
        commands: sender,
        drives,
        endsProcess: options.endsProcess,
        release,
      },
      options.events,
    );
    if (spec.balloon !== undefined) {
      // Served before anything that the guest can ask for. It fails only if the microVM ends.
      sender.send({ kind: "file-ranges", ranges: fileRanges }).catch(() => {});
    }
    for (const [index, vcpu] of vcpus.entries()) vcpu.run(index === 0 ? boot.registers : undefined);
    await vcpusReady;
    timings?.mark("threads ready");
    return microvm;
  } catch (error) {
    // The device thread may sleep in epoll_wait, where only the doorbell reaches it.
    doorbell?.ring(SLOT_CONTROL, CONTROL_STOP);
    // Until they are gone their threads may be in the middle of using it.
    void Promise.all([devices?.terminate(), ...vcpus.map((vcpu) => vcpu.terminate())]).then(release);
    closeDrives();
    throw error;
  }
}

/**
 * Throws {@link ConfigError} if the process may not open what the machine takes. Asked before, because the runtime ends
 * the process, with the API's socket left behind, if it cannot open what a thread begins with.
 */
function checkDescriptors(spec: MachineSpec): void {
  const devices = spec.drives.length + (spec.networks?.length ?? 0) + 3;
  const count = DESCRIPTORS + DESCRIPTORS_PER_THREAD * (spec.vcpus + 1) + DESCRIPTORS_PER_DEVICE * devices;
  const opened: EventFd[] = [];
  try {
    while (opened.length < count) opened.push(EventFd.create());
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
    throw new ConfigError(
      `The microVM needs ${count} more descriptors: ${error.message}. Raise the limit of open files (ulimit -n).`,
      { cause: error },
    );
  } finally {
    for (const event of opened) event.close();
  }
}

/** One vCPU, and no virtio device. */
function isPlain(spec: MachineSpec): boolean {
  const { vcpus, drives, networks = [], program, vsock, balloon, entropy } = spec;
  if (vcpus > 1 || drives.length > 0 || networks.length > 0 || entropy) return false;
  return program === undefined && vsock === undefined && balloon === undefined;
}

function createMemory<T>(create: () => T, memMib: number): T {
  try {
    return create();
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw new ConfigError(`Cannot get ${memMib} MiB of guest memory from the host. Lower mem_size_mib.`, {
      cause: error,
    });
  }
}

function guestRam({ memory, base, high }: BackendMemory, size: number): GuestMemoryLayout {
  const { buffer } = memory;
  if (!(buffer instanceof SharedArrayBuffer))
    throw new Error("guest memory of the CPU backend is not shared");
  return { buffer, base, size, high };
}

/** In the order of their windows: the drives first, so that the root drive is /dev/vda. */
function virtioDevices(spec: MachineSpec, drives: readonly RunningDrive[]): VirtioDevicePlan[] {
  const devices: VirtioDevicePlan[] = spec.drives.map(
    ({ id, readOnly, cacheType, ioEngine, rateLimiter }, i) => ({
      kind: "block",
      id,
      disk: drives[i]!.disk,
      readOnly,
      cacheType,
      ioEngine,
      rateLimiter,
    }),
  );
  if (spec.program !== undefined) devices.push({ kind: "console", program: spec.program });
  for (const net of spec.networks ?? []) devices.push({ kind: "net", net });
  if (spec.vsock !== undefined) devices.push({ kind: "vsock", vsock: spec.vsock });
  if (spec.balloon !== undefined) devices.push({ kind: "balloon", balloon: spec.balloon });
  if (spec.entropy) devices.push({ kind: "rng", rateLimiter: spec.entropyRateLimiter });
  return devices;
}

function commandLine(spec: MachineSpec, plan: MachinePlan): string {
  const root = spec.drives.find((drive) => drive.root);
  return buildCommandLine({
    bootArgs: spec.bootArgs,
    root: root === undefined ? undefined : { device: rootDevice(root), readOnly: root.readOnly },
    virtioDevices: plan.virtio,
  });
}

function rootDevice(root: DriveSpec): string {
  return root.partuuid === undefined ? "/dev/vda" : `PARTUUID=${root.partuuid}`;
}
