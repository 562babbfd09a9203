/** RAM above 4 GiB on KVM, which a guest's own driver uses: a machine larger than what it touches. */

import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { E820_RAM } from "../../src/boot/e820.ts";
import { ZERO_PAGE_SIZE, ZERO_PAGE_START } from "../../src/boot/layout.ts";
import { E820_ENTRIES, E820_ENTRY_SIZE, E820_TABLE } from "../../src/boot/zero-page.ts";
import { MMIO_GAP_END, MMIO_GAP_START } from "../../src/memory/guest-memory.ts";
import { CC_NE } from "../oracle/asm.ts";
import { type GuestCode, RAX, RBX, RCX, RDI, RSI } from "./guest-code.ts";
import { GuestQueue } from "./guest-queue.ts";
import { noKvm } from "./machine.ts";
import { startGuest } from "./whole-machine.ts";

const MIB = 2 ** 20;
const GIB = 2 ** 30;
const SECTOR = 512;
const PAGE = 4096;
const [IN, OUT] = [0, 1];
const GAP_DIRECTORY = 0xc000;
const DIRECTORIES = 0x30_0000;
/** What threads of a machine and their code take, and what touching a page takes where the host gives 2 MiB for it. */
const OVERHEAD = 300 * MIB;

/** A KVM without hardware under it takes a few microseconds for each page that a guest touches first. */
const LIMIT_MS = 60_000;

const reason = noKvm();
if (reason !== undefined) console.warn(`tests of high memory ${reason}`);

const dir = mkdtempSync(join(tmpdir(), "sparkler-high-memory-"));
afterAll(() => rmSync(dir, { recursive: true }));

/** Maps all RAM of `memMib`, and the windows of devices. */
function mapAll(guest: GuestCode, memMib: number): void {
  guest.mapGib(3, GAP_DIRECTORY);
  const end = MMIO_GAP_END + (memMib * MIB - MMIO_GAP_START);
  for (let gib = 1; gib * GIB < end; gib++) if (gib !== 3) guest.mapGib(gib, DIRECTORIES + PAGE * gib);
}

/** Most memory that this process had since {@link watchPeak}, in bytes. */
function peak(): number {
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1]) * 1024;
}

/** Begins to watch for the peak; returns what the process has now. */
function watchPeak(): number {
  writeFileSync("/proc/self/clear_refs", "5");
  return peak();
}

