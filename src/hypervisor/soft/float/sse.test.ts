import { describe, expect, test } from "bun:test";
import { hostIsX64, type OracleShape, Random, runOnHost } from "./host-oracle.ts";
import type { SseFormat, SseResult } from "./sse.ts";
import * as sse from "./sse.ts";

/** Input: a, b, MXCSR, stub. Output: xmm0, MXCSR, signal, RFLAGS, RAX. */
const SHAPE: OracleShape = {
  inSize: 32,
  outSize: 32,
  stubOffset: 24,
  before: [
    ...[0x0f, 0xae, 0x53, 16], // ldmxcsr [rbx+16]
    ...[0xf3, 0x0f, 0x7e, 0x03], // movq xmm0,[rbx]
    ...[0xf3, 0x0f, 0x7e, 0x4b, 8], // movq xmm1,[rbx+8]
    ...[0x48, 0x8b, 0x43, 8], // mov rax,[rbx+8]
  ],
  after: [
    ...[0x9c, 0x8f, 0x45, 16], // pushfq; pop [rbp+16]
    ...[0x66, 0x0f, 0xd6, 0x45, 0], // movq [rbp],xmm0
    ...[0x0f, 0xae, 0x5d, 8], // stmxcsr [rbp+8]
    ...[0x44, 0x89, 0x7d, 12], // mov [rbp+12],r15d
    ...[0x48, 0x89, 0x45, 24], // mov [rbp+24],rax
  ],
};

interface Case {
  name: string;
  stub: number[];
  from: SseFormat | 0;
  /** Where the host leaves the result: xmm0 (with its width), rax, or RFLAGS. */
  result: 32 | 64 | "rax" | "flags";
  run(a: bigint, b: bigint, mxcsr: number): SseResult;
}

function cases(): Case[] {
  const list: Case[] = [];
  const arith: [string, number, number][] = [
    ["add", 0x58, sse.SSE_ADD],
    ["sub", 0x5c, sse.SSE_SUB],
    ["mul", 0x59, sse.SSE_MUL],
    ["div", 0x5e, sse.SSE_DIV],
    ["min", 0x5d, sse.SSE_MIN],
    ["max", 0x5f, sse.SSE_MAX],
    ["sqrt", 0x51, sse.SSE_SQRT],
  ];
  for (const fmt of [32, 64] as const) {
    const prefix = fmt === 32 ? 0xf3 : 0xf2;
    for (const [name, opcode, op] of arith) {
      list.push({
        name: `${name}${fmt}`,
        stub: [prefix, 0x0f, opcode, 0xc1],
        from: fmt,
        result: fmt,
        run: (a, b, mxcsr) => sse.sseArith(op, fmt, a, b, mxcsr),
      });
    }
    for (let predicate = 0; predicate < 8; predicate++) {
      list.push({
        name: `cmp${predicate}_${fmt}`,
        stub: [prefix, 0x0f, 0xc2, 0xc1, predicate],
        from: fmt,
        result: fmt,
        run: (a, b, mxcsr) => sse.sseCmp(predicate, fmt, a, b, mxcsr),
      });
    }
    for (const signalling of [false, true]) {
      const opcode = [0x0f, signalling ? 0x2f : 0x2e, 0xc1];
      list.push({
        name: `${signalling ? "" : "u"}comi${fmt}`,
        stub: fmt === 64 ? [0x66, ...opcode] : opcode,
        from: fmt,
        result: "flags",
        run: (a, b, mxcsr) => sse.sseComis(signalling, fmt, a, b, mxcsr),
      });
    }
    list.push({
      name: `convert from ${fmt}`,
      stub: [prefix, 0x0f, 0x5a, 0xc1],
      from: fmt,
      result: fmt === 32 ? 64 : 32,
      run: (_a, b, mxcsr) => sse.sseConvert(fmt, b, mxcsr),
    });
    for (const width of [32, 64] as const) {
      const rex = width === 64 ? [0x48] : [];
      list.push({
        name: `int${width} to ${fmt}`,
        stub: [prefix, ...rex, 0x0f, 0x2a, 0xc0],
        from: 0,
        result: fmt,
        run: (_a, b, mxcsr) => sse.sseFromInt(fmt, b, width, mxcsr),
      });
      for (const truncate of [false, true]) {
        list.push({
          name: `${fmt} to int${width}${truncate ? " truncated" : ""}`,
          stub: [prefix, ...rex, 0x0f, truncate ? 0x2c : 0x2d, 0xc1],
          from: fmt,
          result: "rax",
          run: (_a, b, mxcsr) => sse.sseToInt(fmt, b, width, truncate, mxcsr),
        });
      }
    }
  }
  return list;
}

