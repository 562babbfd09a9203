/** A vCPU that leaves its guest, and goes on elsewhere. */

import { describe, expect, test } from "bun:test";
import { type GuestCode, RAX, RDX } from "./guest-code.ts";
import { noKvm, type TestMachine, withMachine } from "./machine.ts";

const PORT = 0x5f2;
const WRITES = 6;
/** Reads, writes, and the one that ends the test. */
const EXITS = 2 * WRITES + 1;
const RAM_BYTES = 4 * 2 ** 20;

const reason = noKvm();
if (reason !== undefined) console.warn(`a vCPU's change of threads on KVM ${reason}`);

/** Reads a byte from {@link PORT} and writes it back plus one, again and again. */
function echoes(guest: GuestCode): void {
  for (let i = 0; i < WRITES; i++) {
    guest.movImm(RDX, PORT);
    guest.inDx(1);
    guest.addImm(RAX, 1);
    guest.outDx(1);
  }
  guest.finish();
}

function echoing(machine: TestMachine): number[] {
  const heard: number[] = [];
  machine.pio.insert(PORT, 1, {
    read: () => 10 * heard.length,
    write: (_offset, _size, value) => heard.push(value),
  });
  return heard;
}

const ALL = Array.from({ length: WRITES }, (_, i) => 10 * i + 1);

describe.skipIf(reason !== undefined)("KVM", () => {
  test("a vCPU leaves its guest after any exit, and goes on as if nothing had been", async () => {
    await withMachine("kvm", async (machine) => {
      const { vcpu } = machine;
      const heard = echoing(machine);
      machine.load(echoes);
      const next = () => vcpu.runUntil?.(() => true);
      // A read is done when the guest is entered again.
      for (let exits = 1; exits <= EXITS; exits++) {
        expect(next()).toBeUndefined();
        expect(heard).toEqual(ALL.slice(0, exits / 2));
      }
      expect(next()).toEqual({ kind: "stopped" });
    });
  });

  test("another one takes over what it has left, in the middle of a read", async () => {
    await withMachine("kvm", async (machine) => {
      const { backend, wasm, pio, mmio, vcpu } = machine;
      const heard = echoing(machine);
      machine.load(echoes);
      let exits = 0;
      expect(vcpu.runUntil?.(() => ++exits === 5)).toBeUndefined();
      expect(exits).toBe(5);
      expect(heard).toEqual(ALL.slice(0, 2));
      const next = await backend.createVcpu({
        index: 0,
        memory: wasm,
        ramBytes: RAM_BYTES,
        pio,
        mmio,
        log: () => {},
        onPaused: () => {},
      });
      expect(next.run()).toEqual({ kind: "stopped" });
      expect(heard).toEqual(ALL);
      expect(vcpu.stats()["exits: IO"]).toBe(5);
      expect(next.stats()["exits: IO"]).toBe(EXITS - 5);
    });
  });
});
