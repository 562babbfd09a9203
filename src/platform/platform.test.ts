import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { EPOLLIN, Epoll } from "./epoll.ts";
import { SystemError } from "./errno.ts";
import { ERRNO } from "./errno-numbers.ts";
import { EventFd } from "./eventfd.ts";
import {
  blockDeviceSize,
  checkAccess,
  closeFile,
  fileStatus,
  openFile,
  readAt,
  readSome,
  readText,
  syncData,
  tryLock,
  waitWritable,
  writeAt,
} from "./files.ts";
import { readVectorNow } from "./iovec.ts";
import { fillRandom } from "./random.ts";
import { isTerminal, setRawMode } from "./tty.ts";

const dir = mkdtempSync(join(tmpdir(), "sparkler-platform-"));
afterAll(() => rmSync(dir, { recursive: true }));

function caught(run: () => unknown): SystemError {
  try {
    run();
  } catch (error) {
    if (error instanceof SystemError) return error;
    throw error;
  }
  throw new Error("nothing was thrown");
}

describe("errno", () => {
  test("names the errno, the call and the C library's text", () => {
    const error = caught(() => openFile(join(dir, "absent")));
    expect(error.code).toBe("ENOENT");
    expect(error.name).toBe("ENOENT");
    expect(error.call).toBe("open");
    expect(error.message).toBe("No such file or directory (os error 2)");
  });

  test("is that of the failed call", () => {
    expect(caught(() => closeFile(-1)).code).toBe("EBADF");
    expect(caught(() => openFile(dir, { write: true })).code).toBe("EISDIR");
    expect(caught(() => openFile("/proc/self/mem/x")).code).toBe("ENOTDIR");
  });

  test("a NUL in a path is refused before the call", () => {
    expect(() => openFile("a\0b")).toThrow(RangeError);
  });
});

describe("files", () => {
  test("transfers straight to and from shared memory, beyond 4 GiB too", () => {
    const path = join(dir, "sparse");
    const fd = openFile(path, { write: true, create: true });
    const shared = new Uint8Array(new SharedArrayBuffer(8192));
    shared.fill(0xab, 100, 612);
    const offset = 5 * 2 ** 30 + 512;
    expect(writeAt(fd, shared.subarray(100, 612), offset)).toBe(512);
    syncData(fd);
    expect(fileStatus(fd).size).toBe(offset + 512);
    expect(readAt(fd, shared.subarray(4096, 4608), offset)).toBe(512);
    expect(Buffer.from(shared.subarray(4096, 4608)).equals(Buffer.alloc(512, 0xab))).toBe(true);
    expect(shared[4608]).toBe(0);
    expect(readAt(fd, shared.subarray(0, 1024), offset)).toBe(512);
    expect(readAt(fd, shared.subarray(0, 0), 0)).toBe(0);
    closeFile(fd);
  });

  test("status tells what it is", () => {
    const path = join(dir, "status");
    writeFileSync(path, "12345");
    const fd = openFile(path);
    const { ino, dev } = statSync(path, { bigint: true });
    expect(fileStatus(fd)).toMatchObject({ size: 5, ino, dev, kind: "file" });
    expect(caught(() => blockDeviceSize(fd)).call).toBe("ioctl(BLKGETSIZE64)");
    expect(caught(() => writeAt(fd, new Uint8Array(1), 0)).code).toBe("EBADF");
    closeFile(fd);
    const device = openFile("/dev/null");
    expect(fileStatus(device).kind).toBe("character device");
    closeFile(device);
  });

  test("an exclusive lock keeps others out until it is closed", () => {
    const path = join(dir, "lock");
    const a = openFile(path, { write: true, create: true });
    const b = openFile(path);
    expect(tryLock(a, "exclusive")).toBe(true);
    expect(tryLock(b, "shared")).toBe(false);
    closeFile(a);
    expect(tryLock(b, "shared")).toBe(true);
    closeFile(b);
  });

  test("text is read to its end, characters across reads whole", () => {
    const text = "a€".repeat(20_000);
    const fd = openFile(join(dir, "text"), { write: true, create: true });
    writeAt(fd, new TextEncoder().encode(text), 0);
    expect(readText(fd)).toBe(text);
    expect(readText(fd)).toBe("");
    closeFile(fd);
    const folder = openFile(dir);
    expect(caught(() => readText(folder)).code).toBe("EISDIR");
    closeFile(folder);
  });

  test("access says whether a file may be opened", () => {
    checkAccess(join(dir, "text"));
    expect(caught(() => checkAccess(join(dir, "absent"))).code).toBe("ENOENT");
  });

  test("EAGAIN is undefined", () => {
    const event = EventFd.create();
    expect(readSome(event.fd, new Uint8Array(8))).toBeUndefined();
    expect(waitWritable(event.fd, 0)).toBe(true);
    event.close();
  });
});

