/**
 * Random programs on the processor of this host. The oracle's cases take 32 bytes of code, so a case is a loader:
 * it copies the program out of the data page into the code page and jumps to it.
 */
import type { CaseBatch, ResultBatch } from "../oracle/batch.ts";
import { littleEndian } from "../oracle/encoder.ts";
import {
  CODE_PAGE,
  DATA_CROSS,
  END_EXCEPTION,
  FX_XMM,
  PAGE_SIZE,
  RCX,
  RDI,
  RFLAGS_AF,
  RFLAGS_DF,
  RFLAGS_STATUS,
  RSI,
} from "../oracle/layout.ts";
import type { Assembled } from "./assembler.ts";
import { differences, type Snapshot } from "./machine.ts";
import { IMAGE_BYTES, IMAGE_OFFSET } from "./memory-map.ts";
import { mov32 } from "./straight.ts";

/** Where programs lie: behind their loader. */
export const NATIVE_BASE = CODE_PAGE + 0x40;
/** AF is undefined after logic. */
const COMPARED_FLAGS = (RFLAGS_STATUS & ~RFLAGS_AF) | RFLAGS_DF;
const TRAP_PF = 14;
const PF_PRESENT = 1;
/** End of the software guest's RAM (see soft/guest.ts). */
const HARNESS_END = 4n << 20n;
/** FOP, FIP and FDP, and MXCSR with its mask, in an FXSAVE image (SDM vol. 1, table 10-2). */
const NOT_X87 = { from: 6, to: 32 };
const ST_BYTES = 10;

/** Puts a program and its loader into case `i`, whose window is the whole data page. False if it is too long. */
export function setProgram(cases: CaseBatch, i: number, code: Assembled): boolean {
  const { length } = code.bytes;
  if (length > IMAGE_BYTES) return false;
  const half = cases.windowBytes / 2;
  cases.window(i).set(code.bytes, IMAGE_OFFSET - half);
  const loader = [
    ...mov32(RSI, DATA_CROSS + IMAGE_OFFSET),
    ...mov32(RDI, NATIVE_BASE),
    ...mov32(RCX, length),
    ...[0xf3, 0xa4], // rep movsb
    0xe9, // jmp
  ];
  const next = CODE_PAGE + loader.length + 4;
  cases.setCode(i, [...loader, ...littleEndian(NATIVE_BASE - next, 4)], { offset: 0, trapEnd: true });
  return true;
}

/** What the processor made of case `i`; undefined if it did not end with an exception. */
function snapshot(results: ResultBatch, i: number): Snapshot | undefined {
  if (results.end(i) !== END_EXCEPTION) return undefined;
  const fx = results.fx(i);
  const half = results.windowBytes / 2;
  const window = results.window(i);
  const data = new Uint8Array(PAGE_SIZE);
  data.set(window.subarray(half), 0);
  data.set(window.subarray(0, half), half);
  return {
    trap: {
      vector: results.trap(i),
      error: results.errorCode(i),
      rip: Number(results.rip(i)),
      rflags: results.rflags(i),
      cr2: results.cr2(i),
      ...{ cs: 0, rsp: 0, ss: 0, frame: 0, handlerRflags: 0, cpl: 3, handlerSs: 0 },
    },
    gprs: Array.from({ length: 16 }, (_, r) => results.gpr(i, r)),
    mxcsr: results.mxcsr(i),
    xmm: fx.slice(FX_XMM, FX_XMM + 256),
    x87: fx.slice(0, FX_XMM),
    data,
  };
}

function comparable(s: Snapshot): Snapshot {
  const { trap } = s;
  const x87 = s.x87.slice();
  x87.fill(0, NOT_X87.from, NOT_X87.to);
  for (let st = 0; st < 8; st++) x87.fill(0, 32 + 16 * st + ST_BYTES, 48 + 16 * st);
  // Linux reports every page fault above user space as one of a present page, and the harness of the software
  // CPU maps its RAM for the supervisor.
  const elsewhere = trap.cr2 >= 1n << 47n || trap.cr2 < HARNESS_END;
  const hidden = trap.vector === TRAP_PF && elsewhere ? PF_PRESENT : 0;
  return { ...s, x87, trap: { ...trap, error: Math.max(0, trap.error) | hidden } };
}

/** Differences between the host's end of case `i` and a software CPU's; empty if there are none. */
export function nativeDifferences(results: ResultBatch, i: number, soft: readonly Snapshot[]): string[] {
  const host = snapshot(results, i);
  const first = soft[0];
  if (!host || !first) return [`the host: ${results.describe(i)}, ${soft.length} exceptions here`];
  return differences(comparable(host), comparable(first), COMPARED_FLAGS);
}
