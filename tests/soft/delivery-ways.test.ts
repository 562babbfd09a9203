/** Interrupts and exceptions: what the ordinary case does (delivery.ts) is what the one for all cases does (exceptions.ts). */
import { expect, test } from "bun:test";
import { WRITE } from "../../src/hypervisor/soft/context.ts";
import { updateMode } from "../../src/hypervisor/soft/cpu.ts";
import { deliverOnce, deliverThroughGate, type Interrupt } from "../../src/hypervisor/soft/exceptions.ts";
import {
  ATTENTION,
  CR0,
  CR2,
  DR,
  FAULT_CR2,
  FAULT_ERROR,
  FAULT_VECTOR,
  GUEST_BASE,
  RSP,
  SCRATCH,
  TLB_LOG_COUNT,
  XMM,
} from "../../src/hypervisor/soft/layout.ts";
import { Random } from "../oracle/random.ts";
import { CODE, CODE64, FREE_SELECTOR, GDT, Guest, IST, KERNEL_CS, KERNEL_STACK, RSP0, TSS } from "./guest.ts";

const CASES = 3000;
const PAGE_FAULT = 14;
/** Linear and physical addresses of everything that a delivery may write: descriptor tables, TSS and stacks. */
const FROM = GDT;
const TO = IST + 0x9000;

test("random states, gates and stacks", () => {
  const guest = new Guest(false);
  const { state, vcpu } = guest;
  const { cpu } = vcpu;
  const { mmu } = cpu;
  const random = new Random(0xde11);
  const of = <T>(...choices: T[]): T => choices[random.below(choices.length)]!;
  const word64 = (): bigint => (BigInt(random.below(2 ** 32)) << 32n) | BigInt(random.below(2 ** 32));
  const nearly = (value: bigint): bigint =>
    random.oneIn(12) ? value ^ (1n << BigInt(random.below(64))) : value;

  // The case for all reads its tables by this.
  let reads = 0;
  const readLinear = mmu.readLinear.bind(mmu);
  mmu.readLinear = (...args) => {
    reads++;
    return readLinear(...args);
  };

  const snapshot = () => {
    const bytes = state.bytes.slice(0, DR);
    for (const [from, to] of [
      [FAULT_VECTOR, FAULT_CR2 + 8],
      [TLB_LOG_COUNT, XMM],
      [SCRATCH, CR0],
    ] as const) {
      bytes.fill(0, from, to);
    }
    return { cpu: bytes, memory: state.bytes.slice(GUEST_BASE + FROM, GUEST_BASE + TO) };
  };
  const firstDifference = (a: Uint8Array, b: Uint8Array): string => {
    const at = a.findIndex((byte, n) => byte !== b[n]);
    return at < 0 ? "" : `+ ${at}: ${a[at]} / ${b[at]}`;
  };

  let simple = 0;
  let fromUser = 0;
  for (let n = 0; n < CASES; n++) {
    if (n % 500 === 0) guest.reset();
    const cpl = of(0, 3) as 0 | 3;
    guest.run({ code: [], cpl });
    const vector = of(0, 1, 3, 4, 6, 8, 10, 11, 12, 13, 14, 17, 18, 32, 0x80, 255);
    const software = random.oneIn(4);
    const external = !software && random.oneIn(3);
    const i: Interrupt = {
      vector,
      error: external || software ? -1 : of(-1, random.below(0x1_0000)),
      software,
      external,
      anyGate: software && random.oneIn(4),
    };
    guest.setDescriptor(FREE_SELECTOR, 0n, 0xf_ffff, CODE64);
    guest.write64(GDT + FREE_SELECTOR, nearly(guest.read64(GDT + FREE_SELECTOR)));
    const target = random.oneIn(8) ? word64() : BigInt.asUintN(64, BigInt.asIntN(48, word64()));
    guest.setGate(vector, target, {
      type: of(0xe, 0xe, 0xf, random.oneIn(8) ? random.below(16) : 0xe),
      dpl: of(0, 3),
      ist: random.oneIn(4) ? random.below(8) : 0,
      present: !random.oneIn(16),
      selector: random.oneIn(16)
        ? of(0, 3, KERNEL_CS | 4, 0xfff8, 0x10, 0x2b)
        : of(KERNEL_CS, FREE_SELECTOR, FREE_SELECTOR | 3),
    });
    guest.write64(TSS + 4, random.oneIn(16) ? word64() : BigInt(RSP0 - random.below(0x200)));
    const rsp = random.oneIn(16)
      ? of(word64(), BigInt(KERNEL_STACK - 0x1000 + random.below(64)))
      : BigInt(KERNEL_STACK - random.below(0x200));
    state.set64(RSP, rsp);
    state.rip = of(BigInt(CODE), word64());
    state.rflags = (random.below(2 ** 32) & 0x3f_7fd5 & ~0x2_0000) | 2;
    state.set64(FAULT_CR2, word64());
    state.set64(CR2, word64());
    updateMode(cpu);
    Atomics.store(state.i32, ATTENTION >> 2, 0);
    // A kernel has written to its stacks before. Now and then one is not in the TLB.
    for (const stack of [
      KERNEL_STACK,
      RSP0,
      ...Array.from({ length: 7 }, (_, k) => IST + (k + 1) * 0x1000),
    ]) {
      if (!random.oneIn(32)) mmu.access(stack - 16, 0, 8, WRITE, false, false);
    }

    const before = state.bytes.slice(0, DR);
    const memory = state.bytes.slice(GUEST_BASE + FROM, GUEST_BASE + TO);
    const outcome = (deliver: () => boolean) => {
      const done = deliver();
      const fault = done ? undefined : [state.get(FAULT_VECTOR), state.get(FAULT_ERROR)];
      return { done, fault, ...snapshot() };
    };
    const all = outcome(() => {
      // CR2 is the business of both.
      if (vector === PAGE_FAULT && !software && !external) state.set64(CR2, state.get64(FAULT_CR2));
      const done = deliverThroughGate(cpu, i);
      if (!done && state.get(FAULT_VECTOR) === PAGE_FAULT) state.set64(CR2, state.get64(FAULT_CR2));
      return done;
    });
    state.bytes.set(before, 0);
    state.bytes.set(memory, GUEST_BASE + FROM);
    reads = 0;
    const ordinary = outcome(() => deliverOnce(cpu, i));
    if (ordinary.done && reads === 0) {
      simple++;
      if (cpl === 3) fromUser++;
    }
    expect([ordinary.done, ordinary.fault]).toEqual([all.done, all.fault]);
    expect(firstDifference(ordinary.cpu, all.cpu)).toBe("");
    expect(firstDifference(ordinary.memory, all.memory)).toBe("");
  }
  expect(simple).toBeGreaterThan(CASES / 4);
  expect(fromUser).toBeGreaterThan(CASES / 16);
}, 30_000);
