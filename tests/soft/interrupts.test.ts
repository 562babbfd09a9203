/** When interrupts come in: masking, shadows, HLT, busy loops (SDM vol. 3A, 6.8). */
import { beforeEach, describe, expect, test } from "bun:test";
import { SoftIrqLine } from "../../src/hypervisor/soft/index.ts";
import { RAX, RBX, RCX, RDI, RSI } from "../../src/hypervisor/soft/layout.ts";
import {
  ApicGuest,
  apic,
  CLI,
  DEADLINE_MODE,
  HLT,
  LVT_TIMER,
  NOP,
  PERIODIC,
  READY,
  redirect,
  SLEEP_UNTIL_COUNTED,
  STI,
  selfIpi,
  show,
  TIMER_CURRENT,
  TIMER_DIVIDE,
  TIMER_INITIAL,
  where,
} from "./apic-guest.ts";
import { code, le32 } from "./code.ts";
import { DeviceThread } from "./device.ts";
import { CODE, DATA, IF, IOPL3, KERNEL_SS, USER_SS } from "./guest.ts";

let guest: ApicGuest;

beforeEach(() => {
  guest = new ApicGuest();
});

const eoi = () => guest.eoi();
const run: ApicGuest["start"] = (program, options) => guest.start(program, options);

describe("masking", () => {
  test("an interrupt waits for IF and comes after the instruction that follows STI", () => {
    const before = selfIpi(0x40);
    const seen = run([...before, ...NOP, ...STI, ...NOP, ...NOP]);
    expect(seen.vectors).toEqual([0x40]);
    expect(where(seen)).toBe(before.length + 3);
    expect(seen.traps[0]!.rflags & IF).toBe(IF);
    expect(seen.traps[0]!.handlerRflags & IF).toBe(0);
  });

  test("STI; CLI lets nothing in, STI; NOP; CLI does", () => {
    expect(run([...selfIpi(0x40), ...STI, ...CLI, ...NOP]).vectors).toEqual([]);
    const seen = run([...STI, ...NOP, ...CLI]);
    expect(seen.vectors).toEqual([0x40]);
    expect(where(seen)).toBe(2);
  });

  test("a second STI has no shadow of its own", () => {
    const before = selfIpi(0x40);
    // The interrupt is there before the first STI, so it comes in before the NOP.
    expect(where(run([...before, ...STI, ...STI, ...NOP]))).toBe(before.length + 2);
  });

  test("POPF that sets IF lets the interrupt in at once", () => {
    const before = selfIpi(0x40);
    const seen = run([
      ...before,
      ...code(`
        68 02 02 00 00 | push 0x202
        9d             | popfq
        fa             | cli
      `),
    ]);
    expect(where(seen)).toBe(before.length + 6);
  });

  test("IRET that sets IF lets the interrupt in at once", () => {
    const before = selfIpi(0x40);
    const seen = run([
      ...before,
      ...code(`
        48 8d 05 12 00 00 00 | lea rax, [rip+18]
        6a 10                | push 0x10
        54                   | push rsp
        68 02 02 00 00       | push 0x202
        6a 08                | push 8
        50                   | push rax
        48 cf                | iretq
        0f 0b                | ud2
        0f 0b                | ud2
        0f 0b                | ud2
        fa                   | cli
        fa                   | cli
      `),
    ]);
    expect(seen.vectors[0]).toBe(0x40);
    expect(where(seen)).toBe(before.length + 7 + 18);
  });

  test("the user with IOPL 3: STI has its shadow", () => {
    const seen = run([...STI, ...NOP, ...CLI, ...NOP], {
      cpl: 3,
      rflags: IOPL3 | 2,
      tweak: () => guest.vcpu.cpu.apic.raise(0x40),
    });
    expect([seen.vectors, where(seen)]).toEqual([[0x40], 2]);
    expect(seen.traps[0]).toMatchObject({ cpl: 0, ss: USER_SS });
  });

  test("MOV SS and POP SS hold an interrupt off for one instruction", () => {
    // IF is on, and the interrupt is sent by the instruction before: a CR8 write that unmasks it.
    const loads = {
      mov: code("8e d0 | mov ss, eax"),
      lss: code("0f b2 27 | lss esp, [rdi]"),
    };
    const start = [...selfIpi(0x40), ...code("b8 10 00 00 00 | mov eax, 0x10")];
    const unmask = code("44 0f 22 c1 | mov cr8, rcx");
    const seen = run([...unmask, ...loads.mov, ...NOP, ...NOP], {
      rflags: 2,
      regs: { [RAX]: KERNEL_SS, [RCX]: 0 },
      tweak: () => {},
    });
    expect(seen.vectors).toEqual([]);
    // STI directly before MOV SS: its shadow covers MOV SS, whose shadow covers the NOP.
    const shadowed = run([...start, ...STI, ...loads.mov, ...NOP, ...NOP]);
    expect([shadowed.vectors, where(shadowed)]).toEqual([[0x40], start.length + 1 + 2 + 1]);
    const data = run([...start, ...STI, ...code("8e d8 | mov ds, eax"), ...NOP, ...NOP]);
    expect(where(data)).toBe(start.length + 1 + 2);
  });

  test("an interrupt that arrives during a repeated instruction comes in between two elements", () => {
    const line = new SoftIrqLine(guest.memory, 5);
    // INSB of the device raises the line when its third byte is taken.
    let taken = 0;
    guest.pioRead = () => {
      if (++taken === 3) line.trigger();
      return 0x55;
    };
    const before = [...redirect(5, 0x45), ...code("ba f4 00 00 00 | mov edx, 0xf4"), ...STI];
    const seen = run([...before, ...code("f3 6c | rep insb"), ...CLI], { regs: { [RDI]: DATA, [RCX]: 10 } });
    expect(where(seen)).toBe(before.length);
    expect(taken).toBe(10);
    expect(guest.read64(DATA + 2)).toBe(0x5555_5555_5555_5555n);
  });
});

