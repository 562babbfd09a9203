/** The metadata service of a microVM, with a network stack for each interface that leads to it. */

import type { TimerSource } from "../ratelimit/rate-limiter.ts";
import { ipv4Number } from "./ipv4.ts";
import { MmdsStack, type StackCounts } from "./network-stack.ts";
import { MmdsService } from "./service.ts";
import { Tokens } from "./tokens.ts";

export interface MmdsConfig {
  readonly version: "V1" | "V2";
  /** Dotted, link-local. */
  readonly ipv4Address: string;
  readonly imdsCompat: boolean;
  /** Ids of the interfaces whose guests may ask. */
  readonly networkInterfaces: readonly string[];
  /** Tokens are good for the microVM of this id. */
  readonly instanceId: string;
  /** Any JSON. */
  readonly data: unknown;
}

export interface MmdsMetrics extends StackCounts {
  /** GET requests with a wrong token, and without one. */
  rxInvalidToken: number;
  rxNoToken: number;
}

export class Mmds {
  private readonly service: MmdsService;
  private readonly stacks: MmdsStack[] = [];

  constructor(private readonly config: MmdsConfig) {
    const { version, imdsCompat, instanceId, data } = config;
    const tokens = new Tokens(instanceId, () => performance.now());
    this.service = new MmdsService({ version, imdsCompat, tokens });
    this.service.data = data;
  }

  /** Replaces the metadata. */
  update(data: unknown): void {
    this.service.data = data;
  }

  /** A stack for the interface; undefined if it does not lead here. */
  stack(ifaceId: string, timers: TimerSource): MmdsStack | undefined {
    const { ipv4Address, networkInterfaces } = this.config;
    if (!networkInterfaces.includes(ifaceId)) return undefined;
    const stack = new MmdsStack({ service: this.service, address: ipv4Number(ipv4Address), timers });
    this.stacks.push(stack);
    return stack;
  }

  get metrics(): MmdsMetrics {
    const sum: MmdsMetrics = {
      rxAccepted: 0,
      rxAcceptedErr: 0,
      rxAcceptedUnusual: 0,
      rxCount: 0,
      txCount: 0,
      txBytes: 0,
      txFrames: 0,
      connectionsCreated: 0,
      connectionsDestroyed: 0,
      rxInvalidToken: this.service.counts.invalidToken,
      rxNoToken: this.service.counts.noToken,
    };
    for (const { counts } of this.stacks) {
      sum.rxAccepted += counts.rxAccepted;
      sum.rxAcceptedErr += counts.rxAcceptedErr;
      sum.rxAcceptedUnusual += counts.rxAcceptedUnusual;
      sum.rxCount += counts.rxCount;
      sum.txCount += counts.txCount;
      sum.txBytes += counts.txBytes;
      sum.txFrames += counts.txFrames;
      sum.connectionsCreated += counts.connectionsCreated;
      sum.connectionsDestroyed += counts.connectionsDestroyed;
    }
    return sum;
  }
}
