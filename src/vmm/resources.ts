/**
 * What a microVM is configured with before it starts. The configuration file and the API requests both end here.
 * A change that is refused changes nothing.
 */

import { CommandLine } from "../boot/cmdline.ts";
import { SystemError } from "../platform/errno.ts";
import { closeFile, removeFile } from "../platform/files.ts";
import { ioUringProblem, ioUringRefusal } from "../platform/host-probe.ts";
import { listenUnix } from "../platform/unix-socket.ts";
import type { TokenBucketConfig } from "../ratelimit/token-bucket.ts";
import { checkLimits } from "./accel.ts";
import { ConfigError } from "./config-error.ts";
import { openDisk } from "./file-disk.ts";
import { openBootFile } from "./file-source.ts";
import { type MmdsSettings, mmdsJson, mmdsSettings } from "./mmds-config.ts";
import { driveJson, limiterJson, networkJson, vsockJson } from "./resource-json.ts";
import { balloonSpec, driveSpec, netSpec, vsockSpec } from "./resource-specs.ts";
import type {
  Balloon,
  BootSource,
  Drive,
  Entropy,
  MachineConfig,
  MachineConfigUpdate,
  MmdsConfig,
  NetworkInterface,
  RateLimiter,
  Serial,
  VmmConfig,
  Vsock,
} from "./schema/resources.ts";
import type { DriveSpec, FileSource, MachineSpec } from "./spec.ts";
import { openTapDevice } from "./tap-device.ts";

/** Defaults of Firecracker's machine-config. */
const DEFAULT_MACHINE = {
  vcpu_count: 1,
  mem_size_mib: 128,
  smt: false,
  track_dirty_pages: false,
  huge_pages: "None",
} as const;
const DEFAULT_BALLOON = {
  stats_polling_interval_s: 0,
  free_page_hinting: false,
  free_page_reporting: false,
} as const;
const MAX_VCPUS = 32;
const RESOURCE_ID = /^[\p{L}\p{N}_]+$/u;

