import { describe, expect, test } from "bun:test";
import { hostIsX64, type OracleShape, Random, runOnHost } from "./host-oracle.ts";
import { VECTOR_MF, VECTOR_UD, X87, type X87Cpu } from "./x87.ts";
import { FDP, FIP, FOP } from "./x87-state.ts";

const cpu: X87Cpu = { flags: { get: () => 0, set: () => {} }, setAx: () => {} };
const newFpu = (fisttp = false): X87 => {
  const fpu = new X87(new DataView(new ArrayBuffer(160)), cpu, { fisttp });
  fpu.reset();
  return fpu;
};
const scratch = (): DataView => new DataView(new ArrayBuffer(512));
const run = (fpu: X87, op: number, modrm: number, operand = scratch()): number =>
  fpu.execute(op, modrm, operand, 0x1122_3344_5566n, 0x99n, false);

const FLD1 = 0xe8;
const FLDZ = 0xee;

describe("x87 state", () => {
  test("physical order in the area, stack order in FXSAVE", () => {
    const fpu = newFpu();
    run(fpu, 0xd9, FLD1);
    run(fpu, 0xd9, FLDZ);
    expect(fpu.top).toBe(6);
    expect(fpu.view.getUint16(32 + 16 * 7 + 8, true)).toBe(0x3fff);
    const image = scratch();
    fpu.fxsave(image);
    expect(image.getUint16(32 + 8, true)).toBe(0);
    expect(image.getUint16(48 + 8, true)).toBe(0x3fff);
    expect(image.getUint8(4)).toBe(0xc0);
    const copy = newFpu();
    copy.fxrstor(image);
    expect(new Uint8Array(copy.view.buffer)).toEqual(new Uint8Array(fpu.view.buffer));
    expect(fpu.fullTags()).toBe(0x1fff);
  });

  test("a pending unmasked exception stops waiting instructions only", () => {
    const fpu = newFpu();
    const control = scratch();
    control.setUint16(0, 0x37f & ~4, true); // ZE unmasked
    run(fpu, 0xd9, 0x28, control);
    run(fpu, 0xd9, FLDZ);
    run(fpu, 0xd9, FLD1);
    expect(fpu.wait()).toBe(0);
    expect(run(fpu, 0xd8, 0xf1)).toBe(0); // fdiv st0,st1: the fault shows later
    expect(fpu.wait()).toBe(VECTOR_MF);
    const before = new Uint8Array(fpu.view.buffer.slice(0));
    expect(run(fpu, 0xd9, FLD1)).toBe(VECTOR_MF);
    expect(new Uint8Array(fpu.view.buffer)).toEqual(before);
    const status = scratch();
    expect(run(fpu, 0xdd, 0x3f, status)).toBe(0); // fnstsw
    expect(status.getUint16(0, true) & 0x80ff).toBe(0x8084);
    expect(run(fpu, 0xdb, 0xe2)).toBe(0); // fnclex
    expect(fpu.wait()).toBe(0);
  });

  test("FOP, FIP and FDP follow instructions that are not control instructions", () => {
    const fpu = newFpu();
    run(fpu, 0xdd, 0x07);
    expect(fpu.view.getUint16(FOP, true)).toBe(0x507);
    expect(fpu.view.getBigUint64(FIP, true)).toBe(0x1122_3344_5566n);
    expect(fpu.view.getBigUint64(FDP, true)).toBe(0x99n);
    const environment = scratch();
    run(fpu, 0xd9, 0x37, environment);
    expect(environment.getUint32(12, true)).toBe(0x3344_5566);
    expect(environment.getUint16(18, true)).toBe(0x507);
    expect(environment.getUint32(20, true)).toBe(0x99);
    expect(fpu.view.getUint16(FOP, true)).toBe(0x507);
    fpu.reset();
    fpu.loadEnvironment(environment, false);
    expect(fpu.view.getBigUint64(FIP, true)).toBe(0x3344_5566n);
    expect(fpu.view.getUint16(FOP, true)).toBe(0x507);
  });

  test("FISTTP exists only with SSE3", () => {
    expect(run(newFpu(), 0xdb, 0x0f)).toBe(VECTOR_UD);
    const fpu = newFpu(true);
    run(fpu, 0xd9, FLD1);
    const out = scratch();
    expect(run(fpu, 0xdb, 0x0f, out)).toBe(0);
    expect(out.getInt32(0, true)).toBe(1);
    expect(fpu.ftw).toBe(0);
  });

  test("an unmasked invalid store leaves memory and stack alone", () => {
    const fpu = newFpu();
    fpu.setFcw(0x37e);
    const out = scratch();
    run(fpu, 0xd9, 0x1f, out); // fstp m32 of an empty stack
    expect(fpu.stored).toBe(false);
    expect(fpu.top).toBe(0);
    expect(fpu.wait()).toBe(VECTOR_MF);
  });
});