/** An operand biased to the edges of the format. `near` keeps exponents close to it for cancellation. */
function operand(random: Random, fmt: SseFormat | 0, near: bigint): bigint {
  if (fmt === 0) return random.pattern(random.pick([8, 24, 31, 32, 53, 63, 64]));
  const fractionBits = fmt === 32 ? 23 : 52;
  const expBits = fmt === 32 ? 8 : 11;
  const expMax = (1 << expBits) - 1;
  const bias = expMax >> 1;
  let exp: number;
  switch (random.below(8)) {
    case 0:
      exp = random.below(3);
      break;
    case 1:
      exp = expMax - random.below(3);
      break;
    case 2:
      exp = bias + random.below(70) - 3;
      break;
    case 3:
      exp = random.below(expMax + 1);
      break;
    case 4:
      exp = (bias >> 1) + random.below(4);
      break;
    default:
      exp = Number((near >> BigInt(fractionBits)) & BigInt(expMax)) + random.below(5) - 2;
  }
  exp = Math.max(0, Math.min(expMax, exp));
  const sign = BigInt(random.below(2));
  return (((sign << BigInt(expBits)) | BigInt(exp)) << BigInt(fractionBits)) | random.pattern(fractionBits);
}

const FLAG_BITS = 0x45;

describe.skipIf(!hostIsX64)("SSE against the host CPU (skipped: host is not x86-64 Linux)", () => {
  const perCase = 10_000;
  for (const group of ["masked", "unmasked"]) {
    test(`${group} exceptions`, () => {
      const random = new Random(group === "masked" ? 7 : 11);
      const list = cases();
      const each = group === "masked" ? perCase : 2000;
      const count = list.length * each;
      const input = new Uint8Array(count * SHAPE.inSize);
      const view = new DataView(input.buffer);
      for (let i = 0; i < count; i++) {
        const index = i % list.length;
        const at = i * SHAPE.inSize;
        const a = operand(random, list[index].from, 0n);
        const b = operand(random, list[index].from, a);
        const masks = group === "masked" ? 0x3f : random.below(64);
        const mxcsr = (random.below(8) << 13) | (masks << 7) | (random.below(2) << 6);
        view.setBigUint64(at, a, true);
        view.setBigUint64(at + 8, b, true);
        view.setUint32(at + 16, mxcsr, true);
        view.setBigUint64(at + 24, BigInt(index), true);
      }
      const host = runOnHost(
        SHAPE,
        list.map((c) => c.stub),
        input,
        count,
      );
      const wrong: string[] = [];
      for (let i = 0; i < count; i++) {
        const c = list[i % list.length];
        const at = i * SHAPE.inSize;
        const a = view.getBigUint64(at, true);
        const b = view.getBigUint64(at + 8, true);
        const mxcsr = view.getUint32(at + 16, true);
        const got = c.run(a, b, mxcsr);
        const hostFlags = host.getUint32(at + 8, true) & 0x3f;
        const signal = host.getUint32(at + 12, true);
        const expectSignal = got.flags & ~(mxcsr >>> 7) & 0x3f ? 8 : 0;
        let want = host.getBigUint64(at, true);
        if (c.result === "rax") want = host.getBigUint64(at + 24, true);
        else if (c.result === "flags") want = BigInt(host.getUint32(at + 16, true) & FLAG_BITS);
        else want = BigInt.asUintN(c.result, want);
        if (got.flags !== hostFlags || signal !== expectSignal || (!signal && got.bits !== want)) {
          const hex = (v: bigint): string => v.toString(16);
          wrong.push(
            `${c.name} a=${hex(a)} b=${hex(b)} mxcsr=${mxcsr.toString(16)}: ${hex(got.bits)} flags ${got.flags}, host ${hex(want)} flags ${hostFlags} signal ${signal}`,
          );
        }
      }
      expect(wrong.slice(0, 10)).toEqual([]);
      expect(count).toBeGreaterThan(20_000);
    });
  }
});
