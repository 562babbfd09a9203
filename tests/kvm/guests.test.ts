/** One body for every CPU backend: 64-bit guests without an operating system. */

import { describe, expect, test } from "bun:test";
import type { BusDevice } from "../../src/devices/types.ts";
import { at } from "../oracle/asm.ts";
import {
  APIC_EOI,
  APIC_LVT_LINT0,
  APIC_LVT_TIMER,
  APIC_SPURIOUS,
  APIC_TIMER_DIVIDE,
  APIC_TIMER_INITIAL,
  RAX,
  RBX,
  RCX,
  RDI,
  RDX,
  RSI,
} from "./guest-code.ts";
import { backendNames, withMachine } from "./machine.ts";

const PORT = 0x500;
const WINDOW = 0xc000_2000;
const RESULTS = 0x20_0000;
const DATA = 0x21_0000;
const IDT = 0x22_0000;
const VECTOR = 0x41;
const COUNTER = 0x23_0000;
const PIC_BASE = 0x50;
/** LVT entries: delivery mode ExtINT, and the mask. */
const EXTINT = 0x700;
const LVT_MASKED = 0x1_0000;
const IA32_APIC_BASE = 0x1b;

/** Notes every access, and answers reads with a pattern that depends on all of it. */
class Recorder implements BusDevice {
  readonly seen: string[] = [];
  private reads = 0;

  read(offset: number, size: number): number {
    this.seen.push(`r${offset}/${size}`);
    const value = (0x8899_aabb + 0x0101_0101 * this.reads++ + offset) >>> 0;
    return size === 4 ? value : value & (size === 2 ? 0xffff : 0xff);
  }

  write(offset: number, size: number, value: number): void {
    this.seen.push(`w${offset}/${size}=${value.toString(16)}`);
  }
}