/** Input: FNSAVE image, or FXSAVE image, with the stub at 464. */
const IN_SIZE = 512;
const STUB = 464;
const MXCSR = 24;

function hostState(before: number[], after: number[]): OracleShape {
  return { inSize: IN_SIZE, outSize: IN_SIZE, stubOffset: STUB, before, after };
}

const FRSTOR = [0xdd, 0x23];
const FNSAVE = [0xdd, 0x75, 0];
const FXSAVE64 = [0x48, 0x0f, 0xae, 0x45, 0];
const FXRSTOR64 = [0x48, 0x0f, 0xae, 0x0b];
const COUNT = 3000;

/** Records whose FSW has nothing pending, so that no stub faults. */
function randomImages(seed: number): DataView {
  const random = new Random(seed);
  const view = new DataView(new ArrayBuffer(IN_SIZE * COUNT));
  for (let at = 0; at < view.byteLength; at += IN_SIZE) {
    for (let i = 0; i < STUB; i += 8) view.setBigUint64(at + i, random.pattern(64), true);
    for (let i = 8; i < 12; i++) view.setUint8(at + i, random.u32() & 0xff);
    view.setUint32(at + MXCSR, 0x1f80, true);
    view.setUint8(at + 4, random.u32() & 0xff);
    view.setUint16(at, random.u32() | 0x3f, true);
  }
  return view;
}

describe.skipIf(!hostIsX64)("x87 images against the host (skipped: host is not x86-64 Linux)", () => {
  const bytesAt = (view: DataView, at: number, from: number, to: number): string =>
    Buffer.from(view.buffer as ArrayBuffer, view.byteOffset + at + from, to - from).toString("hex");

  test("FXSAVE", () => {
    const input = randomImages(5);
    // FSW lies at 4 in this image.
    for (let at = 0; at < input.byteLength; at += IN_SIZE) input.setUint8(at + 5, at >>> 9);
    const host = runOnHost(hostState(FRSTOR, FXSAVE64), [[]], new Uint8Array(input.buffer), COUNT);
    for (let at = 0; at < input.byteLength; at += IN_SIZE) {
      const fpu = newFpu();
      fpu.restore(new DataView(input.buffer, at, 108), false);
      const image = scratch();
      fpu.fxsave(image);
      expect(bytesAt(image, 0, 0, 6)).toBe(bytesAt(host, at, 0, 6));
      expect(bytesAt(image, 0, 32, 160)).toBe(bytesAt(host, at, 32, 160));
    }
  });

  test("FXRSTOR", () => {
    const input = randomImages(6);
    const host = runOnHost(hostState(FXRSTOR64, FNSAVE), [[]], new Uint8Array(input.buffer), COUNT);
    for (let at = 0; at < input.byteLength; at += IN_SIZE) {
      const fpu = newFpu();
      fpu.fxrstor(new DataView(input.buffer, at, IN_SIZE));
      const image = scratch();
      fpu.save(image, false);
      expect(bytesAt(image, 0, 0, 12)).toBe(bytesAt(host, at, 0, 12));
      expect(bytesAt(image, 0, 28, 108)).toBe(bytesAt(host, at, 28, 108));
    }
  });

  test("MMX write and EMMS", () => {
    const input = randomImages(7);
    const stubs = [
      [0x0f, 0x6f, 0x5b, 112],
      [0x0f, 0x77],
    ]; // movq mm3,[rbx+112]; emms
    for (let i = 0; i < COUNT; i++) input.setBigUint64(i * IN_SIZE + STUB, BigInt(i & 1), true);
    const host = runOnHost(hostState(FRSTOR, FNSAVE), stubs, new Uint8Array(input.buffer), COUNT);
    for (let i = 0; i < COUNT; i++) {
      const at = i * IN_SIZE;
      const fpu = newFpu();
      fpu.restore(new DataView(input.buffer, at, 108), false);
      if (i & 1) fpu.emms();
      else {
        fpu.mmxEnter();
        fpu.writeMmx(3, input.getBigUint64(at + 112, true));
        expect(fpu.readMmx(3)).toBe(input.getBigUint64(at + 112, true));
      }
      const image = scratch();
      fpu.save(image, false);
      expect(bytesAt(image, 0, 0, 12)).toBe(bytesAt(host, at, 0, 12));
      expect(bytesAt(image, 0, 28, 108)).toBe(bytesAt(host, at, 28, 108));
    }
  });
});
