import { expect, test } from "bun:test";
import { BootError } from "./boot-error.ts";
import { bufferSource } from "./byte-source.ts";
import { type BootOptions, loadKernel } from "./load-kernel.ts";
import { filled, guardedMemory, MIB, makeBzImage, makeElf, pvhNote, random } from "./test-images.ts";

const DEVICES = [
  { gpa: 0xc000_1000, size: 0x1000, gsi: 5 },
  { gpa: 0xc000_2000, size: 0x1000, gsi: 6 },
];
const OPTIONS: BootOptions = { cmdline: "console=ttyS0", vcpus: 2, virtioDevices: DEVICES };
const TEXT = { gpa: 0x100_0000, data: filled(0x300, 1) };
const ELF = makeElf(0x100_0040, [TEXT]);
const PVH_ELF = makeElf(0x100_0040, [TEXT, pvhNote(0x100_0080)]);

function load(file: Uint8Array, options: Partial<BootOptions> = {}, size = 32 * MIB) {
  const { memory } = guardedMemory(size);
  const state = loadKernel(memory, bufferSource(file), { ...OPTIONS, ...options });
  return { memory, state };
}

test("a vmlinux by the Linux 64-bit protocol", () => {
  const { memory, state } = load(ELF, { initrd: bufferSource(filled(100, 4)) });
  expect(state.protocol).toBe("linux64");
  expect(state.registers.rip).toBe(0x100_0040n);
  expect(state.registers.rsi).toBe(0x7000n);
  expect(state.initrd).toEqual({ gpa: 32 * MIB - 4096, size: 100 });
  const page = memory.slice(0x7000, 0x1000);
  const view = new DataView(page.buffer, page.byteOffset, page.length);
  expect(view.getBigUint64(0x70, true)).toBe(0xe_0000n);
  expect(view.getUint16(0x1fe, true)).toBe(0xaa55);
  expect(view.getUint32(0x202, true)).toBe(0x5372_6448);
  expect(view.getUint8(0x210)).toBe(0xff);
  expect(view.getUint32(0x218, true)).toBe(32 * MIB - 4096);
  expect(view.getUint32(0x21c, true)).toBe(100);
  expect(view.getUint32(0x228, true)).toBe(0x2_0000);
  expect(view.getUint32(0x230, true)).toBe(0x100_0000);
  expect(view.getUint32(0x238, true)).toBe(14);
  expect(view.getUint8(0x1e8)).toBe(4);
  expect(view.getBigUint64(0x2d0 + 2 * 20, true)).toBe(0x10_0000n);
  expect(view.getBigUint64(0x2d0 + 2 * 20 + 8, true)).toBe(BigInt(31 * MIB));
  expect(view.getUint32(0x2d0 + 2 * 20 + 16, true)).toBe(1);
  expect(memory.slice(0x2_0000, 14)).toEqual(new TextEncoder().encode("console=ttyS0\0"));
  expect(memory.readU64(0x9000)).toBe(0xa003n);
});

test("ACPI is hardware-reduced, unless the kernel is told to do without the I/O APIC", () => {
  const reduced = (cmdline: string) => {
    const { memory } = load(ELF, { cmdline });
    const xsdt = Number(memory.readU64(0xe_0000 + 24));
    const fadt = Number(memory.readU64(xsdt + 36));
    expect(memory.slice(fadt, 4)).toEqual(new TextEncoder().encode("FACP"));
    return (memory.readU32(fadt + 112) & (1 << 20)) !== 0;
  };
  expect([reduced("console=ttyS0"), reduced("ro console=ttyS0 noapic reboot=k")]).toEqual([true, false]);
});

