import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Random } from "../devices/virtio/testing/fuzz.ts";
import { Epoll } from "../platform/epoll.ts";
import { closeFile } from "../platform/files.ts";
import { ioUringRefusal } from "../platform/host-probe.ts";
import { AsyncFileDisk, DiskRing } from "./async-disk.ts";
import { openDisk } from "./file-disk.ts";

const refusal = ioUringRefusal();
if (refusal !== undefined) console.log(`skip: drives on io_uring: it is refused (${refusal})`);

const MIB = 2 ** 20;
const dir = mkdtempSync(join(tmpdir(), "sparkler-async-disk-"));
const path = join(dir, "disk");
afterAll(() => rmSync(dir, { recursive: true }));

function withDisk(run: (disk: AsyncFileDisk, epoll: Epoll, ring: DiskRing) => void): void {
  writeFileSync(
    path,
    Uint8Array.from({ length: MIB }, (_, i) => (i >> 9) & 0xff),
  );
  const opened = openDisk("d", path, false);
  const epoll = new Epoll();
  const ring = new DiskRing(epoll);
  try {
    run(new AsyncFileDisk(ring, opened), epoll, ring);
  } finally {
    ring.close();
    epoll.close();
    closeFile(opened.fd);
  }
}

describe.skipIf(refusal !== undefined)("a drive on io_uring", () => {
  test("random transfers, as many as there is room for, leave the file as it must be", () => {
    withDisk((disk, epoll) => {
      const random = new Random(42);
      const expected = Buffer.from(readFileSync(path));
      const busy = new Set<number>();
      const failures: unknown[] = [];
      let [ended, batches] = [0, 0];
      disk.watch(() => batches++);
      for (let i = 0; i < 3000; ) {
        while (disk.room > 0 && i < 3000) {
          // One transfer at a time for each 4 KiB, so that their order does not matter.
          const place = random.below(256);
          if (busy.has(place)) break;
          busy.add(place);
          i++;
          const [at, length] = [place * 4096, 512 * (1 + random.below(8))];
          const cut = random.below(2) * 512;
          const data = new Uint8Array(length);
          const parts = cut > 0 && cut < length ? [data.subarray(0, cut), data.subarray(cut)] : [data];
          if (random.chance(2)) {
            data.fill(random.below(256));
            expected.set(data, at);
            disk.write(at, parts, (done, error) => {
              busy.delete(place);
              ended++;
              if (done !== length || error !== undefined) failures.push([done, length, error]);
            });
          } else {
            const want = Buffer.from(expected.subarray(at, at + length));
            disk.read(at, parts, (done, error) => {
              busy.delete(place);
              ended++;
              if (done !== length || error !== undefined || !want.equals(data)) failures.push([done, error]);
            });
          }
        }
        disk.submit();
        if (disk.room < 100) epoll.wait(1);
      }
      disk.drain();
      expect(failures).toEqual([]);
      expect(ended).toBe(3000);
      expect(readFileSync(path).equals(expected)).toBe(true);
    });
  });

  test("a sync ends by the event loop, once", () => {
    withDisk((disk, epoll) => {
      const ends: unknown[] = [];
      let batches = 0;
      disk.watch(() => batches++);
      disk.write(0, [new Uint8Array(512)], (done, error) => void ends.push(["write", done, error]));
      disk.sync((_, error) => void ends.push(["sync", error]));
      const now = disk.submit();
      while (ends.length < 2) epoll.wait(10_000);
      expect(ends.toSorted()).toEqual([
        ["sync", undefined],
        ["write", 512, undefined],
      ]);
      expect(batches > 0 || now === 2).toBe(true);
    });
  });

  test("a file that became shorter ends a read early", () => {
    withDisk((disk) => {
      truncateSync(path, 1000);
      const ends: unknown[] = [];
      const parts = [new Uint8Array(256), new Uint8Array(512)];
      disk.read(512, parts, (done, error) => void ends.push([done, error]));
      disk.drain();
      expect(ends).toEqual([[488, undefined]]);
      expect([parts[0]![0], parts[1]![231], parts[1]![232]]).toEqual([1, 1, 0]);
    });
  });

  test("an error of the host has its name", () => {
    withDisk((_, __, ring) => {
      const readOnly = openDisk("e", import.meta.path, true);
      const errors: unknown[] = [];
      const disk = new AsyncFileDisk(ring, readOnly);
      disk.write(0, [new Uint8Array(512)], (_done, error) => void errors.push(error?.name));
      disk.drain();
      expect(errors).toEqual(["EBADF"]);
      expect(disk.room).toBe(128);
      closeFile(readOnly.fd);
    });
  });
});
