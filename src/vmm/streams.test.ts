import { afterAll, describe, expect, test } from "bun:test";
import { closeSync, mkdtempSync, openSync, readFileSync, readSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { readExact } from "../boot/byte-source.ts";
import { Epoll } from "../platform/epoll.ts";
import { openFile } from "../platform/files.ts";
import { diskId, FileDisk, openDisk } from "./file-disk.ts";
import { concatenated } from "./file-source.ts";
import { InputStream, OutputStream } from "./host-stream.ts";
import { lineReader } from "./program-console.ts";

const dir = mkdtempSync(join(tmpdir(), "sparkler-streams-"));
afterAll(() => rmSync(dir, { recursive: true }));

let fifos = 0;
/** A FIFO with both ends open: `[read, write]`. Opened read-write first, so that neither open waits. */
function pipe(): [number, number] {
  const path = join(dir, `fifo-${fifos++}`);
  Bun.spawnSync(["mkfifo", path]);
  const both = openFile(path, { write: true });
  const read = openFile(path);
  const write = openSync(path, "w");
  closeSync(both);
  return [read, write];
}

describe("output", () => {
  test("a full pipe takes part, asks again when there is room, and loses nothing", () => {
    const epoll = new Epoll();
    const [read, write] = pipe();
    let rooms = 0;
    const stream = new OutputStream(
      epoll,
      write,
      () => rooms++,
      (error) => {
        throw error;
      },
    );
    const data = new Uint8Array(200_000).map((_, i) => i % 251);
    let sent = stream.write(data);
    expect(sent).toBeGreaterThan(0);
    expect(sent).toBeLessThan(data.length);
    epoll.wait(0);
    expect(rooms).toBe(0);
    const received: number[] = [];
    const buffer = new Uint8Array(65_536);
    while (received.length < data.length) {
      received.push(...buffer.subarray(0, readSync(read, buffer)));
      epoll.wait(0);
      if (sent < data.length) sent += stream.write(data.subarray(sent));
    }
    expect(rooms).toBeGreaterThan(0);
    expect(Buffer.from(received).equals(Buffer.from(data))).toBe(true);
    stream.close();
    epoll.close();
    closeSync(read);
    closeSync(write);
  });

  test("a reader that has gone is told once, and bytes are dropped from then on", () => {
    const epoll = new Epoll();
    const [read, write] = pipe();
    const broken: string[] = [];
    const stream = new OutputStream(
      epoll,
      write,
      () => {},
      (error) => broken.push(error.code),
    );
    closeSync(read);
    expect(stream.write(Uint8Array.of(1, 2, 3))).toBe(3);
    expect(stream.write(Uint8Array.of(4))).toBe(1);
    expect(broken).toEqual(["EPIPE"]);
    stream.close();
    epoll.close();
    closeSync(write);
  });

  test("two streams on one descriptor both hear of room", () => {
    const epoll = new Epoll();
    const [read, write] = pipe();
    const heard: string[] = [];
    const fail = (error: Error) => {
      throw error;
    };
    const one = new OutputStream(epoll, write, () => heard.push("one"), fail);
    const two = new OutputStream(epoll, write, () => heard.push("two"), fail);
    one.write(new Uint8Array(200_000));
    expect(two.write(new Uint8Array(10))).toBe(0);
    readSync(read, new Uint8Array(65_536));
    epoll.wait(1000);
    expect(heard.sort()).toEqual(["one", "two"]);
    one.close();
    two.close();
    epoll.close();
    closeSync(read);
    closeSync(write);
  });
});

describe("input", () => {
  test("what is not taken is held, in order, and the end comes last", () => {
    const epoll = new Epoll();
    const [read, write] = pipe();
    let room = 3;
    let text = "";
    let ended = false;
    const stream = new InputStream(
      epoll,
      read,
      (bytes) => {
        const taken = Math.min(room, bytes.length);
        text += new TextDecoder().decode(bytes.subarray(0, taken));
        room -= taken;
        return taken;
      },
      () => {
        ended = true;
      },
    );
    writeFileSync(write, "abcdef");
    closeSync(write);
    epoll.wait(0);
    expect(text).toBe("");
    stream.resume();
    epoll.wait(1000);
    expect(text).toBe("abc");
    expect(stream.blocked).toBe(true);
    epoll.wait(0);
    room = 2;
    stream.resume();
    expect(text).toBe("abcde");
    expect(ended).toBe(false);
    room = 10;
    stream.resume();
    expect(text).toBe("abcdef");
    epoll.wait(1000);
    expect(ended).toBe(true);
    stream.resume();
    expect(stream.wantsPump).toBe(false);
    epoll.close();
    closeSync(read);
  });

  test("a regular file has to be pumped", () => {
    const path = join(dir, "input");
    writeFileSync(path, "x".repeat(40_000));
    const fd = openFile(path);
    const epoll = new Epoll();
    let size = 0;
    let ended = false;
    const stream = new InputStream(
      epoll,
      fd,
      (bytes) => {
        size += bytes.length;
        return bytes.length;
      },
      () => {
        ended = true;
      },
    );
    stream.resume();
    for (let i = 0; i < 10 && stream.wantsPump; i++) stream.pump();
    expect({ size, ended }).toEqual({ size: 40_000, ended: true });
    epoll.close();
    closeSync(fd);
  });
});

describe("files", () => {
  test("a disk reads and writes shared memory and knows its size", () => {
    const path = join(dir, "disk");
    writeFileSync(path, Buffer.alloc(1000, 1));
    const opened = openDisk("d", path, false);
    const disk = new FileDisk(opened);
    const ram = new Uint8Array(new SharedArrayBuffer(1024));
    expect(disk.size).toBe(1000);
    expect(disk.readAt(512, [ram.subarray(0, 200), ram.subarray(200, 512)])).toBe(488);
    expect(ram[487]).toBe(1);
    expect(ram[488]).toBe(0);
    ram.fill(7);
    expect(disk.writeAt(0, [ram.subarray(0, 512)])).toBe(512);
    disk.sync();
    expect(readFileSync(path).subarray(0, 513)).toEqual(Buffer.concat([Buffer.alloc(512, 7), Buffer.of(1)]));
    expect(() => openDisk("e", path, true)).toThrow("in use by another microVM");
    closeSync(opened.fd);
    expect(() => openDisk("e", dir, true)).toThrow("must be a file or a block device");
    expect(() => openDisk("e", join(dir, "none"), true)).toThrow("No such file or directory (os error 2)");
  });

  test("the disk id is device and inode number, 20 bytes", () => {
    expect(diskId({ dev: 1n, rdev: 0n, ino: 23n })).toEqual(
      new Uint8Array([...new TextEncoder().encode("1023"), ...new Uint8Array(16)]),
    );
    expect(diskId({ dev: 2n ** 63n, rdev: 0n, ino: 2n ** 63n }).length).toBe(20);
  });

  test("archives are concatenated on multiples of 4, also when read in odd pieces", () => {
    const path = join(dir, "archive");
    writeFileSync(path, "abcde");
    const fd = openFile(path);
    const source = concatenated([
      { fd, path },
      new TextEncoder().encode("XYZ"),
      new TextEncoder().encode("!"),
    ]);
    const expected = "abcde\0\0\0XYZ\0!";
    expect(source.size).toBe(expected.length);
    for (let start = 0; start < expected.length; start++) {
      for (let end = start; end <= expected.length; end++) {
        const into = new Uint8Array(end - start).fill(0xff);
        readExact(source, start, into, "initrd");
        expect(new TextDecoder().decode(into)).toBe(expected.slice(start, end));
      }
    }
    closeSync(fd);
  });
});

test("control lines come whole from pieces, and a line without end is cut", () => {
  const lines: string[] = [];
  const read = lineReader((line) => lines.push(line));
  for (const piece of ["rea", "dy\nexit", " 0\n\n"]) expect(read(new TextEncoder().encode(piece))).toBe(true);
  for (let i = 0; i < 100; i++) read(new TextEncoder().encode("x".repeat(1000)));
  read(new TextEncoder().encode("\nlast\n"));
  expect(lines.slice(0, 3)).toEqual(["ready", "exit 0", ""]);
  expect(lines[3]).toBe("x".repeat(4096));
  expect(lines[4]).toBe("last");
});
