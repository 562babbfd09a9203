/** A running microVM, as the main thread holds it: how to pause, change and stop it, and how it ended. */

import type { BalloonState } from "../devices/virtio/balloon/balloon.ts";
import type { VcpuEnd } from "../hypervisor/types.ts";
import { closeFile } from "../platform/files.ts";
import type { RateLimiterConfig } from "../ratelimit/rate-limiter.ts";
import type { CommandSender, DeviceMetrics, VmmRequest } from "./commands.ts";
import { ConfigError } from "./config-error.ts";
import type { DeviceHost } from "./device-host.ts";
import { CONTROL_CTRL_ALT_DEL, CONTROL_STOP, type Doorbell, SLOT_CONTROL } from "./doorbell.ts";
import { type OpenDisk, openDisk } from "./file-disk.ts";
import type { VcpuEvent, VmmEvent } from "./messages.ts";
import type { VcpuHost } from "./vcpu-host.ts";

/** How a microVM ended. */
export interface MicrovmEnd {
  readonly end: VcpuEnd;
  /** The last of the serial output, if the machine was told to keep it. */
  readonly consoleTail: string;
  /** Counters of the CPU backend, summed over the vCPUs. */
  readonly stats: Readonly<Record<string, number>>;
  /** Counters of the devices; undefined if their thread broke. */
  readonly metrics?: DeviceMetrics | undefined;
}

export interface MicrovmEvents {
  /** A line from the control port of the guest's init. */
  onControl?(line: string): void;
  /** The program's stdout or stderr cannot be written any more. `code` is an errno name. */
  onOutputBroken?(code: string, message: string): void;
}

/** How long a vCPU may take to notice a stop request, ms. It polls in much less; this is for a broken one. */
const STOP_TIMEOUT_MS = 2000;

/** A drive of the running machine. Its disk may be changed. */
export interface RunningDrive {
  readonly id: string;
  readonly readOnly: boolean;
  /** It may have transfers in flight. */
  readonly async: boolean;
  disk: OpenDisk;
}

export interface MicrovmParts {
  readonly devices: DeviceHost;
  readonly vcpus: readonly VcpuHost[];
  readonly doorbell: Doorbell;
  readonly requestStop: () => void;
  readonly requestPause: () => void;
  readonly requestResume: () => void;
  readonly commands: CommandSender;
  readonly drives: readonly RunningDrive[];
  /** The process ends with the microVM, which takes less than to take threads and machine apart before. */
  readonly endsProcess?: boolean | undefined;
  /** Releases descriptors. Called once, when no thread uses them any more; not at all if one of them is stuck. */
  readonly release: () => void;
}

export class Microvm {
  /** Settles once, when the guest has ended and all its output is flushed. */
  readonly ended: Promise<MicrovmEnd>;
  private settle!: (end: MicrovmEnd) => void;
  private end: VcpuEnd | undefined;
  private stats: Record<string, number> = {};
  private running: number;
  private finished = false;
  private stopTimer: ReturnType<typeof setTimeout> | undefined;
  private pauseAsked = false;
  /** vCPUs that have not stopped yet for the pause that was asked for. */
  private stillRunning = 0;
  private pauseWaiter: { resolve(): void; reject(error: Error): void } | undefined;

  /** The devices must be built, and the vCPUs are to be told to run. */
  constructor(
    private readonly parts: MicrovmParts,
    private readonly events: MicrovmEvents = {},
  ) {
    this.running = parts.vcpus.length;
    this.ended = new Promise((resolve) => {
      this.settle = resolve;
    });
    parts.devices.serve((event) => this.vmmEvent(event));
    for (const vcpu of parts.vcpus) {
      vcpu.listen(
        (event) => this.vcpuEvent(event),
        (detail) => this.fail(detail),
      );
    }
  }

  /** Ends the guest as pulling the plug does. Output up to now is still flushed. */
  stop(): void {
    if (this.finished) return;
    this.parts.requestStop();
    this.stopTimer ??= setTimeout(() => {
      this.fail(
        this.running > 0
          ? "a vCPU did not stop when asked to"
          : "the last output of the guest is lost: its reader does not read",
      );
    }, STOP_TIMEOUT_MS);
  }

  /** Presses Ctrl-Alt-Del: a guest with an init that listens shuts down in order. */
  sendCtrlAltDel(): void {
    if (this.finished) return;
    this.parts.doorbell.ring(SLOT_CONTROL, CONTROL_CTRL_ALT_DEL);
  }

  /** True from a call of {@link pause} to one of {@link resume}. */
  get paused(): boolean {
    return this.pauseAsked;
  }

  /**
   * Resolves when no vCPU executes anything any more and the drives have nothing in flight. Harmless if it is paused.
   * Rejects if the microVM ends.
   */
  async pause(): Promise<void> {
    if (this.finished) throw new Error("the microVM has ended");
    if (this.pauseAsked) return;
    this.pauseAsked = true;
    this.stillRunning = this.running;
    await new Promise<void>((resolve, reject) => {
      this.pauseWaiter = { resolve, reject };
      this.parts.requestPause();
    });
    if (this.parts.drives.some((drive) => drive.async)) {
      await this.parts.commands.send({ kind: "drain-drives" });
    }
  }

  /** Ends a pause. Harmless if there is none. */
  resume(): void {
    if (!this.pauseAsked) return;
    this.pauseAsked = false;
    this.parts.requestResume();
  }

