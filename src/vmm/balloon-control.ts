/** What the API does with the balloon of a running microVM: Firecracker's checks and answers. */

import { PAGES_PER_MIB } from "../devices/virtio/balloon/pages.ts";
import type { Statistics } from "../devices/virtio/balloon/statistics.ts";
import { ConfigError } from "./config-error.ts";
import type { Microvm } from "./microvm.ts";
import { checkBalloonAmount, type Resources } from "./resources.ts";
import type { Balloon } from "./schema/resources.ts";

/** The answer to `GET /balloon/statistics`. What the guest has not told is left out. */
export interface BalloonStatistics extends Statistics {
  target_pages: number;
  actual_pages: number;
  target_mib: number;
  actual_mib: number;
}

/** The answer to `GET /balloon/hinting/status`: last commands of the host and of the guest. */
export interface HintingStatus {
  host_cmd: number;
  guest_cmd?: number;
}

/** All methods throw {@link ConfigError} if there is no balloon, or it was not made for what is asked of it. */
export class BalloonControl {
  constructor(
    private readonly resources: Resources,
    private readonly microvm: Microvm,
  ) {}

  async setAmount(amount_mib: number): Promise<void> {
    const { balloon } = this.resources;
    checkBalloonAmount(amount_mib, this.resources.machine.mem_size_mib);
    await this.microvm.setBalloonAmount(amount_mib);
    this.resources.noteBalloon({ ...balloon, amount_mib });
  }

  async setStatsInterval(stats_polling_interval_s: number): Promise<void> {
    const { balloon } = this.resources;
    if (statsInterval(balloon) === stats_polling_interval_s) return;
    if (statsInterval(balloon) === 0 || stats_polling_interval_s === 0) {
      throw new ConfigError("Cannot enable/disable the statistics after boot.");
    }
    await this.microvm.setBalloonStatsInterval(stats_polling_interval_s);
    this.resources.noteBalloon({ ...balloon, stats_polling_interval_s });
  }

  async statistics(): Promise<BalloonStatistics> {
    if (statsInterval(this.resources.balloon) === 0) {
      throw new ConfigError("Statistics for the balloon device are not enabled");
    }
    const { targetPages, actualPages, statistics } = await this.state();
    return {
      target_pages: targetPages,
      actual_pages: actualPages,
      target_mib: Math.floor(targetPages / PAGES_PER_MIB),
      actual_mib: Math.floor(actualPages / PAGES_PER_MIB),
      ...statistics,
    };
  }

  async startHinting(acknowledge: boolean): Promise<void> {
    this.needHinting();
    await this.microvm.startHinting(acknowledge);
  }

  async stopHinting(): Promise<void> {
    this.needHinting();
    await this.microvm.stopHinting();
  }

  async hintingStatus(): Promise<HintingStatus> {
    this.needHinting();
    const { hostCmd, guestCmd } = await this.state();
    return { host_cmd: hostCmd, ...(guestCmd === undefined ? {} : { guest_cmd: guestCmd }) };
  }

  private needHinting(): void {
    if (this.resources.balloon.free_page_hinting === true) return;
    throw new ConfigError(
      "Attempting to use hinting when not enabled. Set free_page_hinting in PUT /balloon.",
    );
  }

  private async state() {
    const state = await this.microvm.balloonState();
    if (state === undefined) throw new Error("the machine was built without its balloon");
    return state;
  }
}

function statsInterval(balloon: Balloon): number {
  return balloon.stats_polling_interval_s ?? 0;
}
