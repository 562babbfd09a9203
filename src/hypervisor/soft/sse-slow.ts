/**
 * The floating-point instructions of SSE and SSE2 in full: every operand class, rounding mode and exception.
 * Handlers come here for what their inline code does not cover; see table/sse-float.ts.
 */
import {
  SSE_ADD,
  SSE_DIV,
  SSE_MAX,
  SSE_MIN,
  SSE_MUL,
  SSE_SQRT,
  SSE_SUB,
  type SseFormat,
  type SseResult,
  sseArith,
  sseCmp,
  sseComis,
  sseConvert,
  sseFromInt,
  sseToInt,
} from "./float/sse.ts";
import { MXCSR, SCRATCH } from "./layout.ts";

/** Where a handler puts the destination operand, the source operand and the operation, and finds the result. */
export const SLOW_DESTINATION = SCRATCH;
export const SLOW_SOURCE = SCRATCH + 16;
export const SLOW_RESULT = SCRATCH + 32;
export const SLOW_OPERATION = SCRATCH + 48;

/** Operations: bits 0 to 7 of the operation word. */
export const SLOW = {
  add: SSE_ADD,
  sub: SSE_SUB,
  mul: SSE_MUL,
  div: SSE_DIV,
  min: SSE_MIN,
  max: SSE_MAX,
  sqrt: SSE_SQRT,
  /** CMPxx: the predicate is in bits 24 to 26 of the operation word. */
  cmp: 16,
  /** The result is an i32 with ZF, PF and CF at their RFLAGS positions. */
  comis: 17,
  ucomis: 18,
  /** To the other floating-point format; the operation word has the source's. */
  convert: 19,
  /** From a signed integer to the format of the operation word. */
  fromInt32: 20,
  fromInt64: 21,
  /** To a signed integer, rounded by MXCSR.RC or truncated. */
  toInt32: 22,
  toInt64: 23,
  truncateToInt32: 24,
  truncateToInt64: 25,
} as const;

const LANES_SHIFT = 8;
const DOUBLE = 1 << 16;
export const SLOW_PREDICATE_SHIFT = 24;

/** Operation word of `operation` on `lanes` (1, 2 or 4) elements of `width` bits. */
export const slowOperation = (operation: number, width: SseFormat, lanes: number): number =>
  operation | (lanes << LANES_SHIFT) | (width === 64 ? DOUBLE : 0);

const EXCEPTIONS = 0x3f;
const MASK_SHIFT = 7;
/** Exceptions found before the operation: IE, DE, ZE. */
const PRE_COMPUTATION = 0x07;
/** Carries out the operation a handler has left in the scratch area. */
export class SseSlow {
  private readonly view: DataView;
  private mxcsr = 0;
  private predicate = 0;

  constructor(memory: WebAssembly.Memory) {
    this.view = new DataView(memory.buffer, 0, SCRATCH + 64);
  }

  /**
   * Writes the result slot (elements the operation does not have become 0) and raises MXCSR flags. Returns
   * 0, or -1 if an unmasked exception must be raised as #XM; then the result slot means nothing.
   */
  run(): number {
    const { view } = this;
    const word = view.getUint32(SLOW_OPERATION, true);
    const operation = word & 0xff;
    const lanes = (word >>> LANES_SHIFT) & 0xff;
    const format: SseFormat = word & DOUBLE ? 64 : 32;
    this.mxcsr = view.getUint32(MXCSR, true);
    this.predicate = (word >>> SLOW_PREDICATE_SHIFT) & 7;
    const from = sourceBytes(operation, format);
    const to = resultBytes(operation, format);
    view.setBigUint64(SLOW_RESULT, 0n, true);
    view.setBigUint64(SLOW_RESULT + 8, 0n, true);
    let flags = 0;
    for (let lane = 0; lane < lanes; lane++) {
      const a = this.read(SLOW_DESTINATION + lane * from, from);
      const b = this.read(SLOW_SOURCE + lane * from, from);
      const result = this.element(operation, format, a, b);
      flags |= result.flags;
      if (to === 8) view.setBigUint64(SLOW_RESULT + lane * 8, result.bits, true);
      else view.setUint32(SLOW_RESULT + lane * 4, Number(result.bits), true);
    }
    const unmasked = ~(this.mxcsr >>> MASK_SHIFT) & EXCEPTIONS;
    // An element that stops before its operation keeps the others from reporting what theirs gave.
    if (flags & unmasked & PRE_COMPUTATION) flags &= PRE_COMPUTATION;
    view.setUint32(MXCSR, this.mxcsr | flags, true);
    return flags & unmasked ? -1 : 0;
  }

  private read(at: number, bytes: 4 | 8): bigint {
    return bytes === 8 ? this.view.getBigUint64(at, true) : BigInt(this.view.getUint32(at, true));
  }

  private element(operation: number, format: SseFormat, a: bigint, b: bigint): SseResult {
    const { mxcsr } = this;
    switch (operation) {
      case SLOW.cmp:
        return sseCmp(this.predicate, format, a, b, mxcsr);
      case SLOW.comis:
      case SLOW.ucomis:
        return sseComis(operation === SLOW.comis, format, a, b, mxcsr);
      case SLOW.convert:
        return sseConvert(format, b, mxcsr);
      case SLOW.fromInt32:
        return sseFromInt(format, b, 32, mxcsr);
      case SLOW.fromInt64:
        return sseFromInt(format, b, 64, mxcsr);
      case SLOW.toInt32:
        return sseToInt(format, b, 32, false, mxcsr);
      case SLOW.toInt64:
        return sseToInt(format, b, 64, false, mxcsr);
      case SLOW.truncateToInt32:
        return sseToInt(format, b, 32, true, mxcsr);
      case SLOW.truncateToInt64:
        return sseToInt(format, b, 64, true, mxcsr);
      default:
        return sseArith(operation, format, a, b, mxcsr);
    }
  }
}

function sourceBytes(operation: number, format: SseFormat): 4 | 8 {
  if (operation === SLOW.fromInt32) return 4;
  return operation === SLOW.fromInt64 || format === 64 ? 8 : 4;
}

function resultBytes(operation: number, format: SseFormat): 4 | 8 {
  switch (operation) {
    case SLOW.comis:
    case SLOW.ucomis:
    case SLOW.toInt32:
    case SLOW.truncateToInt32:
      return 4;
    case SLOW.toInt64:
    case SLOW.truncateToInt64:
      return 8;
    case SLOW.convert:
      return format === 64 ? 4 : 8;
    default:
      return format === 64 ? 8 : 4;
  }
}
