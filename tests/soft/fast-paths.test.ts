/**
 * System instructions whose ordinary cases run without TypeScript (table/privilege.ts, segments.ts, time.ts), interpreted
 * and compiled: on random states they do exactly what the helpers for all cases do.
 */
import { beforeEach, describe, expect, test } from "bun:test";
import { updateMode } from "../../src/hypervisor/soft/cpu.ts";
import { HELPER } from "../../src/hypervisor/soft/helpers.ts";
import {
  ATTENTION,
  BUDGET,
  CPL,
  CS,
  DS,
  EFER,
  ES,
  EXIT,
  FS,
  GS,
  IRQ_WAITING,
  KERNEL_GS_BASE,
  LSTAR,
  R11,
  RAX,
  RBX,
  RCX,
  RDX,
  REG,
  RETURN_BARRIER,
  RETURN_DEPTH,
  RETURN_LIMIT,
  RETURN_STACK,
  RSP,
  SEG_SELECTOR,
  SFMASK,
  SS,
  STAR,
} from "../../src/hypervisor/soft/layout.ts";
import { Random } from "../oracle/random.ts";
import { BothWays, differences } from "./both-ways.ts";
import { code } from "./code.ts";
import {
  CODE,
  CODE64,
  DATA,
  DATA32,
  DPL3,
  FREE_SELECTOR,
  GDT,
  KERNEL_CS,
  KERNEL_SS,
  KERNEL_STACK,
  NT,
  RF,
  STACK,
  TF,
  USER_CS,
  USER_CS32,
  USER_SS,
} from "./guest.ts";

