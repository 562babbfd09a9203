/** Interrupts through the PICs: how LINT0 lets them in, and their order among those of the local APIC. */
import { beforeEach, describe, expect, test } from "bun:test";
import { SoftIrqLine } from "../../src/hypervisor/soft/index.ts";
import { RBX, RDI } from "../../src/hypervisor/soft/layout.ts";
import {
  APIC_BASE_MSR,
  ApicGuest,
  apic,
  CLI,
  HLT,
  LAPIC,
  MASKED,
  NOP,
  READY,
  SLEEP_UNTIL_COUNTED,
  STI,
  SVR,
  selfIpi,
  TPR,
  where,
  wrmsr,
} from "./apic-guest.ts";
import { code, le32 } from "./code.ts";
import { DeviceThread } from "./device.ts";
import { DATA, type RunOptions } from "./guest.ts";

const LVT_LINT0 = 0x350;
const EXTINT = 0x700;
const FIXED = 0x000;
const WAIT = [...STI, ...NOP, ...NOP, ...CLI];

/** mov al, value; out port, al. */
const out = (port: number, value: number) => [0xb0, value, 0xe6, port];
/** IRQ n is vector 0x30 + n, all unmasked. */
const INITIALIZE = [
  ...[0x11, 0x30, 0x04, 0x01, 0].flatMap((value, i) => out(i === 0 ? 0x20 : 0x21, value)),
  ...[0x11, 0x38, 0x02, 0x01, 0].flatMap((value, i) => out(i === 0 ? 0xa0 : 0xa1, value)),
];

let guest: ApicGuest;

/** Runs a program whose handlers send their EOIs to the PICs. */
function run(program: number[], options: Partial<RunOptions> = {}) {
  return guest.start(program, {
    onTrap: ({ vector }) => {
      if (vector < 0x30 || vector > 0x3f) {
        guest.eoi();
        return vector >= 32;
      }
      for (const port of [0xa0, 0x20]) guest.vcpu.cpu.bus.pioWrite(port, 1, 0x20);
      return true;
    },
    ...options,
  });
}
const line = (gsi: number) => new SoftIrqLine(guest.memory, gsi);

beforeEach(() => {
  guest = new ApicGuest();
});

test("all lines below 16 but the cascade, and none from there on", () => {
  run(INITIALIZE);
  for (let gsi = 0; gsi < 24; gsi++) {
    line(gsi).trigger();
    expect(run(WAIT).vectors).toEqual(gsi === 2 || gsi >= 16 ? [] : [0x30 + gsi]);
  }
});

test("nothing comes before the guest has set the PICs up", () => {
  for (let gsi = 0; gsi < 16; gsi++) line(gsi).trigger();
  expect(run(WAIT).vectors).toEqual([]);
});

describe("LINT0", () => {
  test("lets interrupts in as ExtINT, unmasked, and keeps them otherwise", () => {
    run(INITIALIZE);
    for (const shut of [MASKED | EXTINT, FIXED | 0x44, MASKED]) {
      // The registers of boot open it with every run.
      line(4).trigger();
      const before = apic(LVT_LINT0, shut);
      const opened = [...before, ...WAIT, ...apic(LVT_LINT0, EXTINT)];
      const seen = run([...opened, ...WAIT]);
      expect([seen.vectors, where(seen)]).toEqual([[0x34], opened.length + 2]);
    }
  });

  test("is masked when the local APIC is disabled by software", () => {
    run(INITIALIZE);
    line(4).trigger();
    expect(run([...apic(SVR, 0xff), ...WAIT]).vectors).toEqual([]);
  });

  test("does not matter when the local APIC is off altogether", () => {
    run(INITIALIZE);
    line(4).trigger();
    const off = [...apic(LVT_LINT0, MASKED), ...wrmsr(APIC_BASE_MSR, BigInt(LAPIC) | 0x100n)];
    const seen = run([...off, ...WAIT]);
    expect([seen.vectors, where(seen)]).toEqual([[0x34], off.length + 2]);
  });
});

