/** Builds a microVM: the whole machine, in the order in which it comes to be. */

import { buildCommandLine } from "../boot/cmdline.ts";
import { loadKernel } from "../boot/load-kernel.ts";
import { defaultCacheDir } from "../image/cache.ts";
import { GuestMemory, type GuestMemoryLayout } from "../memory/guest-memory.ts";
import { Logger } from "../observe/logger.ts";
import { EventFd } from "../platform/eventfd.ts";
import { closeFile } from "../platform/files.ts";
import { loadBackend } from "./backend.ts";
import { CommandSender } from "./commands.ts";
import { ConfigError } from "./config-error.ts";
import { CONTROL_STOP, Doorbell, SLOT_CONTROL } from "./doorbell.ts";
import { openDisk } from "./file-disk.ts";
import { concatenated, kernelSource } from "./file-source.ts";
import { type MachinePlan, planMachine, type VirtioDevicePlan } from "./machine.ts";
import type { VcpuCommand, VcpuEvent, VmmEvent, VmmStart } from "./messages.ts";
import { Microvm, type MicrovmEvents, type RunningDrive } from "./microvm.ts";
import type { DriveSpec, MachineSpec } from "./spec.ts";
import type { Timings } from "./timings.ts";
import { VCPU_WORKER, VMM_WORKER } from "./worker-urls.ts";

export interface BuildOptions {
  /** See `loadBackend`. */
  readonly backend: string;
  readonly events?: MicrovmEvents;
  readonly timings?: Timings;
}

const MIB = 2 ** 20;

/**
 * Builds the machine that `spec` describes and starts its guest. Throws `ConfigError` or `BootError` if that
 * cannot be; then nothing of it is left. The spec's descriptors stay the caller's.
 */
