import { describe, expect, test } from "bun:test";
import { MmdsStore, mergePatch } from "./store.ts";

/** RFC 7396, appendix A. */
const EXAMPLES: [unknown, unknown, unknown][] = [
  [{ a: "b" }, { a: "c" }, { a: "c" }],
  [{ a: "b" }, { b: "c" }, { a: "b", b: "c" }],
  [{ a: "b" }, { a: null }, {}],
  [{ a: "b", b: "c" }, { a: null }, { b: "c" }],
  [{ a: ["b"] }, { a: "c" }, { a: "c" }],
  [{ a: "c" }, { a: ["b"] }, { a: ["b"] }],
  [{ a: { b: "c" } }, { a: { b: "d", c: null } }, { a: { b: "d" } }],
  [{ a: [{ b: "c" }] }, { a: [1] }, { a: [1] }],
  [
    ["a", "b"],
    ["c", "d"],
    ["c", "d"],
  ],
  [{ a: "b" }, ["c"], ["c"]],
  [{ a: "foo" }, null, null],
  [{ a: "foo" }, "bar", "bar"],
  [{ e: null }, { a: 1 }, { e: null, a: 1 }],
  [[1, 2], { a: "b", c: null }, { a: "b" }],
  [{}, { a: { bb: { ccc: null } } }, { a: { bb: {} } }],
];

test.each(EXAMPLES)("merge patch %j + %j = %j", (target, patch, result) => {
  const before = JSON.stringify([target, patch]);
  expect(mergePatch(target, patch)).toEqual(result);
  expect(JSON.stringify([target, patch])).toBe(before);
});

test("a key named __proto__ is data", () => {
  const merged = mergePatch({}, JSON.parse('{"__proto__": {"polluted": 1}}'));
  expect(JSON.stringify(merged)).toBe('{"__proto__":{"polluted":1}}');
  expect(Reflect.get({}, "polluted")).toBeUndefined();
});

describe("store", () => {
  test("patch needs data, and what does not fit leaves the data as it was", () => {
    const store = new MmdsStore(20);
    expect(store.get()).toBeNull();
    expect(() => store.patch({ a: 1 })).toThrow("The MMDS data store is not initialized.");
    store.put({ a: "12345678901" });
    expect(JSON.stringify(store.get()).length).toBe(19);
    for (const change of [() => store.patch({ b: 1 }), () => store.put("x".repeat(19))]) {
      expect(change).toThrow("The MMDS patch request doesn't fit.");
    }
    expect(store.get()).toEqual({ a: "12345678901" });
    store.patch({ a: null, b: 1 });
    expect(store.get()).toEqual({ b: 1 });
    expect(() => store.put("ä".repeat(10))).toThrow("doesn't fit");
  });
});
