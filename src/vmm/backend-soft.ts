/** The software CPU as a backend of the machine. */

import {
  createSoftMemory,
  requestPause,
  requestResume,
  requestStop,
  SoftIrqLine,
  softWriteHook,
} from "../hypervisor/soft/index.ts";
import type { Backend } from "./backend.ts";
import { Garbage } from "./garbage.ts";
import { loadInterpreter } from "./interpreter-cache.ts";

/** Executions of a block before it is compiled in lockstep: the more is compiled, the more is compared. */
const LOCKSTEP_HOT = 300;

/**
 * SPARKLER_JIT, for finding errors of the software CPU: `off` interprets everything, `lockstep` compares what
 * compiled code does with the interpreter and ends the microVM at the first difference.
 */
function jitOptions(asked: string | undefined): { jit: boolean | number; lockstep?: boolean } {
  switch (asked) {
    case undefined:
    case "":
    case "on":
      return { jit: true };
    case "off":
      return { jit: false };
    case "lockstep":
      return { jit: LOCKSTEP_HOT, lockstep: true };
    default:
      throw new Error(`SPARKLER_JIT is "${asked}": give "on", "off" or "lockstep"`);
  }
}

export const backend: Backend = {
  slowGuest: true,
  createMemory: createSoftMemory,
  irqLine: (memory, gsi) => new SoftIrqLine(memory, gsi),
  writeHook: softWriteHook,
  requestStop,
  requestPause,
  requestResume,
  async createVcpu({ memory, ramBytes, measured = false, pio, mmio, log, onPaused }) {
    const [{ SoftVcpu }, interpreter] = await Promise.all([
      import("../hypervisor/soft/vcpu.ts"),
      loadInterpreter(),
    ]);
    const garbage = new Garbage();
    const vcpu = new SoftVcpu({
      interpreter,
      ...jitOptions(process.env.SPARKLER_JIT),
      collectGarbage: () => garbage.collectNow(),
      memory,
      ramBytes,
      measured,
      log,
      onPaused,
      bus: {
        pioRead: (port, size) => pio.read(port, size),
        pioWrite: (port, size, value) => pio.write(port, size, value),
        mmioRead: (gpa, size) => mmio.read(gpa, size),
        mmioWrite: (gpa, size, value) => mmio.write(gpa, size, value),
      },
    });
    return {
      setBootRegisters: (registers) => vcpu.setBootRegisters(registers),
      run: () => vcpu.run(),
      stats() {
        const { exits, milliseconds, ...counters } = vcpu.stats();
        const named: Record<string, number> = {};
        for (const [reason, count] of Object.entries(exits)) named[`exits: ${reason}`] = count;
        for (const [what, time] of Object.entries(milliseconds)) named[`ms: ${what}`] = Math.round(time);
        return { ...counters, ...named };
      },
    };
  },
};
