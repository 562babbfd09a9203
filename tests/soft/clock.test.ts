/** Guest time: TSC, kvmclock and the wall clock (SDM vol. 3B, 17.17; Linux Documentation/virt/kvm/x86/msr.rst). */
import { beforeEach, describe, expect, test } from "bun:test";
import { TSC_KHZ } from "../../src/hypervisor/soft/clock.ts";
import { RAX, RBX, RCX, RDX, RSI, TSC_AUX } from "../../src/hypervisor/soft/layout.ts";
import { code, le32 } from "./code.ts";
import { DATA, Guest } from "./guest.ts";

// Interpreted: compiling the loop that waits for a time would be part of what is measured.
const guest = new Guest(false);

beforeEach(() => guest.reset());

const NS_PER_TICK = 1e6 / TSC_KHZ;

/** RDTSC into RAX; clobbers RDX. */
const RDTSC = code(`
  0f 31       | rdtsc
  48 c1 e2 20 | shl rdx, 32
  48 09 d0    | or rax, rdx
`);
const wrmsr = (msr: number, value: number) => [
  0xb9,
  ...le32(msr),
  0xb8,
  ...le32(value),
  ...code(`
    31 d2 | xor edx, edx
    0f 30 | wrmsr
  `),
];

describe("TSC", () => {
  test("never goes back, and never stands still for long", () => {
    const { result } = guest.run({
      code: code(`
                    | again:
        0f 31       | rdtsc
        48 c1 e2 20 | shl rdx, 32
        48 09 d0    | or rax, rdx
        48 39 d8    | cmp rax, rbx
        72 09       | jb 1f
        48 89 c3    | mov rbx, rax
        ff c9       | dec ecx
        75 eb       | jnz again
        eb 02       | jmp 2f
                    | 1:
        0f 0b       | ud2
                    | 2:
        b0 01       | mov al, 1
      `),
      regs: { [RCX]: 300_000, [RBX]: 0 },
    });
    expect(result).toBe(1);
  });

  /** Spins for 50 ms of guest time; how far apart guest and host time were at the end, as a fraction. */
  function deviation(): number {
    const host: number[] = [];
    const tsc: bigint[] = [];
    const { result } = guest.run({
      code: [
        ...RDTSC,
        ...code(`
          48 8d 98 80 f0 fa 02 | lea rbx, [rax+50000000]
          e6 f2                | out 0xf2, al
                               | again:
          0f 31                | rdtsc
          48 c1 e2 20          | shl rdx, 32
          48 09 d0             | or rax, rdx
          48 39 d8             | cmp rax, rbx
          72 f2                | jb again
          e6 f2                | out 0xf2, al
        `),
      ],
      onOut: () => {
        host.push(performance.now());
        tsc.push(guest.reg(RAX));
      },
    });
    expect(result).toBeDefined();
    const hostNs = (host[1]! - host[0]!) * 1e6;
    const guestNs = Number(tsc[1]! - tsc[0]!) * NS_PER_TICK;
    expect(guestNs).toBeGreaterThanOrEqual(50e6);
    return Math.abs(guestNs - hostNs) / hostNs;
  }

  test.each([
    0n,
    1n,
    (1n << 32n) - 1n,
    1n << 52n,
    (1n << 53n) - 1000n,
    1n << 53n,
    1n << 63n,
    (1n << 64n) - 1_000_000_000n,
  ])("set to %d, RDTSC reads what the timers go by", (value) => {
    const { clock } = guest.vcpu.cpu;
    clock.set(value);
    for (let i = 0; i < 20; i++) {
      const before = BigInt.asUintN(64, clock.now());
      guest.run({ code: [...RDTSC, ...code("48 89 c3 | mov rbx, rax")] });
      const between = guest.reg(RBX);
      const after = BigInt.asUintN(64, clock.now());
      expect(between - before).toBeGreaterThanOrEqual(0n);
      expect(after - between).toBeGreaterThanOrEqual(0n);
    }
    clock.set(0n);
  });

  test("counts host time within 1 %", () => {
    // A thread that is not scheduled between RDTSC and OUT spoils a measurement; a wrong rate spoils them all.
    const measured: number[] = [];
    while (measured.length < 8 && !measured.some((d) => d < 0.01)) measured.push(deviation());
    expect(Math.min(...measured)).toBeLessThan(0.01);
  });

  test("goes on while the vCPU sleeps", () => {
    const before = performance.now();
    guest.run({ code: RDTSC });
    const first = guest.reg(RAX);
    Bun.sleepSync(30);
    guest.run({ code: RDTSC });
    const took = (performance.now() - before) * 1e6;
    const ticks = Number(guest.reg(RAX) - first) * NS_PER_TICK;
    expect(ticks).toBeGreaterThan(29e6);
    expect(ticks).toBeLessThan(took);
  });

  test("can be written, and counts on from there; RDMSR and RDTSCP agree", () => {
    guest.state.set(TSC_AUX, 0);
    const { result } = guest.run({
      code: [
        ...wrmsr(0xc000_0103, 0x5a),
        ...wrmsr(0x10, 1_000_000_000),
        ...RDTSC,
        ...code(`
          48 89 c3       | mov rbx, rax
          b9 10 00 00 00 | mov ecx, 0x10
          0f 32          | rdmsr
          89 c6          | mov esi, eax
          0f 01 f9       | rdtscp
        `),
      ],
    });
    expect(result).toBeDefined();
    const [first, second, third] = [guest.reg(RBX), guest.reg(RSI), guest.reg(RAX)] as const;
    expect(first).toBeGreaterThanOrEqual(1_000_000_000n);
    expect(first).toBeLessThan(5_000_000_000n);
    expect(second).toBeGreaterThanOrEqual(first);
    expect(third).toBeGreaterThanOrEqual(second);
    expect([guest.reg(RCX), guest.reg(RDX)]).toEqual([0x5an, 0n]);
  });
});

