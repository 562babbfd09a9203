/** Firecracker's command line: a microVM from an API socket, a configuration file, or both. */

import type { HttpServer } from "../api/http/server.ts";
import { MmdsStore } from "../mmds/store.ts";
import { type LogSettings, LogTarget } from "../observe/log-target.ts";
import { LOG_LEVELS, type Logger, parseLogLevel } from "../observe/logger.ts";
import { Metrics } from "../observe/metrics.ts";
import { monotonicMicros } from "../platform/clock.ts";
import { SystemError } from "../platform/errno.ts";
import { type Accelerator, chooseAccelerator, describeChoice } from "../vmm/accel.ts";
import { loggerSettings, parseConfig } from "../vmm/config.ts";
import { ConfigError } from "../vmm/config-error.ts";
import { Instance } from "../vmm/instance.ts";
import { compileAsUsual } from "../vmm/jit-policy.ts";
import type { MicrovmEnd } from "../vmm/microvm.ts";
import type { SpareVcpu } from "../vmm/spare-vcpu.ts";
import { EXIT_ERROR, EXIT_OK, exitForSignal, UsageError } from "./exit.ts";
import { DEFAULT_API_SOCKET, DEFAULT_MAX_PAYLOAD } from "./flags.ts";
import { stopOnSignal } from "./signals.ts";
import { readText } from "./text-file.ts";
import { VERSION } from "./version.ts";

/** For callers within the program. */
export interface CommandOverrides {
  /** A CPU backend by its module, see `loadBackend`. */
  readonly backend?: string;
  /** As in `InstanceOptions`. */
  readonly metricsPeriod?: number;
  /** The process ends with the command, and nothing else goes on in it. */
  readonly ownProcess?: boolean;
  /** Thread for the first vCPU. */
  readonly vcpuThread?: SpareVcpu | undefined;
}

/** As the command line gives them. */
export interface FirecrackerFlags {
  api: boolean;
  configFile?: string;
  apiSock?: string;
  id: string;
  level?: string;
  logPath?: string;
  showLevel?: boolean;
  showLogOrigin?: boolean;
  bootTimer?: boolean;
  metadata?: string;
  metricsPath?: string;
  httpApiMaxPayloadSize?: string;
  mmdsSizeLimit?: string;
  startTimeUs?: string;
  startTimeCpuUs?: string;
  parentCpuTimeUs?: string;
  accel: Accelerator;
}

/**
 * Serves the API, or runs the machine of the configuration file, until the guest ends or a signal comes. Returns
 * the exit code.
 */
export async function firecrackerCommand(
  flags: FirecrackerFlags,
  refused: readonly string[],
  overrides: CommandOverrides = {},
): Promise<number> {
  if (refused.length > 0) throw new UsageError(`${refused.join(", ")}: not supported yet. Leave it out.`);
  checkId(flags.id);
  const maxBody = bytes("http-api-max-payload-size", flags.httpApiMaxPayloadSize) ?? DEFAULT_MAX_PAYLOAD;
  const mmds = new MmdsStore(bytes("mmds-size-limit", flags.mmdsSizeLimit) ?? maxBody);
  if (!flags.api && flags.apiSock !== undefined)
    throw new UsageError("--api-sock and --no-api exclude each other. Leave one out.");
  if (!flags.api && flags.configFile === undefined) throw new UsageError("--no-api needs --config-file.");

  const log = new LogTarget(flags.id);
  log.update(loggerFlags(flags));
  log.logger.info(`Running Sparkler v${VERSION}`);
  const metrics = new Metrics();
  if (flags.metricsPath !== undefined) openMetrics(metrics, flags.metricsPath);

  let server: HttpServer | undefined;
  let configured: Instance | undefined;
  const removeSocket = () => {
    server?.close();
    configured?.resources.removeVsock();
  };
  process.on("exit", removeSocket);
  try {
    const accel = await chooseAccelerator(flags.accel);
    log.logger.info(describeChoice(accel));
    if (accel.warning !== undefined) log.logger.warn(accel.warning);
    const backend = overrides.backend ?? accel.backend;
    overrides.vcpuThread?.load(backend);
    const instance = new Instance({
      id: flags.id,
      backend,
      bootTimer: flags.bootTimer ?? false,
      log,
      metrics,
      metricsPeriod: overrides.metricsPeriod,
      mmds,
      devicesHere: overrides.ownProcess === true && !flags.api,
      endsProcess: overrides.ownProcess,
      vcpuThread: overrides.vcpuThread,
    });
    configured = instance;
    if (flags.metadata !== undefined) (await import("./metadata.ts")).putMetadata(mmds, flags.metadata);
    const signalled = Promise.withResolvers<void>();
    const signal = stopOnSignal(() => {
      if (instance.state === "Not started") signalled.resolve();
      instance.stop();
    });
    const started = Promise.withResolvers<void>();
    if (flags.api) {
      const [{ serveApi }, { API_VERSION }] = await Promise.all([
        import("../api/server.ts"),
        import("../api/version.ts"),
      ]);
      server = serveApi({
        path: flags.apiSock ?? DEFAULT_API_SOCKET,
        maxBody,
        api: { instance, mmds, version: API_VERSION },
        ready: started.promise,
      });
      reportStart(metrics, flags);
      log.logger.info("API server started.");
    }
    if (flags.configFile !== undefined) await startFromFile(instance, flags.configFile);
    started.resolve();
    // Without an API this thread serves the devices, and does it there.
    if (flags.api) compileAsUsual();
    const end = await Promise.race([instance.ended, signalled.promise]);
    await instance.flushMetrics().catch(() => false);
    return report(end ?? undefined, signal(), log.logger);
  } catch (error) {
    if (error instanceof Error) log.logger.error(error.message);
    throw error;
  } finally {
    removeSocket();
    process.off("exit", removeSocket);
  }
}

