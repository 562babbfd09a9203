import { describe, expect, test } from "bun:test";
import { bootRegisters } from "../../boot/registers.ts";
import { REGS, SREGS, SREGS_BYTES, SREGS_GDT, SREGS_IDT, SREGS_SEGMENT } from "./api.ts";
import { encodeRegs, writeSregs } from "./registers.ts";
import { type KvmBus, serveMmio, servePio } from "./vcpu.ts";

describe("boot registers", () => {
  const registers = bootRegisters("linux64", 0x100_0200);

  test("general registers: what is not named is 0, flags are 2", () => {
    const view = new DataView(encodeRegs(registers).buffer);
    const values = Object.fromEntries(
      Object.entries(REGS).map(([k, at]) => [k, view.getBigUint64(at, true)]),
    );
    expect(values).toMatchObject({
      rip: 0x100_0200n,
      rsp: 0x8ff0n,
      rsi: 0x7000n,
      rax: 0n,
      r15: 0n,
      rflags: 2n,
    });
  });

  test("segments have the descriptor's bits, one by one; what is not named stays", () => {
    const struct = new Uint8Array(SREGS_BYTES).fill(0xee);
    writeSregs(struct, registers);
    const view = new DataView(struct.buffer);
    const segment = (at: number) => ({
      base: view.getBigUint64(at, true),
      limit: view.getUint32(at + 8, true),
      selector: view.getUint16(at + 12, true),
      // type, present, dpl, db, s, l, g, avl, unusable
      bits: [...struct.subarray(at + 14, at + 23)],
    });
    expect(segment(SREGS_SEGMENT.cs)).toEqual({
      base: 0n,
      limit: 0xffff_ffff,
      selector: 8,
      bits: [0xb, 1, 0, 0, 1, 1, 1, 0, 0],
    });
    for (const at of [
      SREGS_SEGMENT.ds,
      SREGS_SEGMENT.es,
      SREGS_SEGMENT.fs,
      SREGS_SEGMENT.gs,
      SREGS_SEGMENT.ss,
    ]) {
      expect(segment(at)).toMatchObject({ selector: 16, bits: [0x3, 1, 0, 1, 1, 0, 1, 0, 0] });
    }
    expect(segment(SREGS_SEGMENT.tr)).toMatchObject({ selector: 24, bits: [0xb, 1, 0, 0, 0, 0, 1, 0, 0] });
    expect([view.getBigUint64(SREGS_GDT, true), view.getUint16(SREGS_GDT + 8, true)]).toEqual([0x500n, 31]);
    expect([view.getBigUint64(SREGS_IDT, true), view.getUint16(SREGS_IDT + 8, true)]).toEqual([0x520n, 7]);
    expect(view.getBigUint64(SREGS.efer, true)).toBe(0x500n);
    expect(view.getBigUint64(SREGS.cr0, true)).toBe(0x8000_0011n);
    expect(struct[SREGS_SEGMENT.ldt]).toBe(0xee);
    expect(view.getBigUint64(SREGS.cr8, true)).toBe(0xeeee_eeee_eeee_eeeen);
  });
});

describe("exits", () => {
  class Log implements KvmBus {
    readonly seen: string[] = [];
    read(address: number, size: number): number {
      this.seen.push(`r${address.toString(16)}/${size}`);
      return 2 ** (8 * size) - 1 - this.seen.length;
    }
    write(address: number, size: number, value: number): void {
      this.seen.push(`w${address.toString(16)}/${size}=${value.toString(16)}`);
    }
  }

  test.each([
    [1, ["w1ffffffffffff/1=11"]],
    [2, ["w1ffffffffffff/2=2211"]],
    [3, ["w1ffffffffffff/2=2211", "w2000000000001/1=33"]],
    [5, ["w1ffffffffffff/4=44332211", "w2000000000003/1=55"]],
    [7, ["w1ffffffffffff/4=44332211", "w2000000000003/2=6655", "w2000000000005/1=77"]],
    [8, ["w1ffffffffffff/4=44332211", "w2000000000003/4=88776655"]],
  ] as const)("memory, %d bytes", (length, expected) => {
    const run = new DataView(new ArrayBuffer(4096));
    run.setBigUint64(32, 0x1_ffff_ffff_ffffn, true);
    for (let i = 0; i < 8; i++) run.setUint8(40 + i, 0x11 * (i + 1));
    run.setUint32(48, length, true);
    run.setUint8(52, 1);
    const log = new Log();
    serveMmio(run, log);
    expect(log.seen).toEqual([...expected]);
  });

  test("a read fills the data and no more", () => {
    const run = new DataView(new ArrayBuffer(4096));
    run.setUint32(32, 0xd000_0000, true);
    run.setUint32(48, 3, true);
    serveMmio(run, new Log());
    expect([...new Uint8Array(run.buffer, 40, 4)]).toEqual([0xfe, 0xff, 0xfd, 0]);
  });

  test("port accesses of one exit follow each other", () => {
    const run = new DataView(new ArrayBuffer(4096 + 16));
    run.setUint8(32, 0);
    run.setUint8(33, 2);
    run.setUint16(34, 0x3f8, true);
    run.setUint32(36, 3, true);
    run.setBigUint64(40, 4096n, true);
    const log = new Log();
    servePio(run, log);
    expect(log.seen).toEqual(["r3f8/2", "r3f8/2", "r3f8/2"]);
    expect([...new Uint16Array(run.buffer, 4096, 4)]).toEqual([0xfffe, 0xfffd, 0xfffc, 0]);
    run.setUint8(32, 1);
    servePio(run, log);
    expect(log.seen.slice(3)).toEqual(["w3f8/2=fffe", "w3f8/2=fffd", "w3f8/2=fffc"]);
  });
});