describe("kvmclock", () => {
  const SYSTEM_TIME = 0x4b56_4d01;
  const WALL_CLOCK = 0x4b56_4d00;

  /** pvclock_vcpu_time_info at `linear`, and the time it gives for a TSC value, in ns. */
  function timeInfo(linear: number) {
    const word = (n: number) => guest.read64(linear + 8 * n);
    const version = Number(word(0) & 0xffff_ffffn);
    const tscTimestamp = word(1);
    const systemTime = word(2);
    const multiplier = word(3) & 0xffff_ffffn;
    const shift = Number(BigInt.asIntN(8, word(3) >> 32n));
    const flags = Number((word(3) >> 40n) & 0xffn);
    const at = (tsc: bigint): bigint => {
      const delta = tsc - tscTimestamp;
      const shifted = shift >= 0 ? delta << BigInt(shift) : delta >> BigInt(-shift);
      return systemTime + ((shifted * multiplier) >> 32n);
    };
    return { version, flags, at };
  }

  test("CPUID offers it, and says that it is stable", () => {
    guest.run({
      code: code(`
        b8 01 00 00 40 | mov eax, 0x40000001
        0f a2          | cpuid
        89 c3          | mov ebx, eax
      `),
    });
    const features = Number(guest.reg(RBX));
    // CLOCKSOURCE2 and CLOCKSOURCE_STABLE_BIT.
    expect([features & 8, features & (1 << 24)]).toEqual([8, 1 << 24]);
  });

  test("the page turns TSC values into nanoseconds", () => {
    for (const msr of [SYSTEM_TIME, 0x12]) {
      guest.reset();
      guest.run({ code: [...wrmsr(msr, guest.physical(DATA) | 1), ...RDTSC] });
      const info = timeInfo(DATA);
      expect([info.version & 1, info.version > 0, info.flags & 1]).toEqual([0, true, 1]);
      const tsc = guest.reg(RAX);
      const second = BigInt(TSC_KHZ) * 1000n;
      expect(info.at(tsc + second) - info.at(tsc)).toBe(1_000_000_000n);
      expect(info.at(tsc)).toBeGreaterThanOrEqual(0n);
    }
  });

  test("goes as fast as host time: two readings of the guest, within 1 %", () => {
    const read = () => {
      guest.run({ code: [...wrmsr(SYSTEM_TIME, guest.physical(DATA) | 1), ...RDTSC] });
      return timeInfo(DATA).at(guest.reg(RAX));
    };
    read();
    const host = performance.now();
    const first = read();
    Bun.sleepSync(60);
    const second = read();
    const hostNs = (performance.now() - host) * 1e6;
    expect(Number(second - first)).toBeGreaterThan(59e6);
    expect(Number(second - first)).toBeLessThan(hostNs * 1.01);
  });

  test("bit 0 clear turns it off: nothing is written", () => {
    guest.run({ code: wrmsr(SYSTEM_TIME, guest.physical(DATA)) });
    expect([0, 8, 16, 24].map((n) => guest.read64(DATA + n))).toEqual([0n, 0n, 0n, 0n]);
  });

  test("a page outside RAM is refused without harm", () => {
    for (const gpa of [0x7fff_fff0, 0x40_0000 - 16]) {
      const { result } = guest.run({ code: [...wrmsr(SYSTEM_TIME, gpa | 1), ...wrmsr(WALL_CLOCK, gpa)] });
      expect(result).toBeDefined();
    }
  });

  test("wall clock plus system time is the time of day", () => {
    const { result } = guest.run({
      code: [
        ...wrmsr(WALL_CLOCK, guest.physical(DATA + 64)),
        ...wrmsr(SYSTEM_TIME, guest.physical(DATA) | 1),
        ...RDTSC,
      ],
    });
    expect(result).toBeDefined();
    const version = Number(guest.read64(DATA + 64) & 0xffff_ffffn);
    const seconds = guest.read64(DATA + 64) >> 32n;
    const nanoseconds = guest.read64(DATA + 72) & 0xffff_ffffn;
    expect([version & 1, version > 0, nanoseconds < 1_000_000_000n]).toEqual([0, true, true]);
    const now = seconds * 1_000_000_000n + nanoseconds + timeInfo(DATA).at(guest.reg(RAX));
    expect(Math.abs(Number(now / 1_000_000n) - Date.now())).toBeLessThan(2000);
  });
});
