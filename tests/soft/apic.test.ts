/** Local APIC, its timer, x2APIC, and the I/O APIC (SDM vol. 3A, chapter 11; 82093AA data sheet). */
import { beforeEach, describe, expect, test } from "bun:test";
import { SoftIrqLine } from "../../src/hypervisor/soft/index.ts";
import { RCX } from "../../src/hypervisor/soft/layout.ts";
import {
  APIC_BASE_MSR,
  ApicGuest,
  apic,
  CLI,
  DEADLINE_MODE,
  EOI,
  ICR,
  ID,
  IOAPIC,
  IRR,
  ISR,
  ioapic,
  LAPIC,
  LVT_TIMER,
  MASKED,
  NOP,
  PPR,
  redirect,
  STI,
  SVR,
  selfIpi,
  show,
  store,
  TIMER_CURRENT,
  TIMER_DIVIDE,
  TIMER_INITIAL,
  TPR,
  TSC_DEADLINE_MSR,
  wrmsr,
  X2APIC,
} from "./apic-guest.ts";
import { code, le32 } from "./code.ts";

let guest: ApicGuest;

beforeEach(() => {
  guest = new ApicGuest();
});

const eoi = () => guest.eoi();
const run: ApicGuest["start"] = (program, options) => guest.start(program, options);

describe("priorities", () => {
  test("the highest vector comes first", () => {
    const seen = run([...selfIpi(0x41), ...selfIpi(0x93), ...selfIpi(0x72), ...STI, ...NOP, ...NOP, ...CLI]);
    expect(seen.vectors).toEqual([0x93, 0x72, 0x41]);
  });

  test("a vector of the class in service waits for the EOI, a higher class nests", () => {
    const order: number[] = [];
    const { result } = guest.run({
      code: [...selfIpi(0x60), ...STI, ...NOP, ...NOP, ...CLI],
      onTrap: (t) => {
        order.push(t.vector);
        if (t.vector !== 0x60) {
          eoi();
          return true;
        }
        // The handler of 0x60 turns interrupts on: its frame's RFLAGS stay, the handler's own change.
        guest.vcpu.cpu.apic.raise(0x65);
        guest.vcpu.cpu.apic.raise(0x71);
        expect(guest.vcpu.cpu.apic.pending()).toBe(0x71);
        guest.vcpu.cpu.apic.acknowledge(0x71);
        expect(guest.vcpu.cpu.apic.pending()).toBe(-1);
        eoi();
        expect(guest.vcpu.cpu.apic.pending()).toBe(-1);
        eoi();
        expect(guest.vcpu.cpu.apic.pending()).toBe(0x65);
        return true;
      },
    });
    expect(result).toBeDefined();
    expect(order).toEqual([0x60, 0x65]);
  });

  test("TPR and CR8 mask by class, and unmask at once", () => {
    const program = [
      ...code(`
        b8 04 00 00 00 | mov eax, 4
        44 0f 22 c0    | mov cr8, rax
      `),
      ...selfIpi(0x4f),
      ...STI,
      ...NOP,
      ...NOP,
      ...selfIpi(0x50),
      ...code("eb 00 | jmp .+2"),
      ...show(TPR),
      ...show(PPR),
      ...show(IRR + 0x20),
      ...code(`
        31 c0       | xor eax, eax
        44 0f 22 c0 | mov cr8, rax
        e6 f2       | out 0xf2, al
      `),
      ...CLI,
    ];
    const order: (string | number)[] = [];
    const seen = run(program, {
      onOut: (_port, value) => order.push(value.toString(16)),
      onTrap: (t) => {
        order.push(t.vector);
        eoi();
        return true;
      },
    });
    expect(seen.result).toBeDefined();
    expect(order).toEqual([0x50, "40", "40", "8000", 0x4f, "0"]);
  });

  test("CR8 reads what TPR says and the other way round", () => {
    const seen = run([
      ...apic(TPR, 0x73),
      ...code(`
        44 0f 20 c0    | mov rax, cr8
        e7 f2          | out 0xf2, eax
        b8 05 00 00 00 | mov eax, 5
        44 0f 22 c0    | mov cr8, rax
      `),
      ...show(TPR),
    ]);
    expect(seen.outs).toEqual([7, 0x50]);
  });

  test("ISR and IRR show what is in service and what waits", () => {
    const states: number[][] = [];
    const word = (base: number, vector: number) =>
      guest.vcpu.cpu.apic.mmioRead(LAPIC + base + ((vector >> 5) << 4));
    run([...selfIpi(0x61), ...STI, ...NOP, ...CLI], {
      onTrap: () => {
        states.push([word(ISR, 0x61), word(IRR, 0x61)]);
        eoi();
        states.push([word(ISR, 0x61), word(IRR, 0x61)]);
        return true;
      },
    });
    expect(states).toEqual([
      [2, 0],
      [0, 0],
    ]);
  });

  test("vectors below 16 are illegal and are never delivered", () => {
    const seen = run([...selfIpi(0x0f), ...STI, ...NOP, ...NOP, ...CLI, ...show(0x280)]);
    expect(seen.vectors).toEqual([]);
    expect(seen.outs[0]! & 0x40).toBe(0x40);
  });

  test("a software-disabled APIC delivers nothing, and masks its local vectors", () => {
    const seen = run([
      ...apic(LVT_TIMER, 0x50),
      ...apic(SVR, 0xff),
      ...selfIpi(0x60),
      ...STI,
      ...NOP,
      ...CLI,
      ...show(LVT_TIMER),
    ]);
    expect(seen.vectors).toEqual([]);
    expect(seen.outs[0]! & MASKED).toBe(MASKED);
  });
});

