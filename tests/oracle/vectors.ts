/**
 * Stored test vectors: cases with the results of a real processor, for hosts that have none to ask. The file
 * is a gzip stream of a header, the case records, and the result records XORed with their cases from
 * RFLAGS on: what an instruction left alone becomes zeros, which compress to nothing.
 */

import { readFileSync, writeFileSync } from "node:fs";
import { gunzipSync, gzipSync } from "node:zlib";
import { CaseBatch, type RecordBatch, ResultBatch } from "./batch.ts";
import { RECORD_RFLAGS } from "./layout.ts";

const MAGIC = 0x56435053; // "SPCV"
const VERSION = 1;
const HEADER_BYTES = 20;

export interface Vectors {
  cases: CaseBatch;
  results: ResultBatch;
}

/** Writes both batches to `path`. Throws if they do not belong together. */
export function saveVectors(path: string, cases: CaseBatch, results: ResultBatch): void {
  if (cases.count !== results.count || cases.stride !== results.stride || cases.withFpu !== results.withFpu) {
    throw new Error("cases and results differ in shape: pass the results of running these cases");
  }
  const size = cases.bytes.length;
  const out = new Uint8Array(HEADER_BYTES + 2 * size);
  const header = new DataView(out.buffer);
  [MAGIC, VERSION, cases.count, cases.windowBytes, cases.withFpu ? 1 : 0].forEach((value, i) => {
    header.setUint32(4 * i, value, true);
  });
  out.set(cases.bytes, HEADER_BYTES);
  const delta = out.subarray(HEADER_BYTES + size);
  delta.set(results.bytes);
  xorShared(delta, cases);
  writeFileSync(path, gzipSync(out, { level: 9 }));
}

/** Reads what {@link saveVectors} wrote. Throws, naming the file, if it is something else or cut short. */
export function loadVectors(path: string): Vectors {
  const file = gunzipSync(readFileSync(path));
  const header = new DataView(file.buffer, file.byteOffset, file.byteLength);
  if (file.length < HEADER_BYTES || header.getUint32(0, true) !== MAGIC) {
    throw new Error(`${path} holds no test vectors: write it with saveVectors`);
  }
  const version = header.getUint32(4, true);
  if (version !== VERSION) throw new Error(`${path} has version ${version}, not ${VERSION}: record it again`);
  const count = header.getUint32(8, true);
  const options = { windowBytes: header.getUint32(12, true), withFpu: header.getUint32(16, true) === 1 };
  const cases = new CaseBatch(count, options);
  const results = new ResultBatch(count, options);
  const size = cases.bytes.length;
  if (file.length !== HEADER_BYTES + 2 * size) {
    throw new Error(`${path} has ${file.length} bytes, not ${HEADER_BYTES + 2 * size}: record it again`);
  }
  cases.bytes.set(file.subarray(HEADER_BYTES, HEADER_BYTES + size));
  results.bytes.set(file.subarray(HEADER_BYTES + size));
  xorShared(results.bytes, cases);
  return { cases, results };
}

/** XORs the part of each record that cases and results share with that of `cases`. */
function xorShared(records: Uint8Array, cases: RecordBatch): void {
  const words = cases.u32;
  const target = new Uint32Array(records.slice().buffer);
  const perRecord = cases.stride >>> 2;
  for (let start = 0; start < words.length; start += perRecord) {
    for (let at = RECORD_RFLAGS >>> 2; at < perRecord; at++) {
      target[start + at] = target[start + at]! ^ words[start + at]!;
    }
  }
  records.set(new Uint8Array(target.buffer));
}
