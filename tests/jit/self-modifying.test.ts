/** Compiled code that changes while it runs: by itself, through another address, and by a device. */
import { describe, expect, test } from "bun:test";
import { RAX, RBX, RCX, RDI } from "../../src/hypervisor/soft/layout.ts";
import { code } from "../soft/code.ts";
import { DeviceThread } from "../soft/device.ts";
import { CODE, DATA, Guest } from "../soft/guest.ts";
import { assemble } from "./assembler.ts";

const CC_NE = 5;
/** Another linear address of the code page. */
const ALIAS = 0x70_0000;

/** A loop that adds an immediate to EAX, and runs `write` at the end of each 16th round. */
const loop = (write: number[]) => {
  const { bytes, labels } = assemble(CODE, (a) => {
    a.label("again");
    a.emit(0x05, 1, 0, 0, 0); // add eax, 1
    a.emit(
      ...code(`
        ff cb | dec ebx
        f6 c3 0f | test bl, 15
      `),
    );
    a.jcc(CC_NE, "quiet");
    a.emit(...write);
    a.label("quiet");
    a.emit(...code("85 db | test ebx, ebx"));
    a.jcc(CC_NE, "again");
  });
  return { bytes: [...bytes], immediate: labels.get("again")! + 1 };
};

/** 1 in the first 16 rounds, 2 in the next, ... */
const ROUNDS = 16 * 40;
const EXPECTED = BigInt((16 * 40 * 41) / 2);

describe.each([1, 3])("a loop compiled after %d executions", (jit) => {
  test.each([
    ["to itself", CODE],
    ["through another address of its page", ALIAS],
  ])("sees what it writes %s", (_name, base) => {
    const guest = new Guest(jit);
    guest.pages.map(ALIAS, guest.physical(CODE), 7);
    const { bytes, immediate } = loop(code("fe 07 | inc byte ptr [rdi]"));
    const { result } = guest.run({
      code: bytes,
      cpl: 3,
      regs: { [RBX]: ROUNDS, [RAX]: 0, [RDI]: immediate - CODE + base },
    });
    expect(result).toBeDefined();
    expect(guest.reg(RAX)).toBe(EXPECTED);
    expect(guest.vcpu.stats().regionsCompiled).toBeGreaterThan(0);
  });

  test("sees what it writes with REP STOSB and REP MOVSB", () => {
    for (const string of [0xaa, 0xa4]) {
      const guest = new Guest(jit);
      // The byte that counts is the source of MOVSB.
      guest.poke(DATA, [1]);
      const { bytes, immediate } = loop([
        ...code(`
          50                   | push rax
          57                   | push rdi
          48 be 00 00 50 00 00 00 00 00 | mov rsi, DATA
          fe 06                | inc byte ptr [rsi]
          8a 06                | mov al, [rsi]
          b9 01 00 00 00       | mov ecx, 1
        `),
        0xf3,
        string,
        ...code(`
          5f | pop rdi
          58 | pop rax
        `),
      ]);
      const { result } = guest.run({
        code: bytes,
        cpl: 3,
        regs: { [RBX]: ROUNDS, [RAX]: 0, [RDI]: immediate, [RCX]: 0 },
      });
      expect(result).toBeDefined();
      expect(guest.reg(RAX)).toBe(EXPECTED);
    }
  });

  test("sees what its own access across two code pages writes", () => {
    const guest = new Guest(jit);
    // The code begins so that its immediate is the last word of one page and the first of the next.
    const at = CODE + 0x1000 - 3;
    const { bytes, immediate } = loop(code("48 81 07 00 00 01 00 | add qword ptr [rdi], 0x10000"));
    const shift = at - CODE;
    const { result } = guest.run({
      code: bytes,
      at,
      cpl: 3,
      regs: { [RBX]: ROUNDS, [RAX]: 0, [RDI]: immediate + shift - 2 },
    });
    expect(result).toBeDefined();
    expect(guest.reg(RAX)).toBe(EXPECTED);
  });
});

test("an endless compiled loop ends when a device writes over it", async () => {
  const guest = new Guest(1);
  const device = await DeviceThread.start(guest.memory);
  try {
    const { result } = guest.run({
      code: code(`
        e6 f2    | out 0xf2, al
                 | again:
        48 ff c1 | inc rcx
        eb fb    | jmp again
        b0 07    | mov al, 7
      `),
      cpl: 3,
      onOut: () =>
        device.send({ kind: "write", gpa: guest.physical(CODE) + 5, bytes: [0x90, 0x90], delayMs: 30 }),
    });
    expect(result).toBe(7);
    expect(guest.vcpu.stats().regionsCompiled).toBeGreaterThan(0);
    expect(guest.reg(RCX)).toBeGreaterThan(100_000n);
  } finally {
    device.stop();
  }
});