describe("the timer", () => {
  test("masked it counts but does not interrupt", () => {
    const seen = run([
      ...apic(LVT_TIMER, 0x50 | MASKED),
      ...apic(TIMER_DIVIDE, 0xb),
      ...apic(TIMER_INITIAL, 0xffff_ffff | 0),
      ...show(TIMER_CURRENT),
      ...show(TIMER_CURRENT),
      ...apic(TIMER_INITIAL, 0),
      ...show(TIMER_CURRENT),
    ]);
    const [a, b, c] = seen.outs as [number, number, number];
    expect(a >>> 0).toBeGreaterThan(b >>> 0);
    expect(a >>> 0).toBeGreaterThan(0x8000_0000);
    expect(c).toBe(0);
  });

  /** How much the count for a divisor differs from host time, as a fraction. */
  function deviation(setting: number, divisor: number): number {
    const host: number[] = [];
    const seen = run(
      [
        ...apic(LVT_TIMER, 0x50 | MASKED),
        ...apic(TIMER_DIVIDE, setting),
        ...apic(TIMER_INITIAL, -1),
        ...show(TIMER_CURRENT),
        ...code(`
                   | again:
          48 ff c9 | dec rcx
          75 fb    | jnz again
        `),
        ...show(TIMER_CURRENT),
      ],
      { regs: { [RCX]: 100_000 }, onOut: (_port, value) => host.push(performance.now(), value >>> 0) },
    );
    expect(seen.result).toBeDefined();
    const ns = (host[2]! - host[0]!) * 1e6;
    return Math.abs((host[1]! - host[3]!) * divisor - ns) / ns;
  }

  test("every divisor divides", () => {
    for (const [setting, divisor] of [
      [0xb, 1],
      [0, 2],
      [1, 4],
      [2, 8],
      [3, 16],
      [8, 32],
      [9, 64],
      [0xa, 128],
    ] as const) {
      // A measurement is spoilt when this thread is not scheduled in the middle of it; a wrong divisor spoils all.
      const measured: number[] = [];
      while (measured.length < 10 && !measured.some((d) => d < 0.3))
        measured.push(deviation(setting, divisor));
      expect(Math.min(...measured)).toBeLessThan(0.3);
    }
  });

  test("a deadline set in another mode is ignored, and a change of mode disarms", () => {
    const seen = run([
      ...apic(LVT_TIMER, 0x50),
      ...wrmsr(TSC_DEADLINE_MSR, 1n),
      ...STI,
      ...NOP,
      ...CLI,
      ...apic(LVT_TIMER, 0x50 | DEADLINE_MODE),
      ...wrmsr(TSC_DEADLINE_MSR, 1n << 62n),
      ...apic(LVT_TIMER, 0x50),
      ...apic(LVT_TIMER, 0x50 | DEADLINE_MODE),
      ...code(`
        b9 e0 06 00 00 | mov ecx, 0x6e0
        0f 32          | rdmsr
        09 d0          | or eax, edx
        e7 f2          | out 0xf2, eax
      `),
    ]);
    expect([seen.vectors, seen.outs]).toEqual([[], [0]]);
  });

  test("writing 0 to the deadline or the initial count disarms it", () => {
    const seen = run(
      [
        ...apic(LVT_TIMER, 0x50 | DEADLINE_MODE),
        ...wrmsr(TSC_DEADLINE_MSR, 1n << 62n),
        ...wrmsr(TSC_DEADLINE_MSR, 0n),
        ...apic(LVT_TIMER, 0x50),
        ...apic(TIMER_DIVIDE, 0xb),
        ...apic(TIMER_INITIAL, 2_000_000),
        ...apic(TIMER_INITIAL, 0),
        ...STI,
        ...code(`
                | again:
          ff c9 | dec ecx
          75 fc | jnz again
      `),
        ...CLI,
      ],
      { regs: { [RCX]: 1_000_000 } },
    );
    expect([seen.vectors, seen.result === undefined]).toEqual([[], false]);
  });
});