describe("epoll", () => {
  test("a sleep shorter than a millisecond ends by itself, and early if something is ready", () => {
    const epoll = new Epoll();
    const event = EventFd.create();
    epoll.watch(event.fd, EPOLLIN, () => event.clear());
    const start = performance.now();
    expect(epoll.wait(0.3)).toBe(false);
    expect(performance.now() - start).toBeGreaterThanOrEqual(0.3);
    event.signal();
    expect(epoll.wait(9.5)).toBe(true);
    epoll.close();
    event.close();
  });

  test("calls the handler while the descriptor is ready, and not when not asked", () => {
    const epoll = new Epoll();
    const event = EventFd.create();
    const seen: number[] = [];
    expect(epoll.watch(event.fd, EPOLLIN, (events) => seen.push(events))).toBe(true);
    expect(epoll.wait(0)).toBe(false);
    expect(seen).toEqual([]);
    event.signal();
    event.signal();
    expect(epoll.wait(-1)).toBe(true);
    expect(seen).toEqual([EPOLLIN]);
    epoll.watch(event.fd, 0, () => seen.push(-1));
    epoll.wait(0);
    expect(seen).toEqual([EPOLLIN]);
    epoll.watch(event.fd, EPOLLIN, () => event.clear());
    epoll.wait(-1);
    epoll.watch(event.fd, EPOLLIN, () => seen.push(-2));
    epoll.wait(0);
    expect(seen).toEqual([EPOLLIN]);
    epoll.close();
    event.close();
  });

  test("a regular file cannot be waited for", () => {
    const epoll = new Epoll();
    const fd = openFile(join(dir, "plain"), { write: true, create: true });
    expect(epoll.watch(fd, EPOLLIN, () => {})).toBe(false);
    epoll.forget(fd);
    closeFile(fd);
    epoll.close();
  });
});

test("random bytes fill shared memory to the last byte and no further", () => {
  const shared = new Uint8Array(new SharedArrayBuffer(600));
  fillRandom(shared.subarray(0, 512));
  expect(shared.subarray(448, 512).some((byte) => byte !== 0)).toBe(true);
  expect(shared.subarray(512).every((byte) => byte === 0)).toBe(true);
});

test("what is in the page cache is read at once, up to the end of the file", () => {
  const fd = openFile(join(dir, "cached"), { write: true, create: true });
  writeAt(fd, Uint8Array.of(1, 2, 3, 4, 5), 0);
  const into = [new Uint8Array(2), new Uint8Array(8)];
  const knows = () => {
    try {
      return readVectorNow(fd, into, 1);
    } catch (error) {
      // tmpfs does not know.
      expect(error).toMatchObject({ errno: ERRNO.EOPNOTSUPP });
      return undefined;
    }
  };
  if (knows() === 4) {
    expect(into.map((part) => [...part])).toEqual([
      [2, 3],
      [4, 5, 0, 0, 0, 0, 0, 0],
    ]);
    expect(readVectorNow(fd, into, 5)).toBe(0);
  }
  closeFile(fd);
  expect(caught(() => readVectorNow(fd, into, 0)).code).toBe("EBADF");
});

test("a file is no terminal", () => {
  const fd = openFile("/dev/null");
  expect(isTerminal(fd)).toBe(false);
  expect(caught(() => setRawMode(fd)).code).toBe("ENOTTY");
  closeFile(fd);
});
