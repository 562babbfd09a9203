/**
 * A CPU backend as the machine builder and the worker threads use it. Workers get a backend by name and load
 * it themselves: objects with methods do not travel between threads.
 */

import type { IrqLine } from "../devices/types.ts";
import type { BootRegisters, VcpuEnd } from "../hypervisor/types.ts";
import type { WriteHook } from "../memory/guest-memory.ts";
import type { EventFd } from "../platform/eventfd.ts";
import type { Bus } from "./bus.ts";

/** Guest RAM: starts `base` bytes into the shared memory's buffer; what lies above the MMIO gap is at `high`. */
export interface BackendMemory {
  readonly memory: WebAssembly.Memory;
  readonly base: number;
  /** See `GuestMemoryLayout`. */
  readonly high?: number | undefined;
}

export interface VcpuOptions {
  /** Number and APIC id of the vCPU, from 0. */
  readonly index: number;
  /** Two vCPUs are the threads of one core. Without meaning if there is one. */
  readonly smt?: boolean | undefined;
  /** {@link Vcpu.stats} is to say where the time went, as far as the backend can. */
  readonly measured?: boolean | undefined;
  readonly memory: WebAssembly.Memory;
  readonly ramBytes: number;
  readonly pio: Bus;
  readonly mmio: Bus;
  readonly log: (message: string) => void;
  /** To be called when the vCPU has stopped for {@link Backend.requestPause}. */
  readonly onPaused: () => void;
}

export interface Vcpu {
  /** For vCPU 0; the others wait in {@link run} for the guest to start them. */
  setBootRegisters(registers: BootRegisters): void;
  /** Runs the guest on this thread until it ends. */
  run(): VcpuEnd;
  /**
   * If the backend has {@link Backend.leavesGuest}: does the same, and returns undefined when `leave`, which is asked
   * after each exit and (`interrupted`) after each signal, says so. The guest goes on with the next call, or with a vCPU
   * of the same index made on another thread.
   */
  runUntil?(leave: (interrupted: boolean) => boolean): VcpuEnd | undefined;
  /** Counters for `--stats`, by name. */
  stats(): Record<string, number>;
}

export interface Backend {
  /** Its vCPUs have `runUntil`, so one may share its thread with the devices. */
  readonly leavesGuest?: boolean;
  /** See `TransportEvents.slowGuest`. */
  readonly slowGuest?: boolean;
  /** RAM of `ramBytes` (a multiple of 64 KiB), zeroed, and whatever the backend keeps beside it. */
  createMemory(ramBytes: number, vcpus: number): BackendMemory;
  /** Interrupt line `gsi`, for the calling thread. */
  irqLine(memory: WebAssembly.Memory, gsi: number): IrqLine;
  /** To be called after a device thread wrote guest RAM, if the backend has to know. */
  writeHook(memory: WebAssembly.Memory): WriteHook | undefined;
  /** Any thread: makes {@link Vcpu.run} return `stopped` soon, also from a halted CPU. */
  requestStop(memory: WebAssembly.Memory): void;
  /** Any thread: every vCPU calls its `onPaused` soon and then executes nothing until {@link requestResume}. */
  requestPause(memory: WebAssembly.Memory): void;
  /** Any thread: paused vCPUs go on. */
  requestResume(memory: WebAssembly.Memory): void;
  /** Gets the code of {@link createVcpu} ready, on its thread, while the machine is made on another. */
  load?(): Promise<void>;
  createVcpu(options: VcpuOptions): Promise<Vcpu>;
  /**
   * Any thread: an event that counts the guest's 4-byte writes of `value` at `gpa`, which then do not reach the bus.
   * A backend without it sends them there.
   */
  ioEvent?(memory: WebAssembly.Memory, gpa: number, value: number): EventFd;
  /** Gives back what the backend took besides memory. To be called once, when no thread uses the machine any more. */
  release?(memory: WebAssembly.Memory): void;
}

/**
 * Loads a backend. `name` is `kvm`, `soft`, or the URL of a module whose `backend` export is a {@link Backend}: a
 * scripted CPU in tests.
 */
export async function loadBackend(name: string): Promise<Backend> {
  if (name === "soft") return (await import("./backend-soft.ts")).backend;
  if (name === "kvm") return (await import("./backend-kvm.ts")).backend;
  const module: unknown = await import(name);
  if (typeof module !== "object" || module === null || !("backend" in module) || !isBackend(module.backend)) {
    throw new Error(`${name} is no CPU backend: it has no \`backend\` with a createVcpu method`);
  }
  return module.backend;
}

function isBackend(value: unknown): value is Backend {
  return typeof value === "object" && value !== null && "createVcpu" in value && "createMemory" in value;
}