describe.skipIf(reason !== undefined)("KVM", () => {
  test.each([
    [6 * 1024, "Sync"],
    [8 * 1024, "Async"],
    [20 * 1024, "Sync"],
  ] as const)(
    "%d MiB, of which little is touched: %s transfers with everything above 4 GiB",
    async (memMib, ioEngine) => {
      const end = MMIO_GAP_END + memMib * MIB - MMIO_GAP_START;
      const path = join(dir, `disk-${memMib}`);
      const size = 128 * SECTOR;
      const content = Uint8Array.from({ length: size }, (_, i) => (i * 31 + (i >> 8) * 7) & 0xff);
      writeFileSync(path, Buffer.concat([content, Buffer.alloc(size + ZERO_PAGE_SIZE)]));
      const before = watchPeak();
      const drive = { id: "d", path, readOnly: false, root: false, cacheType: "Unsafe", ioEngine } as const;
      const microvm = await startGuest({ backend: "kvm", memMib, drives: [drive] }, (guest) => {
        mapAll(guest, memMib);
        // Descriptors and data lie over multiples of 1 GiB, where the monitor sees RAM through another ArrayBuffer.
        const [boundary, next] = [MMIO_GAP_END + GIB, MMIO_GAP_END + 2 * GIB];
        const queue = new GuestQueue(guest, 0, {
          desc: boundary - 48,
          driver: next + GIB / 2,
          device: boundary - PAGE,
        });
        queue.start();
        const header = end - PAGE;
        const status = { gpa: boundary - 2 * PAGE, length: 1, write: true };
        const transfer = (type: number, sector: number, gpa: number, lengths: readonly number[]) => {
          guest.poke(header, type);
          guest.poke(header + 8, sector);
          const buffers = [{ gpa: header, length: 16 }];
          let at = gpa;
          for (const length of lengths) {
            buffers.push({ gpa: at, length, ...{ write: type === IN } });
            at += length;
          }
          queue.request([...buffers, status]);
        };
        const first = next - 3 * PAGE - 100;
        const second = end - PAGE - size;
        transfer(IN, 0, first, [5, 20_000, size - 20_005]);
        // The guest itself copies, so it has to find there what the device has put there.
        guest.movImm(RSI, first);
        guest.movImm(RDI, second);
        guest.movImm(RCX, size);
        guest.repMovsb();
        transfer(OUT, size / SECTOR, second, [size - 7, 7]);
        transfer(OUT, (2 * size) / SECTOR, ZERO_PAGE_START, [ZERO_PAGE_SIZE]);
        guest.movImm(RBX, status.gpa);
        guest.loadA(1);
        guest.cmpImm(RAX, 0);
        guest.jcc(CC_NE, "end");
        guest.print("done\n");
        guest.label("end");
        guest.reset();
      });
      const { end: how, consoleTail } = await microvm.ended;
      expect({ how, consoleTail }).toEqual({ how: { kind: "reset" }, consoleTail: "done\n" });
      const disk = readFileSync(path);
      expect(disk.subarray(size, 2 * size).equals(content)).toBe(true);

      const zeroPage = new DataView(disk.buffer, disk.byteOffset + 2 * size, ZERO_PAGE_SIZE);
      const ram = Array.from({ length: zeroPage.getUint8(E820_ENTRIES) }, (_, i) => {
        const at = E820_TABLE + i * E820_ENTRY_SIZE;
        const [addr, bytes] = [zeroPage.getBigUint64(at, true), zeroPage.getBigUint64(at + 8, true)].map(
          Number,
        );
        return { type: zeroPage.getUint32(at + 16, true), addr: addr!, end: addr! + bytes! };
      }).filter(({ type }) => type === E820_RAM);
      expect(ram.map(({ addr, end }) => [addr, end])).toEqual([
        [0, expect.any(Number)],
        [MIB, MMIO_GAP_START],
        [MMIO_GAP_END, end],
      ]);
      expect(peak() - before).toBeLessThan(OVERHEAD);
    },
    LIMIT_MS,
  );

  test(
    "a balloon gives RAM above 4 GiB back",
    async () => {
      const memMib = 8 * 1024;
      const chunk = 256 * MIB;
      const chunks = 6;
      const freePageReporting = 1 << 5;
      const balloon = {
        amountMib: 0,
        deflateOnOom: false,
        statsPollingIntervalS: 0,
        freePageHinting: false,
        freePageReporting: true,
      };
      const before = watchPeak();
      const microvm = await startGuest({ backend: "kvm", memMib, balloon }, (guest) => {
        mapAll(guest, memMib);
        const reporting = 2;
        const rings = MMIO_GAP_END;
        const queue = new GuestQueue(guest, reporting, {
          desc: rings,
          driver: rings + PAGE,
          device: rings + 2 * PAGE,
        });
        queue.start(freePageReporting);
        for (let i = 0; i < chunks; i++) {
          // Over each boundary of the monitor's windows once, and in the middle.
          const start = MMIO_GAP_END + (i + 1) * (GIB / 2) - chunk / 2;
          guest.movImm(RBX, start);
          guest.movImm(RCX, chunk / PAGE);
          guest.movImm(RAX, 7);
          guest.label(`fill ${i}`);
          guest.storeA(4);
          guest.addImm(RBX, PAGE);
          guest.addImm(RCX, -1);
          guest.jcc(CC_NE, `fill ${i}`);
          queue.request([{ gpa: start, length: chunk, write: true }]);
          for (const gpa of [start, start + chunk - PAGE]) {
            guest.movImm(RBX, gpa);
            guest.loadA(4);
            guest.cmpImm(RAX, 0);
            guest.jcc(CC_NE, "end");
          }
        }
        guest.print("all gone\n");
        guest.label("end");
        guest.reset();
      });
      const { end, consoleTail, metrics } = await microvm.ended;
      expect({ end, consoleTail }).toEqual({ end: { kind: "reset" }, consoleTail: "all gone\n" });
      expect(metrics?.balloon).toMatchObject({
        reportCount: chunks,
        reportFreed: chunks * chunk,
        reportFails: 0,
      });
      const most = peak() - before;
      expect(most).toBeGreaterThan(chunk / 2);
      expect(most).toBeLessThan(chunk + OVERHEAD);
    },
    LIMIT_MS,
  );

  test(
    "requests without end leave no garbage behind, though guest memory counts as the engine's own",
    async () => {
      const before = watchPeak();
      const options = { backend: "kvm", memMib: 8 * 1024, entropy: true };
      const microvm = await startGuest(options, (guest) => {
        mapAll(guest, options.memMib);
        const rings = MMIO_GAP_END;
        const place = { desc: rings, driver: rings + PAGE, device: rings + 2 * PAGE };
        const queue = new GuestQueue(guest, 0, place, 64);
        queue.start();
        queue.flood(MMIO_GAP_END + GIB, 16, 10_000);
        guest.print("enough\n");
        guest.reset();
      });
      expect((await microvm.ended).consoleTail).toBe("enough\n");
      expect(peak() - before).toBeLessThan(OVERHEAD);
    },
    LIMIT_MS,
  );

  test.each([2 ** 27, 2 ** 32, Number.MAX_SAFE_INTEGER])(
    "%d MiB, more than the host has addresses or KVM has slots for, is refused with a sentence",
    async (memMib) => {
      await expect(startGuest({ backend: "kvm", memMib }, (guest) => guest.reset())).rejects.toThrow(
        `Cannot get ${memMib} MiB of guest memory from the host. Lower mem_size_mib.`,
      );
    },
  );
});
