import { expect, test } from "bun:test";
import { CaseBatch } from "./batch.ts";
import {
  DATA_CROSS,
  DATA_END,
  DATA_FIRST,
  DATA_READ_ONLY,
  DATA_READ_ONLY_END,
  DATA_THIRD,
  RAX,
  RBX,
} from "./layout.ts";
import {
  POINTER_ALIGNED,
  POINTER_ANYWHERE,
  POINTER_BEFORE_START,
  POINTER_CROSS,
  POINTER_CROSS_READ_ONLY,
  POINTER_LAST,
  POINTER_PAST_END,
  POINTER_READ_ONLY,
  POINTER_UNMAPPED,
  pointer,
  randomPointer,
  setPointer,
} from "./pointers.ts";
import { Random } from "./random.ts";

const cases = new CaseBatch(1);
const HALF = 128;

type Page = "rw" | "ro" | "none";

function page(address: number): Page {
  if (address >= DATA_FIRST && address < DATA_END) return "rw";
  if (address >= DATA_THIRD && address < DATA_READ_ONLY) return "rw";
  if (address >= DATA_READ_ONLY && address < DATA_READ_ONLY_END) return "ro";
  return "none";
}

/** True if a mapped byte shows up in the window. */
function visible(address: number): boolean {
  const offset = address % 4096;
  return offset < HALF || offset >= 4096 - HALF;
}

test("each kind of pointer meets what it says, for every size", () => {
  const r = new Random(2);
  const wanted: Record<number, [Page, Page]> = {
    [POINTER_ALIGNED]: ["rw", "rw"],
    [POINTER_ANYWHERE]: ["rw", "rw"],
    [POINTER_CROSS]: ["rw", "rw"],
    [POINTER_PAST_END]: ["rw", "none"],
    [POINTER_BEFORE_START]: ["none", "rw"],
    [POINTER_READ_ONLY]: ["ro", "ro"],
    [POINTER_CROSS_READ_ONLY]: ["rw", "ro"],
    [POINTER_UNMAPPED]: ["none", "none"],
    [POINTER_LAST]: ["rw", "rw"],
  };
  for (const size of [1, 2, 4, 6, 8, 10, 16, 32, 64, 128]) {
    for (const [kind, [first, last]] of Object.entries(wanted)) {
      for (let i = 0; i < 200; i++) {
        const address = pointer(r, cases, size, Number(kind));
        const firstByte = page(address);
        const lastByte = page(address + size - 1);
        if (size > 1 && Number(kind) !== POINTER_PAST_END) expect(firstByte).toBe(first);
        if (size > 1 && Number(kind) === POINTER_PAST_END) expect(firstByte).not.toBe("none");
        expect(lastByte).toBe(last);
        for (const at of [address, address + size - 1])
          if (page(at) !== "none") expect(visible(at)).toBe(true);
        if (Number(kind) === POINTER_ALIGNED && (size & (size - 1)) === 0) {
          expect(address % Math.min(size, 64)).toBe(0);
        }
        if (Number(kind) === POINTER_CROSS && size > 1) {
          expect(address).toBeLessThan(DATA_CROSS);
          expect(address + size).toBeGreaterThan(DATA_CROSS);
        }
      }
    }
  }
});

test("pointer refuses a size that does not fit and an unknown kind", () => {
  expect(() => pointer(new Random(1), cases, 129, POINTER_ALIGNED)).toThrow(/must be 1 to 128/);
  expect(() => pointer(new Random(1), cases, 4, 99)).toThrow(/kind is 99/);
});

test("randomPointer mostly succeeds and sometimes faults", () => {
  const r = new Random(4);
  let faults = 0;
  for (let i = 0; i < 2000; i++) {
    const address = randomPointer(r, cases, 8);
    if (page(address) === "none" || page(address + 7) === "none") faults++;
  }
  expect(faults).toBeGreaterThan(100);
  expect(faults).toBeLessThan(700);
});

test("setPointer inverts the address computation modulo 2^64", () => {
  const r = new Random(6);
  for (let i = 0; i < 2000; i++) {
    const displacement = r.u32() | 0;
    const scale = 1 << r.below(4);
    r.interesting64();
    cases.setGpr(0, RBX, r.low, r.high);
    setPointer(cases, 0, RAX, DATA_CROSS, displacement, { reg: RBX, scale });
    const sum = cases.gpr(0, RAX) + cases.gpr(0, RBX) * BigInt(scale) + BigInt(displacement);
    expect(BigInt.asUintN(64, sum)).toBe(BigInt(DATA_CROSS));
    setPointer(cases, 0, RAX, DATA_CROSS, displacement);
    expect(BigInt.asUintN(64, cases.gpr(0, RAX) + BigInt(displacement))).toBe(BigInt(DATA_CROSS));
  }
  expect(() => setPointer(cases, 0, RAX, DATA_CROSS, 0, { reg: RAX, scale: 1 })).toThrow(/base and index/);
});
