import { describe, expect, test } from "bun:test";
import { type CpuidEntry, decodeCpuid, encodeCpuid, guestCpuid } from "./cpuid.ts";

const word = (text: string) => new DataView(new TextEncoder().encode(text).buffer).getUint32(0, true);

function entry(fn: number, registers: Partial<CpuidEntry> = {}): CpuidEntry {
  return { function: fn, index: 0, flags: 0, eax: 0, ebx: 0, ecx: 0, edx: 0, ...registers };
}

function host(vendor: [string, string, string], more: CpuidEntry[] = []): CpuidEntry[] {
  const [ebx, edx, ecx] = vendor.map(word) as [number, number, number];
  return [
    entry(0, { eax: 0x1f, ebx, edx, ecx }),
    entry(1, { eax: 0x806f8, ebx: 0x0b40_0812, ecx: 0x0000_8001, edx: 0x1000_0001 }),
    entry(0xb, { ecx: 0x100, edx: 77 }),
    ...more,
  ];
}

const AMD: [string, string, string] = ["Auth", "enti", "cAMD"];
const INTEL: [string, string, string] = ["Genu", "ineI", "ntel"];
const vcpu = { index: 2, count: 4, tscDeadline: true };

const leaf = (entries: CpuidEntry[], fn: number, index = 0) =>
  entries.find((e) => e.function === fn && e.index === index)!;

test("kvm_cpuid2 keeps all entries in both directions", () => {
  const entries = [
    entry(7, { index: 1, flags: 1, eax: 0xffff_ffff, edx: 5 }),
    entry(0x8000_0001, { ecx: 9 }),
  ];
  const struct = encodeCpuid(entries);
  expect(struct.length).toBe(8 + 2 * 40);
  expect(decodeCpuid(struct)).toEqual(entries);
});

describe("every vendor", () => {
  test("leaf 1 has this vCPU's id, the count, and is that of a virtual machine", () => {
    const one = leaf(guestCpuid(host(INTEL), vcpu), 1);
    expect(one.ebx).toBe(0x0204_0812);
    // PDCM off; TSC deadline and hypervisor on.
    expect(one.ecx).toBe(0x8100_0001);
    expect(one.edx & (1 << 28)).not.toBe(0);
  });

  test("a lone vCPU has no siblings, and no deadline timer that KVM does not have", () => {
    const one = leaf(guestCpuid(host(AMD), { index: 0, count: 1, tscDeadline: false }), 1);
    expect(one.edx).toBe(1);
    expect(one.ecx).toBe(0x8000_0001);
    expect(one.ebx >>> 16).toBe(1);
  });

  test("three vCPUs need as many ids as four", () => {
    const entries = guestCpuid(host(INTEL), { index: 0, count: 3, tscDeadline: true });
    expect((leaf(entries, 1).ebx >>> 16) & 0xff).toBe(4);
    expect(leaf(entries, 0xb, 1)).toMatchObject({ eax: 2, ebx: 3 });
  });

  test("topology leaves are made anew, each with the id, as far as leaf 0 says there are any", () => {
    const entries = guestCpuid(host(INTEL), vcpu);
    for (const fn of [0xb, 0x1f]) {
      expect(entries.filter((e) => e.function === fn)).toEqual([
        entry(fn, { index: 0, flags: 1, eax: 0, ebx: 1, ecx: 0x100, edx: 2 }),
        entry(fn, { index: 1, flags: 1, eax: 2, ebx: 4, ecx: 0x201, edx: 2 }),
        entry(fn, { index: 2, flags: 1, eax: 0, ebx: 0, ecx: 2, edx: 2 }),
      ]);
    }
    const old = host(INTEL).slice(1);
    const short = guestCpuid([entry(0, { ...host(INTEL)[0]!, eax: 0xa }), ...old], vcpu);
    expect(short.some((e) => e.function === 0xb)).toBe(false);
  });

  test("the vendor stays, and the host's entries are not changed", () => {
    const supported = host(AMD);
    const before = structuredClone(supported);
    expect(guestCpuid(supported, vcpu)[0]).toEqual(before[0]!);
    expect(supported).toEqual(before);
  });
});

