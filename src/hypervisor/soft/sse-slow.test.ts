import { expect, test } from "bun:test";
import { MXCSR } from "./layout.ts";
import {
  SLOW,
  SLOW_DESTINATION,
  SLOW_OPERATION,
  SLOW_PREDICATE_SHIFT,
  SLOW_RESULT,
  SLOW_SOURCE,
  SseSlow,
  slowOperation,
} from "./sse-slow.ts";

const DEFAULT = 0x1f80;
const IE = 0x01;
const ZE = 0x04;
const PE = 0x20;
const INVALID_MASK = 0x80;
const ZERO_MASK = 0x200;

const memory = new WebAssembly.Memory({ initial: 1, maximum: 1, shared: true });
const slow = new SseSlow(memory);
const singles = (at: number) => new Float32Array(memory.buffer, at, 4);
const doubles = (at: number) => new Float64Array(memory.buffer, at, 2);
const words = (at: number) => new Uint32Array(memory.buffer, at, 4);

function run(operation: number, mxcsr = DEFAULT): { code: number; mxcsr: number } {
  words(SLOW_RESULT).fill(0xdead_beef);
  words(SLOW_OPERATION)[0] = operation;
  words(MXCSR)[0] = mxcsr;
  return { code: slow.run(), mxcsr: words(MXCSR)[0]! };
}

test("a packed operation does every lane and collects the flags", () => {
  singles(SLOW_DESTINATION).set([1, 1, 0, 4]);
  singles(SLOW_SOURCE).set([2, 3, 0, 0]);
  expect(run(slowOperation(SLOW.div, 32, 4))).toEqual({ code: 0, mxcsr: DEFAULT | IE | ZE | PE });
  const [half, third, nan, infinity] = singles(SLOW_RESULT);
  expect([half, third, nan, infinity]).toEqual([
    0.5,
    Math.fround(1 / 3),
    Number.NaN,
    Number.POSITIVE_INFINITY,
  ]);
  expect(words(SLOW_RESULT)[2]).toBe(0xffc0_0000);
});

test("flags that were set stay, and rounding follows MXCSR", () => {
  doubles(SLOW_DESTINATION).set([1, -1]);
  doubles(SLOW_SOURCE).set([3, 3]);
  const roundUp = DEFAULT | ZE | (2 << 13);
  expect(run(slowOperation(SLOW.div, 64, 2), roundUp)).toEqual({ code: 0, mxcsr: roundUp | PE });
  const third = 1 / 3; // rounded down by the nearest mode
  expect(doubles(SLOW_RESULT)[0]).toBe(third + 2 ** -54);
  expect(doubles(SLOW_RESULT)[1]).toBe(-third);
});

test("an unmasked exception is reported, with its flag", () => {
  doubles(SLOW_DESTINATION)[0] = 1;
  doubles(SLOW_SOURCE)[0] = 0;
  const mxcsr = DEFAULT & ~ZERO_MASK;
  expect(run(slowOperation(SLOW.div, 64, 1), mxcsr)).toEqual({ code: -1, mxcsr: mxcsr | ZE });
});

test("a lane stopped by an unmasked exception keeps the others from reporting PE", () => {
  singles(SLOW_DESTINATION).set([1, 0, 1, 1]);
  singles(SLOW_SOURCE).set([3, 0, 3, 3]);
  const mxcsr = DEFAULT & ~INVALID_MASK;
  expect(run(slowOperation(SLOW.div, 32, 4), mxcsr)).toEqual({ code: -1, mxcsr: mxcsr | IE });
});

test("a set flag does not raise by itself, only a new one does", () => {
  doubles(SLOW_DESTINATION)[0] = 1;
  doubles(SLOW_SOURCE)[0] = 1;
  const mxcsr = (DEFAULT & ~ZERO_MASK) | ZE;
  expect(run(slowOperation(SLOW.add, 64, 1), mxcsr)).toEqual({ code: 0, mxcsr });
});

test("conversions change the element width and clear what they do not write", () => {
  doubles(SLOW_SOURCE).set([1.5, -2.5]);
  run(slowOperation(SLOW.convert, 64, 2));
  expect([...singles(SLOW_RESULT)]).toEqual([1.5, -2.5, 0, 0]);
  run(slowOperation(SLOW.toInt32, 64, 2));
  expect([...words(SLOW_RESULT)]).toEqual([2, 0xffff_fffe, 0, 0]);
  run(slowOperation(SLOW.truncateToInt32, 64, 2));
  expect([...words(SLOW_RESULT)]).toEqual([1, 0xffff_fffe, 0, 0]);
  singles(SLOW_SOURCE).set([1.5, -2.5, 9, 9]);
  run(slowOperation(SLOW.convert, 32, 2));
  expect([...doubles(SLOW_RESULT)]).toEqual([1.5, -2.5]);
  words(SLOW_SOURCE).set([7, 0xffff_ffff, 0, 0]);
  run(slowOperation(SLOW.fromInt32, 32, 2));
  expect([...singles(SLOW_RESULT)]).toEqual([7, -1, 0, 0]);
  new BigInt64Array(memory.buffer, SLOW_SOURCE, 1)[0] = -(1n << 62n);
  run(slowOperation(SLOW.fromInt64, 64, 1));
  expect(doubles(SLOW_RESULT)[0]).toBe(-(2 ** 62));
  doubles(SLOW_SOURCE)[0] = 2 ** 63;
  expect(run(slowOperation(SLOW.toInt64, 64, 1)).mxcsr).toBe(DEFAULT | IE);
  expect(new BigUint64Array(memory.buffer, SLOW_RESULT, 1)[0]).toBe(1n << 63n);
});

test("compare takes its predicate from the operation word", () => {
  doubles(SLOW_DESTINATION).set([1, Number.NaN]);
  doubles(SLOW_SOURCE).set([2, 2]);
  const less = 1;
  const unordered = 3;
  const at = (predicate: number) => slowOperation(SLOW.cmp, 64, 2) | (predicate << SLOW_PREDICATE_SHIFT);
  run(at(unordered));
  expect([...new BigInt64Array(memory.buffer, SLOW_RESULT, 2)]).toEqual([0n, -1n]);
  expect(run(at(less)).mxcsr).toBe(DEFAULT | IE);
  expect([...new BigInt64Array(memory.buffer, SLOW_RESULT, 2)]).toEqual([-1n, 0n]);
  expect(run(slowOperation(SLOW.ucomis, 64, 1)).mxcsr).toBe(DEFAULT);
  expect(words(SLOW_RESULT)[0]).toBe(0x01);
});
