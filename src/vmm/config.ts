/**
 * Firecracker's configuration file (`--config-file`). The schemas below are the only source of what is
 * valid and of the types; `configToSpec` then checks what a schema cannot say.
 */

import { type Static, Type } from "typebox";
import { LOG_LEVELS, parseLogLevel } from "../observe/logger.ts";
import { checkLimits } from "./accel.ts";
import { ConfigError } from "./config-error.ts";
import { openBootFile } from "./file-source.ts";
import type { DriveSpec, FileSource } from "./spec.ts";
import { validate } from "./validate.ts";

const strict = { additionalProperties: false } as const;
const text = Type.String();
const flag = Type.Boolean();

const BootSource = Type.Object(
  {
    kernel_image_path: text,
    initrd_path: Type.Optional(text),
    boot_args: Type.Optional(text),
  },
  strict,
);

const Drive = Type.Object(
  {
    drive_id: text,
    is_root_device: flag,
    path_on_host: Type.Optional(text),
    partuuid: Type.Optional(text),
    is_read_only: Type.Optional(flag),
    cache_type: Type.Optional(Type.Enum(["Unsafe", "Writeback"])),
    io_engine: Type.Optional(Type.Enum(["Sync", "Async"])),
    rate_limiter: Type.Optional(Type.Unknown()),
    socket: Type.Optional(Type.Unknown()),
  },
  strict,
);

const MachineConfig = Type.Object(
  {
    vcpu_count: Type.Integer({ minimum: 0, maximum: 255 }),
    mem_size_mib: Type.Integer({ minimum: 0, maximum: 2 ** 40 }),
    smt: Type.Optional(flag),
    track_dirty_pages: Type.Optional(flag),
    huge_pages: Type.Optional(Type.Enum(["None", "Transparent", "2M"])),
    cpu_template: Type.Optional(Type.Enum(["None", "C3", "T2", "T2S", "T2CL", "T2A", "V1N1"])),
  },
  strict,
);

const LoggerConfig = Type.Object(
  {
    log_path: Type.Optional(text),
    level: Type.Optional(text),
    show_level: Type.Optional(flag),
    show_log_origin: Type.Optional(flag),
    module: Type.Optional(text),
  },
  strict,
);

const Serial = Type.Object(
  { serial_out_path: Type.Optional(text), rate_limiter: Type.Optional(Type.Unknown()) },
  strict,
);

const Entropy = Type.Object({ rate_limiter: Type.Optional(Type.Unknown()) }, strict);

const Unsupported = Type.Optional(Type.Unknown());

const VmmConfig = Type.Object(
  {
    "boot-source": BootSource,
    drives: Type.Array(Drive),
    "machine-config": Type.Optional(MachineConfig),
    logger: Type.Optional(LoggerConfig),
    entropy: Type.Optional(Entropy),
    serial: Type.Optional(Serial),
    balloon: Unsupported,
    "cpu-config": Unsupported,
    "memory-hotplug": Unsupported,
    metrics: Unsupported,
    "mmds-config": Unsupported,
    "network-interfaces": Unsupported,
    pmem: Unsupported,
    vsock: Unsupported,
  },
  strict,
);

/** Keys that Firecracker knows and this monitor does not act on: refused rather than ignored. */
const UNSUPPORTED = [
  "balloon",
  "cpu-config",
  "memory-hotplug",
  "metrics",
  "mmds-config",
  "network-interfaces",
  "pmem",
  "vsock",
] as const;

export type VmmConfig = Static<typeof VmmConfig>;

/** Defaults of Firecracker's machine-config. */
const DEFAULT_VCPUS = 1;
const DEFAULT_MEM_MIB = 128;
const MAX_VCPUS = 32;

/**
 * Parses a configuration file's text. `null` counts as left out, as in what `GET /vm/config` prints.
 * Throws {@link ConfigError}.
 */
export function parseConfig(json: string): VmmConfig {
  let value: unknown;
  try {
    value = JSON.parse(json);
  } catch (error) {
    throw new ConfigError(`Invalid JSON: ${error instanceof Error ? error.message : String(error)}`);
  }
  const config = validate(VmmConfig, withoutNulls(value));
  for (const key of UNSUPPORTED) {
    const given = config[key];
    if (given === undefined || (Array.isArray(given) && given.length === 0)) continue;
    throw notSupported(`\`${key}\``);
  }
  return config;
}

function notSupported(what: string, instead = "Remove it from the configuration."): ConfigError {
  return new ConfigError(`${what} is not supported yet. ${instead}`);
}

function withoutNulls(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withoutNulls);
  if (typeof value !== "object" || value === null) return value;
  const kept = Object.entries(value).filter(([, v]) => v !== null);
  return Object.fromEntries(kept.map(([k, v]) => [k, withoutNulls(v)]));
}

/** The parts of a {@link MachineSpec} that a configuration file decides. */
export interface ConfiguredMachine {
  vcpus: number;
  memMib: number;
  kernel: FileSource;
  initrd: FileSource[];
  bootArgs: string | undefined;
  drives: DriveSpec[];
  entropy: boolean;
  serialOutPath: string | undefined;
}

/** Log settings of the file, which go before the command line's. */
export interface ConfiguredLogger {
  path?: string;
  level?: (typeof LOG_LEVELS)[number];
  showLevel?: boolean;
  showOrigin?: boolean;
}

