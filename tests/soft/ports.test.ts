/** Port I/O of the user: the permission bitmap in the TSS (SDM vol. 1, 19.5.2). */
import { beforeEach, describe, expect, test } from "bun:test";
import { RCX, RDI, RDX, RSI } from "../../src/hypervisor/soft/layout.ts";
import { code } from "./code.ts";
import { CODE, DATA, Guest, TSS, TSS_LIMIT } from "./guest.ts";

const guest = new Guest();

beforeEach(() => guest.reset());

describe("port permission bitmap", () => {
  const IN: Record<number, number[]> = {
    1: code("ec | in al, dx"),
    2: code("66 ed | in ax, dx"),
    4: code("ed | in eax, dx"),
  };

  function allowed(port: number, size: number, limit = TSS_LIMIT): boolean {
    const { traps } = guest.run({
      code: IN[size]!,
      cpl: 3,
      regs: { [RDX]: port },
      tweak: (r) => {
        r.tr.limit = limit;
      },
    });
    // With a short limit the OUT that ends the program faults too.
    const [trap] = traps;
    if (!trap || trap.rip > CODE) return true;
    expect([trap.vector, trap.error, trap.rip]).toEqual([13, 0, CODE]);
    return false;
  }

  const open = (port: number): void => {
    const at = TSS + 104 + (port >> 3);
    const byte = Number(guest.read64(at) & 0xffn) & ~(1 << (port & 7));
    guest.poke(at, [byte]);
  };

  test("every byte of the access must be allowed", () => {
    for (const port of [0x3f4, 0x3f5, 0x3f6, 0x3f7]) open(port);
    for (let port = 0x3f0; port < 0x3fc; port++) {
      for (const size of [1, 2, 4]) {
        expect({ port, size, ok: allowed(port, size) }).toEqual({
          port,
          size,
          ok: port >= 0x3f4 && port + size <= 0x3f8,
        });
      }
    }
  });

  test("accesses that straddle bytes of the bitmap", () => {
    for (let port = 0x106; port < 0x10b; port++) open(port);
    expect([0x105, 0x106, 0x107, 0x108].map((port) => allowed(port, 4))).toEqual([false, true, true, false]);
  });

  test("the last port of the bitmap, which the byte after it guards", () => {
    open(0xffff);
    expect([allowed(0xffff, 1), allowed(0xffff, 2), allowed(0xfffe, 1)]).toEqual([true, false, false]);
    // The guard byte itself is beyond the limit: even an open port is closed.
    expect(allowed(0xffff, 1, TSS_LIMIT - 1)).toBe(false);
  });

  test("ports beyond the limit are closed", () => {
    open(0x80);
    const at = 104 + 0x80 / 8;
    expect(allowed(0x80, 1, at + 1)).toBe(true);
    expect(allowed(0x80, 1, at)).toBe(false);
    expect(allowed(0x80, 1, 103)).toBe(false);
    expect(allowed(0x80, 1, 50)).toBe(false);
  });

  test("a bitmap base outside the TSS closes every port", () => {
    guest.poke(TSS + 102, [0xff, 0xff]);
    const { traps } = guest.run({ code: code("e6 f1 | out 0xf1, al"), cpl: 3 });
    expect(traps[0]).toMatchObject({ vector: 13, error: 0 });
  });

  test("string port instructions ask too, before they touch memory", () => {
    const { traps } = guest.run({
      code: code("f3 6c | rep insb"),
      cpl: 3,
      // Not mapped: a page fault if the port were not checked first.
      regs: { [RDX]: 0x80, [RCX]: 4, [RDI]: 0x70_0000 },
    });
    expect(traps[0]).toMatchObject({ vector: 13, error: 0, rip: CODE });
  });

  test("rep insb and rep outsb move bytes, one port access each", () => {
    open(0x80);
    let next = 0x41;
    guest.pioRead = () => next++;
    const outs: number[] = [];
    const { result } = guest.run({
      code: code(`
        f3 6c          | rep insb
        b9 03 00 00 00 | mov ecx, 3
        f3 6e          | rep outsb
      `),
      cpl: 3,
      regs: { [RDX]: 0x80, [RCX]: 4, [RDI]: DATA, [RSI]: DATA + 1 },
      onOut: (_port, value) => outs.push(value),
    });
    expect([result, guest.reg(RCX), guest.read64(DATA), outs]).toEqual([
      0,
      0n,
      0x4443_4241n,
      [0x42, 0x43, 0x44],
    ]);
  });
});
