import { afterAll, describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { Assembler, at, ref } from "./asm.ts";
import { CaseBatch, type ResultBatch } from "./batch.ts";
import {
  CODE_OFFSET,
  CODE_PAGE,
  DATA_CROSS,
  DATA_END,
  DATA_FIRST,
  DATA_READ_ONLY,
  DATA_THIRD,
  END_EXCEPTION,
  END_FELL_THROUGH,
  END_HANG,
  END_SYSTEM_CALL,
  FX_ST,
  PAGE_SIZE,
  R15,
  RAX,
  RBX,
  RCX,
  RDI,
  RECORD_WINDOW,
  RFLAGS_AF,
  RFLAGS_CF,
  RFLAGS_DF,
  RFLAGS_OF,
  RFLAGS_PF,
  RFLAGS_SF,
  RFLAGS_STATUS,
  RFLAGS_ZF,
  RSI,
  RSP,
  RUNNER_TEXT,
} from "./layout.ts";
import { CODE, expectTrap, type RunOne, runOne } from "./run-one.ts";
import { NativeRunner, NativeRunnerError, nativeUnsupported } from "./runner.ts";

const reason = nativeUnsupported();
if (reason) console.log(`skip: ${reason}`);

describe.skipIf(reason !== undefined)("NativeRunner", () => {
  const runner = reason === undefined ? new NativeRunner() : undefined;
  afterAll(() => runner?.close());

  const run = (cases: CaseBatch): ResultBatch => runner!.run(cases);
  const one: RunOne = (code, prepare, withFpu) => runOne(runner!, code, prepare, withFpu);

  test("add sets result and status flags, leaves other registers", () => {
    const r = one([0x48, 0x01, 0xd8], (c) => {
      for (let reg = 0; reg < 16; reg++) c.setGpr64(0, reg, 0x1111_2222_3333_4440n + BigInt(reg));
      c.setGpr64(0, RAX, 0x7fff_ffff_ffff_ffffn);
      c.setGpr64(0, RBX, 1n);
      c.setRflags(0, RFLAGS_CF | RFLAGS_ZF | RFLAGS_DF);
    });
    expect(r.end(0)).toBe(END_FELL_THROUGH);
    expect(r.rip(0)).toBe(CODE + 3n);
    expect(r.gpr(0, RAX)).toBe(0x8000_0000_0000_0000n);
    expect(r.rflags(0) & RFLAGS_STATUS).toBe(RFLAGS_PF | RFLAGS_AF | RFLAGS_SF | RFLAGS_OF);
    expect(r.rflags(0) & RFLAGS_DF).toBe(RFLAGS_DF);
    for (let reg = 4; reg < 16; reg++) expect(r.gpr(0, reg)).toBe(0x1111_2222_3333_4440n + BigInt(reg));
  });

  test("every GPR is loaded and stored", () => {
    const r = one([0x90], (c) => {
      for (let reg = 0; reg < 16; reg++) c.setGpr64(0, reg, 0xf0f0_0000_0000_0000n + BigInt(reg * 0x1234567));
    });
    for (let reg = 0; reg < 16; reg++) {
      expect(r.gpr(0, reg)).toBe(0xf0f0_0000_0000_0000n + BigInt(reg * 0x1234567));
    }
  });

  test("the window is the data page, seen through every mapping", () => {
    const r = one([0x88, 0x03, 0x88, 0x06, 0x8a, 0x0f], (c) => {
      c.setGpr(0, RAX, 0x5a);
      c.setGpr(0, RBX, DATA_END - 1);
      c.setGpr(0, RSI, DATA_THIRD);
      c.setGpr(0, RDI, DATA_READ_ONLY + 1);
      c.window(0).fill(0x77);
    });
    const expected = new Uint8Array(256).fill(0x77);
    expected[127] = 0x5a;
    expected[128] = 0x5a;
    expect(r.window(0)).toEqual(expected);
    expect(r.gpr(0, RCX)).toBe(0x77n);
  });

  test("a write outside the window does not reach the next case", () => {
    const cases = new CaseBatch(2);
    cases.setCode(0, [0x89, 0x03]);
    cases.setCode(1, [0x8b, 0x03]);
    for (const i of [0, 1]) {
      cases.setGpr(i, RAX, 0x1234);
      cases.setGpr(i, RBX, DATA_CROSS + 0x800);
    }
    expect(run(cases).gpr(1, RAX)).toBe(0n);
  });

  test("FS and GS bases, restored for each case", () => {
    const cases = new CaseBatch(2);
    // mov eax, fs:[0]; mov ecx, gs:[0]
    const code = [0x64, 0x8b, 0x04, 0x25, 0, 0, 0, 0, 0x65, 0x8b, 0x0c, 0x25, 0, 0, 0, 0];
    cases.setCode(0, code);
    cases.setCode(1, code);
    for (const i of [0, 1]) for (let b = 0; b < 256; b++) cases.window(i)[b] = b;
    const r = run(cases);
    for (const i of [0, 1]) {
      expect(r.gpr(i, RAX)).toBe(0x4342_4140n);
      expect(r.gpr(i, RCX)).toBe(0xa3a2_a1a0n);
    }
  });

  test("any RSP: push, pop, call, ret", () => {
    const push = one([0x50], (c) => c.setGpr64(0, RAX, 0x0123_4567_89ab_cdefn));
    expect(push.gpr(0, RSP)).toBe(BigInt(DATA_CROSS - 8));
    expect(push.view.getBigUint64(RECORD_WINDOW + 120, true)).toBe(0x0123_4567_89ab_cdefn);
    for (const rsp of [0n, 1n, -1n, 0x8000_0000_0000n, BigInt(DATA_END + 64), -4096n]) {
      const r = one([0x48, 0xff, 0xc0], (c) => c.setGpr64(0, RSP, rsp));
      expect(r.end(0)).toBe(END_FELL_THROUGH);
      expect(r.gpr(0, RSP)).toBe(BigInt.asUintN(64, rsp));
    }
    expectTrap(
      one([0x50], (c) => c.setGpr(0, RSP, DATA_FIRST)),
      14,
      6,
      CODE,
    );
    const called = one([0xe8, 0x10, 0, 0, 0]);
    expectTrap(called, 3, 0, CODE + 0x16n);
    expect(called.view.getBigUint64(RECORD_WINDOW + 120, true)).toBe(CODE + 5n);
    const returned = one([0xc3], (c) => c.view.setBigUint64(RECORD_WINDOW + 128, CODE - 0x20n, true));
    expectTrap(returned, 3, 0, CODE - 0x1fn);
    expect(returned.gpr(0, RSP)).toBe(BigInt(DATA_CROSS + 8));
  });

  test("branches land on pads, an immediate trap at the end is optional", () => {
    const taken = one([0x74, 0x40], (c) => c.setRflags(0, RFLAGS_ZF));
    expectTrap(taken, 3, 0, CODE + 0x43n);
    const notTaken = one([0x74, 0x40]);
    expect(notTaken.end(0)).toBe(END_FELL_THROUGH);
    expect(notTaken.rip(0)).toBe(CODE + 2n);
    expectTrap(one([0xeb, 0x80]), 3, 0, CODE + 2n - 128n + 1n);
    const cases = new CaseBatch(2);
    cases.setCode(0, [0xeb, 0x03], { trapEnd: true });
    cases.setCode(1, [0x90], { trapEnd: true });
    const r = run(cases);
    expect([r.end(0), r.trap(0), r.rip(0)]).toEqual([END_EXCEPTION, 3, CODE + 6n]);
    expect([r.end(1), r.trap(1), r.rip(1)]).toEqual([END_EXCEPTION, 3, CODE + 2n]);
  });

  test("endless loops and system calls end, the next case runs", () => {
    const cases = new CaseBatch(3);
    cases.setCode(0, [0xff, 0xc1, 0xeb, 0xfc]);
    cases.setCode(1, [0x0f, 0x05]);
    cases.setGpr(1, RAX, 231);
    cases.setCode(2, [0xff, 0xc1]);
    const r = run(cases);
    expect(r.end(0)).toBe(END_HANG);
    expect(r.gpr(0, RCX)).toBeGreaterThan(1000n);
    expect(r.end(1)).toBe(END_SYSTEM_CALL);
    expect(r.gpr(1, RAX)).toBe(231n);
    expect(r.gpr(2, RCX)).toBe(1n);
  });

  test("self-modifying code takes effect and is gone in the next case", () => {
    const cases = new CaseBatch(2);
    // mov byte [rip+1], 2; mov al, 1
    for (const i of [0, 1]) cases.setCode(i, [0xc6, 0x05, 1, 0, 0, 0, 2, 0xb0, 1]);
    cases.setCode(1, [0xb0, 1]);
    const r = run(cases);
    expect([r.gpr(0, RAX), r.gpr(1, RAX)]).toEqual([2n, 1n]);
  });

  test("SSE and x87 state goes in and comes out, also after a fault", () => {
    for (const tail of [[], [0x0f, 0x0b]]) {
      // addps xmm0, xmm15; fld1
      const r = one(
        [0x41, 0x0f, 0x58, 0xc7, 0xd9, 0xe8, ...tail],
        (c) => {
          c.setXmm(0, 0, [0x3f80_0000, 0x4000_0000, 0, 0x7f80_0000]);
          c.setXmm(0, 15, [0x3f80_0000, 0x3f80_0000, 0x8000_0000, 0xff80_0000]);
          c.setFsw(0, 3 << 11);
          c.setFtw(0, 0x08);
        },
        true,
      );
      expect(r.end(0)).toBe(tail.length === 0 ? END_FELL_THROUGH : END_EXCEPTION);
      expect([0, 1, 2, 3].map((lane) => r.xmm(0, 0, lane))).toEqual([
        0x4000_0000, 0x4040_0000, 0, 0xffc0_0000,
      ]);
      expect(r.xmm(0, 15, 3)).toBe(0xff80_0000);
      expect(r.mxcsr(0)).toBe(0x1f81);
      expect((r.fsw(0) >> 11) & 7).toBe(2);
      expect(r.ftw(0)).toBe(0x0c);
      expect(Array.from(r.fx(0).subarray(FX_ST, FX_ST + 10))).toEqual([
        0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f,
      ]);
      expect(
        r
          .fx(0)
          .subarray(416)
          .every((b) => b === 0),
      ).toBe(true);
    }
  });

  test("cases of one batch do not touch each other", () => {
    const cases = new CaseBatch(1000, { windowBytes: 512 });
    for (let i = 0; i < cases.count; i++) {
      cases.setCode(i, i % 3 === 0 ? [0x0f, 0x0b] : [0x01, 0x03]);
      cases.setGpr(i, RAX, i);
      cases.setGpr(i, RBX, DATA_CROSS - 256);
      cases.window(i).fill(i & 0x7f);
    }
    const r = run(cases);
    for (let i = 0; i < cases.count; i++) {
      const before = (i & 0x7f) * 0x0101_0101;
      expect(r.end(i)).toBe(i % 3 === 0 ? END_EXCEPTION : END_FELL_THROUGH);
      expect(r.view.getUint32(r.at(i) + RECORD_WINDOW, true)).toBe(i % 3 === 0 ? before : before + i);
      expect(r.window(i).subarray(4)).toEqual(cases.window(i).subarray(4));
    }
  });

  test("the code page is what codePage and dataPage say", () => {
    const a = new Assembler();
    // Reads the last byte of the code and the first bytes behind it, and one window byte.
    a.load64(RAX, ref("end", -1));
    a.load64(RCX, at(RBX));
    a.raw(0x90, 0x90);
    a.label("end");
    const code = a.assemble(CODE_PAGE + CODE_OFFSET);
    const r = one(Array.from(code), (c) => {
      c.setGpr(0, RBX, DATA_FIRST);
      c.window(0).fill(3);
    });
    const cases = new CaseBatch(1);
    cases.setCode(0, code);
    cases.window(0).fill(3);
    const page = new Uint8Array(PAGE_SIZE);
    cases.codePage(0, page);
    expect(r.gpr(0, RAX)).toBe(new DataView(page.buffer).getBigUint64(CODE_OFFSET + code.length - 1, true));
    cases.dataPage(0, page);
    expect(r.gpr(0, RCX)).toBe(new DataView(page.buffer).getBigUint64(0, true));
  });

  test("a malformed case is refused by name", () => {
    const cases = new CaseBatch(2, { withFpu: true });
    cases.setRflags(1, 1 << 9);
    expect(() => run(cases)).toThrow(/case 1: rflags 0x200/);
    cases.setRflags(1, 0);
    cases.setMxcsr(1, 0x10000);
    expect(() => run(cases)).toThrow(/case 1: mxcsr/);
    expect(() => cases.setCode(0, new Uint8Array(33))).toThrow(/33 bytes/);
    expect(() => cases.setCode(0, [0x90], { offset: PAGE_SIZE })).toThrow(/leaves the code page/);
  });

  test("a case that kills the runner is named, with its bytes", () => {
    const cases = new CaseBatch(3);
    cases.setCode(1, [0xff, 0xe0]);
    // Into the middle of the runner's header: the runner faults, not the case.
    cases.setGpr64(1, RAX, BigInt(RUNNER_TEXT + 0x10));
    let error: unknown;
    try {
      run(cases);
    } catch (e) {
      error = e;
    }
    expect(error).toBeInstanceOf(NativeRunnerError);
    expect((error as NativeRunnerError).caseIndex).toBe(1);
    expect((error as NativeRunnerError).message).toContain("[ff e0]");
    expect(one([0x90], (c) => c.setGpr(0, R15, 1)).gpr(0, R15)).toBe(1n);
  });

  test("a batch that takes too long is killed and named", () => {
    using hasty = new NativeRunner(50);
    const cases = new CaseBatch(2);
    cases.setCode(0, [0x90]);
    cases.setCode(1, [0xeb, 0xfe]);
    expect(() => hasty.run(cases)).toThrow(/killed by SIGKILL, in case 1: code \[eb fe\]/);
  });

  test("close removes the temporary directory and later runs fail", () => {
    const closing = new NativeRunner();
    expect(existsSync(closing.directory)).toBe(true);
    closing.close();
    expect(existsSync(closing.directory)).toBe(false);
    expect(() => closing.run(new CaseBatch(1))).toThrow(/closed/);
  });

  test("throughput", () => {
    const count = 20_000;
    for (const withFpu of [false, true]) {
      for (const [name, code] of [
        ["inc", [0x48, 0xff, 0xc0]],
        ["ud2", [0x0f, 0x0b]],
      ] as const) {
        const cases = new CaseBatch(count, { withFpu });
        for (let i = 0; i < count; i++) cases.setCode(i, code);
        const start = performance.now();
        const r = run(cases);
        const rate = Math.round((count / (performance.now() - start)) * 1000);
        console.log(`${name}${withFpu ? " with FPU" : ""}: ${rate} cases/s`);
        expect(r.gpr(count - 1, RAX)).toBe(name === "inc" ? 1n : 0n);
      }
    }
  });
});
