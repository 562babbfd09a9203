/** Interrupts while compiled code runs. */
import { describe, expect, test } from "bun:test";
import { RAX, RBX, RCX, RDI } from "../../src/hypervisor/soft/layout.ts";
import {
  ApicGuest,
  apic,
  LVT_TIMER,
  PERIODIC,
  READY,
  redirect,
  STI,
  TIMER_DIVIDE,
  TIMER_INITIAL,
} from "../soft/apic-guest.ts";
import { code } from "../soft/code.ts";
import { DeviceThread } from "../soft/device.ts";
import { CODE, DATA } from "../soft/guest.ts";

/** The APIC timer counts nanoseconds. */
const MILLISECOND = 1_000_000;
const VECTOR = 0x50;

const LOOPS: Record<string, { body: number[]; boundaries: number[] }> = {
  "a jump to itself": { body: code("eb fe | jmp $"), boundaries: [0] },
  "registers only": {
    body: code(`
      48 ff c1 | inc rcx
      48 01 c8 | add rax, rcx
      eb f8    | jmp
    `),
    boundaries: [0],
  },
  "memory and a call": {
    body: code(`
      48 ff c1       | inc rcx
      48 89 4f 40    | mov [rdi+0x40], rcx
      e8 02 00 00 00 | call +2
      eb f2          | jmp
      48 01 c8       | add rax, rcx
      c3             | ret
    `),
    boundaries: [0, 12, 14],
  },
};

describe.each(Object.entries(LOOPS))("in an endless compiled loop: %s", (_name, { body, boundaries }) => {
  test("a timer of 1 kHz comes in at block boundaries, at its rate", () => {
    const guest = new ApicGuest(1);
    const ticks = 60;
    const setup = [
      ...apic(LVT_TIMER, VECTOR | PERIODIC),
      ...apic(TIMER_DIVIDE, 0xb), // by 1
      ...STI,
      ...apic(TIMER_INITIAL, MILLISECOND),
    ];
    const start = performance.now();
    const { traps } = guest.start([...setup, ...body], {
      regs: { [RDI]: DATA, [RAX]: 0, [RCX]: 0, [RBX]: 0 },
      bare: true,
      onTrap: () => {
        guest.eoi();
        return guest.vcpu.stats().instructions >= 0 && performance.now() - start < ticks;
      },
    });
    expect(guest.vcpu.stats().regionsCompiled).toBeGreaterThan(0);
    expect(new Set(traps.map((t) => t.vector))).toEqual(new Set([VECTOR]));
    // A busy host makes ticks coincide, and compiling takes its time: that they go on coming is what counts.
    expect(traps.length).toBeGreaterThan(3);
    expect(traps.length).toBeLessThan(ticks + 2);
    for (const t of traps.slice(1)) expect(boundaries).toContain(t.rip - CODE - setup.length);
  });

  test("a line raised by another thread comes in", async () => {
    const guest = new ApicGuest(1);
    const device = await DeviceThread.start(guest.memory);
    const times = 40;
    let served = 0;
    try {
      const { vectors } = guest.start([...redirect(6, VECTOR), ...READY, ...STI, ...body], {
        regs: { [RDI]: DATA },
        bare: true,
        onOut: () => device.send({ kind: "irq", gsi: 6, delayMs: 2 }),
        onTrap: () => {
          guest.eoi();
          if (++served === times) return false;
          device.send({ kind: "irq", gsi: 6, delayMs: 0.5 });
          return true;
        },
      });
      expect(vectors).toEqual(Array(times).fill(VECTOR));
    } finally {
      device.stop();
    }
  });
});