/**
 * Checks `config` against what this machine can do and opens kernel and initrd. Throws {@link ConfigError}
 * with Firecracker's words where it has some.
 */
export function configToSpec(config: VmmConfig): ConfiguredMachine {
  const { vcpus, memMib } = checkMachine(config["machine-config"]);
  if (config.entropy?.rate_limiter !== undefined) throw notSupported("`rate_limiter` of `entropy`");
  if (config.serial?.rate_limiter !== undefined) throw notSupported("`rate_limiter` of `serial`");
  const boot = config["boot-source"];
  const drives = checkDrives(config.drives);
  const kernel = openBootFile("The kernel file cannot be opened:", boot.kernel_image_path);
  const initrd =
    boot.initrd_path === undefined
      ? []
      : [
          openBootFile(
            "The initrd file cannot be opened due to an invalid path or invalid permissions.",
            boot.initrd_path,
          ),
        ];
  return {
    vcpus,
    memMib,
    kernel,
    initrd,
    bootArgs: boot.boot_args,
    drives,
    entropy: config.entropy !== undefined,
    serialOutPath: config.serial?.serial_out_path,
  };
}

function checkMachine(machine: Static<typeof MachineConfig> | undefined): { vcpus: number; memMib: number } {
  const vcpus = machine?.vcpu_count ?? DEFAULT_VCPUS;
  const memMib = machine?.mem_size_mib ?? DEFAULT_MEM_MIB;
  if (vcpus < 1 || vcpus > MAX_VCPUS || (machine?.smt === true && vcpus > 1 && vcpus % 2 === 1)) {
    throw new ConfigError(
      `The number of vCPUs must be greater than 0, less than ${MAX_VCPUS} and must be 1 or an even number if SMT is enabled.`,
    );
  }
  if (memMib === 0) {
    throw new ConfigError(
      "The memory size (MiB) is either 0, or not a multiple of the configured page size.",
    );
  }
  checkLimits(vcpus, memMib);
  if (machine?.smt === true) throw notSupported("`smt`", "Set it to false.");
  if (machine?.track_dirty_pages === true) throw notSupported("`track_dirty_pages`", "Set it to false.");
  if (machine?.huge_pages !== undefined && machine.huge_pages !== "None") {
    throw notSupported(`\`huge_pages\` \`${machine.huge_pages}\``, "Set it to `None`.");
  }
  if (machine?.cpu_template !== undefined && machine.cpu_template !== "None") {
    throw notSupported(`\`cpu_template\` \`${machine.cpu_template}\``, "Set it to `None`.");
  }
  return { vcpus, memMib };
}

function checkDrives(drives: Static<typeof Drive>[]): DriveSpec[] {
  const specs: DriveSpec[] = [];
  for (const drive of drives) {
    const id = drive.drive_id;
    if (!/^[A-Za-z0-9_]+$/.test(id)) {
      throw new ConfigError(
        `drive_id \`${id}\` is invalid: API Resource IDs can only contain alphanumeric characters and underscores.`,
      );
    }
    if (drive.socket !== undefined) throw notSupported(`\`socket\` (vhost-user) of drive \`${id}\``);
    if (drive.rate_limiter !== undefined) throw notSupported(`\`rate_limiter\` of drive \`${id}\``);
    if (drive.io_engine === "Async") {
      throw notSupported(`\`io_engine\` \`Async\` of drive \`${id}\``, "Set it to `Sync`.");
    }
    if (drive.path_on_host === undefined) throw new ConfigError("missing field `path_on_host`");
    const spec: DriveSpec = {
      id,
      path: drive.path_on_host,
      readOnly: drive.is_read_only ?? false,
      root: drive.is_root_device,
      partuuid: drive.partuuid,
      cacheType: drive.cache_type ?? "Unsafe",
    };
    const same = specs.findIndex((other) => other.id === id);
    if (spec.root && specs.some((other, i) => other.root && i !== same)) {
      throw new ConfigError("A root block device already exists!");
    }
    // The same drive_id again replaces the drive; the root drive is the first device.
    if (same >= 0) specs.splice(same, 1);
    if (spec.root) specs.unshift(spec);
    else specs.splice(same >= 0 ? same : specs.length, 0, spec);
  }
  return specs;
}

/** Log settings of `config`. Throws {@link ConfigError}. */
export function configLogger(config: VmmConfig): ConfiguredLogger {
  const { logger } = config;
  if (logger === undefined) return {};
  if (logger.module !== undefined) throw notSupported("`module` of `logger`");
  const level = logger.level === undefined ? undefined : parseLogLevel(logger.level);
  if (logger.level !== undefined && level === undefined) {
    throw new ConfigError(
      `unknown variant \`${logger.level}\`, expected one of ${LOG_LEVELS.map((l) => `\`${l}\``).join(", ")}`,
    );
  }
  return {
    ...(logger.log_path === undefined ? {} : { path: logger.log_path }),
    ...(level === undefined ? {} : { level }),
    ...(logger.show_level === undefined ? {} : { showLevel: logger.show_level }),
    ...(logger.show_log_origin === undefined ? {} : { showOrigin: logger.show_log_origin }),
  };
}