  /**
   * Puts another file behind drive `id`, or looks anew at how long the present one is. Throws `ConfigError` if
   * there is no such drive or the file cannot be used; then the drive stays as it is.
   */
  async updateDrive(id: string, path: string): Promise<void> {
    const drive = this.parts.drives.find((other) => other.id === id);
    if (drive === undefined) throw new ConfigError(`There is no drive \`${id}\`.`);
    const before = drive.disk;
    const disk = openDisk(id, path, drive.readOnly, before);
    // From here on the end of the machine closes the new one.
    drive.disk = disk;
    await this.parts.commands.send({ kind: "update-disk", id, disk });
    closeFile(before.fd);
  }

  /** Changes the limits of a drive; what is left out stays. Throws `ConfigError` if there is no such drive. */
  async limitDrive(id: string, rateLimiter: RateLimiterConfig | undefined): Promise<void> {
    if (!this.parts.drives.some((other) => other.id === id)) {
      throw new ConfigError(`There is no drive \`${id}\`.`);
    }
    await this.parts.commands.send({ kind: "limit-drive", id, rateLimiter });
  }

  /** Changes the limits of a network interface; what is left out stays. */
  async limitNetwork(
    id: string,
    rx: RateLimiterConfig | undefined,
    tx: RateLimiterConfig | undefined,
  ): Promise<void> {
    await this.parts.commands.send({ kind: "limit-net", id, rx, tx });
  }

  /** Asks the guest for a balloon of this size. Throws `ConfigError` if its driver is not there. */
  async setBalloonAmount(mib: number): Promise<void> {
    await this.balloonRequest({ kind: "balloon-amount", mib });
  }

  /** Changes how often the guest is asked for statistics, which it must have been from the start. */
  async setBalloonStatsInterval(seconds: number): Promise<void> {
    await this.balloonRequest({ kind: "balloon-stats-interval", seconds });
  }

  /** Begins a run of free page hinting. Throws `ConfigError` if the balloon's driver is not there. */
  async startHinting(acknowledge: boolean): Promise<void> {
    await this.balloonRequest({ kind: "hinting-start", acknowledge });
  }

  /** Ends a run of free page hinting. Throws `ConfigError` if the balloon's driver is not there. */
  async stopHinting(): Promise<void> {
    await this.balloonRequest({ kind: "hinting-stop" });
  }

  /** What the balloon holds and knows. Undefined if there is none. */
  async balloonState(): Promise<BalloonState | undefined> {
    return (await this.parts.commands.send({ kind: "metrics" })).balloon;
  }

  private async balloonRequest(request: VmmRequest): Promise<void> {
    const { done } = await this.parts.commands.send(request);
    if (!done) {
      throw new ConfigError("Device is inactive, check if balloon driver is enabled in guest kernel.");
    }
  }

  /** Replaces the metadata that the guest sees. */
  async updateMetadata(data: unknown): Promise<void> {
    await this.parts.commands.send({ kind: "metadata", data });
  }

  /** Counters of the devices. Rejects if the microVM ends first. */
  async deviceMetrics(): Promise<DeviceMetrics> {
    return (await this.parts.commands.send({ kind: "metrics" })).metrics;
  }

  private vcpuEvent(event: VcpuEvent): void {
    if (this.finished) return;
    if (event.kind === "failed") {
      this.fail(event.message);
    } else if (event.kind === "paused") {
      if (--this.stillRunning === 0) this.pauseWaiter?.resolve();
    } else if (event.kind === "end") {
      for (const [name, value] of Object.entries(event.stats)) {
        this.stats[name] = (this.stats[name] ?? 0) + value;
      }
      // With several vCPUs the others only stop because of the one that ended by itself, and may be told of first.
      if (this.end === undefined || this.end.kind === "stopped") this.end = event.end;
      this.running--;
      if (this.running === 0) {
        // Output may take as long as its reader does; only a further stop() sets a limit to that.
        clearTimeout(this.stopTimer);
        this.stopTimer = undefined;
        this.parts.doorbell.ring(SLOT_CONTROL, CONTROL_STOP);
      } else {
        this.stop();
      }
    }
  }

  private vmmEvent(event: VmmEvent): void {
    switch (event.kind) {
      case "control":
        this.events.onControl?.(event.line);
        break;
      case "output-broken":
        this.events.onOutputBroken?.(event.code, event.message);
        break;
      case "stopped":
        if (this.finished) break;
        void this.finish(this.end ?? { kind: "stopped" }, event.consoleTail, event.metrics);
        if (this.parts.endsProcess !== true) this.parts.release();
        break;
      case "reply":
        this.parts.commands.answered(event.reply);
        break;
      case "failed":
        this.fail(event.message);
        break;
    }
  }

  /** A thread is broken, so nothing can be asked of it any more; the other vCPUs leave the guest. */
  private fail(detail: string): void {
    if (this.finished) return;
    this.parts.requestStop();
    this.parts.doorbell.ring(SLOT_CONTROL, CONTROL_STOP);
    const gone = this.finish({ kind: "error", detail }, "");
    if (this.parts.endsProcess !== true) void gone.then(this.parts.release);
  }

  /** To be called once. Resolves when all threads are gone, unless they go with the process. */
  private async finish(end: VcpuEnd, consoleTail: string, metrics?: DeviceMetrics): Promise<void> {
    this.finished = true;
    clearTimeout(this.stopTimer);
    this.pauseWaiter?.reject(new Error("the microVM has ended"));
    this.parts.commands.close();
    const { devices, vcpus, endsProcess } = this.parts;
    this.settle({ end, consoleTail, stats: this.stats, metrics });
    if (endsProcess !== true)
      await Promise.all([devices.terminate(), ...vcpus.map((vcpu) => vcpu.terminate())]);
  }
}