describe("HLT", () => {
  test("wakes for a one-shot timer, and goes on behind itself", () => {
    const before = [...apic(LVT_TIMER, 0x50), ...apic(TIMER_DIVIDE, 0xb), ...apic(TIMER_INITIAL, 5_000_000)];
    const start = performance.now();
    const seen = run([...before, ...STI, ...HLT, ...show(TIMER_CURRENT)]);
    expect(performance.now() - start).toBeGreaterThan(4.9);
    expect([seen.vectors, where(seen), seen.outs]).toEqual([[0x50], before.length + 2, [0]]);
  });

  test("wakes for a periodic timer again and again, at its rate", () => {
    const program = [
      ...apic(LVT_TIMER, 0x50 | PERIODIC),
      ...apic(TIMER_DIVIDE, 0), // by 2
      ...apic(TIMER_INITIAL, 1_000_000),
      ...STI,
      ...code(`
        b9 0a 00 00 00 | mov ecx, 10
                       | again:
        f4             | hlt
        ff c9          | dec ecx
        75 fb          | jnz again
      `),
      ...apic(TIMER_INITIAL, 0),
    ];
    const start = performance.now();
    const seen = run(program);
    const took = performance.now() - start;
    // One more may come before the timer is stopped, if this thread was not scheduled.
    expect(seen.vectors.length).toBeGreaterThanOrEqual(10);
    expect(seen.vectors.every((vector) => vector === 0x50)).toBe(true);
    // Ten ticks of 2 ms; the first may be late, later ones do not add that up.
    expect(took).toBeGreaterThan(19.5);
  });

  test("wakes for a TSC deadline, in the future or gone by", () => {
    const program = (delta: number) => [
      ...apic(LVT_TIMER, 0x51 | DEADLINE_MODE),
      ...code(`
        0f 31       | rdtsc
        48 c1 e2 20 | shl rdx, 32
        48 09 d0    | or rax, rdx
      `),
      ...[0x48, 0x05, ...le32(delta)], // add rax, delta
      ...code(`
        48 89 c2       | mov rdx, rax
        48 c1 ea 20    | shr rdx, 32
        b9 e0 06 00 00 | mov ecx, 0x6e0
        0f 30          | wrmsr
        fb             | sti
        f4             | hlt
      `),
      ...code(`
        0f 32 | rdmsr
        e7 f2 | out 0xf2, eax
      `),
    ];
    for (const delta of [3_000_000, 0, -1000]) {
      const start = performance.now();
      const seen = run(program(delta));
      // The deadline reads as 0 once it has been reached.
      expect([seen.vectors, seen.outs]).toEqual([[0x51], [0]]);
      if (delta > 0) expect(performance.now() - start).toBeGreaterThan(2.9);
    }
  });

  test("wakes for a line that another thread raises", async () => {
    const device = await DeviceThread.start(guest.memory);
    try {
      const seen = run([...redirect(7, 0x47), ...READY, ...STI, ...HLT, ...CLI], {
        onOut: () => device.send({ kind: "irq", gsi: 7, delayMs: 20 }),
      });
      expect(seen.vectors).toEqual([0x47]);
    } finally {
      device.stop();
    }
  });

  test("is not slept through when the line is raised in the instruction before it", () => {
    const line = new SoftIrqLine(guest.memory, 7);
    guest.pioRead = () => {
      line.trigger();
      return 0;
    };
    const start = performance.now();
    const seen = run([...redirect(7, 0x47), ...STI, ...code("e4 f3 | in al, 0xf3"), ...HLT, ...CLI], {
      // The handler may have run before the HLT; it makes the HLT return either way.
      onTrap: (t) => {
        eoi();
        if (t.rip - CODE < redirect(7, 0x47).length + 4) guest.vcpu.cpu.apic.raise(0x48);
        return true;
      },
    });
    expect(seen.vectors[0]).toBe(0x47);
    expect(performance.now() - start).toBeLessThan(900);
  });
});

