/** A kernel for tests whose CPU is scripted and never looks at it. */

/** A 64-bit ELF that does nothing: one segment of one byte at 1 MiB. */
export function tinyKernel(): Uint8Array {
  const elf = new Uint8Array(64 + 56 + 1);
  const view = new DataView(elf.buffer);
  elf.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  view.setUint16(16, 2, true); // ET_EXEC
  view.setUint16(18, 62, true); // EM_X86_64
  view.setUint32(20, 1, true);
  view.setBigUint64(24, 0x10_0000n, true); // entry
  view.setBigUint64(32, 64n, true); // program headers
  view.setUint16(52, 64, true);
  view.setUint16(54, 56, true);
  view.setUint16(56, 1, true);
  view.setUint32(64, 1, true); // PT_LOAD
  view.setUint32(68, 5, true);
  view.setBigUint64(72, 120n, true); // offset
  view.setBigUint64(80, 0x10_0000n, true);
  view.setBigUint64(88, 0x10_0000n, true);
  view.setBigUint64(96, 1n, true);
  view.setBigUint64(104, 1n, true);
  elf[120] = 0xf4;
  return elf;
}
