/** What only KVM has: event descriptors, its own timers, large memory, kicks, and its ways to fail. */

import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { PDPTE_START } from "../../src/boot/layout.ts";
import { KvmMachine } from "../../src/hypervisor/kvm/machine.ts";
import type { Segment } from "../../src/hypervisor/types.ts";
import { MMIO_GAP_END } from "../../src/memory/guest-memory.ts";
import { cpuFlags, hasVirtualization } from "../../src/platform/cpu-flags.ts";
import { readSome } from "../../src/platform/files.ts";
import { Mapping } from "../../src/platform/memory.ts";
import { RAX, RBX } from "./guest-code.ts";
import { CODE, noKvm, withMachine } from "./machine.ts";

const PORT = 0x500;
const WINDOW = 0xc000_1000;
const IDT = 0x22_0000;
const VECTOR = 0x41;
const COUNTER = 0x23_0000;
const GIB = 2 ** 30;

const reason = noKvm();
if (reason !== undefined) console.warn(`tests of the KVM backend ${reason}`);

/** What the event has counted so far, and takes it. */
function taken(fd: number): number {
  const counter = new Uint8Array(8);
  return readSome(fd, counter) === undefined ? 0 : Number(new DataView(counter.buffer).getBigUint64(0, true));
}

describe.skipIf(reason !== undefined)("KVM", () => {
  test("a real-mode guest runs from the reset state", async () => {
    const written: number[] = [];
    await withMachine("kvm", ({ pio, run }) => {
      pio.insert(PORT, 2, { read: () => 0, write: (_, size, value) => written.push(size, value) });
      const segment = (selector: number, flags: number): Segment => ({
        selector,
        base: BigInt(selector) << 4n,
        limit: 0xffff,
        flags,
      });
      const end = run(
        (guest) => {
          guest.raw(0xb8, 0x34, 0x12); // mov ax, 0x1234
          guest.raw(0xba, 0x00, 0x05); // mov dx, PORT
          guest.raw(0xef); // out dx, ax
          guest.raw(0xba, 0xf0, 0x05); // mov dx, FINISH_PORT
          guest.raw(0xee); // out dx, al
          guest.spin();
        },
        {
          rip: 0n,
          rsp: 0x1000n,
          cr0: 0x10n,
          cr3: 0n,
          cr4: 0n,
          efer: 0n,
          cs: { ...segment(0xf000, 0x9b), base: BigInt(CODE) },
          data: segment(0, 0x93),
          tr: segment(0, 0x8b),
        },
      );
      expect(end).toEqual({ kind: "stopped" });
      expect(written).toEqual([2, 0x1234]);
    });
  });

  test("an ioeventfd takes the writes of its value and width; others reach the bus", async () => {
    const seen: string[] = [];
    await withMachine("kvm", ({ backend, wasm, mmio, run }) => {
      const events = [0, 1].map((queue) => backend.ioEvent!(wasm, WINDOW + 0x50, queue));
      mmio.insert(WINDOW, 0x1000, {
        read: () => 0,
        write: (offset, size, value) => seen.push(`${offset.toString(16)}/${size}=${value}`),
      });
      const end = run((guest) => {
        for (const value of [0, 1, 1, 2]) guest.poke(WINDOW + 0x50, value);
        guest.poke(WINDOW + 0x54, 1);
        guest.movImm(RBX, WINDOW + 0x50);
        guest.movImm(RAX, 1);
        guest.storeA(2);
        guest.finish();
      });
      expect(end).toEqual({ kind: "stopped" });
      expect(events.map(({ fd }) => taken(fd))).toEqual([1, 2]);
      expect(seen).toEqual(["50/4=2", "54/4=1", "50/2=1"]);
    });
  });

  test("the PIT's timer reaches the guest", async () => {
    await withMachine("kvm", ({ memory, run }) => {
      const start = performance.now();
      const end = run((guest) => {
        guest.enableApic();
        guest.loadIdt(IDT, VECTOR, "handler");
        guest.routeGsi(0, VECTOR);
        // Channel 0, low and high byte, rate generator; 1193182 Hz / 2386 is 500 Hz.
        guest.outPort(0x43, 1, 0x34);
        guest.outPort(0x40, 1, 2386 & 0xff);
        guest.outPort(0x40, 1, 2386 >> 8);
        guest.waitForCount(COUNTER, 10);
        guest.finish();
        guest.countingHandler("handler", COUNTER);
      });
      expect(end).toEqual({ kind: "stopped" });
      expect(memory.readU32(COUNTER)).toBeGreaterThanOrEqual(10);
      expect(performance.now() - start).toBeGreaterThan(17);
    });
  });

  test("RAM above the MMIO gap is the guest's, and takes host memory only where it is touched", async () => {
    const ramBytes = 4000 * 2 ** 20;
    const last = MMIO_GAP_END + (ramBytes - 3 * GIB) - 8;
    await withMachine(
      "kvm",
      ({ memory, run }) => {
        memory.writeU64(MMIO_GAP_END, 0x1122_3344_5566_7788n);
        const rssBefore = process.memoryUsage.rss();
        const end = run((guest) => {
          guest.movImm(RBX, MMIO_GAP_END);
          guest.loadA(8);
          guest.addImm(RAX, 1);
          guest.movImm(RBX, last);
          guest.storeA(8);
          guest.finish();
        });
        expect(end).toEqual({ kind: "stopped" });
        expect(memory.end).toBe(last + 8);
        expect(memory.readU64(last)).toBe(0x1122_3344_5566_7789n);
        expect(process.memoryUsage.rss() - rssBefore).toBeLessThan(64 * 2 ** 20);
      },
      ramBytes,
    );
  });

  test("8 GiB in slots far above 4 GiB, of which the host gives only what is touched", async () => {
    const first = 64;
    const gibs = Array.from({ length: 8 }, (_, i) => i);
    const gibPerMapping = 2;
    const mappings = gibs
      .filter((gib) => gib % gibPerMapping === 0)
      .map(() => Mapping.anonymous(gibPerMapping * GIB));
    await withMachine("kvm", ({ memory, wasm, run }) => {
      const { vm } = new KvmMachine(wasm);
      for (const [i, { at }] of mappings.entries()) {
        vm.setMemory(7 + i, (first + i * gibPerMapping) * GIB, gibPerMapping * GIB, at);
      }
      for (const gib of gibs) {
        const directory = 0xe000 + 4096 * gib;
        memory.writeU64(directory + 8 * 511, BigInt((first + gib) * GIB + 511 * 2 ** 21) | 0x83n);
        memory.writeU64(PDPTE_START + 8 * (first + gib), BigInt(directory) | 3n);
      }
      const rssBefore = process.memoryUsage.rss();
      const end = run((guest) => {
        for (const gib of gibs) {
          guest.movImm(RBX, (first + gib + 1) * GIB - 4);
          guest.movImm(RAX, 0x600d + gib);
          guest.storeA(4);
        }
        guest.finish();
      });
      expect(end).toEqual({ kind: "stopped" });
      const last = gibs.map((gib) => {
        const { bytes } = mappings[Math.floor(gib / gibPerMapping)]!;
        return new DataView(bytes.buffer).getUint32(((gib % gibPerMapping) + 1) * GIB - 4, true);
      });
      expect(last).toEqual(gibs.map((gib) => 0x600d + gib));
      expect(process.memoryUsage.rss() - rssBefore).toBeLessThan(64 * 2 ** 20);
    });
    for (const mapping of mappings) mapping.unmap();
  });

  test.skipIf(hasVirtualization(cpuFlags()))(
    "an instruction that this host's KVM cannot emulate is shown, with what to do",
    async () => {
      await withMachine("kvm", ({ run }) => {
        const end = run((guest) => {
          guest.raw(0x90);
          guest.raw(0xc5, 0xf9, 0xef, 0xc0); // vpxor xmm0, xmm0, xmm0
        });
        expect(end.kind).toBe("error");
        if (end.kind !== "error") return;
        expect(end.detail).toMatch(/^KVM could not emulate an instruction\. Registers: rax=/);
        expect(end.detail).toContain("rip=100001");
        expect(end.detail).toMatch(/Bytes at rip: c5 f9 ef c0/);
        expect(end.detail).toContain(
          "cannot run unmodified kernels: use a host with hardware or nested virtualization. Or give --accel soft.",
        );
      });
    },
  );

  test("a machine leaves no descriptors and no mappings of KVM behind", async () => {
    const fds = () => readdirSync("/proc/self/fd").length;
    const once = () =>
      withMachine("kvm", ({ backend, wasm, irqLine, run }) => {
        irqLine(5).trigger();
        irqLine(5).trigger();
        backend.ioEvent!(wasm, WINDOW, 0);
        expect(run((guest) => guest.finish())).toEqual({ kind: "stopped" });
      });
    await once();
    const before = fds();
    for (let i = 0; i < 5; i++) await once();
    expect(fds()).toBeLessThanOrEqual(before);
    const maps = await Bun.file("/proc/self/maps").text();
    expect(maps.match(/kvm-vcpu/g)).toBeNull();
  });

  test("RAM above the MMIO gap goes with its machine", async () => {
    const highBytes = 5 * GIB;
    /** What is mapped of it; a neighbour may have become one with it. */
    const mapped = (start: number) =>
      readFileSync("/proc/self/maps", "utf8")
        .split("\n")
        .map((line) => /^(\w+)-(\w+) /.exec(line)?.slice(1) ?? [])
        .map(([from = "0", to = "0"]) => [Number.parseInt(from, 16), Number.parseInt(to, 16)] as const)
        .map(([from, to]) => Math.min(to, start + highBytes) - Math.max(from, start))
        .filter((bytes) => bytes > 0)
        .reduce((sum, bytes) => sum + bytes, 0);
    const address = await withMachine(
      "kvm",
      ({ memory, run }) => {
        const { high } = memory.layout;
        expect(mapped(high!)).toBe(highBytes);
        expect(run((guest) => guest.finish())).toEqual({ kind: "stopped" });
        return high!;
      },
      3 * GIB + highBytes,
    );
    // Something else may be mapped there since, but not that much.
    expect(mapped(address)).toBeLessThan(highBytes / 2);
  });
});