test("a bzImage keeps its setup header in the zero page", () => {
  const { memory, state } = load(makeBzImage(), { initrd: bufferSource(filled(100, 4)) });
  expect(state.entry).toBe(0x10_0200);
  expect(memory.readU16(0x7000 + 0x206)).toBe(0x020f);
  expect(memory.readU8(0x7000 + 0x210)).toBe(0xff);
  expect(memory.readU8(0x7000 + 0x211)).toBe(1);
  expect(memory.readU32(0x7000 + 0x214)).toBe(0x10_0000);
  expect(memory.readU32(0x7000 + 0x228)).toBe(0x2_0000);
  expect(memory.readU32(0x7000 + 0x230)).toBe(0x20_0000);
  expect(memory.readU32(0x7000 + 0x238)).toBe(2047);
  expect(memory.readU32(0x7000 + 0x260)).toBe(0x10_0000);
  expect(memory.readU32(0x7000 + 0x218)).toBe(32 * MIB - 4096);
  // What lies before the setup header in the file is boot sector code, not boot_params.
  expect(memory.readU8(0x7000 + 0x1ef)).toBe(0);
});

test("a PVH vmlinux gets hvm_start_info and no page tables", () => {
  const { memory, state } = load(PVH_ELF, { initrd: bufferSource(filled(100, 4)) });
  expect(state).toMatchObject({ protocol: "pvh", entry: 0x100_0080 });
  expect(state.registers.rbx).toBe(0x6000n);
  expect(memory.readU32(0x6000)).toBe(0x336e_c578);
  expect(memory.readU32(0x6004)).toBe(1);
  expect(memory.readU32(0x600c)).toBe(1);
  expect(memory.readU64(0x6010)).toBe(0x6040n);
  expect(memory.readU64(0x6018)).toBe(0x2_0000n);
  expect(memory.readU64(0x6020)).toBe(0xe_0000n);
  expect(memory.readU64(0x6028)).toBe(0x7000n);
  expect(memory.readU32(0x6030)).toBe(4);
  expect(memory.readU64(0x6040)).toBe(BigInt(32 * MIB - 4096));
  expect(memory.readU64(0x6048)).toBe(100n);
  expect(memory.readU64(0x7000 + 2 * 24)).toBe(0x10_0000n);
  expect(memory.readU64(0x7000 + 2 * 24 + 8)).toBe(BigInt(31 * MIB));
  expect(memory.readU32(0x7000 + 24 + 16)).toBe(2);
  expect(memory.readU64(0x9000)).toBe(0n);
});

test("without an initrd there is no module", () => {
  const { memory, state } = load(PVH_ELF);
  expect(state.initrd).toBeUndefined();
  expect(memory.readU32(0x600c)).toBe(0);
  expect(memory.readU64(0x6010)).toBe(0n);
});

test("rsdp 0 leaves ACPI out but not the MP table", () => {
  const { memory } = load(PVH_ELF, { rsdp: 0 });
  expect(memory.readU64(0xe_0000)).toBe(0n);
  expect(memory.readU64(0x6020)).toBe(0n);
  expect(memory.readU32(0x9_fc00)).toBe(0x5f50_4d5f);
  expect(load(PVH_ELF, { rsdp: 0xf_0000 }).memory.readU32(0xf_0000)).toBe(0x2044_5352);
});

test("the protocol can be forced", () => {
  expect(load(PVH_ELF, { protocol: "linux64" }).state.entry).toBe(0x100_0040);
  expect(() => load(makeBzImage(), { protocol: "pvh" })).toThrow("cannot be entered by PVH");
});

