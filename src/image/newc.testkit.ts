/** A reader of newc archives for the tests, written from the format's description and not from the writer. */

export interface NewcEntry {
  ino: number;
  mode: number;
  uid: number;
  nlink: number;
  mtime: number;
  rdev: [number, number];
  data: Buffer;
}

/** Entries in order, by name; reads archives that follow one another, as the kernel does. */
export function readNewc(archive: Uint8Array): Map<string, NewcEntry> {
  const bytes = Buffer.from(archive);
  const entries = new Map<string, NewcEntry>();
  let at = 0;
  while (at < bytes.length) {
    if (bytes.toString("latin1", at, at + 6) !== "070701") throw new Error(`no newc header at ${at}`);
    const field = (index: number) =>
      Number.parseInt(bytes.toString("latin1", at + 6 + index * 8, at + 14 + index * 8), 16);
    const nameEnd = at + 110 + field(11);
    if (bytes[nameEnd - 1] !== 0) throw new Error("name without its NUL");
    const name = bytes.toString("utf8", at + 110, nameEnd - 1);
    const start = Math.ceil(nameEnd / 4) * 4;
    const end = start + field(6);
    if (end > bytes.length) throw new Error(`${name} is cut off`);
    if (name !== "TRAILER!!!") {
      const [ino, mode, uid, nlink, mtime] = [field(0), field(1), field(2), field(4), field(5)];
      entries.set(name, {
        ino,
        mode,
        uid,
        nlink,
        mtime,
        rdev: [field(9), field(10)],
        data: bytes.subarray(start, end),
      });
    }
    at = Math.ceil(end / 4) * 4;
  }
  return entries;
}
