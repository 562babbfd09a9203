/**
 * What a microVM is configured with before it starts. The configuration file and the API requests both end here.
 * A change that is refused changes nothing.
 */

import { CommandLine } from "../boot/cmdline.ts";
import { closeFile } from "../platform/files.ts";
import { checkLimits } from "./accel.ts";
import { ConfigError } from "./config-error.ts";
import { openDisk } from "./file-disk.ts";
import { openBootFile } from "./file-source.ts";
import type {
  BootSource,
  Drive,
  Entropy,
  MachineConfig,
  MachineConfigUpdate,
  Serial,
  VmmConfig,
} from "./schema/resources.ts";
import type { DriveSpec, FileSource } from "./spec.ts";

/** Defaults of Firecracker's machine-config. */
const DEFAULT_MACHINE = {
  vcpu_count: 1,
  mem_size_mib: 128,
  smt: false,
  track_dirty_pages: false,
  huge_pages: "None",
} as const;
const MAX_VCPUS = 32;
const RESOURCE_ID = /^[\p{L}\p{N}_]+$/u;

/** The parts of a MachineSpec that the configuration decides. */
export interface ConfiguredMachine {
  readonly vcpus: number;
  readonly memMib: number;
  /** Open until {@link Resources.closeBootFiles}. */
  readonly kernel: FileSource;
  readonly initrd: readonly FileSource[];
  readonly bootArgs: string | undefined;
  readonly drives: readonly DriveSpec[];
  readonly entropy: boolean;
  readonly serialOutPath: string | undefined;
}

interface BootFiles {
  readonly kernel: FileSource;
  readonly initrd: readonly FileSource[];
}

export class Resources {
  private boot: BootSource | undefined;
  private bootFiles: BootFiles | undefined;
  private drives: Drive[] = [];
  private machineConfig: MachineConfig = DEFAULT_MACHINE;
  private entropy: Entropy | undefined;
  private serial: Serial | undefined;

  /** `backend`: see `loadBackend`; it limits vCPUs and memory. */
  constructor(private readonly backend: string = "soft") {}

  /** Takes over a whole configuration file. Throws {@link ConfigError} in Firecracker's words where it has some. */
  apply(config: VmmConfig): void {
    if (config["machine-config"] !== undefined) this.setMachine(config["machine-config"]);
    this.setBootSource(config["boot-source"]);
    for (const drive of config.drives) this.setDrive(drive);
    if (config.entropy !== undefined) this.setEntropy(config.entropy);
    if (config.serial !== undefined) this.setSerial(config.serial);
  }

  get machine(): MachineConfig {
    return this.machineConfig;
  }

  /** Throws {@link ConfigError} if kernel or initrd cannot be opened, or the command line cannot be used. */
  setBootSource(config: BootSource): void {
    checkBootArgs(config.boot_args);
    const kernel = openBootFile("The kernel file cannot be opened:", config.kernel_image_path);
    let initrd: FileSource[] = [];
    try {
      if (config.initrd_path !== undefined) {
        const sentence = "The initrd file cannot be opened due to an invalid path or invalid permissions.";
        initrd = [openBootFile(sentence, config.initrd_path)];
      }
    } catch (error) {
      closeFile(kernel.fd);
      throw error;
    }
    this.closeBootFiles();
    this.boot = config;
    this.bootFiles = { kernel, initrd };
  }

  /** Puts the vCPUs and the memory. Fields left out get their defaults. Throws {@link ConfigError}. */
  setMachine(config: MachineConfig): void {
    const { cpu_template: _, ...given } = config;
    this.machineConfig = checkMachine({ ...DEFAULT_MACHINE, ...given }, this.backend);
  }

  /** Changes some fields. Throws {@link ConfigError}. */
  updateMachine(update: MachineConfigUpdate): void {
    const { cpu_template: _, ...given } = update;
    const defined = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
    this.machineConfig = checkMachine({ ...this.machineConfig, ...defined }, this.backend);
  }

