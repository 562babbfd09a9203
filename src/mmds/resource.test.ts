import { expect, test } from "bun:test";
import { resource } from "./resource.ts";

const data = {
  name: { second: "Doe", first: "John" },
  age: 43,
  phones: ["+401234567", { home: "x" }],
  member: false,
  none: null,
  "a/b": { "m~n": "escaped" },
  text: "two\nlines é",
};

test.each([
  ["/", "age\na/b/\nmember\nname/\nnone\nphones\ntext".split("\n").sort().join("\n")],
  ["/name", "first\nsecond"],
  ["/name/", "first\nsecond"],
  ["//name///first/", "John"],
  ["/phones/0", "+401234567"],
  ["/phones/1", "home"],
  ["/a~1b/m~0n", "escaped"],
  ["/text", "two\nlines é"],
])("%s as lines", (path, text) => {
  expect(resource(data, path, "imds")).toEqual({ kind: "found", text });
});

test.each([
  ["/name", '{"first":"John","second":"Doe"}'],
  ["/age", "43"],
  ["/phones/", '["+401234567",{"home":"x"}]'],
  ["/member", "false"],
  ["/none", "null"],
  ["/text", '"two\\nlines é"'],
])("%s as JSON", (path, text) => {
  expect(resource(data, path, "json")).toEqual({ kind: "found", text });
});

test("numbers, lists, truth values and null are not shown as lines", () => {
  for (const path of ["/age", "/phones", "/member", "/none"]) {
    expect(resource(data, path, "imds")).toEqual({ kind: "unsupported" });
  }
  expect(resource(null, "/", "imds")).toEqual({ kind: "unsupported" });
  expect(resource(null, "/", "json")).toEqual({ kind: "found", text: "null" });
});

test("what is not there is not found, and nothing that JavaScript adds is there", () => {
  for (const path of [
    ...["/x", "/name/third", "/age/0", "/text/0", "/text/length", "/phones/2", "/phones/00", "/phones/-"],
    ...["/phones/length", "/__proto__", "/constructor", "/name/toString", "/none/x", "/phones/1e0"],
  ]) {
    for (const format of ["json", "imds"] as const) {
      expect(resource(data, path, format)).toEqual({ kind: "not-found" });
    }
  }
  expect(resource(JSON.parse('{"__proto__": {"x": "y"}}'), "/__proto__", "json")).toEqual({
    kind: "found",
    text: '{"x":"y"}',
  });
});
