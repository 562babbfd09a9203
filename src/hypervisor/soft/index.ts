/** The software CPU backend, as the machine builder sees it. */
import type { IrqLine } from "../../devices/types.ts";
import type { WriteHook } from "../../memory/guest-memory.ts";
import {
  ATTENTION,
  CODE_LINES,
  GSI_EDGES,
  GUEST_BASE,
  PAUSE,
  PAUSE_ASKED,
  STALE,
  STALE_PAGES,
  STOP,
} from "./layout.ts";

export type { SoftBus } from "./cpu.ts";

/** Most guest RAM: it must lie below the MMIO gap, in one 4 GiB memory with the CPU's own state. */
export const SOFT_RAM_LIMIT = 3072 * 1024 * 1024;

const PAGE = 65536;

/** One shared memory holding the CPU's state and, from byte `base` on, `ramBytes` of guest RAM. */
export function createSoftMemory(ramBytes: number): { memory: WebAssembly.Memory; base: number } {
  if (ramBytes <= 0 || ramBytes > SOFT_RAM_LIMIT) {
    throw new RangeError(`the software CPU takes 1 to ${SOFT_RAM_LIMIT / 1048576} MiB of memory`);
  }
  const pages = Math.ceil((GUEST_BASE + ramBytes) / PAGE);
  return {
    memory: new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true }),
    base: GUEST_BASE,
  };
}

function wake(i32: Int32Array): void {
  Atomics.store(i32, ATTENTION >> 2, -1);
  Atomics.notify(i32, ATTENTION >> 2);
}

/** An interrupt line of the software CPU, see irqchip.ts; usable on any thread. `gsi` 0-23. */
export class SoftIrqLine implements IrqLine {
  private readonly i32: Int32Array;
  private readonly bit: number;

  constructor(memory: WebAssembly.Memory, gsi: number) {
    this.i32 = new Int32Array(memory.buffer, 0, 4096);
    this.bit = 1 << gsi;
  }

  trigger(): void {
    Atomics.or(this.i32, GSI_EDGES >> 2, this.bit);
    wake(this.i32);
  }
}

/** Makes `SoftVcpu.run` return `{ kind: "stopped" }`; from any thread. */
export function requestStop(memory: WebAssembly.Memory): void {
  const i32 = new Int32Array(memory.buffer, 0, 4096);
  Atomics.store(i32, STOP >> 2, 1);
  // A paused vCPU sleeps on the word of the pause.
  requestResume(memory);
  wake(i32);
}

/**
 * Makes the vCPU execute nothing more until {@link requestResume}; from any thread. It calls `onPaused` once it
 * has stopped. Guest time goes on.
 */
export function requestPause(memory: WebAssembly.Memory): void {
  const i32 = new Int32Array(memory.buffer, 0, 4096);
  Atomics.store(i32, PAUSE >> 2, PAUSE_ASKED);
  Atomics.notify(i32, PAUSE >> 2);
  wake(i32);
}

/** Lets a paused vCPU go on; from any thread. */
export function requestResume(memory: WebAssembly.Memory): void {
  const i32 = new Int32Array(memory.buffer, 0, 4096);
  Atomics.store(i32, PAUSE >> 2, 0);
  Atomics.notify(i32, PAUSE >> 2);
}

/** For GuestMemory on device threads: a page with decoded code that a device has written is decoded anew. */
export function softWriteHook(memory: WebAssembly.Memory): WriteHook {
  const i32 = new Int32Array(memory.buffer);
  return (gpa, length) => {
    if (length === 0) return;
    let hit = false;
    for (let page = Math.floor(gpa / 4096); page <= Math.floor((gpa + length - 1) / 4096); page++) {
      const at = (CODE_LINES >> 2) + page * 2;
      if ((Atomics.load(i32, at) | Atomics.load(i32, at + 1)) === 0) continue;
      Atomics.or(i32, (STALE_PAGES >> 2) + (page >> 5), 1 << (page & 31));
      hit = true;
    }
    if (!hit) return;
    Atomics.store(i32, STALE >> 2, 1);
    wake(i32);
  };
}
