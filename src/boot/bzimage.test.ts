import { expect, test } from "bun:test";
import { bufferSource } from "./byte-source.ts";
import { loadBzImage } from "./bzimage.ts";
import { type BzImageFields, filled, guardedMemory, MIB, makeBzImage } from "./test-images.ts";

function load(file: Uint8Array, size = 32 * MIB) {
  const { memory } = guardedMemory(size);
  return { memory, kernel: loadBzImage(memory, bufferSource(file)) };
}

test("the protected-mode part goes to 1 MiB and is entered 0x200 into it", () => {
  const payload = filled(0x1000, 9);
  const { memory, kernel } = load(makeBzImage({ payload }));
  expect(memory.slice(0x10_0000, payload.length)).toEqual(payload);
  expect(kernel.entry).toBe(0x10_0200);
  expect(kernel.protocol).toBe("linux64");
  // It decompresses to pref_address and needs init_size bytes there.
  expect(kernel.end).toBe(0x110_0000);
});

test("a kernel that cannot be relocated goes to its preferred address", () => {
  const { memory, kernel } = load(makeBzImage({ relocatable: 0, prefAddress: 0x40_0000 }));
  expect(kernel.entry).toBe(0x40_0200);
  expect(kernel.end).toBe(0x50_0000);
  expect(memory.slice(0x40_0000, 0x1000)).toEqual(filled(0x1000, 7));
});

test("setup_sects 0 means 4", () => {
  const { memory } = load(makeBzImage({ setupSects: 0 }));
  expect(memory.slice(0x10_0000, 0x1000)).toEqual(filled(0x1000, 7));
});

test("bytes after the kernel, such as a signature, are left out", () => {
  const file = makeBzImage();
  const signed = new Uint8Array(file.length + 64).fill(0xee);
  signed.set(file);
  expect(load(signed).memory.readU8(0x10_1000)).toBe(0);
});

test("a file cut anywhere is refused, and says where", () => {
  const file = makeBzImage();
  const { memory } = guardedMemory(32 * MIB);
  for (let size = 0; size < file.length; size++) {
    expect(() => loadBzImage(memory, bufferSource(file.slice(0, size)))).toThrow(
      `the file is truncated at byte ${size} of`,
    );
  }
});

test("the initrd limit counts only for kernels that cannot be loaded above 4 GiB", () => {
  const limit = (xloadflags: number) => load(makeBzImage({ xloadflags })).kernel.setup?.header.initrdAddrMax;
  expect(limit(1)).toBe(0x7fff_ffff);
  expect(limit(3)).toBe(Number.POSITIVE_INFINITY);
});

test.each<[string, BzImageFields, string]>([
  ["an old protocol", { version: 0x020b }, "boot protocol 2.11, older than 2.12"],
  ["a 32-bit kernel", { xloadflags: 0 }, "no 64-bit entry point"],
  ["too little memory to decompress", { initSize: 17 * MIB }, "needs 33 MiB, the guest has 32 MiB"],
  ["a preferred address below 1 MiB", { relocatable: 0, prefAddress: 0x1000 }, "below 1 MiB"],
  ["a kernel without an entry point", { payload: filled(0x200, 1) }, "holds only 512 bytes"],
])("refuses %s and writes nothing", (_name, fields, message) => {
  const { memory } = guardedMemory(32 * MIB);
  let writes = 0;
  memory.setWriteHook(() => writes++);
  expect(() => loadBzImage(memory, bufferSource(makeBzImage(fields)))).toThrow(message);
  expect(writes).toBe(0);
});

test.each([
  ["boot_flag", 0x1fe, 0, "not a bzImage"],
  ["HdrS", 0x205, 0, "not a bzImage"],
  ["loadflags", 0x211, 0, "zImage"],
  ["jump", 0x201, 0x61, "before init_size"],
  ["kernel_alignment", 0x231, 1, "not a power of two"],
])("refuses a wrong %s", (_name, at, value, message) => {
  const file = makeBzImage();
  file[at] = value;
  expect(() => load(file)).toThrow(message);
});

test("the header that is kept never reaches past its place in boot_params", () => {
  const file = makeBzImage();
  file[0x201] = 0xff;
  expect(load(file).kernel.setup?.header.bytes.length).toBe(0x290 - 0x1f1);
});