test("a busy loop is interrupted by timers and by lines from another thread", async () => {
  const spin = code(`
             | again:
    48 39 1f | cmp [rdi], rbx
    75 fb    | jne again
  `);
  const wait = (program: number[], onOut = () => {}) =>
    run([...program, ...READY, ...STI, ...spin, ...CLI], {
      regs: { [RDI]: DATA, [RBX]: 1 },
      onOut,
      onTrap: () => {
        guest.write64(DATA, 1n);
        eoi();
        return true;
      },
    }).vectors;
  expect(
    wait([...apic(LVT_TIMER, 0x50), ...apic(TIMER_DIVIDE, 0xb), ...apic(TIMER_INITIAL, 5_000_000)]),
  ).toEqual([0x50]);
  guest.write64(DATA, 0n);
  const device = await DeviceThread.start(guest.memory);
  try {
    const raise = () => device.send({ kind: "irq", gsi: 9, delayMs: 20 });
    expect(wait(redirect(9, 0x49), raise)).toEqual([0x49]);
  } finally {
    device.stop();
  }
});

test("200 edges from another thread, each raised when the one before has been served: none is lost", async () => {
  const device = await DeviceThread.start(guest.memory);
  try {
    const times = 200;
    const seen = run([...redirect(6, 0x46), ...READY, ...STI, ...SLEEP_UNTIL_COUNTED], {
      regs: { [RDI]: DATA, [RBX]: times },
      onOut: () => device.send({ kind: "rally", gsi: 6, gpa: guest.physical(DATA), times }),
      onTrap: () => {
        guest.write64(DATA, guest.read64(DATA) + 1n);
        eoi();
        return true;
      },
    });
    expect(seen.vectors.length).toBe(times);
  } finally {
    device.stop();
  }
});

test("an interrupt of the user returns to the user with everything as it was", () => {
  // A long loop of the user under a fast timer: the sum must come out right.
  run([...apic(LVT_TIMER, 0x50 | PERIODIC), ...apic(TIMER_DIVIDE, 0xb), ...apic(TIMER_INITIAL, 100_000)]);
  const seen = run(
    code(`
               | again:
      48 01 c8 | add rax, rcx
      11 f6    | adc esi, esi
      31 f6    | xor esi, esi
      48 ff c9 | dec rcx
      75 f4    | jnz again
    `),
    { cpl: 3, rflags: IF | 2, regs: { [RCX]: 2_000_000 } },
  );
  expect(guest.reg(RAX) >> 8n).toBe(((2_000_000n * 2_000_001n) / 2n) >> 8n);
  expect(guest.reg(RSI)).toBe(0n);
  expect(seen.vectors.length).toBeGreaterThan(10);
  expect(seen.traps.every((t) => t.vector === 0x50 && t.ss === USER_SS && (t.rflags & IF) !== 0)).toBe(true);
});
