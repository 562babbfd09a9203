/** Bytes that are no instruction, or too many of them (SDM vol. 2A, 2.3.11; vol. 3A, 6.15). */
import { beforeEach, describe, expect, test } from "bun:test";
import { RAX, RCX, RDI } from "../../src/hypervisor/soft/layout.ts";
import { code } from "./code.ts";
import { CODE, DATA, Guest } from "./guest.ts";

const guest = new Guest();

beforeEach(() => guest.reset());

describe("instructions that are none", () => {
  test("#UD, and one line in the log with bytes and RIP", () => {
    const unknown = code(`
      c5 f8 77 | vzeroupper
    `);
    for (let i = 0; i < 3; i++) {
      expect(guest.run({ code: [0x90, ...unknown], cpl: 3 }).traps[0]).toMatchObject({
        vector: 6,
        rip: CODE + 1,
      });
    }
    expect(guest.logged.length).toBe(1);
    expect(guest.logged[0]).toContain("c5 f8 77");
    expect(guest.logged[0]).toContain(`0x${(CODE + 1).toString(16)}`);
  });

  test("UD2 is not worth a line", () => {
    guest.run({
      code: code(`
        0f 0b | ud2
      `),
    });
    expect(guest.logged).toEqual([]);
  });

  test("15 bytes are one instruction, 16 are #GP(0)", () => {
    const prefixed = (n: number) => [...Array<number>(n).fill(0x66), ...code("90 | nop")];
    expect(guest.run({ code: [...prefixed(14), 0xb0, 9], cpl: 3 }).result).toBe(9);
    expect(guest.run({ code: prefixed(15), cpl: 3 }).traps[0]).toMatchObject({
      vector: 13,
      error: 0,
      rip: CODE,
    });
    // Long for its operands, not for its prefixes.
    const long = code(`
      64 f0 48 81 84 8b 78 56 34 12 44 33 22 11 | lock add qword ptr fs:[rbx+rcx*4+0x12345678], 0x11223344
    `);
    expect(guest.run({ code: [0x66, ...long], cpl: 3 }).traps[0]?.vector).toBe(14);
    expect(guest.run({ code: [0x66, 0x66, ...long], cpl: 3 }).traps[0]).toMatchObject({
      vector: 13,
      error: 0,
    });
  });

  test("LOCK where it is not allowed is #UD", () => {
    for (const program of [
      [0xf0, 0x90], // lock nop
      [0xf0, 0x8b, 0x07], // lock mov eax, [rdi]
      [0xf0, 0x01, 0xc8], // lock add eax, ecx
      [0xf0, 0x39, 0x07], // lock cmp [rdi], eax
    ]) {
      expect(guest.run({ code: program, cpl: 3, regs: { [RDI]: DATA } }).traps[0]?.vector).toBe(6);
    }
  });

  test("opcodes that 64-bit mode has not are #UD", () => {
    for (const opcode of [
      0x06, 0x0e, 0x16, 0x17, 0x1e, 0x1f, 0x27, 0x2f, 0x37, 0x3f, 0x60, 0x61, 0x9a, 0xce, 0xea,
    ]) {
      expect(guest.run({ code: [opcode, 0, 0, 0, 0, 0, 0], cpl: 3 }).traps[0]).toMatchObject({
        vector: 6,
        rip: CODE,
      });
    }
  });

  test("what comes before an undefined instruction has been done", () => {
    guest.run({
      code: code(`
        b8 05 00 00 00 | mov eax, 5
        b9 06 00 00 00 | mov ecx, 6
        0f 0b          | ud2
      `),
    });
    expect([guest.reg(RAX), guest.reg(RCX)]).toEqual([5n, 6n]);
  });
});