describe("x2APIC", () => {
  const BASE = 0xfee0_0900n;
  const EXTD = 0x400n;
  const faults = (program: number[]) => run(program).vectors.includes(13);

  test("transitions (SDM vol. 3A, 11.12.5)", () => {
    const disabled = BASE & ~0x800n;
    // From xAPIC: to x2APIC and to disabled; not to EXTD without EN.
    expect(faults(wrmsr(APIC_BASE_MSR, disabled | EXTD))).toBe(true);
    expect(faults(wrmsr(APIC_BASE_MSR, BASE | EXTD))).toBe(false);
    // From x2APIC: not back to xAPIC, not to EXTD without EN; to disabled.
    expect(faults(wrmsr(APIC_BASE_MSR, BASE))).toBe(true);
    expect(faults(wrmsr(APIC_BASE_MSR, disabled | EXTD))).toBe(true);
    expect(faults(wrmsr(APIC_BASE_MSR, BASE | EXTD))).toBe(false);
    expect(faults(wrmsr(APIC_BASE_MSR, disabled))).toBe(false);
    // From disabled: to xAPIC only.
    expect(faults(wrmsr(APIC_BASE_MSR, BASE | EXTD))).toBe(true);
    expect(faults(wrmsr(APIC_BASE_MSR, BASE))).toBe(false);
    expect(faults(wrmsr(APIC_BASE_MSR, BASE | EXTD))).toBe(false);
  });

  test("reserved bits of IA32_APIC_BASE are #GP", () => {
    for (const bit of [0n, 7n, 9n, 40n, 63n])
      expect(faults(wrmsr(APIC_BASE_MSR, BASE | (1n << bit)))).toBe(true);
  });

  const enable = wrmsr(APIC_BASE_MSR, BASE | EXTD);
  const msr = (register: number) => X2APIC + (register >> 4);
  const rdmsr = (register: number) => [0xb9, ...le32(msr(register)), 0x0f, 0x32, 0xe7, 0xf2];

  test("its registers are MSRs, and no longer memory", () => {
    guest.mmioRead = () => 0x1234_5678;
    const seen = run([
      ...enable,
      ...wrmsr(msr(TPR), 0x30n),
      ...rdmsr(TPR),
      ...rdmsr(ID),
      ...rdmsr(0xd0),
      ...show(TPR),
    ]);
    expect(seen.outs).toEqual([0x30, 0, 1, 0x1234_5678]);
  });

  test("the MSRs are #GP in xAPIC mode", () => {
    expect(faults(rdmsr(TPR))).toBe(true);
    expect(faults(wrmsr(msr(TPR), 0n))).toBe(true);
  });

  test("self-IPI, ICR and EOI", () => {
    const seen = run(
      [
        ...enable,
        ...wrmsr(0x83f, 0x61n),
        ...STI,
        ...NOP,
        ...CLI,
        ...wrmsr(msr(ICR), 0x4_0062n),
        ...STI,
        ...NOP,
        ...CLI,
        // To APIC 0 by its number, and to one that is not there.
        ...wrmsr(msr(ICR), 0x63n),
        ...wrmsr(msr(ICR), 0x5_0000_0064n),
        ...STI,
        ...NOP,
        ...NOP,
        ...CLI,
      ],
      { onTrap: () => guest.vcpu.cpu.apic.writeMsr(msr(EOI), 0n) },
    );
    expect(seen.vectors).toEqual([0x61, 0x62, 0x63]);
  });

  test("what is read-only, write-only, reserved or not there is #GP", () => {
    const readable = (register: number) => !faults([...enable, ...rdmsr(register)]);
    const writable = (register: number, value = 0n) => !faults([...enable, ...wrmsr(msr(register), value)]);
    expect(
      [ID, 0x30, TPR, PPR, 0xd0, SVR, ISR, 0x180, IRR, 0x280, ICR, LVT_TIMER, TIMER_CURRENT].map(readable),
    ).toEqual(Array(13).fill(true));
    expect([EOI, 0x3f0, 0xe0, 0x310, 0, 0x40, 0xc0, 0x3a0].map(readable)).toEqual(Array(8).fill(false));
    expect(
      [TPR, EOI, SVR, 0x280, ICR, LVT_TIMER, TIMER_INITIAL, TIMER_DIVIDE].map((r) => writable(r)),
    ).toEqual(Array(8).fill(true));
    expect(
      [ID, 0x30, PPR, 0xd0, 0xe0, ISR, 0x180, IRR, 0x310, TIMER_CURRENT, 0].map((r) => writable(r)),
    ).toEqual(Array(11).fill(false));
    expect([writable(EOI, 1n), writable(0x280, 1n), writable(TPR, 0x100n), writable(TPR, 1n << 32n)]).toEqual(
      Array(4).fill(false),
    );
  });
});

