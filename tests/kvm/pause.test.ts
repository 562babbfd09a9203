/** Kicks of vCPUs: 11,000 pauses of guests under load, of which none may be lost, nor anything that the guest does. */

import { describe, expect, test } from "bun:test";
import type { Microvm } from "../../src/vmm/microvm.ts";
import { CC_NE } from "../oracle/asm.ts";
import { type GuestCode, RCX } from "./guest-code.ts";
import { noKvm } from "./machine.ts";
import { pingPong } from "./several-vcpus.ts";
import { startGuest } from "./whole-machine.ts";

/** After so many of them come some that follow each other at once. */
const BURST_EVERY = 10;
const BURST = 3;
const TIMEOUT = 12000;

const reason = noKvm();
if (reason !== undefined) console.warn(`pauses on KVM ${reason}`);

/** One vCPU that only leaves the guest to print, and not at all in between. */
function computesAndPrints(guest: GuestCode): void {
  guest.label("again");
  guest.print(".");
  guest.movImm(RCX, 2000);
  guest.label("compute");
  guest.addImm(RCX, -1);
  guest.jcc(CC_NE, "compute");
  guest.jmp("again");
}

/**
 * Waits until the guest has printed more than `before`, which a lost wake-up between the vCPUs, or a vCPU that sleeps
 * on, would keep it from. The test's limit of time is the limit.
 */
async function printedMore(microvm: Microvm, before: number): Promise<number> {
  for (;;) {
    const { sent } = (await microvm.deviceMetrics()).uart;
    if (sent > before) return sent;
  }
}

describe.skipIf(reason !== undefined)("KVM", () => {
  test.each<[number, string, number, (guest: GuestCode) => void]>([
    [10_000, "two vCPUs that wake each other", 2, (guest) => pingPong(guest)],
    // Fewer: how soon it gets a processor is for a busy host to say.
    [1000, "one vCPU that computes", 1, computesAndPrints],
  ])(
    "%d pauses are obeyed, and each resume: %s",
    async (pauses, _, vcpus, code) => {
      const microvm = await startGuest({ backend: "kvm", vcpus }, code);
      let printed = await printedMore(microvm, 0);
      for (let i = 1; i <= pauses; i++) {
        await microvm.pause();
        microvm.resume();
        // These find a vCPU that is about to leave the pause before, or about to enter the guest.
        for (let more = 0; i % BURST_EVERY === 0 && more < BURST; more++) {
          await microvm.pause();
          microvm.resume();
        }
        printed = await printedMore(microvm, printed);
      }
      microvm.stop();
      const { end, stats } = await microvm.ended;
      expect(end).toEqual({ kind: "stopped" });
      // The guest had gone on before nearly all of them: what it prints is counted a little late.
      expect(stats.interrupted).toBeGreaterThan(pauses * vcpus * 0.9);
    },
    TIMEOUT,
  );
});
