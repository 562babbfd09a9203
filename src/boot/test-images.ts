/** Hand-made kernel images and guest memory for the tests of this folder. */

import { GuestMemory } from "../memory/guest-memory.ts";

export const MIB = 1024 * 1024;
const GUARD = 0xa5;
const GUARD_SIZE = 4096;

/** Guest RAM with guard bytes before and after it in the same buffer. */
export function guardedMemory(size: number): { memory: GuestMemory; intact: () => boolean } {
  const buffer = new SharedArrayBuffer(size + 2 * GUARD_SIZE);
  const bytes = new Uint8Array(buffer);
  bytes.fill(GUARD, 0, GUARD_SIZE);
  bytes.fill(GUARD, GUARD_SIZE + size);
  const isGuard = (b: number) => b === GUARD;
  return {
    memory: new GuestMemory({ buffer, base: GUARD_SIZE, size }),
    intact: () =>
      bytes.subarray(0, GUARD_SIZE).every(isGuard) && bytes.subarray(GUARD_SIZE + size).every(isGuard),
  };
}

export interface TestSegment {
  readonly type?: number;
  readonly gpa?: number;
  readonly memSize?: number;
  readonly align?: number;
  readonly data: Uint8Array;
}

/** An ELF file: header, program headers, then each segment's data. */
export function makeElf(entry: number, segments: readonly TestSegment[]): Uint8Array {
  const tableEnd = 64 + segments.length * 56;
  const bytes = new Uint8Array(segments.reduce((sum, s) => sum + s.data.length, tableEnd));
  const view = new DataView(bytes.buffer);
  bytes.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  view.setUint16(16, 2, true);
  view.setUint16(18, 62, true);
  view.setUint32(20, 1, true);
  view.setBigUint64(24, BigInt(entry), true);
  view.setBigUint64(32, 64n, true);
  view.setUint16(52, 64, true);
  view.setUint16(54, 56, true);
  view.setUint16(56, segments.length, true);
  let offset = tableEnd;
  segments.forEach((s, i) => {
    const at = 64 + i * 56;
    view.setUint32(at, s.type ?? 1, true);
    view.setBigUint64(at + 8, BigInt(offset), true);
    view.setBigUint64(at + 24, BigInt(s.gpa ?? 0), true);
    view.setBigUint64(at + 32, BigInt(s.data.length), true);
    view.setBigUint64(at + 40, BigInt(s.memSize ?? s.data.length), true);
    view.setBigUint64(at + 48, BigInt(s.align ?? 4), true);
    bytes.set(s.data, offset);
    offset += s.data.length;
  });
  return bytes;
}

/** One ELF note, padded to `padding` bytes. `desc` is its descriptor. */
export function makeNote(name: string, type: number, desc: Uint8Array, padding = 4): Uint8Array {
  const pad = (n: number) => Math.ceil(n / padding) * padding;
  const descAt = pad(12 + name.length);
  const bytes = new Uint8Array(pad(descAt + desc.length));
  const view = new DataView(bytes.buffer);
  view.setUint32(0, name.length, true);
  view.setUint32(4, desc.length, true);
  view.setUint32(8, type, true);
  bytes.set(new TextEncoder().encode(name), 12);
  bytes.set(desc, descAt);
  return bytes;
}

/** A 64-bit little-endian number. */
export function u64(value: number): Uint8Array {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(value), true);
  return bytes;
}

/** A PT_NOTE segment with an unrelated note and then the PVH entry. */
export function pvhNote(entry: number): TestSegment {
  const notes = [makeNote("GNU\0", 3, new Uint8Array(20)), makeNote("Xen\0", 18, u64(entry))];
  return { type: 4, data: Uint8Array.from(notes.flatMap((n) => [...n])) };
}

export interface BzImageFields {
  setupSects?: number;
  payload?: Uint8Array;
  version?: number;
  xloadflags?: number;
  relocatable?: number;
  prefAddress?: number;
  initSize?: number;
  initrdAddrMax?: number;
  cmdlineSize?: number;
}

/** A bzImage with a valid setup header, as Linux 6.1 has it, around `payload`. */
export function makeBzImage(fields: BzImageFields = {}): Uint8Array {
  const setupSects = fields.setupSects ?? 3;
  const payload = fields.payload ?? filled(0x1000, 7);
  const setupSize = ((setupSects || 4) + 1) * 512;
  const bytes = new Uint8Array(setupSize + payload.length);
  const view = new DataView(bytes.buffer);
  view.setUint8(0x1f1, setupSects);
  view.setUint32(0x1f4, payload.length / 16, true);
  view.setUint16(0x1fa, 0xffff, true);
  view.setUint16(0x1fe, 0xaa55, true);
  bytes.set([0xeb, 0x6a, 0x48, 0x64, 0x72, 0x53], 0x200);
  view.setUint16(0x206, fields.version ?? 0x020f, true);
  view.setUint8(0x211, 1);
  view.setUint32(0x214, 0x10_0000, true);
  view.setUint32(0x22c, fields.initrdAddrMax ?? 0x7fff_ffff, true);
  view.setUint32(0x230, 0x20_0000, true);
  view.setUint8(0x234, fields.relocatable ?? 1);
  view.setUint16(0x236, fields.xloadflags ?? 0x3f, true);
  view.setUint32(0x238, fields.cmdlineSize ?? 2047, true);
  view.setBigUint64(0x258, BigInt(fields.prefAddress ?? 0x100_0000), true);
  view.setUint32(0x260, fields.initSize ?? 0x10_0000, true);
  bytes.set(payload, setupSize);
  return bytes;
}

/** `length` bytes that differ from their neighbours. */
export function filled(length: number, seed: number): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => (i * 31 + seed) & 0xff);
}

/** A small seeded generator of 32-bit numbers (xorshift). */
export function random(seed: number): () => number {
  let x = seed >>> 0;
  return () => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    x >>>= 0;
    return x;
  };
}
