import { afterAll, describe, expect, test } from "bun:test";
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { EPOLLIN, Epoll } from "./epoll.ts";
import { ioUringRefusal } from "./host-probe.ts";
import { IoUring } from "./io-uring.ts";

const refusal = ioUringRefusal();
if (refusal !== undefined) console.log(`skip: io_uring is refused (${refusal})`);

const dir = mkdtempSync(join(tmpdir(), "sparkler-io-uring-"));
const path = join(dir, "file");
afterAll(() => rmSync(dir, { recursive: true }));

const BLOCK = 4096;
const ENTRIES = 8;
const EBADF = 9;

/** Runs `run` with a ring and a file of 64 blocks, each filled with its number. */
function withRing(run: (ring: IoUring, fd: number) => void): void {
  writeFileSync(path, Buffer.concat(Array.from({ length: 64 }, (_, i) => Buffer.alloc(BLOCK, i))));
  const fd = openSync(path, "r+");
  const ring = new IoUring(ENTRIES);
  try {
    run(ring, fd);
  } finally {
    ring.close();
    closeSync(fd);
  }
}

/** Waits until nothing is in flight; results by token. */
function finish(ring: IoUring): Map<number, number> {
  const results = new Map<number, number>();
  while (ring.busy > 0) {
    ring.wait();
    ring.reap((token, result) => void results.set(token, result));
  }
  return results;
}

describe.skipIf(refusal !== undefined)("a ring", () => {
  test("reads and writes one buffer and many, and syncs", () => {
    withRing((ring, fd) => {
      const ram = new Uint8Array(new SharedArrayBuffer(4 * BLOCK)).fill(0xff);
      const parts = [100, 3996, 4096].map((length, i, all) => {
        const at = all.slice(0, i).reduce((sum, part) => sum + part, 0);
        return ram.subarray(at, at + length);
      });
      ring.pushRead(3, fd, 5 * BLOCK, parts);
      ring.pushRead(0, fd, 63 * BLOCK, [ram.subarray(2 * BLOCK)]);
      ring.pushWrite(7, fd, 0, [new Uint8Array(10).fill(1), new Uint8Array(20).fill(2)]);
      ring.pushDataSync(1, fd);
      expect(ring.busy).toBe(4);
      // The last is cut off by the end of the file.
      expect(finish(ring)).toEqual(
        new Map([
          [3, 2 * BLOCK],
          [0, BLOCK],
          [7, 30],
          [1, 0],
        ]),
      );
      expect([ram[0], ram[BLOCK - 1], ram[BLOCK], ram[2 * BLOCK - 1]]).toEqual([5, 5, 6, 6]);
      expect([ram[2 * BLOCK], ram[3 * BLOCK - 1], ram[3 * BLOCK]]).toEqual([63, 63, 0xff]);
      expect([...readFileSync(path).subarray(8, 32)]).toEqual([1, 1, ...Array(20).fill(2), 0, 0]);
    });
  });

  test("goes round many times with all entries in flight", () => {
    withRing((ring, fd) => {
      const buffers = Array.from({ length: ENTRIES }, () => new Uint8Array(BLOCK));
      for (let round = 0; round < 200; round++) {
        const blocks = buffers.map((_, token) => (round * 13 + token * 7) % 64);
        for (const [token, block] of blocks.entries()) {
          ring.pushRead(token, fd, block * BLOCK, [buffers[token]!]);
        }
        expect(() => ring.pushDataSync(0, fd)).toThrow("more than 8 transfers");
        expect([...finish(ring).values()]).toEqual(Array(ENTRIES).fill(BLOCK));
        expect(buffers.map((buffer) => buffer[17]!)).toEqual(blocks);
      }
    });
  });

  test("an error is the transfer's alone", () => {
    withRing((ring, fd) => {
      const buffer = new Uint8Array(BLOCK);
      ring.pushRead(0, 9999, 0, [buffer]);
      ring.pushRead(1, fd, 0, [new Uint8Array(8)]);
      ring.pushRead(2, fd, 1000 * BLOCK, [new Uint8Array(8)]);
      expect(finish(ring)).toEqual(
        new Map([
          [0, -EBADF],
          [1, 8],
          [2, 0],
        ]),
      );
    });
  });

  test("wakes a sleeper in epoll, unless it is told to be quiet", () => {
    withRing((ring, fd) => {
      const epoll = new Epoll();
      let woken = 0;
      epoll.watch(ring.event.fd, EPOLLIN, () => {
        woken++;
        ring.event.clear();
      });
      ring.pushDataSync(4, fd);
      ring.submit();
      expect(epoll.wait(10_000)).toBe(true);
      expect(woken).toBe(1);
      expect(finish(ring)).toEqual(new Map([[4, 0]]));
      ring.quiet(true);
      ring.pushDataSync(5, fd);
      expect(finish(ring)).toEqual(new Map([[5, 0]]));
      ring.quiet(false);
      expect(epoll.wait(0)).toBe(false);
      epoll.close();
    });
  });

  test("what the kernel has not taken can be taken back", () => {
    withRing((ring, fd) => {
      ring.pushDataSync(2, fd);
      ring.pushDataSync(6, fd);
      const tokens: number[] = [];
      ring.withdraw((token) => void tokens.push(token));
      expect(tokens).toEqual([2, 6]);
      expect(ring.busy).toBe(0);
      ring.pushDataSync(2, fd);
      expect(finish(ring)).toEqual(new Map([[2, 0]]));
    });
  });
});

test("a ring of no entries is refused", () => {
  expect(() => new IoUring(0)).toThrow();
});