  /** Adds a drive or replaces the one of the same id. The root drive comes first. Throws {@link ConfigError}. */
  setDrive(drive: Drive): void {
    const { drive_id: id } = drive;
    if (!RESOURCE_ID.test(id)) {
      throw new ConfigError(
        `drive_id \`${id}\` is invalid: API Resource IDs can only contain alphanumeric characters and underscores.`,
      );
    }
    if (drive.path_on_host === undefined) {
      throw new ConfigError(`Drive \`${id}\` has no path_on_host. Give the path of its disk image.`);
    }
    const same = this.drives.findIndex((other) => other.drive_id === id);
    if (drive.is_root_device && this.drives.some((other, i) => other.is_root_device && i !== same)) {
      throw new ConfigError("A root block device already exists!");
    }
    // Opened once here, so that a wrong path is told now and not when the machine starts.
    closeFile(openDisk(id, drive.path_on_host, drive.is_read_only ?? false).fd);
    const drives = this.drives.toSpliced(same < 0 ? this.drives.length : same, same < 0 ? 0 : 1, drive);
    // A sort by this key keeps the order of all others.
    this.drives = drives.sort((a, b) => Number(b.is_root_device) - Number(a.is_root_device));
  }

  /** Notes the new path of a drive whose disk was changed under the running guest. */
  setDrivePath(id: string, path: string): void {
    this.drives = this.drives.map((drive) =>
      drive.drive_id === id ? { ...drive, path_on_host: path } : drive,
    );
  }

  setEntropy(entropy: Entropy): void {
    this.entropy = entropy;
  }

  setSerial(serial: Serial): void {
    this.serial = serial;
  }

  /** What to build. Throws {@link ConfigError} if there is no kernel. */
  spec(): ConfiguredMachine {
    if (this.bootFiles === undefined) {
      throw new ConfigError("Cannot start microvm without kernel configuration.");
    }
    return {
      vcpus: this.machineConfig.vcpu_count,
      memMib: this.machineConfig.mem_size_mib,
      ...this.bootFiles,
      bootArgs: this.boot?.boot_args,
      drives: this.drives.map(driveSpec),
      entropy: this.entropy !== undefined,
      serialOutPath: this.serial?.serial_out_path,
    };
  }

  /** The whole configuration as `GET /vm/config` shows it. */
  toJson(): Record<string, unknown> {
    const { kernel_image_path = "", initrd_path = null, boot_args = null } = this.boot ?? {};
    return {
      balloon: null,
      drives: this.drives.map(driveJson),
      "boot-source": { kernel_image_path, initrd_path, boot_args },
      "cpu-config": null,
      logger: null,
      "machine-config": this.machineConfig,
      metrics: null,
      "mmds-config": null,
      "network-interfaces": [],
      vsock: null,
      entropy: this.entropy === undefined ? null : { rate_limiter: null },
      pmem: [],
      "memory-hotplug": null,
    };
  }

  /** Closes kernel and initrd: they are not needed any more once the guest runs. */
  closeBootFiles(): void {
    if (this.bootFiles === undefined) return;
    for (const file of [this.bootFiles.kernel, ...this.bootFiles.initrd]) closeFile(file.fd);
    this.bootFiles = undefined;
  }
}

function checkBootArgs(bootArgs: string | undefined): void {
  if (bootArgs === undefined) return;
  try {
    new CommandLine(bootArgs);
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new ConfigError(`The kernel command line is invalid: ${reason}`);
  }
}

function checkMachine(machine: MachineConfig, backend: string): MachineConfig {
  const { vcpu_count: vcpus, mem_size_mib: memMib } = machine;
  if (vcpus < 1 || vcpus > MAX_VCPUS || (machine.smt === true && vcpus > 1 && vcpus % 2 === 1)) {
    throw new ConfigError(
      `The number of vCPUs must be greater than 0, less than ${MAX_VCPUS} and must be 1 or an even number if SMT is enabled.`,
    );
  }
  if (memMib === 0) {
    throw new ConfigError(
      "The memory size (MiB) is either 0, or not a multiple of the configured page size.",
    );
  }
  checkLimits(backend, vcpus, memMib);
  return machine;
}

function driveSpec(drive: Drive): DriveSpec {
  return {
    id: drive.drive_id,
    path: drive.path_on_host ?? "",
    readOnly: drive.is_read_only ?? false,
    root: drive.is_root_device,
    partuuid: drive.partuuid,
    cacheType: drive.cache_type ?? "Unsafe",
  };
}

function driveJson(drive: Drive): Record<string, unknown> {
  return {
    drive_id: drive.drive_id,
    partuuid: drive.partuuid ?? null,
    is_root_device: drive.is_root_device,
    cache_type: drive.cache_type ?? "Unsafe",
    is_read_only: drive.is_read_only ?? false,
    path_on_host: drive.path_on_host ?? null,
    rate_limiter: null,
    io_engine: drive.io_engine ?? "Sync",
    socket: null,
  };
}
