/** What the threads of a microVM say to each other by postMessage: nothing that a guest waits for. */

import type { BootRegisters, VcpuEnd } from "../hypervisor/types.ts";
import type { DeviceMetrics, VmmReply } from "./commands.ts";
import type { MachinePlan } from "./machine.ts";

/** Main thread to the vmm thread: build your devices and serve them. */
export interface VmmStart {
  readonly plan: MachinePlan;
  /** Brings a VmmCommand after each ring of CONTROL_COMMAND. */
  readonly commands: MessagePort;
}

/**
 * Main thread to a vCPU thread. `load` gets the code ready, `start` builds the CPU, `run` enters the guest; vCPU 0 is
 * the one with registers.
 */
export type VcpuCommand =
  | { readonly kind: "load"; readonly backend: string }
  | { readonly kind: "start"; readonly plan: MachinePlan; readonly index: number }
  | { readonly kind: "run"; readonly registers: BootRegisters | undefined };

export type VmmEvent =
  | { readonly kind: "ready" }
  /** A line from the control port of the guest's init: `ready`, `exit N`, `error TEXT`. */
  | { readonly kind: "control"; readonly line: string }
  /** stdout of the program run by `sparkler run` cannot be written any more. */
  | { readonly kind: "output-broken"; readonly code: string; readonly message: string }
  /** All output is flushed. `consoleTail`: the last of what the guest sent to its serial port, if kept. */
  | { readonly kind: "stopped"; readonly consoleTail: string; readonly metrics: DeviceMetrics }
  | { readonly kind: "reply"; readonly reply: VmmReply }
  | { readonly kind: "failed"; readonly message: string };

export type VcpuEvent =
  | { readonly kind: "ready" }
  | { readonly kind: "paused" }
  | { readonly kind: "end"; readonly end: VcpuEnd; readonly stats: Record<string, number> }
  | { readonly kind: "failed"; readonly message: string };

/** What to show of an exception that should not have happened. */
export function describeFailure(error: unknown): string {
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}