async function startFromFile(instance: Instance, path: string): Promise<void> {
  const { log, metrics } = instance.options;
  const config = parseConfig(readText("Unable to open or read from the configuration file", path));
  // As in Firecracker the file has the last word.
  log.update(loggerSettings(config.logger));
  if (config.metrics !== undefined) {
    if (metrics.isOpen) throw new ConfigError("Metrics error: Reinitialization of metrics not allowed.");
    openMetrics(metrics, config.metrics.metrics_path);
  }
  instance.resources.apply(config);
  await instance.start();
}

function report(ended: MicrovmEnd | undefined, signal: number | undefined, log: Logger): number {
  if (signal !== undefined) return exitForSignal(signal);
  const end = ended?.end ?? { kind: "stopped" };
  if (end.kind === "reset" || end.kind === "stopped") {
    log.info("Sparkler exiting successfully. exit_code=0");
    return EXIT_OK;
  }
  const message = end.kind === "shutdown" ? `The guest stopped by a triple fault: ${end.detail}` : end.detail;
  log.error(message);
  process.stderr.write(`Error: ${message}\n`);
  return EXIT_ERROR;
}

function checkId(id: string): void {
  if (!/^[A-Za-z0-9-]{1,64}$/.test(id)) {
    throw new UsageError(`Invalid --id \`${id}\`. Give 1 to 64 letters, digits and hyphens.`);
  }
}

/** A size or time of the command line. */
function bytes(flag: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  if (!/^\d{1,15}$/.test(text)) throw new UsageError(`Invalid --${flag} \`${text}\`. Give a whole number.`);
  return Number(text);
}

function loggerFlags(flags: FirecrackerFlags): LogSettings {
  const level = flags.level === undefined ? undefined : parseLogLevel(flags.level);
  if (flags.level !== undefined && level === undefined) {
    throw new ConfigError(`Invalid --level \`${flags.level}\`. Give one of ${LOG_LEVELS.join(", ")}.`);
  }
  return {
    ...(level === undefined ? {} : { level }),
    ...(flags.logPath === undefined ? {} : { path: flags.logPath }),
    ...(flags.showLevel === undefined ? {} : { showLevel: flags.showLevel }),
    ...(flags.showLogOrigin === undefined ? {} : { showOrigin: flags.showLogOrigin }),
  };
}

/** How long it took from the start of the process, or of its jailer, until the API answers. */
function reportStart(metrics: Metrics, flags: FirecrackerFlags): void {
  const wall = bytes("start-time-us", flags.startTimeUs);
  const cpu = bytes("start-time-cpu-us", flags.startTimeCpuUs);
  const parent = bytes("parent-cpu-time-us", flags.parentCpuTimeUs) ?? 0;
  if (wall !== undefined) {
    metrics.store("api_server", "process_startup_time_us", Math.max(0, monotonicMicros() - wall));
  }
  if (cpu !== undefined) {
    const { user, system } = process.cpuUsage();
    metrics.store("api_server", "process_startup_time_cpu_us", Math.max(0, user + system - cpu) + parent);
  }
}

function openMetrics(metrics: Metrics, path: string): void {
  try {
    metrics.open(path);
  } catch (error) {
    if (!(error instanceof SystemError || error instanceof RangeError)) throw error;
    throw new ConfigError(`Failed to open the metrics file ${path}: ${error.message}`);
  }
}
