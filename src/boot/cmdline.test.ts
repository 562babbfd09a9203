import { expect, test } from "bun:test";
import { BootError } from "./boot-error.ts";
import {
  buildCommandLine,
  CommandLine,
  DEFAULT_BOOT_ARGS,
  encodeCommandLine,
  withoutIoApic,
} from "./cmdline.ts";

test("the default line, root and devices", () => {
  expect(
    buildCommandLine({
      root: { device: "/dev/vda", readOnly: false },
      virtioDevices: [
        { gpa: 0xc000_1000, size: 0x1000, gsi: 5 },
        { gpa: 0xc000_2000, size: 0x1000, gsi: 6 },
      ],
    }),
  ).toBe(
    `${DEFAULT_BOOT_ARGS} pci=off root=/dev/vda rw virtio_mmio.device=4K@0xc0001000:5 virtio_mmio.device=4K@0xc0002000:6`,
  );
});

test("boot_args replace the default, also when empty", () => {
  expect(buildCommandLine({ bootArgs: "console=ttyS0", pci: true })).toBe("console=ttyS0");
  expect(buildCommandLine({ bootArgs: "" })).toBe("pci=off");
  expect(buildCommandLine({ bootArgs: "a", root: { device: "PARTUUID=0eaa91a0-01", readOnly: true } })).toBe(
    "a pci=off root=PARTUUID=0eaa91a0-01 ro",
  );
});

test("arguments for init stay at the end", () => {
  expect(buildCommandLine({ bootArgs: "quiet -- single --x" })).toBe("quiet pci=off -- single --x");
  expect(buildCommandLine({ bootArgs: "-- single" })).toBe("pci=off -- single");
  expect(buildCommandLine({ bootArgs: "a--b --c" })).toBe("a--b --c pci=off");
});

test("at most 2048 bytes with the NUL", () => {
  expect(encodeCommandLine("x".repeat(2047)).length).toBe(2048);
  expect(() => encodeCommandLine("x".repeat(2048))).toThrow("too long: 2048 characters, at most 2047");
  expect(() => buildCommandLine({ bootArgs: "x".repeat(2040) })).toThrow(BootError);
  expect(() => encodeCommandLine("xxxxx", 4)).toThrow("at most 4");
});

test("bytes and NUL", () => {
  expect(encodeCommandLine("ab")).toEqual(Uint8Array.of(0x61, 0x62, 0));
});

test.each(["a\0b", "a\nb", "a\tb", "aéb", "a\u{1f600}b"])("refuses %j", (bootArgs) => {
  expect(() => buildCommandLine({ bootArgs })).toThrow("character 1 is not printable ASCII");
});

test("one argument at a time", () => {
  const line = new CommandLine("a");
  expect(() => line.add("b c")).toThrow("not one argument");
  expect(() => line.add("")).toThrow("not one argument");
  expect(() => line.addRoot({ device: "/dev/vda init=/bin/sh", readOnly: true })).toThrow(BootError);
  expect(() => line.add("x".repeat(2046))).toThrow("too long");
  expect(line.toString()).toBe("a");
});

test("arguments that do without the I/O APIC are recognised, as words for the kernel", () => {
  for (const word of ["noapic", "nolapic", "disableapic", "nosmp", "maxcpus=0", "acpi=noirq"]) {
    expect(withoutIoApic(`ro console=ttyS0 ${word} reboot=k`)).toBe(true);
    expect(withoutIoApic(word)).toBe(true);
  }
  for (const line of ["", DEFAULT_BOOT_ARGS, "noapictimer", "maxcpus=01", "quiet -- noapic", "x=noapic"]) {
    expect(withoutIoApic(line)).toBe(false);
  }
});
