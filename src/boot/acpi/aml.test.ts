import { expect, test } from "bun:test";
import {
  device,
  eisaId,
  integer,
  interruptEdgeHigh,
  ioPorts,
  memory32Fixed,
  method,
  name,
  resourceTemplate,
  returns,
  scope,
  string,
} from "./aml.ts";

const ascii = (text: string) => [...text].map((c) => c.charCodeAt(0));

test("integers in their shortest form", () => {
  expect(integer(0)).toEqual([0]);
  expect(integer(1)).toEqual([1]);
  expect(integer(0xff)).toEqual([0x0a, 0xff]);
  expect(integer(0x100)).toEqual([0x0b, 0x00, 0x01]);
  expect(integer(0xffff_ffff)).toEqual([0x0c, 0xff, 0xff, 0xff, 0xff]);
  for (const value of [-1, 0.5, 0x1_0000_0000, Number.NaN]) expect(() => integer(value)).toThrow(RangeError);
});

test("strings and EISA ids", () => {
  expect(string("AB")).toEqual([0x0d, 0x41, 0x42, 0]);
  expect(() => string("a\0")).toThrow(RangeError);
  expect(() => string("é")).toThrow(RangeError);
  // As iasl encodes EisaId ("PNP0501").
  expect(eisaId("PNP0501")).toEqual([0x0c, 0x41, 0xd0, 0x05, 0x01]);
  expect(() => eisaId("PNP501")).toThrow(RangeError);
});

test("names", () => {
  expect(name("_UID", integer(1))).toEqual([0x08, ...ascii("_UID"), 1]);
  expect(name("PS2", integer(0))).toEqual([0x08, ...ascii("PS2_"), 0]);
  expect(name("\\_SB", integer(0))).toEqual([0x08, 0x5c, ...ascii("_SB_"), 0]);
  expect(name("_SB.COM1", integer(0))).toEqual([0x08, 0x2e, ...ascii("_SB_COM1"), 0]);
  expect(name("A.B.C", integer(0))).toEqual([0x08, 0x2f, 3, ...ascii("A___B___C___"), 0]);
  for (const bad of ["", "abcd", "TOOLONG", "1ABC", "A..B"]) expect(() => name(bad, [])).toThrow(RangeError);
});

test("methods", () => {
  expect(method("_STA", 0, [returns(integer(0x0f))])).toEqual([
    0x14,
    9,
    ...ascii("_STA"),
    0,
    0xa4,
    0x0a,
    0x0f,
  ]);
  expect(() => method("M", 8, [])).toThrow(RangeError);
});

test("package lengths at each boundary of their encoding", () => {
  const lengthBytes = (filler: number) => scope("A", [new Array<number>(filler).fill(0)]).slice(1, 5);
  // The length counts itself and the 4 bytes of the name.
  expect(lengthBytes(58)[0]).toBe(63);
  expect(lengthBytes(59).slice(0, 2)).toEqual([0x41, 0x04]);
  expect(lengthBytes(0xfff - 6).slice(0, 2)).toEqual([0x4f, 0xff]);
  expect(lengthBytes(0x1000 - 6).slice(0, 3)).toEqual([0x81, 0x00, 0x01]);
  expect(lengthBytes(0xf_ffff - 7).slice(0, 3)).toEqual([0x8f, 0xff, 0xff]);
  expect(lengthBytes(0x10_0000 - 7)).toEqual([0xc1, 0x00, 0x00, 0x01]);
});

test("devices nest", () => {
  expect(scope("\\_SB", [device("D", [])])).toEqual([
    0x10,
    13,
    0x5c,
    ...ascii("_SB_"),
    0x5b,
    0x82,
    5,
    ...ascii("D___"),
  ]);
});

test("resource descriptors", () => {
  expect(memory32Fixed(0xc000_1000, 0x1000)).toEqual([0x86, 9, 0, 1, 0, 0x10, 0, 0xc0, 0, 0x10, 0, 0]);
  expect(interruptEdgeHigh(5)).toEqual([0x89, 6, 0, 3, 1, 5, 0, 0, 0]);
  expect(ioPorts(0x3f8, 8)).toEqual([0x47, 1, 0xf8, 3, 0xf8, 3, 1, 8]);
  expect(() => ioPorts(0x1_0000, 1)).toThrow(RangeError);
  expect(() => memory32Fixed(0x1_0000_0000, 1)).toThrow(RangeError);
});

test("a resource template ends in a checksummed end tag", () => {
  const bytes = resourceTemplate([ioPorts(0x60, 1)]);
  expect(bytes.slice(0, 4)).toEqual([0x11, 13, 0x0a, 10]);
  const contents = bytes.slice(4);
  expect(contents.at(-2)).toBe(0x79);
  expect(contents.reduce((a, b) => a + b, 0) & 0xff).toBe(0);
});