test.each<[string, Uint8Array, Partial<BootOptions>, string]>([
  ["an empty file", new Uint8Array(0), {}, "the kernel file is empty"],
  ["a text file", new TextEncoder().encode("#!/bin/sh\n"), {}, "neither an ELF vmlinux nor a bzImage"],
  ["three bytes of an ELF file", ELF.slice(0, 3), {}, "neither an ELF"],
  ["a gzip file", Uint8Array.of(0x1f, 0x8b, 8, 0), {}, "gzip-compressed. Decompress it first"],
  ["an xz file", Uint8Array.of(0xfd, 0x37, 0x7a, 0x58, 0x5a, 0), {}, "xz-compressed"],
  ["a long command line", ELF, { cmdline: "x".repeat(2048) }, "too long"],
  ["a command line longer than the kernel takes", makeBzImage({ cmdlineSize: 10 }), {}, "at most 10"],
  [
    "an initrd over the kernel",
    ELF,
    { initrd: { size: 16 * MIB, read: () => 0 } },
    "does not fit above the kernel",
  ],
  ["no vCPU", ELF, { vcpus: 0 }, "0 vCPUs"],
  ["too many vCPUs", ELF, { vcpus: 254 }, "254 vCPUs"],
  ["an RSDP where none is searched for", ELF, { rsdp: 0xe_0008 }, "cannot lie at 0xe0008"],
  ["an RSDP that leaves its area", ELF, { rsdp: 0xf_fff0 }, "cannot lie at 0xffff0"],
  [
    "a window in RAM",
    ELF,
    { virtioDevices: [{ gpa: 0x10_0000, size: 0x1000, gsi: 5 }] },
    "overlaps guest RAM",
  ],
  [
    "a window above 4 GiB",
    ELF,
    { virtioDevices: [{ gpa: 0xffff_f001, size: 0x1000, gsi: 5 }] },
    "below 4 GiB",
  ],
  [
    "windows that overlap",
    ELF,
    { virtioDevices: [DEVICES[0]!, { gpa: 0xc000_1fff, size: 1, gsi: 6 }] },
    "overlaps the window",
  ],
  [
    "an interrupt used twice",
    ELF,
    { virtioDevices: [DEVICES[0]!, { ...DEVICES[1]!, gsi: 5 }] },
    "interrupt 5",
  ],
  ["an interrupt the I/O APIC lacks", ELF, { virtioDevices: [{ ...DEVICES[0]!, gsi: 24 }] }, "interrupt 24"],
])("refuses %s", (_name, file, options, message) => {
  let error: unknown;
  try {
    load(file, options);
  } catch (e) {
    error = e;
  }
  expect(error).toBeInstanceOf(BootError);
  expect((error as BootError).message).toContain(message);
});

test("too little memory for any kernel", () => {
  expect(() => load(makeBzImage(), {}, 0x8_0000)).toThrow(
    "guest memory is too small: the bzImage (init_size) needs 17 MiB",
  );
});

test("mutated images load or throw BootError, and never touch what is not RAM", () => {
  const next = random(0x5eed);
  const { memory, intact } = guardedMemory(32 * MIB);
  const images = [
    PVH_ELF,
    makeElf(0x100_0040, [TEXT, { ...TEXT, gpa: 0x110_0000, memSize: 0x1000 }]),
    makeBzImage(),
  ];
  const headers = [64 + 2 * 56 + 60, 64 + 2 * 56, 0x290];
  const edges = [0, 1, 0x7f, 0x80, 0xff];
  let loaded = 0;
  let refused = 0;
  for (let round = 0; round < 4000; round++) {
    const which = round % images.length;
    const file = images[which]!.slice();
    for (let n = (next() % 4) + 1; n > 0; n--) {
      const first = which === 2 ? 0x1f1 : 0;
      const at = first + (next() % (headers[which]! - first));
      file[at] = next() % 2 === 0 ? edges[next() % edges.length]! : next() & 0xff;
    }
    const cut = next() % 8 === 0 ? file.slice(0, next() % file.length) : file;
    try {
      loadKernel(memory, bufferSource(cut), OPTIONS);
      loaded++;
    } catch (error) {
      if (!(error instanceof BootError)) throw error;
      refused++;
    }
  }
  expect(intact()).toBe(true);
  // Both outcomes must be common, or the mutations test nothing.
  expect(loaded).toBeGreaterThan(400);
  expect(refused).toBeGreaterThan(400);
});
