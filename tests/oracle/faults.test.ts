import { afterAll, describe, expect, test } from "bun:test";
import { CaseBatch } from "./batch.ts";
import {
  CODE_PAGE,
  DATA_CROSS,
  DATA_END,
  DATA_FIRST,
  DATA_READ_ONLY,
  END_EXCEPTION,
  END_FELL_THROUGH,
  PAGE_SIZE,
  RAX,
  RBX,
  RCX,
  RDI,
  RDX,
  RFLAGS_AC,
  RFLAGS_TF,
  RSP,
} from "./layout.ts";
import { CODE, expectTrap, type RunOne, runOne } from "./run-one.ts";
import { NativeRunner, nativeUnsupported } from "./runner.ts";

const reason = nativeUnsupported();
if (reason) console.log(`skip: ${reason}`);

describe.skipIf(reason !== undefined)("exceptions of native cases", () => {
  const runner = reason === undefined ? new NativeRunner() : undefined;
  afterAll(() => runner?.close());
  const one: RunOne = (code, prepare, withFpu) => runOne(runner!, code, prepare, withFpu);

  test("#DE, #UD, #BP, #GP and the state at the fault", () => {
    expectTrap(
      one([0xf7, 0xf1], (c) => c.setGpr(0, RDX, 7)),
      0,
      0,
      CODE,
    );
    const ud = one([0x48, 0xff, 0xc0, 0x0f, 0x0b], (c) => c.setGpr(0, RAX, 41));
    expectTrap(ud, 6, 0, CODE + 3n);
    expect(ud.gpr(0, RAX)).toBe(42n);
    expectTrap(one([0xcc]), 3, 0, CODE + 1n);
    expectTrap(one([0xf4]), 13, 0, CODE);
    // A non-canonical data address is #GP(0), through the stack it is #SS(0).
    expectTrap(
      one([0x8b, 0x03], (c) => c.setGpr64(0, RBX, 1n << 60n)),
      13,
      0,
      CODE,
    );
    expectTrap(
      one([0x50], (c) => c.setGpr64(0, RSP, 1n << 60n)),
      12,
      0,
      CODE,
    );
    expectTrap(one([0xcd, 0x20]), 13, 0x20 * 8 + 2, CODE);
  });

  test("#DB from the trap flag and from ICEBP", () => {
    const step = one([0xff, 0xc0, 0xff, 0xc0], (c) => c.setRflags(0, RFLAGS_TF));
    expectTrap(step, 1, 0, CODE + 2n);
    expect(step.gpr(0, RAX)).toBe(1n);
    // Some hypervisors report the address of ICEBP itself instead of the next, so RIP is left out.
    const icebp = one([0xf1]);
    expect([icebp.end(0), icebp.trap(0)]).toEqual([END_EXCEPTION, 1]);
    // push 0x102; popfq: the trap comes after the jump into the runner, and is a normal end.
    const last = one([0x68, 0x02, 0x01, 0, 0, 0x9d]);
    expect(last.end(0)).toBe(END_FELL_THROUGH);
    expect(last.rip(0)).toBe(CODE + 6n);
    expect(last.rflags(0) & RFLAGS_TF).toBe(RFLAGS_TF);
    expect(last.gpr(0, RSP)).toBe(BigInt(DATA_CROSS));
  });

  test("#PF: read, write, fetch, protection, with CR2", () => {
    const read = one([0x8b, 0x03], (c) => c.setGpr(0, RBX, DATA_END - 2));
    expectTrap(read, 14, 4, CODE);
    expect(read.cr2(0)).toBe(BigInt(DATA_END));
    const write = one([0x89, 0x03], (c) => c.setGpr(0, RBX, DATA_FIRST - 8));
    expectTrap(write, 14, 6, CODE);
    expect(write.cr2(0)).toBe(BigInt(DATA_FIRST - 8));
    expectTrap(
      one([0x89, 0x03], (c) => c.setGpr(0, RBX, DATA_READ_ONLY + 8)),
      14,
      7,
      CODE,
    );
    const partly = one([0x48, 0x89, 0x03], (c) => {
      c.setGpr(0, RBX, DATA_READ_ONLY - 4);
      c.setGpr64(0, RAX, -1n);
    });
    expectTrap(partly, 14, 7, CODE);
    expect(partly.cr2(0)).toBe(BigInt(DATA_READ_ONLY));
    expect(partly.window(0).every((b) => b === 0)).toBe(true);
    // Data pages are not executable, and nothing is mapped behind the code page.
    expectTrap(
      one([0xff, 0xe0], (c) => c.setGpr(0, RAX, DATA_CROSS)),
      14,
      0x15,
      BigInt(DATA_CROSS),
    );
    const cases = new CaseBatch(1);
    cases.setCode(0, [0x48, 0xb8, 1, 2], { offset: PAGE_SIZE - 4 });
    const fetch = runner!.run(cases);
    expectTrap(fetch, 14, 0x14, BigInt(CODE_PAGE + PAGE_SIZE - 4));
    expect(fetch.cr2(0)).toBe(BigInt(CODE_PAGE + PAGE_SIZE));
  });

  test("#AC, #MF and #XM", () => {
    expectTrap(
      one([0x8b, 0x03], (c) => {
        c.setGpr(0, RBX, DATA_CROSS + 1);
        c.setRflags(0, RFLAGS_AC);
      }),
      17,
      0,
      CODE,
    );
    // fldz; fld1; fdivrp (1/0); fwait, division by zero unmasked.
    const mf = one([0xd9, 0xee, 0xd9, 0xe8, 0xde, 0xf1, 0x9b], (c) => c.setFcw(0, 0x37b), true);
    expectTrap(mf, 16, 0, CODE + 6n);
    expect(mf.fsw(0) & 0x84).toBe(0x84);
    const xm = one(
      [0xf3, 0x0f, 0x5e, 0xc1],
      (c) => {
        c.setMxcsr(0, 0x1f80 & ~0x200);
        c.setXmm(0, 0, [0x3f80_0000, 2, 3, 4]);
      },
      true,
    );
    expectTrap(xm, 19, 0, CODE);
    expect(xm.mxcsr(0) & 0x3f).toBe(4);
    expect([0, 1, 2, 3].map((lane) => xm.xmm(0, 0, lane))).toEqual([0x3f80_0000, 2, 3, 4]);
  });

  test("a repeated string instruction stops at the fault with its progress", () => {
    const r = one([0xf3, 0xaa], (c) => {
      c.setGpr(0, RAX, 0x99);
      c.setGpr(0, RDI, DATA_END - 5);
      c.setGpr(0, RCX, 100);
    });
    expectTrap(r, 14, 6, CODE);
    expect([r.gpr(0, RCX), r.gpr(0, RDI)]).toEqual([95n, BigInt(DATA_END)]);
    expect(Array.from(r.window(0).subarray(122, 129))).toEqual([0, 0x99, 0x99, 0x99, 0x99, 0x99, 0]);
  });
});