const FRAME = KERNEL_STACK - 0x100;
describe.each([
  { name: "interpreted", compiled: false },
  { name: "compiled", compiled: true },
])("$name", ({ compiled }) => {
  const ways = new BothWays(compiled);
  const { guest } = ways;
  const { state, vcpu } = guest;
  const { cpu } = vcpu;
  const random = new Random(0x5157);
  const segment = (n: number, selector: number, attr: number) => ways.segment(n, selector, attr);
  // Compiling takes much longer than running once.
  const CASES = compiled ? 500 : 3000;
  const of = <T>(...choices: T[]): T => choices[random.below(choices.length)]!;
  const word64 = (): bigint => (BigInt(random.below(2 ** 32)) << 32n) | BigInt(random.below(2 ** 32));
  const address = (): bigint =>
    of(BigInt(CODE + random.below(4096)), BigInt.asIntN(48, word64()), word64(), 0x8000_0000_0000n);
  const flags = (): number =>
    (random.below(2 ** 32) & (random.oneIn(4) ? -1 : ~(TF | NT | RF | 0x2_0000)) & 0x3f_7fd5) | 2;

  beforeEach(() => guest.reset());

  /** Runs `CASES` random states; how many of them did not need the run loop, and ended at privilege 3 without it. */
  function compare(
    bytes: number[],
    cpl: () => 0 | 3,
    randomise: () => void,
    reference: (record: number) => number,
  ): { direct: number; faults: number; user: number } {
    let direct = 0;
    let faults = 0;
    let user = 0;
    for (let i = 0; i < CASES; i++) {
      if (i % 500 === 0) guest.reset();
      ways.prepare(bytes, cpl());
      randomise();
      updateMode(cpu);
      const { fast, slow } = ways.both(reference);
      expect(differences(fast, slow)).toEqual([]);
      if (fast.vector >= 0) faults++;
      else if (!fast.left) {
        direct++;
        if (state.cpl === 3) user++;
      }
    }
    return { direct, faults, user };
  }

  const setFlags = (value: number) => {
    state.rflags = value;
  };
  const waiting = () => state.set(IRQ_WAITING, random.oneIn(4) ? 1 : 0);

  /** A GDT entry that is nearly a flat user segment: at most one bit differs. */
  function nearlyFlat(selector: number, attr: number): void {
    guest.setDescriptor(selector & ~7, 0n, 0xf_ffff, attr | DPL3);
    if (!random.oneIn(3)) return;
    const at = GDT + (selector & ~7);
    guest.write64(at, guest.read64(at) ^ (1n << BigInt(random.below(64))));
  }

  test("IRETQ", () => {
    const code1 = FREE_SELECTOR | 3;
    const data1 = (FREE_SELECTOR + 8) | 3;
    const { direct, faults, user } = compare(
      code("48 cf | iretq"),
      () => (random.oneIn(16) ? 3 : 0),
      () => {
        nearlyFlat(code1, CODE64);
        nearlyFlat(data1, of(DATA32, 0x8093, 0xe092));
        setFlags(flags() & (random.oneIn(8) ? -1 : ~NT));
        waiting();
        if (state.cpl === 0) {
          for (const s of [ES, DS, FS, GS])
            segment(
              s,
              of(0, 0, USER_SS),
              random.oneIn(8) ? of(DATA32, CODE64, 0xfb, 0x97) : of(0, DATA32 | DPL3),
            );
          if (random.oneIn(2)) segment(SS, 0, 0);
        }
        const toUser = random.oneIn(2);
        const cs = toUser ? of(code1, code1, USER_CS) : of(KERNEL_CS, KERNEL_CS, KERNEL_CS, code1);
        const ss = toUser ? of(data1, data1, USER_SS) : state.get(SEG_SELECTOR + 4 * SS);
        const strange = of(0, 3, 4, 7, USER_CS32, USER_CS | 4, 0x30, 0xfff8, 0x7b, random.below(0x1_0000));
        const frame = [
          address(),
          BigInt(random.oneIn(8) ? strange : cs) | (random.oneIn(4) ? word64() & ~0xffffn : 0n),
          BigInt(flags()) | (random.oneIn(4) ? word64() & ~0xffff_ffffn : 0n),
          word64(),
          BigInt(random.oneIn(8) ? of(strange, KERNEL_SS) : ss),
        ];
        frame.forEach((word, i) => {
          guest.write64(FRAME + 8 * i, word);
          // Nothing is mapped behind the user's stack: the frame is not all there.
          if (i < 4) guest.write64(STACK - 32 + 8 * i, word);
        });
        const stack = random.oneIn(12) ? of(BigInt(STACK - 8 * random.below(6)), word64()) : BigInt(FRAME);
        state.set64(RSP, stack);
      },
      ways.helper(HELPER.iret, 8),
    );
    expect(direct).toBeGreaterThan(CASES / 8);
    expect(user).toBeGreaterThan(CASES / 40);
    expect(faults).toBeGreaterThan(CASES / 16);
  });

  test("SYSCALL", () => {
    const { direct } = compare(
      code("0f 05 | syscall"),
      () => (random.oneIn(8) ? 0 : 3),
      () => {
        setFlags(flags());
        waiting();
        for (const at of [STAR, SFMASK, RCX, R11]) state.set64(at, word64());
        state.set64(LSTAR, BigInt.asUintN(64, BigInt.asIntN(48, word64())));
        if (random.oneIn(8)) state.set(EFER, state.get(EFER) & ~1);
      },
      ways.helper(HELPER.syscall, 4),
    );
    expect(direct).toBeGreaterThan(CASES / 2);
  });

  test("SYSRETQ", () => {
    const { direct, faults } = compare(
      code("48 0f 07 | sysretq"),
      () => (random.oneIn(8) ? 3 : 0),
      () => {
        setFlags(flags() & ~TF);
        waiting();
        state.set64(STAR, word64());
        state.set64(RCX, address());
        state.set64(R11, random.oneIn(4) ? word64() : word64() & ~BigInt(TF));
        if (random.oneIn(8)) state.set(EFER, state.get(EFER) & ~1);
      },
      ways.helper(HELPER.sysret, 8),
    );
    expect(direct).toBeGreaterThan(CASES / 4);
    expect(faults).toBeGreaterThan(CASES / 8);
  });

  test("SWAPGS", () => {
    compare(
      code("0f 01 f8 | swapgs"),
      () => of(0, 3),
      () => {
        for (const at of [KERNEL_GS_BASE, REG.segBase + 8 * GS]) state.set64(at, word64());
      },
      () => {
        if (state.cpl !== 0) {
          state.fault(13, 0);
          return EXIT.fault;
        }
        const gs = state.get64(REG.segBase + 8 * GS);
        state.set64(REG.segBase + 8 * GS, state.get64(KERNEL_GS_BASE));
        state.set64(KERNEL_GS_BASE, gs);
        return 0;
      },
    );
  });

  test("WRMSR", () => {
    const { direct, faults } = compare(
      code("0f 30 | wrmsr"),
      () => (random.oneIn(8) ? 3 : 0),
      () => {
        const base = [0xc000_0100, 0xc000_0101, 0xc000_0102];
        state.set64(RCX, BigInt(of(...base, ...base, 0xc000_00ff, 0xc000_0103, 0xc000_0081, 0x174, 0xdead)));
        const value = of(
          word64(),
          BigInt.asIntN(48, word64()),
          BigInt(random.below(2 ** 32)),
          0x8000_0000_0000n,
        );
        state.set64(RAX, (word64() & ~0xffff_ffffn) | (value & 0xffff_ffffn));
        state.set64(RDX, (word64() & ~0xffff_ffffn) | (BigInt.asUintN(64, value) >> 32n));
      },
      ways.helper(HELPER.wrmsr, 4),
    );
    expect(direct).toBeGreaterThan(CASES / 4);
    expect(faults).toBeGreaterThan(CASES / 8);
  });

  test.each([ES, CS, SS, DS, FS, GS, 6, 7])("MOV to segment register %d", (number) => {
    for (let i = 0; i < CASES / 20; i++) {
      const cpl = of(0, 3) as 0 | 3;
      ways.prepare([0x8e, 0xc0 | (number << 3)], cpl);
      for (const s of [ES, DS, FS, GS]) {
        state.set64(REG.segBase + 8 * s, word64());
        segment(s, random.below(0x1_0000), random.below(0x1_0000));
      }
      const selector = of(0, 1, 2, 3, KERNEL_SS, USER_SS, KERNEL_CS, USER_CS, FREE_SELECTOR, 0xfff8);
      state.set64(RAX, (word64() & ~0xffffn) | BigInt(selector));
      const { fast, slow } = ways.both(ways.helper(HELPER.movToSeg, 2));
      expect(differences(fast, slow)).toEqual([]);
    }
  });

  test("MOV from a segment register: zero-extended to the operand's size, #UD for those that do not exist", () => {
    for (const number of [ES, CS, SS, DS, FS, GS, 6, 7]) {
      for (const [prefix, size] of [
        [[0x66], 2],
        [[], 4],
        [[0x48], 8],
        [[0x4c], 8],
      ] as const) {
        // REX.R (0x4c) does not count.
        ways.prepare([...prefix, 0x8c, 0xc3 | (number << 3)], 3);
        for (const s of [ES, DS, FS, GS]) segment(s, random.below(0x1_0000), 0);
        const old = word64();
        state.set64(RBX, old);
        const { fast, slow } = ways.both(() => {
          if (number > GS) {
            state.fault(6);
            return EXIT.fault;
          }
          const selector = BigInt(state.get(SEG_SELECTOR + 4 * number));
          state.set64(RBX, size === 2 ? (old & ~0xffffn) | selector : selector);
          return 0;
        });
        expect(differences(fast, slow)).toEqual([]);
      }
    }
    // To memory: two bytes, whatever the operand size.
    guest.write64(DATA, 0x1122_3344_5566_7788n);
    guest.run({ code: code("48 8c 0c 25 00 00 50 00 | mov [0x500000], cs") });
    expect(guest.read64(DATA)).toBe(0x1122_3344_5566_0000n | BigInt(KERNEL_CS));
  });

  describe("calls of compiled code that wait across a change of privilege", () => {
    const change = (toUser: boolean, entries: bigint[]) => {
      ways.prepare(toUser ? code("48 0f 07 | sysretq") : code("0f 05 | syscall"), toUser ? 0 : 3);
      setFlags(2);
      state.set64(STAR, 0x1b_0008n << 32n);
      state.set64(RCX, BigInt(CODE));
      state.set64(R11, 2n);
      state.set64(LSTAR, BigInt(CODE));
      state.set64(SFMASK, 0n);
      updateMode(cpu);
      const { block } = ways.decode();
      state.set(RETURN_DEPTH, entries.length);
      entries.forEach((entry, i) => {
        state.set64(RETURN_STACK + 8 * i, entry);
      });
      state.set64(REG.vbase, BigInt(CODE & ~0xfff));
      state.set(BUDGET, 0);
      expect(vcpu.interpreter.enter(block)).toBe(EXIT.attention);
      expect(state.get(CPL)).toBe(toUser ? 3 : 0);
      const depth = state.get(RETURN_DEPTH);
      return Array.from({ length: depth }, (_, i) => state.get64(RETURN_STACK + 8 * i));
    };

    test.each([true, false])("SYSRET %p: a barrier goes on, and the change back takes it off", (toUser) => {
      expect(change(toUser, [])).toEqual([]);
      expect(change(toUser, [5n, 6n])).toEqual([5n, 6n, RETURN_BARRIER]);
      expect(change(!toUser, [5n, 6n, RETURN_BARRIER])).toEqual([5n, 6n]);
      expect(change(toUser, [5n, RETURN_BARRIER, 6n])).toEqual([5n, RETURN_BARRIER, 6n, RETURN_BARRIER]);
    });

    test("a full return stack is emptied by the run loop", () => {
      const full = Array.from({ length: RETURN_LIMIT }, (_, i) => BigInt(i));
      expect(change(true, full)).toEqual(full);
      expect(Atomics.load(state.i32, ATTENTION >> 2)).toBe(-1);
    });
  });
});