describe("order", () => {
  test("an interrupt of the PICs comes before those of the local APIC, whatever the task priority", () => {
    const seen = run(
      [...INITIALIZE, ...apic(TPR, 0xf0), ...selfIpi(0xe0), ...out(0xf5, 0), ...WAIT, ...apic(TPR, 0)],
      {
        onOut: (port) => {
          if (port === 0xf5) line(11).trigger();
        },
      },
    );
    expect(seen.vectors).toEqual([0x3b]);
    expect(run(WAIT).vectors).toEqual([0xe0]);
  });

  test("unmasking by OUT lets a waiting one in at the next branch", () => {
    const before = [...INITIALIZE, ...out(0x21, 0xff), ...out(0xf5, 0), ...STI, ...NOP];
    const seen = run([...before, ...out(0x21, 0), ...code("eb 00 | jmp $+2"), ...NOP, ...CLI], {
      onOut: () => line(4).trigger(),
    });
    expect([seen.vectors, where(seen)]).toEqual([[0x34], before.length + 6]);
  });

  test("one in service holds lower ones back until its EOI", () => {
    const nested: number[] = [];
    const seen = run([...INITIALIZE, ...out(0xf5, 0), ...WAIT], {
      onOut: () => {
        line(6).trigger();
        line(3).trigger();
      },
      onTrap: ({ vector }) => {
        nested.push(vector);
        if (nested.length === 2) for (const port of [0xa0, 0x20]) guest.vcpu.cpu.bus.pioWrite(port, 1, 0x20);
        return true;
      },
    });
    // The first handler sends no EOI, so IRQ 6 waits.
    expect(seen.vectors).toEqual([0x33]);
    guest.vcpu.cpu.bus.pioWrite(0x20, 1, 0x20);
    expect(run(WAIT).vectors).toEqual([0x36]);
  });
});

describe("HLT", () => {
  test("wakes for a line that another thread raises", async () => {
    const device = await DeviceThread.start(guest.memory);
    try {
      const seen = run([...INITIALIZE, ...READY, ...STI, ...HLT, ...CLI], {
        onOut: () => device.send({ kind: "irq", gsi: 12, delayMs: 20 }),
      });
      expect(seen.vectors).toEqual([0x3c]);
    } finally {
      device.stop();
    }
  });

  test("wakes for the interval timer", () => {
    // Counter 0, mode 2: 1193 pulses are 1 ms.
    const timer = [...out(0x43, 0x34), ...out(0x40, 1193 & 0xff), ...out(0x40, 1193 >> 8)];
    const start = performance.now();
    const seen = run([
      ...INITIALIZE,
      ...timer,
      ...STI,
      ...code(`
        b9 0a 00 00 00 | mov ecx, 10
                       | again:
        f4             | hlt
        ff c9          | dec ecx
        75 fb          | jnz again
        fa             | cli
      `),
    ]);
    expect(seen.vectors.length).toBeGreaterThanOrEqual(10);
    expect(seen.vectors.every((vector) => vector === 0x30)).toBe(true);
    expect(performance.now() - start).toBeGreaterThan(9.9);
  });
});

test("200 edges from another thread through the slave: none is lost", async () => {
  const device = await DeviceThread.start(guest.memory);
  try {
    const times = 200;
    const seen = run([...INITIALIZE, ...READY, ...STI, ...SLEEP_UNTIL_COUNTED], {
      regs: { [RDI]: DATA, [RBX]: times },
      onOut: () => device.send({ kind: "rally", gsi: 10, gpa: guest.physical(DATA), times }),
      onTrap: () => {
        guest.write64(DATA, guest.read64(DATA) + 1n);
        for (const port of [0xa0, 0x20]) guest.vcpu.cpu.bus.pioWrite(port, 1, 0x20);
        return true;
      },
    });
    expect(seen.vectors.length).toBe(times);
  } finally {
    device.stop();
  }
});

test("a busy loop is interrupted by the interval timer", () => {
  const timer = [...out(0x43, 0x30), ...out(0x40, 0x00), ...out(0x40, 0x10)];
  const seen = run(
    [
      ...INITIALIZE,
      ...timer,
      ...STI,
      ...code(`
                 | again:
        48 39 1f | cmp [rdi], rbx
        75 fb    | jne again
        fa       | cli
      `),
    ],
    {
      regs: { [RDI]: DATA, [RBX]: 1 },
      onTrap: () => {
        guest.write64(DATA, 1n);
        return true;
      },
    },
  );
  expect(seen.vectors).toEqual([0x30]);
});

test("wider port accesses are one to each byte's port", () => {
  const touched: string[] = [];
  guest.pioRead = (port, size) => {
    touched.push(`${port.toString(16)}/${size}`);
    return 0x1234_5677;
  };
  // Both masks; then 0x21 (mask) and 0x22 (the machine's).
  const seen = run([
    ...INITIALIZE,
    ...out(0x21, 0x5a),
    ...out(0xa1, 0xa5),
    ...code(`
      31 c0    | xor eax, eax
      66 e5 21 | in ax, 0x21
      e7 f2    | out 0xf2, eax
      31 c0    | xor eax, eax
      66 e5 a0 | in ax, 0xa0
      e7 f2    | out 0xf2, eax
    `),
    ...[0x66, 0xb8, 0x0a, 0x0f, 0x66, 0xe7, 0x20], // mov ax, 0x0f0a; out 0x20, ax
    ...code(`
      31 c0    | xor eax, eax
      e4 21    | in al, 0x21
      e7 f2    | out 0xf2, eax
    `),
    ...[0xb8, ...le32(0)],
  ]);
  expect(seen.outs).toEqual([0x775a, 0xa500, 0x0f]);
  expect(touched).toEqual(["22/1"]);
});