export async function buildMicrovm(spec: MachineSpec, options: BuildOptions): Promise<Microvm> {
  const { timings } = options;
  const startedAt = performance.timeOrigin + performance.now();
  const { user, system } = process.cpuUsage();
  const log = new Logger(spec.log, "main");

  // Threads take longest to come up, so they begin at once and load their code while the rest is made ready.
  const vmm = new Worker(VMM_WORKER);
  const vcpus = Array.from({ length: spec.vcpus }, () => new Worker(VCPU_WORKER));
  for (const vcpu of vcpus) {
    vcpu.postMessage({ kind: "load", backend: options.backend } satisfies VcpuCommand);
  }
  const workers = [vmm, ...vcpus];
  const drives: RunningDrive[] = [];
  const commands = new MessageChannel();
  const wake = EventFd.create();
  let releaseBackend = () => {};
  const release = () => {
    releaseBackend();
    wake.close();
    for (const { disk } of drives) closeFile(disk.fd);
  };
  let doorbell: Doorbell | undefined;
  try {
    for (const { id, path, readOnly } of spec.drives) {
      drives.push({ id, readOnly, disk: openDisk(id, path, readOnly) });
    }

    const backend = await loadBackend(options.backend);
    const ramBytes = spec.memMib * MIB;
    const { memory, base } = createMemory(() => backend.createMemory(ramBytes, spec.vcpus), spec.memMib);
    releaseBackend = () => backend.release?.(memory);
    const ram = guestRam(memory, base, ramBytes);
    const plan = planMachine({
      backend: options.backend,
      memory,
      ram,
      wakeFd: wake.fd,
      vcpus: spec.vcpus,
      devices: virtioDevices(spec, drives),
      serial: spec.serial,
      bootTimer: spec.bootTimer,
      startedAt,
      startedCpu: user + system,
      log: spec.log,
    });
    doorbell = new Doorbell(plan.shared, plan.doorbell, wake);
    timings?.mark("memory");

    const vmmReady = nextEvent<VmmEvent>(vmm, "the device thread");
    const vcpusReady = vcpus.map((vcpu, i) => nextEvent<VcpuEvent>(vcpu, `vCPU ${i}`));
    vmm.postMessage({ plan, commands: commands.port2 } satisfies VmmStart, [commands.port2]);
    for (const [index, vcpu] of vcpus.entries()) {
      vcpu.postMessage({ kind: "start", plan, index } satisfies VcpuCommand);
    }
    // Waited for below; a thread that fails while the kernel loads must not count as an unhandled rejection.
    const ready = Promise.all([vmmReady, ...vcpusReady]);
    ready.catch(() => {});

    const boot = loadKernel(new GuestMemory(ram), kernelSource(spec.kernel, defaultCacheDir()), {
      cmdline: commandLine(spec, plan),
      initrd: spec.initrd.length === 0 ? undefined : concatenated(spec.initrd),
      vcpus: spec.vcpus,
      virtioDevices: plan.virtio,
    });
    log.info(`Kernel loaded using ${boot.protocol === "pvh" ? "PVH" : "64-bit Linux"} boot protocol`);
    timings?.mark("kernel loaded");

    await ready;
    timings?.mark("threads ready");
    const microvm = new Microvm(
      {
        vmm,
        vcpus,
        doorbell,
        requestStop: () => backend.requestStop(memory),
        requestPause: () => backend.requestPause(memory),
        requestResume: () => backend.requestResume(memory),
        commands: new CommandSender(commands.port1, doorbell),
        drives,
        release,
      },
      options.events,
    );
    for (const [index, vcpu] of vcpus.entries()) {
      const registers = index === 0 ? boot.registers : undefined;
      vcpu.postMessage({ kind: "run", registers } satisfies VcpuCommand);
    }
    return microvm;
  } catch (error) {
    // The device thread may sleep in epoll_wait, where only the doorbell reaches it.
    doorbell?.ring(SLOT_CONTROL, CONTROL_STOP);
    commands.port1.close();
    // Until they are gone their threads may be in the middle of using it.
    void Promise.all(workers.map(terminated)).then(() => {
      releaseBackend();
      wake.close();
    });
    for (const { disk } of drives) closeFile(disk.fd);
    throw error;
  }
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

function guestRam(memory: WebAssembly.Memory, base: number, size: number): GuestMemoryLayout {
  const { buffer } = memory;
  if (!(buffer instanceof SharedArrayBuffer))
    throw new Error("guest memory of the CPU backend is not shared");
  return { buffer, base, size };
}

/** In the order of their windows: the drives first, so that the root drive is /dev/vda. */
function virtioDevices(spec: MachineSpec, drives: readonly RunningDrive[]): VirtioDevicePlan[] {
  const devices: VirtioDevicePlan[] = spec.drives.map(({ id, readOnly, cacheType, rateLimiter }, i) => ({
    kind: "block",
    id,
    disk: drives[i]!.disk,
    readOnly,
    cacheType,
    rateLimiter,
  }));
  if (spec.program !== undefined) devices.push({ kind: "console", program: spec.program });
  for (const net of spec.networks ?? []) devices.push({ kind: "net", net });
  if (spec.vsock !== undefined) devices.push({ kind: "vsock", vsock: spec.vsock });
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

/** Ends the worker, and resolves when its thread is gone. */
function terminated(worker: Worker): Promise<void> {
  return new Promise((resolve) => {
    worker.addEventListener("close", () => resolve());
    worker.terminate();
  });
}

/** The worker's first message. Rejects if that is a failure. */
function nextEvent<E extends VmmEvent | VcpuEvent>(worker: Worker, name: string): Promise<E> {
  return new Promise((resolve, reject) => {
    worker.onmessage = ({ data }: MessageEvent<E>) => {
      if (data.kind === "failed") reject(new Error(`${name} failed to start: ${data.message}`));
      else resolve(data);
    };
    worker.onerror = (event) => reject(new Error(`${name} failed to start: ${event.message}`));
  });
}
