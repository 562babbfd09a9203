import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gunzipSync, gzipSync } from "node:zlib";
import { CaseBatch, ResultBatch } from "./batch.ts";
import { RAX } from "./layout.ts";
import { Random } from "./random.ts";
import { loadVectors, saveVectors } from "./vectors.ts";

const directory = mkdtempSync(join(tmpdir(), "vectors-"));
const path = join(directory, "cases.gz");
afterAll(() => rmSync(directory, { recursive: true }));

/** Random cases, and results that differ from them in RAX and the header only. */
function batches(withFpu: boolean): { cases: CaseBatch; results: ResultBatch } {
  const random = new Random(1);
  const cases = new CaseBatch(500, { withFpu, windowBytes: 128 });
  for (let i = 0; i < cases.count; i++) {
    cases.setCode(i, [0x48, 0xff, 0xc0]);
    random.fillGprs(cases, i);
    random.fillWindow(cases, i);
    if (withFpu) random.fillSse(cases, i, true);
  }
  const results = new ResultBatch(cases.count, cases);
  results.bytes.set(cases.bytes);
  for (let i = 0; i < cases.count; i++) {
    results.bytes.fill(0, results.at(i), results.at(i) + 56);
    results.setGpr64(i, RAX, cases.gpr(i, RAX) + 1n);
  }
  return { cases, results };
}

test("what is saved is loaded again", () => {
  for (const withFpu of [false, true]) {
    const { cases, results } = batches(withFpu);
    saveVectors(path, cases, results);
    const loaded = loadVectors(path);
    expect([loaded.cases.count, loaded.cases.withFpu, loaded.cases.windowBytes]).toEqual([500, withFpu, 128]);
    expect(loaded.cases.bytes).toEqual(cases.bytes);
    expect(loaded.results.bytes).toEqual(results.bytes);
  }
});

test("results cost next to nothing beside their cases", () => {
  const { cases, results } = batches(true);
  saveVectors(path, cases, results);
  expect(statSync(path).size).toBeLessThan(gzipSync(cases.bytes, { level: 9 }).length * 1.15);
});

test("foreign, old and cut files are refused by name", () => {
  const { cases, results } = batches(false);
  saveVectors(path, cases, results);
  const file = new Uint8Array(gunzipSync(readFileSync(path)));
  const rewrite = (bytes: Uint8Array): void => writeFileSync(path, gzipSync(bytes));
  rewrite(file.subarray(0, file.length - 4));
  expect(() => loadVectors(path)).toThrow(/cases\.gz has \d+ bytes/);
  const old = file.slice();
  old[4] = 9;
  rewrite(old);
  expect(() => loadVectors(path)).toThrow(/version 9/);
  rewrite(new Uint8Array(64));
  expect(() => loadVectors(path)).toThrow(/no test vectors/);
});

test("batches of different shape are refused", () => {
  expect(() => saveVectors(path, new CaseBatch(2), new ResultBatch(3))).toThrow(/shape/);
});