describe("I/O APIC", () => {
  const line = (gsi: number) => new SoftIrqLine(guest.memory, gsi);
  const WAIT = [...STI, ...NOP, ...NOP, ...CLI];

  test("version, identity and redirection entries read back; read-only bits stay clear", () => {
    const read = (index: number) => {
      const program = [...store(IOAPIC, index), 0xba, ...le32(IOAPIC + 0x10), 0x8b, 0x02, 0xe7, 0xf2];
      return run(program).outs[0]! >>> 0;
    };
    expect(read(1)).toBe(0x0017_0011);
    expect(read(0x10)).toBe(MASKED);
    run([...ioapic(0x10, 0xffff), ...ioapic(0x11, 0x5a00_0000), ...ioapic(0, 0x0300_0000)]);
    // Delivery status (bit 12) and remote IRR (bit 14).
    expect([read(0x10), read(0x11), read(0)]).toEqual([0xffff & ~0x5000, 0x5a00_0000, 0x0300_0000]);
    expect(read(0x3f)).toBe(0);
    expect(read(0x40)).toBe(0);
  });

  test("a masked pin loses its edges, an open one is delivered once an edge", () => {
    run(redirect(4, 0x44 | MASKED));
    line(4).trigger();
    expect(run(WAIT).vectors).toEqual([]);
    run(redirect(4, 0x44));
    expect(run(WAIT).vectors).toEqual([]);
    line(4).trigger();
    expect(run(WAIT).vectors).toEqual([0x44]);
    expect(run(WAIT).vectors).toEqual([]);
    // Two before the CPU looks are one.
    line(4).trigger();
    line(4).trigger();
    expect(run(WAIT).vectors).toEqual([0x44]);
  });

  test("a level-triggered pin holds remote IRR until the EOI", () => {
    const remote = () => {
      const program = [...store(IOAPIC, 0x18), 0xba, ...le32(IOAPIC + 0x10), 0x8b, 0x02, 0xe7, 0xf2];
      return (run(program).outs[0]! & 0x4000) !== 0;
    };
    run(redirect(4, 0x44 | 0x8000));
    line(4).trigger();
    const during: boolean[] = [];
    const seen = run(WAIT, {
      onTrap: () => {
        const { ioapic: a } = guest.vcpu.cpu.apic;
        a.write(IOAPIC, 0x18);
        during.push((a.read(IOAPIC + 0x10) & 0x4000) !== 0);
        eoi();
        during.push((a.read(IOAPIC + 0x10) & 0x4000) !== 0);
        return true;
      },
    });
    expect([seen.vectors, during, remote()]).toEqual([[0x44], [true, false], false]);
  });

  test("all 24 pins", () => {
    for (let pin = 0; pin < 24; pin++) {
      run(redirect(pin, 0x80 + pin));
      line(pin).trigger();
      expect(run(WAIT).vectors).toEqual([0x80 + pin]);
    }
  });
});