describe.each(backendNames())("%s", (backend) => {
  test("port I/O of each width", async () => {
    const device = new Recorder();
    await withMachine(backend, ({ memory, pio, run }) => {
      pio.insert(PORT, 8, device);
      const end = run((guest) => {
        for (const size of [1, 2, 4]) {
          guest.outPort(PORT + size, size, 0x1234_5678);
          guest.movImm(RDX, PORT + size);
          guest.movImm(RAX, 0x1111_1111);
          guest.inDx(size);
          guest.movImm(RBX, RESULTS + size);
          guest.movImm(RBX, RESULTS + 8 * size);
          guest.storeA(8);
        }
        guest.finish();
      });
      expect(end).toEqual({ kind: "stopped" });
      expect(device.seen).toEqual(["w1/1=78", "r1/1", "w2/2=5678", "r2/2", "w4/4=12345678", "r4/4"]);
      // Narrow reads keep the rest of the register, a 32-bit one clears the upper half.
      expect([1, 2, 4].map((size) => memory.readU64(RESULTS + 8 * size).toString(16))).toEqual([
        "111111bc",
        "1111abbe",
        "8a9bacc1",
      ]);
    });
  });

  test("ports without a device read as all ones", async () => {
    await withMachine(backend, ({ memory, run }) => {
      run((guest) => {
        guest.movImm(RDX, 0x700);
        guest.movImm(RAX, 0);
        guest.inDx(4);
        guest.movImm(RBX, RESULTS);
        guest.storeA(8);
        guest.finish();
      });
      expect(memory.readU64(RESULTS)).toBe(0xffff_ffffn);
    });
  });

  test.each([1, 2, 4])("rep outs and rep ins, %d bytes wide, more than a page of them", async (size) => {
    const count = 3000;
    const written: number[] = [];
    let reads = 0;
    const limit = 2 ** (8 * size);
    const pattern = (i: number) => (i * 2654435761) % limit;
    await withMachine(backend, ({ memory, pio, run }) => {
      pio.insert(PORT, 4, {
        read: () => pattern(reads++),
        write: (_offset, width, value) => written.push(width === size ? value : -1),
      });
      const source = memory.slice(DATA, count * size);
      for (let i = 0; i < source.length; i++) source[i] = (i * 37) & 0xff;
      const end = run((guest) => {
        guest.movImm(RDX, PORT);
        guest.movImm(RCX, count);
        guest.movImm(RSI, DATA);
        guest.repOuts(size);
        guest.movImm(RCX, count);
        guest.movImm(RDI, RESULTS);
        guest.repIns(size);
        guest.movImm(RBX, COUNTER);
        guest.mov(RAX, RSI);
        guest.storeA(8);
        guest.movImm(RBX, COUNTER + 8);
        guest.mov(RAX, RDI);
        guest.storeA(8);
        guest.finish();
      });
      expect(end).toEqual({ kind: "stopped" });
      const value = (at: number) =>
        size === 1 ? memory.readU8(at) : size === 2 ? memory.readU16(at) : memory.readU32(at);
      const indices = Array.from({ length: count }, (_, i) => i);
      expect(written).toEqual(indices.map((i) => value(DATA + i * size)));
      expect(indices.map((i) => value(RESULTS + i * size))).toEqual(indices.map(pattern));
      expect(memory.readU64(COUNTER)).toBe(BigInt(DATA + count * size));
      expect(memory.readU64(COUNTER + 8)).toBe(BigInt(RESULTS + count * size));
    });
  });

  test("memory-mapped I/O of each width; eight bytes are two times four", async () => {
    const device = new Recorder();
    await withMachine(backend, ({ memory, mmio, run }) => {
      mmio.insert(WINDOW, 0x1000, device);
      run((guest) => {
        for (const size of [1, 2, 4, 8]) {
          guest.movImm(RBX, WINDOW + 16 * size);
          guest.movImm(RAX, 0x12_3456_789a_bc);
          guest.storeA(size);
          guest.movImm(RAX, 0);
          guest.loadA(size);
          guest.movImm(RBX, RESULTS + 8 * size);
          guest.storeA(8);
        }
        guest.finish();
      });
      expect(device.seen).toEqual([
        "w16/1=bc",
        "r16/1",
        "w32/2=9abc",
        "r32/2",
        "w64/4=56789abc",
        "r64/4",
        "w128/4=56789abc",
        "w132/4=1234",
        "r128/4",
        "r132/4",
      ]);
      expect([1, 2, 4, 8].map((size) => memory.readU64(RESULTS + 8 * size).toString(16))).toEqual([
        "cb",
        "abdc",
        "8a9bacfd",
        "8c9daf438b9cae3e",
      ]);
    });
  });

  test("an interrupt line that a device raises wakes the guest from HLT, once an edge", async () => {
    await withMachine(backend, ({ memory, pio, irqLine, run }) => {
      const line = irqLine(5);
      pio.insert(PORT, 1, { read: () => 0, write: () => line.trigger() });
      const end = run((guest) => {
        guest.enableApic();
        guest.loadIdt(IDT, VECTOR, "handler");
        guest.routeGsi(5, VECTOR);
        for (let i = 1; i <= 3; i++) {
          guest.outPort(PORT, 1, 0);
          // A following instruction lets the pending interrupt in.
          guest.label(`again ${i}`);
          guest.sti();
          guest.raw(0x90);
          guest.cli();
          guest.movImm(RBX, COUNTER);
          guest.load32(RAX, at(RBX));
          guest.cmpImm(RAX, i);
          guest.jcc(2, `again ${i}`); // B
        }
        guest.finish();
        guest.countingHandler("handler", COUNTER);
      });
      expect(end).toEqual({ kind: "stopped" });
      expect(memory.readU32(COUNTER)).toBe(3);
    });
  });

  test("lines below 16 come through the PICs and LINT0 too, unless LINT0 is masked", async () => {
    await withMachine(backend, ({ memory, pio, irqLine, run }) => {
      const lines = [5, 10].map((gsi) => irqLine(gsi));
      pio.insert(PORT, 1, { read: () => 0, write: (_offset, _size, line) => lines[line]!.trigger() });
      const end = run((guest) => {
        guest.poke(APIC_SPURIOUS, 0x1ff);
        guest.poke(APIC_LVT_LINT0, EXTINT);
        guest.enablePic(PIC_BASE);
        guest.loadIdt(IDT, PIC_BASE + 5, "master");
        guest.loadIdt(IDT, PIC_BASE + 10, "slave");
        for (let i = 1; i <= 3; i++) {
          guest.outPort(PORT, 1, 0);
          guest.waitForCount(COUNTER, i);
          guest.outPort(PORT, 1, 1);
          guest.waitForCount(COUNTER + 8, i);
        }
        guest.poke(APIC_LVT_LINT0, EXTINT | LVT_MASKED);
        guest.outPort(PORT, 1, 0);
        guest.sti();
        for (let i = 0; i < 4; i++) guest.pause();
        guest.cli();
        guest.movImm(RBX, COUNTER);
        guest.load32(RAX, at(RBX));
        guest.movImm(RBX, RESULTS);
        guest.storeA(4);
        guest.poke(APIC_LVT_LINT0, EXTINT);
        guest.waitForCount(COUNTER, 4);
        guest.finish();
        guest.countingPicHandler("master", COUNTER);
        guest.countingPicHandler("slave", COUNTER + 8);
      });
      expect(end).toEqual({ kind: "stopped" });
      expect(memory.readU32(RESULTS)).toBe(3);
      expect([memory.readU32(COUNTER), memory.readU32(COUNTER + 8)]).toEqual([4, 3]);
    });
  });

  test("the PICs reach a processor whose local APIC is off", async () => {
    await withMachine(backend, ({ memory, pio, irqLine, run }) => {
      const line = irqLine(5);
      pio.insert(PORT, 1, { read: () => 0, write: () => line.trigger() });
      const end = run((guest) => {
        guest.poke(APIC_LVT_LINT0, EXTINT | LVT_MASKED);
        guest.movImm(RCX, IA32_APIC_BASE);
        guest.movImm(RDX, 0);
        guest.movImm(RAX, APIC_EOI & ~0xfff);
        guest.wrmsr();
        guest.enablePic(PIC_BASE);
        guest.loadIdt(IDT, PIC_BASE + 5, "handler");
        for (let i = 1; i <= 3; i++) {
          guest.outPort(PORT, 1, 0);
          guest.waitForCount(COUNTER, i);
        }
        guest.finish();
        guest.countingPicHandler("handler", COUNTER);
      });
      expect(end).toEqual({ kind: "stopped" });
      expect(memory.readU32(COUNTER)).toBe(3);
    });
  });

  test("counter 0 of the interval timer fires periodically through IRQ 0", async () => {
    await withMachine(backend, ({ memory, run }) => {
      const start = performance.now();
      const end = run((guest) => {
        guest.poke(APIC_SPURIOUS, 0x1ff);
        guest.poke(APIC_LVT_LINT0, EXTINT);
        guest.enablePic(PIC_BASE);
        guest.loadIdt(IDT, PIC_BASE, "handler");
        // Mode 2, every 2386 pulses of 1.193182 MHz: 2 ms.
        guest.outPort(0x43, 1, 0x34);
        guest.outPort(0x40, 1, 2386 & 0xff);
        guest.outPort(0x40, 1, 2386 >> 8);
        guest.waitForCount(COUNTER, 10);
        guest.finish();
        guest.countingPicHandler("handler", COUNTER);
      });
      expect(end).toEqual({ kind: "stopped" });
      expect(memory.readU32(COUNTER)).toBeGreaterThanOrEqual(10);
      // Ten periods; the timer makes up for late ones on KVM, but is never early.
      expect(performance.now() - start).toBeGreaterThan(18);
    });
  });

  test("counter 2 counts while its gate is open, and port 0x61 shows its output", async () => {
    await withMachine(backend, ({ memory, run }) => {
      const start = performance.now();
      const end = run((guest) => {
        // Mode 0, 11932 pulses: 10 ms from the opening of the gate.
        guest.outPort(0x61, 1, 0);
        guest.outPort(0x43, 1, 0xb0);
        guest.outPort(0x42, 1, 11932 & 0xff);
        guest.outPort(0x42, 1, 11932 >> 8);
        guest.movImm(RDX, 0x61);
        guest.inDx(1);
        guest.movImm(RBX, RESULTS);
        guest.storeA(1);
        guest.outPort(0x61, 1, 1);
        guest.label("wait");
        guest.movImm(RDX, 0x61);
        guest.inDx(1);
        guest.raw(0xa8, 0x20); // test al, 0x20
        guest.jcc(4, "wait"); // Z
        guest.storeA(1);
        guest.finish();
      });
      expect(end).toEqual({ kind: "stopped" });
      expect(memory.readU8(RESULTS) & 0x21).toBe(0x21);
      expect(performance.now() - start).toBeGreaterThan(9.9);
    });
  });

  test("the local APIC's timer fires periodically", async () => {
    await withMachine(backend, ({ memory, run }) => {
      const start = performance.now();
      const end = run((guest) => {
        guest.enableApic();
        guest.loadIdt(IDT, VECTOR, "handler");
        guest.poke(APIC_TIMER_DIVIDE, 0b1011);
        guest.poke(APIC_LVT_TIMER, VECTOR | (1 << 17));
        // The timer counts at 1 GHz: every 2 ms.
        guest.poke(APIC_TIMER_INITIAL, 2_000_000);
        guest.waitForCount(COUNTER, 10);
        guest.finish();
        guest.countingHandler("handler", COUNTER);
      });
      expect(end).toEqual({ kind: "stopped" });
      expect(memory.readU32(COUNTER)).toBeGreaterThanOrEqual(10);
      expect(performance.now() - start).toBeGreaterThan(18);
    });
  });

  test("the TSC deadline timer fires once for each deadline", async () => {
    await withMachine(backend, ({ memory, run }) => {
      const IA32_TSC_DEADLINE = 0x6e0;
      const end = run((guest) => {
        guest.enableApic();
        guest.loadIdt(IDT, VECTOR, "handler");
        guest.poke(APIC_LVT_TIMER, VECTOR | (2 << 17));
        guest.call("arm");
        guest.waitForCount(COUNTER, 3);
        guest.finish();

        guest.label("handler");
        for (const register of [RAX, RBX, RCX, RDX]) guest.push(register);
        guest.movImm(RBX, COUNTER);
        guest.lockIncrement();
        guest.poke(APIC_EOI, 0);
        guest.call("arm");
        for (const register of [RDX, RCX, RBX, RAX]) guest.pop(register);
        guest.iretq();

        // 2^21 cycles from now, about 1 ms.
        guest.label("arm");
        guest.rdtsc();
        guest.raw(0x48, 0xc1, 0xe2, 32); // shl rdx, 32
        guest.add(RAX, RDX);
        guest.addImm(RAX, 2 ** 21);
        guest.mov(RDX, RAX);
        guest.shr(RDX, 32);
        guest.movImm(RCX, IA32_TSC_DEADLINE);
        guest.wrmsr();
        guest.ret();
      });
      expect(end).toEqual({ kind: "stopped" });
      expect(memory.readU32(COUNTER)).toBeGreaterThanOrEqual(3);
    });
  });

  test("a triple fault ends the run and tells where", async () => {
    await withMachine(backend, ({ run }) => {
      const end = run((guest) => guest.ud2());
      expect(end.kind).toBe("shutdown");
      if (end.kind === "shutdown") expect(end.detail).toMatch(/rip=/i);
    });
  });
});
