import { beforeEach, expect, test } from "bun:test";
import { Tokens } from "./tokens.ts";

let now: number;
let tokens: Tokens;

beforeEach(() => {
  now = 12_345.5;
  tokens = new Tokens("vm1", () => now);
});

test("a token is good until its time has passed", () => {
  const short = tokens.create(1);
  const long = tokens.create(21_600);
  expect(short.length).toBe(48);
  expect(tokens.create(1)).not.toBe(short);
  now += 999;
  expect([tokens.isValid(short), tokens.isValid(long)]).toEqual([true, true]);
  now += 1;
  expect([tokens.isValid(short), tokens.isValid(long)]).toEqual([false, true]);
  now += 21_599_000;
  expect(tokens.isValid(long)).toBe(false);
});

test("not for another microVM, nor another process of the same name", () => {
  const token = tokens.create(60);
  expect(new Tokens("vm2", () => now).isValid(token)).toBe(false);
  expect(new Tokens("vm1", () => now).isValid(token)).toBe(false);
});

test("a token with any bit turned over, cut off or in another spelling is none", () => {
  const token = tokens.create(60);
  const bytes = Buffer.from(token, "base64");
  for (let bit = 0; bit < bytes.length * 8; bit++) {
    const changed = Buffer.from(bytes);
    changed[bit >> 3]! ^= 1 << (bit & 7);
    expect(tokens.isValid(changed.toString("base64"))).toBe(false);
  }
  for (let length = 0; length < token.length; length++) {
    expect(tokens.isValid(token.slice(0, length))).toBe(false);
  }
  for (const text of [`${token}=`, ` ${token}`, `${token}AAAA`, "", "é", "A".repeat(100_000)]) {
    expect(tokens.isValid(text)).toBe(false);
  }
});