describe("two threads a core", () => {
  const smt = { ...vcpu, index: 3, smt: true };

  test("Intel", () => {
    const more = [0x4121, 0x1c163].map((eax, i) => entry(4, { index: 3 * i, flags: 1, eax }));
    const entries = guestCpuid(host(INTEL, more), smt);
    // L1 is shared by the two threads of a core, L3 by all four; two cores.
    expect(leaf(entries, 4, 0).eax).toBe(0x0400_4121);
    expect(leaf(entries, 4, 3).eax).toBe(0x0400_c163);
    expect(leaf(entries, 0xb, 0)).toMatchObject({ eax: 1, ebx: 2, ecx: 0x100, edx: 3 });
    expect(leaf(entries, 0xb, 1)).toMatchObject({ eax: 2, ebx: 4, ecx: 0x201, edx: 3 });
    expect((leaf(entries, 1).ebx >>> 16) & 0xff).toBe(4);
  });

  test("AMD", () => {
    const more = [
      entry(0x8000_001d, { index: 0, flags: 1, eax: 0x121 }),
      entry(0x8000_001d, { index: 3, flags: 1, eax: 0x163 }),
      entry(0x8000_001e),
    ];
    const entries = guestCpuid(host(AMD, more), smt);
    expect(leaf(entries, 0x8000_001d, 0).eax).toBe(0x4121);
    expect(leaf(entries, 0x8000_001d, 3).eax).toBe(0xc163);
    expect(leaf(entries, 0x8000_001e)).toMatchObject({ eax: 3, ebx: 0x101, ecx: 0 });
  });

  test("a lone vCPU has a core of its own all the same", () => {
    const alone = { index: 0, count: 1, tscDeadline: true };
    const supported = host(INTEL, [entry(4, { flags: 1, eax: 0x4121 })]);
    expect(guestCpuid(supported, { ...alone, smt: true })).toEqual(guestCpuid(supported, alone));
  });
});

test("Intel: caches, turbo, performance counters, deprecated FPU state, brand with the host's frequency", () => {
  const bytes = new TextEncoder().encode("Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz".padEnd(48, "\0"));
  const view = new DataView(bytes.buffer);
  const brand = [0, 16, 32].map((at, i) =>
    entry(0x8000_0002 + i, {
      eax: view.getUint32(at, true),
      ebx: view.getUint32(at + 4, true),
      ecx: view.getUint32(at + 8, true),
      edx: view.getUint32(at + 12, true),
    }),
  );
  const entries = guestCpuid(
    host(INTEL, [
      entry(4, { index: 0, flags: 1, eax: 0xfc00_4121 }),
      entry(4, { index: 3, flags: 1, eax: 0xfc1f_c163 }),
      entry(4, { index: 4, flags: 1, eax: 0 }),
      entry(6, { eax: 0x7, ecx: 0x9 }),
      entry(7, { flags: 1, ecx: 0x60 }),
      entry(0xa, { eax: 0x0830_0805, edx: 0x8604 }),
      ...brand,
    ]),
    vcpu,
  );
  // L1 is one core's, L3 is shared by four; four cores in the package.
  expect(leaf(entries, 4, 0).eax).toBe(0x0c00_0121);
  expect(leaf(entries, 4, 3).eax).toBe(0x0c00_c163);
  expect(leaf(entries, 4, 4).eax).toBe(0);
  expect(leaf(entries, 6)).toMatchObject({ eax: 0x5, ecx: 0x1 });
  expect(leaf(entries, 7)).toMatchObject({ ebx: 0x2040, ecx: 0x40 });
  expect(leaf(entries, 0xa)).toMatchObject({ eax: 0, edx: 0 });
  const text = [0, 1, 2].map((i) => {
    const e = leaf(entries, 0x8000_0002 + i);
    return new TextDecoder().decode(Uint32Array.of(e.eax, e.ebx, e.ecx, e.edx));
  });
  expect(text.join("").replaceAll("\0", "")).toBe("Intel(R) Xeon(R) Processor @ 2.90GHz");
});

test("AMD: topology extensions, caches, ids, no Intel capabilities MSR", () => {
  const entries = guestCpuid(
    host(AMD, [
      entry(7, { flags: 1, edx: 0x2000_0010 }),
      entry(0x8000_0001, { ecx: 1 }),
      entry(0x8000_0008, { eax: 0x3030, ecx: 0x1003f }),
      entry(0x8000_001d, { index: 0, flags: 1, eax: 0x4121 }),
      entry(0x8000_001d, { index: 3, flags: 1, eax: 0x3c163 }),
      entry(0x8000_001e, { eax: 9, ebx: 0x104, ecx: 0x103 }),
    ]),
    vcpu,
  );
  expect(leaf(entries, 7).edx).toBe(0x10);
  expect(leaf(entries, 0x8000_0001).ecx).toBe(0x40_0001);
  expect(leaf(entries, 0x8000_0008)).toMatchObject({ eax: 0x3030, ecx: 0x12003 });
  expect(leaf(entries, 0x8000_001d, 0).eax).toBe(0x121);
  expect(leaf(entries, 0x8000_001d, 3).eax).toBe(0xc163);
  expect(leaf(entries, 0x8000_001e)).toMatchObject({ eax: 2, ebx: 2, ecx: 0 });
});
