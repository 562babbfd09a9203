/**
 * A machine for test guests on any CPU backend: RAM, port and memory buses with what the test puts there, and a
 * vCPU in long mode at 1 MiB. It runs on the calling thread.
 */

import { accessSync, constants } from "node:fs";
import { PDPTE_START } from "../../src/boot/layout.ts";
import { bootRegisters, writeBootTables } from "../../src/boot/registers.ts";
import type { IrqLine } from "../../src/devices/types.ts";
import type { BootRegisters, VcpuEnd } from "../../src/hypervisor/types.ts";
import { GuestMemory } from "../../src/memory/guest-memory.ts";
import { type Backend, loadBackend, type Vcpu } from "../../src/vmm/backend.ts";
import { Bus } from "../../src/vmm/bus.ts";
import { FINISH_PORT, GuestCode } from "./guest-code.ts";

export const CODE = 0x10_0000;
/** Page directories for what the boot tables leave out: the MMIO gap below 4 GiB, and the first GiB above. */
const GAP_DIRECTORY = 0xc000;
const HIGH_DIRECTORY = 0xd000;
const GIB = 2 ** 30;
/** A guest that has not ended by then is stopped, and its test fails. */
const WATCHDOG_MS = 5000;

/** Why tests on real KVM cannot run here, or undefined. */
export function noKvm(): string | undefined {
  try {
    accessSync("/dev/kvm", constants.R_OK | constants.W_OK);
    return undefined;
  } catch (error) {
    return `skipped: ${error instanceof Error ? error.message : String(error)}`;
  }
}

/** Backends that can run here. Says which tests are left out. */
export function backendNames(): string[] {
  const reason = noKvm();
  if (reason === undefined) return ["kvm", "soft"];
  console.warn(`KVM tests ${reason}`);
  return ["soft"];
}

export interface TestMachine {
  readonly backend: Backend;
  readonly memory: GuestMemory;
  readonly wasm: WebAssembly.Memory;
  readonly pio: Bus;
  readonly mmio: Bus;
  readonly vcpu: Vcpu;
  irqLine(gsi: number): IrqLine;
  /** Puts the guest into memory and the vCPU at its start. */
  load(code: (guest: GuestCode) => void, registers?: Partial<BootRegisters>): void;
  /** Loads the guest and runs it until it ends. */
  run(code: (guest: GuestCode) => void, registers?: Partial<BootRegisters>): VcpuEnd;
  /** Runs what is in memory from where the vCPU stands. */
  resume(): VcpuEnd;
}

/** Builds a machine, hands it to `body`, and takes it down. */
export async function withMachine<T>(
  name: string,
  body: (machine: TestMachine) => T | Promise<T>,
  ramBytes = 4 * 2 ** 20,
): Promise<T> {
  const backend = await loadBackend(name);
  const { memory: wasm, base, high } = backend.createMemory(ramBytes, 1);
  const { buffer } = wasm;
  if (!(buffer instanceof SharedArrayBuffer)) throw new Error("memory is not shared");
  try {
    const memory = new GuestMemory({ buffer, base, size: ramBytes, high });
    writeBootTables(memory, "linux64");
    mapGib(memory, 3, GAP_DIRECTORY);
    mapGib(memory, 4, HIGH_DIRECTORY);
    const pio = new Bus();
    const mmio = new Bus();
    pio.insert(FINISH_PORT, 1, { read: () => 0, write: () => backend.requestStop(wasm) });
    const vcpu = await backend.createVcpu({
      index: 0,
      memory: wasm,
      ramBytes,
      pio,
      mmio,
      log: () => {},
      onPaused: () => {},
    });
    const watchdog = new Watchdog(name, wasm);
    await watchdog.ready;
    const resume = () => watchdog.watch(() => vcpu.run());
    const load: TestMachine["load"] = (code, registers) => {
      const guest = new GuestCode();
      code(guest);
      memory.write(CODE, guest.assemble(CODE));
      vcpu.setBootRegisters({ ...bootRegisters("linux64", CODE), ...registers });
    };
    const run: TestMachine["run"] = (code, registers) => {
      load(code, registers);
      return resume();
    };
    try {
      return await body({
        backend,
        memory,
        wasm,
        pio,
        mmio,
        vcpu,
        irqLine: (gsi) => backend.irqLine(wasm, gsi),
        load,
        run,
        resume,
      });
    } finally {
      watchdog.close();
    }
  } finally {
    backend.release?.(wasm);
  }
}

function mapGib(memory: GuestMemory, gib: number, directory: number): void {
  for (let i = 0; i < 512; i++) {
    // Present, writable, 2 MiB page.
    memory.writeU64(directory + 8 * i, BigInt(gib * GIB + i * 2 ** 21) | 0x83n);
  }
  memory.writeU64(PDPTE_START + 8 * gib, BigInt(directory) | 3n);
}

/** Stops a guest that hangs: its thread is busy, so another has to. */
class Watchdog {
  readonly ready: Promise<void>;
  private readonly worker = new Worker(new URL("./watchdog.ts", import.meta.url));
  private readonly words = new Int32Array(new SharedArrayBuffer(8));

  constructor(backend: string, memory: WebAssembly.Memory) {
    this.ready = new Promise((resolve) => {
      this.worker.onmessage = () => resolve();
    });
    this.worker.postMessage({ backend, memory, words: this.words, ms: WATCHDOG_MS });
  }

  /** Word 0 tells it to watch, word 1 is set when it has stopped the guest. */
  watch<T>(run: () => T): T {
    Atomics.store(this.words, 0, 1);
    Atomics.notify(this.words, 0);
    const result = run();
    Atomics.store(this.words, 0, 2);
    Atomics.notify(this.words, 0);
    if (Atomics.load(this.words, 1) !== 0) throw new Error(`the guest did not end in ${WATCHDOG_MS} ms`);
    return result;
  }

  close(): void {
    this.worker.terminate();
  }
}