/** The parts of a MachineSpec that the configuration decides. */
export interface ConfiguredMachine
  extends Pick<MachineSpec, "entropy" | "entropyRateLimiter" | "networks" | "vsock" | "balloon"> {
  readonly vcpus: number;
  readonly smt: boolean;
  readonly memMib: number;
  /** Open until {@link Resources.closeBootFiles}. */
  readonly kernel: FileSource;
  readonly initrd: readonly FileSource[];
  readonly bootArgs: string | undefined;
  readonly drives: readonly DriveSpec[];
  readonly serialOutPath: string | undefined;
  readonly serialRateLimiter: TokenBucketConfig | undefined;
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
  /** With the open TAP device of each. */
  private networks: { readonly config: NetworkInterface; readonly fd: number }[] = [];
  private vsock: { readonly config: Vsock; readonly listenFd: number } | undefined;
  private serial: Serial | undefined;
  private balloonConfig: Balloon | undefined;
  private mmds: MmdsSettings | undefined;

  /** `backend`: see `loadBackend`; it limits vCPUs and memory. */
  constructor(private readonly backend: string = "soft") {}

  /** Takes over a whole configuration file. Throws {@link ConfigError} in Firecracker's words where it has some. */
  apply(config: VmmConfig): void {
    if (config["machine-config"] !== undefined) this.setMachine(config["machine-config"]);
    this.setBootSource(config["boot-source"]);
    for (const drive of config.drives) this.setDrive(drive);
    for (const network of config["network-interfaces"] ?? []) this.setNetwork(network);
    if (config["mmds-config"] !== undefined) this.setMmds(config["mmds-config"]);
    if (config.vsock !== undefined) this.setVsock(config.vsock);
    if (config.balloon !== undefined) this.setBalloon(config.balloon);
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
    this.useMachine({ ...DEFAULT_MACHINE, ...given });
  }

  /** Changes some fields. Throws {@link ConfigError}. */
  updateMachine(update: MachineConfigUpdate): void {
    const { cpu_template: _, ...given } = update;
    const defined = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
    this.useMachine({ ...this.machineConfig, ...defined });
  }

  private useMachine(machine: MachineConfig): void {
    const checked = checkMachine(machine, this.backend);
    if ((this.balloonConfig?.amount_mib ?? 0) > checked.mem_size_mib) {
      throw new ConfigError(
        "The memory size (MiB) is smaller than the previously set balloon device target size.",
      );
    }
    this.machineConfig = checked;
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
    if (drive.io_engine === "Async") checkIoUring(id);
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

  /** Notes the new limits of a drive that were changed under the running guest. Throws {@link ConfigError}. */
  setDriveRateLimiter(id: string, update: RateLimiter | undefined): void {
    this.drives = this.drives.map((drive) =>
      drive.drive_id === id ? { ...drive, rate_limiter: updatedLimiter(drive.rate_limiter, update) } : drive,
    );
  }

  /** Adds a network interface or replaces the one of the same id, and opens its TAP device. Throws {@link ConfigError}. */
  setNetwork(config: NetworkInterface): void {
    const { iface_id: id, guest_mac: mac, host_dev_name: tap } = config;
    if (!RESOURCE_ID.test(id)) {
      throw new ConfigError(
        `iface_id \`${id}\` is invalid: API Resource IDs can only contain alphanumeric characters and underscores.`,
      );
    }
    const same = this.networks.findIndex((other) => other.config.iface_id === id);
    const taken = this.networks.some(
      (other, i) =>
        i !== same && mac !== undefined && other.config.guest_mac?.toLowerCase() === mac.toLowerCase(),
    );
    if (taken) throw new ConfigError(`The MAC address is already in use: ${mac}`);
    const before = this.networks[same];
    // A TAP device can be opened only once.
    const kept = before?.config.host_dev_name === tap;
    const network = { config, fd: kept ? before.fd : openTapDevice(tap) };
    if (before !== undefined && !kept) closeFile(before.fd);
    this.networks = this.networks.toSpliced(
      same < 0 ? this.networks.length : same,
      same < 0 ? 0 : 1,
      network,
    );
  }

  /** Lets guests get the metadata through some of the interfaces that there are. Throws {@link ConfigError}. */
  setMmds(config: MmdsConfig): void {
    this.mmds = mmdsSettings(config, this.networkIds);
  }

  /** How guests get the metadata; undefined if they do not. */
  get mmdsSettings(): MmdsSettings | undefined {
    return this.mmds;
  }

  get networkIds(): string[] {
    return this.networks.map(({ config }) => config.iface_id);
  }

  /** Notes the new limits of an interface that were changed under the running guest. */
  setNetworkRateLimiters(id: string, rx: RateLimiter | undefined, tx: RateLimiter | undefined): void {
    this.networks = this.networks.map((network) => {
      const { config } = network;
      if (config.iface_id !== id) return network;
      return {
        ...network,
        config: {
          ...config,
          rx_rate_limiter: updatedLimiter(config.rx_rate_limiter, rx),
          tx_rate_limiter: updatedLimiter(config.tx_rate_limiter, tx),
        },
      };
    });
  }

  /** Sets the vsock device and binds its socket. Throws {@link ConfigError}. */
  setVsock(config: Vsock): void {
    const { uds_path: path } = config;
    if (this.vsock?.config.uds_path === path) {
      this.vsock = { config, listenFd: this.vsock.listenFd };
      return;
    }
    let listenFd: number;
    try {
      listenFd = listenUnix(path);
    } catch (error) {
      if (!(error instanceof SystemError || error instanceof RangeError)) throw error;
      throw new ConfigError(
        `Cannot create backend for vsock device: Error binding to the host-side Unix socket: ${error.message}`,
      );
    }
    this.removeVsock();
    this.vsock = { config, listenFd };
  }

  /** Closes the vsock device's socket and removes it from the file system. */
  removeVsock(): void {
    if (this.vsock === undefined) return;
    closeFile(this.vsock.listenFd);
    removeFile(this.vsock.config.uds_path);
    this.vsock = undefined;
  }

  /** The balloon as it is configured. Throws {@link ConfigError} if there is none. */
  get balloon(): Balloon {
    if (this.balloonConfig === undefined) throw new ConfigError("No balloon device found.");
    return this.balloonConfig;
  }

  /** Throws {@link ConfigError} if the balloon is larger than the memory. */
  setBalloon(config: Balloon): void {
    checkBalloonAmount(config.amount_mib, this.machineConfig.mem_size_mib);
    this.balloonConfig = { ...DEFAULT_BALLOON, ...config };
  }

  /** Notes what was changed under the running guest. */
  noteBalloon(config: Balloon): void {
    this.balloonConfig = config;
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
      smt: this.machineConfig.smt ?? false,
      memMib: this.machineConfig.mem_size_mib,
      ...this.bootFiles,
      bootArgs: this.boot?.boot_args,
      drives: this.drives.map(driveSpec),
      entropy: this.entropy !== undefined,
      entropyRateLimiter: this.entropy?.rate_limiter,
      networks: this.networks.map(({ config, fd }) => netSpec(config, fd)),
      vsock: this.vsock === undefined ? undefined : vsockSpec(this.vsock.config, this.vsock.listenFd),
      balloon: this.balloonConfig === undefined ? undefined : balloonSpec(this.balloonConfig),
      serialOutPath: this.serial?.serial_out_path,
      serialRateLimiter: this.serial?.rate_limiter,
    };
  }

  /** The whole configuration as `GET /vm/config` shows it. */
  toJson(): Record<string, unknown> {
    const { kernel_image_path = "", initrd_path = null, boot_args = null } = this.boot ?? {};
    return {
      balloon: this.balloonConfig ?? null,
      drives: this.drives.map(driveJson),
      "boot-source": { kernel_image_path, initrd_path, boot_args },
      "cpu-config": null,
      logger: null,
      "machine-config": this.machineConfig,
      metrics: null,
      "mmds-config": this.mmds === undefined ? null : mmdsJson(this.mmds),
      "network-interfaces": this.networks.map(({ config }) => networkJson(config)),
      vsock: this.vsock === undefined ? null : vsockJson(this.vsock.config),
      entropy: this.entropy === undefined ? null : { rate_limiter: limiterJson(this.entropy.rate_limiter) },
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

/** Throws {@link ConfigError} if the host refuses what `io_engine` Async needs. */
function checkIoUring(id: string): void {
  const problem = ioUringProblem(ioUringRefusal());
  if (problem === undefined) return;
  throw new ConfigError(
    `Unable to create the block device \`${id}\`: FileEngine: Async: IoUring: ${problem} Or use io_engine \`Sync\`.`,
  );
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

/** Throws {@link ConfigError} if a balloon of this size takes more than the guest has. Both in MiB. */
export function checkBalloonAmount(amount: number, memory: number): void {
  if (amount <= memory) return;
  throw new ConfigError(
    `Amount of pages requested is too large. The guest has ${memory} MiB: ask for no more.`,
  );
}

/** A limiter after a change of some of its buckets: one of size 0 or refill time 0 goes away. */
function updatedLimiter(
  before: RateLimiter | undefined,
  update: RateLimiter | undefined,
): RateLimiter | undefined {
  return { ...before, ...update };
}
